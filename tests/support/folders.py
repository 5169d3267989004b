"""Temporary folders for tests."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def made_folder() -> Iterator[Path]:
    """Create an empty folder that every account may enter. Its path is short, because sockets are created in it."""
    path = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

"""Saved exports that somebody puts into the folder: copies of one export, each with an id of its own."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any


def plant(storage: Path, count: int, **changed: Any) -> list[str]:
    """Put copies of the first export of the folder next to it and return their ids. changed: fields of the manifest."""
    one = next(each for each in sorted(storage.iterdir()) if not each.name.startswith(".") and each.is_dir())
    manifest = json.loads((one / "manifest.json").read_text())
    data = {each.name: each.read_bytes() for each in one.glob("data.*")}
    ids = [secrets.token_urlsafe(16) for _ in range(count)]
    for id in ids:
        folder = storage / f".new-{id}"
        folder.mkdir(mode=0o700)
        (folder / "lock").touch(mode=0o600)
        for name, content in data.items():
            (folder / name).write_bytes(content)
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changed, "id": id}))
        folder.rename(storage / id)
    return ids

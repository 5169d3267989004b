"""The server, but its worker is killed at given steps on the disk: `python -m tests.support.dying_server serve`.

A step is a call that changes the disk of saved exports. DYING_PLAN is a file with one number a line: each worker takes
the first number and is killed right before that step. Without a number it is not killed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from server.__main__ import main
from tests.support.disk_modules import DISK_MODULES

STEPS = {"write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir"}

PLAN = Path(os.environ["DYING_PLAN"])


class DyingOs:
    """The module os, with a count of the steps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker = 0
        self._at = 0
        self._counter = itertools.count(1)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in STEPS and name != "open":
            return function

        def step(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:
                self._step()
            return function(*arguments, **named)

        return step

    def _step(self) -> None:
        with self._lock:
            if self._worker != os.getpid():
                self._worker = os.getpid()
                first, *rest = PLAN.read_text().split() or ["0"]
                PLAN.write_text("\n".join(rest))
                self._at = int(first)
                self._counter = itertools.count(1)
            if next(self._counter) == self._at:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    dying = DyingOs()
    for module in DISK_MODULES:
        module.os = dying  # type: ignore[attr-defined]
    sys.exit(main())

"""The server, but the disk of saved exports hangs while a file exists: `python -m tests.support.hanging_server serve`.

HANGING_CALL is the function of os that does not return while the file HANGING_FLAG exists. Each call that hangs adds a
byte to the file HANGING_CALLS.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from server.__main__ import main
from tests.support.disk_modules import DISK_MODULES

CALL = os.environ["HANGING_CALL"]
FLAG = Path(os.environ["HANGING_FLAG"])
CALLS = Path(os.environ["HANGING_CALLS"])


class HangingOs:
    """The module os, with one function that may hang."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name != CALL:
            return function

        def call(*arguments: Any, **named: Any) -> Any:
            if FLAG.exists():
                with CALLS.open("ab") as calls:
                    calls.write(b".")
                while FLAG.exists():
                    time.sleep(0.05)
            return function(*arguments, **named)

        return call


if __name__ == "__main__":
    hanging = HangingOs()
    for module in DISK_MODULES:
        module.os = hanging  # type: ignore[attr-defined]
    sys.exit(main())

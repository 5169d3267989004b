"""Stand-ins for the modules os and fcntl, of which one chosen call fails: an error of the file system at every step."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.saved import durable_files
from tests.support.disk_modules import DISK_MODULES

# Calls to the file system that the modules of saved exports make.
CALLS = {
    *("open", "close", "dup", "stat", "fstat", "fstatvfs", "scandir", "listdir", "read", "write", "fsync"),
    *("rename", "link", "unlink", "mkdir", "rmdir", "flock"),
}


class Calls:
    """Counts the calls to the file system and raises OSError in one of them.

    failing: the number of the call that fails, from 1. lasting: all calls after it fail too. made: the names of all
    calls so far.
    """

    def __init__(self, failing: int, error: int, *, lasting: bool = False) -> None:
        self.failing = failing
        self.error = error
        self.lasting = lasting
        self.made: list[str] = []
        self._lock = threading.Lock()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the stand-ins in the place of the real modules."""
        # `Path.mkdir` creates the folder of saved exports.
        for module in (*DISK_MODULES, sys.modules[Path.mkdir.__module__]):
            patch.setattr(module, "os", _Module(os, self))
        patch.setattr(durable_files, "fcntl", _Module(fcntl, self))

    @property
    def failed(self) -> bool:
        """Whether the chosen call has been made."""
        return len(self.made) >= self.failing

    def count(self, name: str) -> None:
        """Count a call of this name; raise if it is the chosen one."""
        with self._lock:
            self.made.append(name)
            number = len(self.made)
        if number == self.failing or (self.lasting and number > self.failing):
            raise OSError(self.error, os.strerror(self.error))


class _Module:
    def __init__(self, real: ModuleType, calls: Calls) -> None:
        self._real = real
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._real, name)
        if name not in CALLS:
            return function

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "close":  # which releases the descriptor even if it fails
                function(*arguments)
                return self._calls.count(name)
            self._calls.count(name)
            return function(*arguments, **named)

        return call

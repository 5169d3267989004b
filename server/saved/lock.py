"""The lock of one saved export: taken, checked and released. Knows no manifest.

Only the process that holds the lock of an export writes its manifest and its file.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import Final

from server.saved import durable_files

# The file in the folder of an export that is locked.
LOCK: Final = "lock"


class ExportLock:
    """A lock that this process holds until `close`. Made by `take_lock`.

    id: the export. folder: the descriptor of its folder.
    """

    def __init__(self, id: str, root: int, folder: int, descriptor: int) -> None:
        """root, folder, descriptor: open descriptors of the parent folder, the folder and the locked file."""
        self.id = id
        self.folder = folder
        self._root = root
        self._descriptor = descriptor
        self._open = ExitStack()
        for each in (folder, descriptor, root):
            self.close_with_it(each)

    def close_with_it(self, descriptor: int) -> None:
        """Close this descriptor too when the lock is released."""
        self._open.callback(durable_files.close, descriptor)

    def close(self) -> None:
        """Release the lock. Nothing of the export may be written afterwards."""
        self._open.close()

    def in_place(self) -> bool:
        """Return whether the folder still has the name of the export: it may have been removed. Raise OSError."""
        return durable_files.in_place(self._root, self.id, self.folder)

    def is_held(self) -> bool:
        """Return whether this process still holds the lock: a network file system may lose it. Raise OSError."""
        return durable_files.holds_lock(self.folder, LOCK, self._descriptor)


def take_lock(root: int, id: str) -> ExportLock | None:
    """Lock the export with this id in the folder `root`. Return None if another process holds the lock.

    Raise FileNotFoundError if there is no such export any more, and OSError.
    """
    with ExitStack() as opened:
        folder = durable_files.folder_descriptor(id, root)
        opened.callback(durable_files.close, folder)
        descriptor = durable_files.try_lock(folder, LOCK)
        if descriptor is None:
            return None
        opened.callback(durable_files.close, descriptor)
        if not durable_files.in_place(root, id, folder):
            raise FileNotFoundError(errno.ENOENT, "the folder was removed while it was being locked")
        # A descriptor of its own: the caller closes `root` long before the lock is released.
        lock = ExportLock(id, os.dup(root), folder, descriptor)
        opened.pop_all()
        return lock

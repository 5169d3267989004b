"""What the workers of one server tell each other about their connections, which share the limits of the database.

Each worker holds shared locks on a file that all of them have inherited: on its first byte while it has a session of
the database open, on its second one while it has unused connections. The kernel releases the locks of a worker that is
killed. The content of the file is the time at which a worker has last asked the others for their unused connections.
Waits for nothing: a worker asks who holds a lock, and never for a lock that another one could refuse. Source: fcntl(2),
"Advisory record locking".
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time

# struct flock of Linux on 64 bits: l_type, l_whence, l_start, l_len, l_pid. Elsewhere it has another order.
_FLOCK = struct.Struct("@hhqqi")
# A number of nanoseconds.
_TIME = struct.Struct("@q")
_SESSIONS, _UNUSED = 0, 1


class SessionsOfWorkers:
    """The workers of one server. Create it before they are forked, and use it in each of them.

    On other systems than Linux it knows nothing of other workers.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("sluice-sessions") if sys.platform == "linux" else None
        self._marked = False
        self._has_unused = False

    def mark(self, has_sessions: bool) -> None:
        """Note whether this worker has sessions."""
        if self._file is not None and has_sessions is not self._marked:
            _note(self._file, _SESSIONS, has_sessions)
            self._marked = has_sessions

    def mark_unused(self, has_unused: bool) -> None:
        """Note whether this worker has connections that it does not use."""
        if self._file is not None and has_unused is not self._has_unused:
            _note(self._file, _UNUSED, has_unused)
            self._has_unused = has_unused

    def others_have_some(self) -> bool:
        """Return whether another worker has sessions."""
        return self._file is not None and _others_note(self._file, _SESSIONS)

    def ask_for_unused(self) -> bool:
        """Ask the other workers to close the connections that they do not use. Return whether one of them has some."""
        if self._file is None or not _others_note(self._file, _UNUSED):
            return False
        os.pwrite(self._file, _TIME.pack(time.monotonic_ns()), 0)
        return True

    def last_asked(self) -> int:
        """Return when a worker has last asked: a number that is another one after each time, 0 for never."""
        found = b"" if self._file is None else os.pread(self._file, _TIME.size, 0)
        asked: int = _TIME.unpack(found)[0] if found else 0
        return asked


def _note(file: int, byte: int, holds: bool) -> None:
    fcntl.lockf(file, fcntl.LOCK_SH if holds else fcntl.LOCK_UN, 1, byte)


def _others_note(file: int, byte: int) -> bool:
    # The lock that would prevent an exclusive one of this process. Its own locks do not count.
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    held: int = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
    return held != fcntl.F_UNLCK

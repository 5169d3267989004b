"""Whether another worker of this server has a session of the database open.

Each worker that has one holds a shared lock on a file that all of them have inherited. The kernel releases the lock of
a worker that is killed. Waits for nothing: a worker asks who holds a lock, and never for a lock that another one could
refuse. Source: fcntl(2), "Advisory record locking".
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys

# struct flock of Linux on 64 bits: l_type, l_whence, l_start, l_len, l_pid. Elsewhere it has another order.
_FLOCK = struct.Struct("@hhqqi")


class SessionsOfWorkers:
    """The workers of one server. Create it before they are forked, and use it in each of them.

    On other systems than Linux it knows nothing of other workers.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("sluice-sessions") if sys.platform == "linux" else None
        self._marked = False

    def mark(self, has_sessions: bool) -> None:
        """Note whether this worker has sessions."""
        if self._file is not None and has_sessions is not self._marked:
            fcntl.lockf(self._file, fcntl.LOCK_SH if has_sessions else fcntl.LOCK_UN)
            self._marked = has_sessions

    def others_have_some(self) -> bool:
        """Return whether another worker has sessions."""
        if self._file is None:
            return False
        # The lock that would prevent an exclusive one of this process. Its own locks do not count.
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        held: int = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))[0]
        return held != fcntl.F_UNLCK

"""The saved exports as they are now. The folder is the only state, so any number of processes see the same.

Keeps a record of each export, so that a look at the folder costs little: the names are read again only when the folder
has changed, a manifest only when it has changed. Changes nothing on the disk. Every method may block on the disk: call
it in a thread. Several threads may call at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.saved import durable_files
from server.saved.errors import ExportNotFound, ExportUnreadable
from server.saved.folder import MANIFEST, Folder, Stamp, progress_in, stamp_of
from server.saved.known import Known, Place, Record
from server.saved.manifest import EXPORT_ID
from server.saved.status import Entry, shortened

# The names of folders that do not have the name of an export yet, and that no longer have it. No id has a dot.
NEW_PREFIX, REMOVED_PREFIX = ".new-", ".gone-"

# Exports that are known at most, and names without a usable manifest, which bounds the memory to about 100 MB. Further
# ones wait unseen until others are removed; a POST is refused long before.
MOST_KNOWN, MOST_UNREADABLE = 50_000, 200_000
# Seconds for which a folder must not have changed before its time of change is believed: file systems store times with
# a resolution of milliseconds or, some, of a second.
SETTLED_SECONDS = 2.0
# Seconds after which the names are read again in any case: not every network file system tells each change at once.
NAMES_SECONDS = 10.0
# The part of the time that reading the names may take in a folder with very many entries.
_NAMES_SHARE = 0.1
# Manifests that are compared with their records at each sweep, in turn: of those that have ended, which nothing but an
# editor changes, and of those that could not be read.
ENDED_PER_SWEEP, UNREADABLE_PER_SWEEP = 100, 1000
# Seconds within which a file that was changed may change again and have the same time.
_SAME_TIME_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Page:
    """Some exports, newest first. next: the place before the next ones, None if there are none. total: of all."""

    entries: list[Entry]
    next: Place | None
    total: int


class Store(Folder):
    """The saved exports in the folder at this path."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.RLock()
        self._known = Known()
        # The manifests that have been read, by id. Those that could not be read: None if they are to be read again.
        self._stamps: dict[str, Stamp] = {}
        self._unreadable: OrderedDict[str, Stamp | None] = OrderedDict()
        # The ids of ended exports in the order in which they are compared with the disk.
        self._to_compare: list[str] = []
        # Names of folders that processes which were killed have left, as of the last reading of the names.
        self.left_behind: list[str] = []
        # Device, inode and time of the folder when its names were last read; when they changed, and when they were read
        # (monotonic time), and how long that took.
        self._folder: tuple[int, int, int] = (0, 0, 0)
        self._changed = self._read = self._took = 0.0

    # --- looking ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def known(self, root: int, *, states: bool = True) -> Iterator[Known]:
        """Look at the folder, then yield what is known, for this thread alone while the block runs.

        states: look at each unfinished export too; without it, only at those that are new. Raise OSError.
        """
        with self._lock:
            self._read_names(root)
            if states:
                for id in list(self._known.unfinished):
                    self._compare(root, id)
                self._compare_unreadable(root)
            yield self._known

    def see(self, root: int, id: str) -> None:
        """Look at this export: it has just been created or changed. Raise OSError."""
        with self._lock:
            self._compare(root, id)

    def compare_some(self, root: int) -> None:
        """Compare the next records of ended exports with their manifests: somebody may have edited them."""
        with self._lock:
            if not self._to_compare:
                self._to_compare = list(self._known.ids() - self._known.unfinished)
            for _ in range(min(ENDED_PER_SWEEP, len(self._to_compare))):
                self._compare(root, self._to_compare.pop())

    def _read_names(self, root: int) -> None:
        """Read the names in the folder if it has changed; look at new exports and forget those that are gone."""
        status, now = os.fstat(root), time.monotonic()
        folder = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if folder[:2] != self._folder[:2]:
            self._forget_all()
        elif self._names_are_current(folder, now):
            return
        if folder != self._folder:
            self._folder, self._changed = folder, now
        names = durable_files.list_names(root)
        ids = {name for name in names if len(name) == 22 and EXPORT_ID.fullmatch(name)}
        self.left_behind = [name for name in names if name.startswith((REMOVED_PREFIX, NEW_PREFIX))]
        seen = self._known.ids() | self._unreadable.keys()
        self._read = time.monotonic()
        self._took = self._read - now
        for id in seen - ids:
            self.gone(id)
        for id in ids - seen:
            if len(self._known) >= MOST_KNOWN or len(self._unreadable) >= MOST_UNREADABLE:
                self.report("", "it holds more exports than this server handles")
                break
            self._compare(root, id)

    def _names_are_current(self, folder: tuple[int, int, int], now: float) -> bool:
        if self._took > 0.02 and now - self._read < self._took / _NAMES_SHARE:
            return True
        unchanged = folder == self._folder and now - self._changed > SETTLED_SECONDS
        return unchanged and now - self._read < NAMES_SECONDS

    def _compare(self, root: int, id: str) -> None:
        """Read the manifest of this export if it is not the one that is known."""
        try:
            status = os.stat(f"{id}/{MANIFEST}", dir_fd=root, follow_symlinks=False)
        except OSError as error:
            self._put_unreadable(id, None)
            if not durable_files.is_missing(error):
                self.report(id, error.strerror or "it cannot be read")
            return
        stamp = stamp_of(status)
        if self._stamps.get(id) == stamp or self._unreadable.get(id) == stamp:
            return
        try:
            with self.open_folder(root, id) as folder:
                read, entry = self.read_stamped(folder, id)
        except (ExportNotFound, ExportUnreadable) as error:
            lasting = isinstance(error, ExportUnreadable) and not isinstance(error.__cause__, OSError)
            settled = time.time() - status.st_mtime > _SAME_TIME_SECONDS
            self._put_unreadable(id, stamp if lasting and settled else None)
        except OSError as error:
            self._put_unreadable(id, None)
            self.report(id, error.strerror or "it cannot be read")
        else:
            self._unreadable.pop(id, None)
            self._stamps[id] = read
            self._known.put(Record(shortened(entry), read[-1]))

    def _compare_unreadable(self, root: int) -> None:
        for _ in range(min(UNREADABLE_PER_SWEEP, len(self._unreadable))):
            id = next(iter(self._unreadable))
            self._unreadable.move_to_end(id)
            self._compare(root, id)

    def _put_unreadable(self, id: str, stamp: Stamp | None) -> None:
        self._known.drop(id)
        self._stamps.pop(id, None)
        self._unreadable[id] = stamp

    def gone(self, id: str) -> None:
        """Forget this export: it has been removed."""
        with self._lock:
            self._known.drop(id)
            self._stamps.pop(id, None)
            self._unreadable.pop(id, None)
            self.forget(id)

    def _forget_all(self) -> None:
        self._known = Known()
        self._stamps.clear()
        self._unreadable.clear()
        self._to_compare.clear()

    # --- lists ------------------------------------------------------------------------------------------------------

    def newest_first(self, after: Place | None = None) -> list[Entry]:
        """Return all exports, newest first, shortened. Those that cannot be read are logged and left out.

        after: only those created before this place. The progress is that of the last look. Raise StorageUnavailable,
        NoSpaceLeft.
        """
        with self.open_root() as root, self.known(root) as known:
            return [record.entry for record in known.newest_first(after)]

    def page(self, after: Place | None, most: int) -> Page:
        """Return the newest exports created before this place, as they are at this moment. most: how many."""
        with self.open_root() as root, self.known(root, states=False) as known:
            records = list(itertools.islice(known.newest_first(after), most + 1))
            total = len(known)
        manifests = [record.entry.manifest for record in records[:most]]
        found = self.current(manifest.id for manifest in manifests)
        last = manifests[-1] if len(records) > most else None
        return Page(
            [entry for entry in found.values() if entry is not None],
            None if last is None else (last.created_at, last.id),
            total,
        )

    def current(self, ids: Iterable[str]) -> dict[str, Entry | None]:
        """Return these exports as they are at this moment, shortened; None for one that is gone.

        Those that cannot be read are left out. Raise StorageUnavailable, NoSpaceLeft.
        """
        found: dict[str, Entry | None] = {}
        with self.open_root() as root:
            for id in ids:
                with contextlib.suppress(ExportUnreadable):
                    found[id] = self._current(root, id)
        return found

    def _current(self, root: int, id: str) -> Entry | None:
        with self._lock:
            if id in self._known.ids():
                self._compare(root, id)
            record = self._known.get(id)
        if record is not None:
            return record.entry if record.entry.manifest.finished else self._with_progress(root, record.entry)
        with contextlib.suppress(ExportNotFound), self.open_folder(root, id) as folder:
            return shortened(self.read_entry(folder, id))  # another process may just have created it
        return None

    def _with_progress(self, root: int, entry: Entry) -> Entry:
        try:
            with self.open_folder(root, entry.manifest.id) as folder:
                return Entry(entry.manifest, progress_in(folder))
        except ExportNotFound:
            return entry

    def running_bytes(self, root: int, known: Known) -> int:
        """Return how many bytes the running exports have written. known: as `known` yields it."""
        entries = [record.entry for id in known.unfinished if (record := known.get(id)) is not None]
        running = [entry for entry in entries if entry.manifest.status == "processing"]
        return sum(self._with_progress(root, entry).progress.bytes for entry in running)

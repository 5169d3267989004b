"""The space that saved exports may take, and the removal of those that have expired or exceed it.

Knows running exports only by the bytes that they have written. Every method may block on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time

from server.errors import ExportError, ExportNotFound
from server.events import Event, emit
from server.saved import durable_files
from server.saved.events import ExportEvicted, ExportExpired
from server.saved.lock import take_lock
from server.saved.manifest import Manifest, utc_now
from server.saved.status import expires_at
from server.saved.store import Entry, Store, no_space_left
from server.settings import Settings

# The names of folders that do not have the name of an export yet, and that no longer have it. No id has a dot.
NEW_PREFIX, REMOVED_PREFIX = ".new-", ".gone-"
# Seconds after which a new folder without its final name was left by a process that was killed: creating one takes
# milliseconds.
_ABANDONED_SECONDS = 600.0


class Quota:
    """The limits on the disk space of this store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._retention = settings.export_retention
        self._limit = settings.export_storage_limit
        self._min_free = settings.export_min_free_space

    def check_free_space(self) -> None:
        """Raise NoSpaceLeft if the disk has less than EXPORT_MIN_FREE_SPACE. Takes microseconds.

        Raise StorageUnavailable.
        """
        with self._store.open_root() as root:
            if durable_files.free_bytes(root) < self._min_free:
                raise no_space_left()

    def enforce_limit(self) -> None:
        """Remove the oldest finished exports until all exports are within EXPORT_STORAGE_LIMIT.

        Raise NoSpaceLeft, and remove nothing, if the unfinished ones alone exceed it. Raise StorageUnavailable.
        """
        if not self._limit:
            return
        with self._store.open_root() as root:
            entries = self._store.read_entries(root)
            if sum(_bytes(entry) for entry in entries if not entry.manifest.finished) > self._limit:
                raise no_space_left()
            used = sum(_bytes(entry) for entry in entries)
            completed = [entry.manifest for entry in entries if entry.manifest.status == "completed"]
            for manifest in sorted(completed, key=lambda manifest: manifest.completed_at or manifest.created_at):
                if used <= self._limit:
                    break
                if self._remove_or_report(root, manifest, ExportEvicted(export_id=manifest.id, bytes=manifest.bytes)):
                    used -= manifest.bytes or 0
        if used > self._limit:
            raise no_space_left()

    def remove_expired(self) -> None:
        """Remove exports that finished EXPORT_RETENTION ago, and folders that killed processes have left behind.

        Raise StorageUnavailable, NoSpaceLeft.
        """
        now = utc_now()
        with self._store.open_root() as root:
            for entry in self._store.read_entries(root):
                expiry = expires_at(entry.manifest, self._retention)
                if expiry is not None and expiry <= now:
                    self._remove_or_report(root, entry.manifest, ExportExpired(export_id=entry.manifest.id))
            for name in durable_files.list_names(root):
                if name.startswith((REMOVED_PREFIX, NEW_PREFIX)):
                    with contextlib.suppress(OSError):
                        created = os.stat(name, dir_fd=root, follow_symlinks=False).st_mtime
                        if name.startswith(REMOVED_PREFIX) or time.time() - created > _ABANDONED_SECONDS:
                            durable_files.remove_folder(root, name, name)

    def remove(self, root: int, seen: Manifest) -> bool:
        """Remove this finished export with everything in its folder. Return False if another process holds its lock.

        seen: its manifest when the removal was decided. The same Idempotency-Key gives the same id again, so the id
        may belong to a newer export now. That one is left alone, and True is returned: the export seen is gone. Raise
        ExportUnreadable, OSError.
        """
        try:
            lock = take_lock(root, seen.id)
            if lock is None:
                return False
            with contextlib.closing(lock):
                manifest = self._store.read_entry(lock.folder, seen.id).manifest
                if manifest.finished and manifest == seen:
                    durable_files.remove_folder(root, seen.id, REMOVED_PREFIX + secrets.token_hex(8))
        except (ExportNotFound, FileNotFoundError):
            pass  # another process has removed it
        return True

    def _remove_or_report(self, root: int, seen: Manifest, event: Event) -> bool:
        """Remove the export and emit the event. Return whether its space is free now or will be soon.

        If its lock is held, another process is removing it or has just completed it; the next call handles it.
        """
        try:
            if self.remove(root, seen):
                emit(event)
        except (OSError, ExportError) as error:
            self._store.report(seen.id, str(error))
            return False
        return True


def _bytes(entry: Entry) -> int:
    if entry.manifest.status == "processing":
        return entry.progress.bytes
    return entry.manifest.bytes or 0

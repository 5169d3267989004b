"""What saved exports may take of the disk, and what has to go: expired ones, the oldest where there are too many.

Knows nothing of running exports but the bytes that they have taken. May block on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from contextlib import ExitStack

import structlog

from server.errors import ExportError, ExportNotFound
from server.saved import durable_files
from server.saved.manifest import Manifest, utc_now
from server.saved.status import expires_at
from server.saved.store import LOCK, Entry, Store, no_space_left
from server.settings import Settings

log = structlog.stdlib.get_logger("sluice.queue")

# Folders that have not got the name of an export yet, and that have lost it: of our own, since no id has a dot.
NEW, GONE = ".new-", ".gone-"
# Seconds after which a folder that was never given its name was left by a process that is gone.
_ABANDONED = 600.0


class Quota:
    """The room for saved exports on this store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._retention = settings.export_retention
        self._limit = settings.export_storage_limit
        self._min_free = settings.export_min_free_space

    def check_disk(self) -> None:
        """Raises NoSpaceLeft where the disk has less than EXPORT_MIN_FREE_SPACE. Cheap."""
        with self._store.root() as root:
            if durable_files.free_bytes(root) < self._min_free:
                raise no_space_left()

    def check_limit(self) -> None:
        """Remove the oldest finished files until all are within EXPORT_STORAGE_LIMIT.

        Raises NoSpaceLeft, and removes nothing, where that would not help.
        """
        if not self._limit:
            return
        with self._store.root() as root:
            entries = self._store.entries(root)
            if sum(_bytes(entry) for entry in entries if not entry.manifest.finished) > self._limit:
                raise no_space_left()
            used = sum(_bytes(entry) for entry in entries)
            completed = [entry.manifest for entry in entries if entry.manifest.status == "completed"]
            for manifest in sorted(completed, key=lambda manifest: manifest.completed_at or manifest.created_at):
                if used <= self._limit:
                    break
                if self._remove_or_report(root, manifest, "export removed to make room", bytes=manifest.bytes):
                    used -= manifest.bytes or 0
        if used > self._limit:
            raise no_space_left()

    def remove_expired(self) -> None:
        """Remove finished exports after EXPORT_RETENTION, and what killed processes have left of folders."""
        now = utc_now()
        with self._store.root() as root:
            for entry in self._store.entries(root):
                expiry = expires_at(entry.manifest, self._retention)
                if expiry is not None and expiry <= now:
                    self._remove_or_report(root, entry.manifest, "export expired")
            for name in durable_files.names_in(root):
                if name.startswith((GONE, NEW)):
                    with contextlib.suppress(OSError):
                        made = os.stat(name, dir_fd=root, follow_symlinks=False).st_mtime
                        if name.startswith(GONE) or time.time() - made > _ABANDONED:
                            durable_files.remove_folder(root, name, name)

    def remove(self, root: int, seen: Manifest) -> bool:
        """Remove this finished export with everything that is in its folder; False while another holds its lock.

        seen: its manifest as it was when the removal was decided. The same Idempotency-Key gives the same id again, so
        what has the id by now may be another export, which is left alone: the one that was seen is gone.
        """
        with ExitStack() as held:
            try:
                folder = held.enter_context(self._store.folder(root, seen.id))
                lock = durable_files.try_lock(folder, LOCK)
                if lock is None:
                    return False
                held.callback(os.close, lock)
                manifest = self._store.entry(folder, seen.id).manifest
            except (ExportNotFound, FileNotFoundError):
                return True
            if manifest.finished and manifest == seen and durable_files.in_place(root, seen.id, folder):
                durable_files.remove_folder(root, seen.id, GONE + secrets.token_hex(8))
            return True

    def _remove_or_report(self, root: int, seen: Manifest, event: str, **values: object) -> bool:
        """Remove it; whether it takes no room any more, or soon will not.

        One whose lock is held is just being removed, or was completed this moment: the next look sees to it.
        """
        try:
            if self.remove(root, seen):
                log.info(event, exportId=seen.id, **values)
        except (OSError, ExportError) as error:
            self._store.report(seen.id, str(error))
            return False
        return True


def _bytes(entry: Entry) -> int:
    if entry.manifest.status == "processing":
        return entry.progress.bytes
    return entry.manifest.bytes or 0

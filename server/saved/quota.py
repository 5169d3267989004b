"""The limits on saved exports: how many there may be and how much space they take. Removes what exceeds them.

Knows running exports only by the bytes that they have written. Every method may block on the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time

from server.errors import ExportError
from server.events import Event, emit
from server.saved import durable_files
from server.saved.errors import ExportNotFound, TooManyExports, TooManyWaiting
from server.saved.events import ExportEvicted, ExportExpired
from server.saved.folder import no_space_left
from server.saved.known import Known
from server.saved.lock import take_lock
from server.saved.manifest import Manifest, utc_now
from server.saved.status import expires_at
from server.saved.store import REMOVED_PREFIX, Store
from server.settings import Settings

# Bytes of all manifests together. One has about 700 bytes, or more if its request is long.
MOST_MANIFEST_BYTES = 64 << 20
# Seconds after which a new folder without its final name was left by a process that was killed: creating one takes
# milliseconds.
_ABANDONED_SECONDS = 600.0
# Seconds that one removal of what has expired may take. The next one continues.
_REMOVING_SECONDS = 0.5


class Quota:
    """The limits on the exports in this store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._retention = settings.export_retention
        self._limit = settings.export_storage_limit
        self._min_free = settings.export_min_free_space
        self._most_waiting = settings.max_waiting_exports
        self._most_kept = settings.max_saved_exports

    def check_free_space(self) -> None:
        """Raise NoSpaceLeft if the disk has less than EXPORT_MIN_FREE_SPACE. Takes microseconds.

        Raise StorageUnavailable.
        """
        with self._store.open_root() as root:
            if durable_files.free_bytes(root) < self._min_free:
                raise no_space_left()

    def check_new(self, root: int, *, manifest_bytes: int, others: int) -> None:
        """Raise TooManyWaiting, TooManyExports or NoSpaceLeft if there may not be another export.

        manifest_bytes: of the new one. others: new exports that are being written at this moment. If there are too many
        exports, the oldest ones without a file (failed, cancelled) are removed first. Raise OSError.
        """
        with self._store.known(root, states=False) as known:
            too_many = len(known.unfinished) + others >= self._most_waiting
            full = self._is_full(known, manifest_bytes, others)
        # At a limit, some may have ended since the last look at them.
        with self._store.known(root, states=too_many or full) as known:
            if len(known.unfinished) + others >= self._most_waiting:
                raise too_many_waiting(self._most_waiting)
            if self._limit and known.unfinished_bytes + manifest_bytes > self._limit:
                raise no_space_left()
            useless = self._without_file(known, manifest_bytes, others)
        for manifest in useless:
            self._remove_or_report(root, manifest, ExportEvicted(export_id=manifest.id, bytes=manifest.bytes))
        with self._store.known(root, states=False) as known:
            if self._is_full(known, manifest_bytes, others):
                raise too_many_exports(self._most_kept)

    def _is_full(self, known: Known, manifest_bytes: int, others: int) -> bool:
        return len(known) + others >= self._most_kept or known.manifest_bytes + manifest_bytes > MOST_MANIFEST_BYTES

    def _without_file(self, known: Known, manifest_bytes: int, others: int) -> list[Manifest]:
        """Return the oldest failed and cancelled exports whose removal makes room for another, none if it cannot."""
        surplus = len(known) + others + 1 - self._most_kept
        bytes_over = known.manifest_bytes + manifest_bytes - MOST_MANIFEST_BYTES
        found: list[Manifest] = []
        for record in known.without_file():
            if surplus <= 0 and bytes_over <= 0:
                return found
            found.append(record.entry.manifest)
            surplus, bytes_over = surplus - 1, bytes_over - record.manifest_bytes
        return found if surplus <= 0 and bytes_over <= 0 else []

    def enforce_limit(self) -> None:
        """Remove the exports that ended first until all exports, with their manifests, are within EXPORT_STORAGE_LIMIT.

        Raise NoSpaceLeft, and remove nothing, if the unfinished ones alone exceed it. Raise StorageUnavailable.
        """
        if not self._limit:
            return
        with self._store.open_root() as root:
            with self._store.known(root) as known:
                unfinished = self._store.running_bytes(root, known) + known.unfinished_bytes
                if unfinished > self._limit:
                    raise no_space_left()
                surplus: list[tuple[Manifest, int]] = []
                left = used = unfinished + known.ended_bytes
                for record in known.ended():
                    if left <= self._limit:
                        break
                    surplus.append((record.entry.manifest, record.bytes))
                    left -= record.bytes
            for manifest, size in surplus:
                if self._remove_or_report(root, manifest, ExportEvicted(export_id=manifest.id, bytes=manifest.bytes)):
                    used -= size
        if used > self._limit:
            raise no_space_left()

    def remove_expired(self) -> None:
        """Remove exports that finished EXPORT_RETENTION ago, and folders that killed processes have left behind.

        Takes a bounded time; the next call continues. Raise StorageUnavailable, NoSpaceLeft.
        """
        now, deadline = utc_now(), time.monotonic() + _REMOVING_SECONDS
        with self._store.open_root() as root:
            expired: list[Manifest] = []
            with self._store.known(root, states=False) as known:
                for record in known.ended():
                    expiry = expires_at(record.entry.manifest, self._retention)
                    if expiry is None or expiry > now:
                        break  # the others ended later
                    expired.append(record.entry.manifest)
                left_behind = list(self._store.left_behind)
            for manifest in expired:
                if time.monotonic() > deadline:
                    return
                self._remove_or_report(root, manifest, ExportExpired(export_id=manifest.id))
            for name in left_behind:
                if time.monotonic() > deadline:
                    return
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
                if manifest.finished and is_same(manifest, seen):
                    durable_files.remove_folder(root, seen.id, REMOVED_PREFIX + secrets.token_hex(8))
                    self._store.gone(seen.id)
        except (ExportNotFound, FileNotFoundError):
            self._store.gone(seen.id)  # another process has removed it
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


def is_same(manifest: Manifest, seen: Manifest) -> bool:
    """Return whether this is the export that was seen, and not a newer one of the same id. seen: may be shortened."""
    return (manifest.created_at, manifest.status, manifest.completed_at) == (
        seen.created_at,
        seen.status,
        seen.completed_at,
    )


def too_many_waiting(most: int) -> TooManyWaiting:
    """Return the error for MAX_WAITING_EXPORTS."""
    return TooManyWaiting(
        f"Too many saved exports wait or run: the server takes {most}.",
        hint="Try again when some of them have finished, or DELETE those that are not needed. "
        "The operator can raise MAX_WAITING_EXPORTS.",
    )


def too_many_exports(most: int) -> TooManyExports:
    """Return the error for MAX_SAVED_EXPORTS, and for manifests that take too much space."""
    return TooManyExports(
        f"The server keeps too many saved exports: it takes {most}, with {MOST_MANIFEST_BYTES >> 20} MB of requests.",
        hint="DELETE saved exports that are not needed, at /saved or with DELETE /exports/{id}. "
        "The operator can raise MAX_SAVED_EXPORTS or lower EXPORT_RETENTION.",
    )

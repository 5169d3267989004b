"""The queue of saved exports: create one, find the next one to run, cancel, remove, and recover after a crash.

An export is a folder with a manifest, a lock and a file. Uses files only: no event loop, no PostgreSQL, no HTTP. Every
method may block on the disk: call it in a thread. Several threads and several processes may call at once.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import threading
from collections.abc import Container, Iterator
from contextlib import ExitStack

from server.errors import ExportError
from server.events import emit
from server.saved import durable_files
from server.saved.claim import Claim, LockLost
from server.saved.errors import ExportNotFound, ExportUnreadable, KeyReused
from server.saved.events import ExportLockLost
from server.saved.export_ids import id_of_key, random_id, read_secret
from server.saved.folder import CANCEL, MANIFEST, folder_unusable
from server.saved.lock import LOCK, take_lock
from server.saved.manifest import Manifest, NewExport, utc_now, write_manifest
from server.saved.quota import Quota
from server.saved.recovery import may_need_recovery, recover
from server.saved.status import Entry, Progress
from server.saved.store import NEW_PREFIX, Store
from server.settings import Settings

# The names of the files whose locks bound the exports that run at once; no id begins with a dot.
_SLOT_PREFIX = ".slot-"
# How many times the export of a key may be removed between "the name exists" and reading it; more than that means that
# the folder is damaged.
_MOST_TRIES = 5
# More than any back-off. A longer wait comes from a clock that was wrong.
_LONGEST_WAIT = datetime.timedelta(minutes=2)


class Queue:
    """The saved exports in the folder of these settings."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.export_storage_path)
        self.quota = Quota(self.store, settings)
        self._max_attempts = settings.export_max_attempts
        self._max_running = settings.max_running_exports
        # New exports that threads of this process are writing: they count before they can be seen.
        self._creating = 0
        self._counting = threading.Lock()

    def prepare(self) -> None:
        """Create the folder if there is none, and check that it is writable. Raise StorageUnavailable, NoSpaceLeft."""
        try:
            self.store.path.mkdir(mode=durable_files.FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise self.store.unavailable(error) from error
        with self.store.open_root() as root:
            read_secret(root)
            trial = NEW_PREFIX + secrets.token_hex(8)
            os.mkdir(trial, durable_files.FOLDER_MODE, dir_fd=root)
            os.rmdir(trial, dir_fd=root)

    # --- creating ---------------------------------------------------------------------------------------------------

    def find(self, key: str, target: str, query: str) -> Entry | None:
        """Return the export that this Idempotency-Key has created, or None. Raise KeyReused if it was another one.

        target, query: of the request's URL, percent-encoded.
        """
        with self.store.open_root() as root:
            id = id_of_key(root, key)
            try:
                with self.store.open_folder(root, id) as folder:
                    entry = self.store.read_entry(folder, id)
            except ExportNotFound:
                return None
            if (entry.manifest.target, entry.manifest.query) != (target, query):
                raise KeyReused(
                    "This Idempotency-Key has been used with another request.",
                    hint="Use a new key for each new request.",
                )
            os.fsync(root)  # the process that created it may not have done so yet
            return entry

    def create(self, new: NewExport, key: str | None = None) -> Entry:
        """Create an export durably and return it, or return the one that this key has created before.

        Raise NoSpaceLeft, TooManyWaiting, TooManyExports, KeyReused, StorageUnavailable, ExportUnreadable.
        """
        self.quota.check_free_space()
        with self.store.open_root() as root:
            manifest = new.manifest(random_id() if key is None else id_of_key(root, key))
            with self._counted(root, len(write_manifest(manifest))):
                for _ in range(_MOST_TRIES):
                    if self._publish(root, manifest):
                        self.store.see(root, manifest.id)
                        return Entry(manifest, Progress())
                    existing = None if key is None else self.find(key, new.target, new.query)
                    if existing is not None:  # None: it was removed in between
                        return existing
        self.store.report(manifest.id, "there is something without a manifest in its place")
        raise folder_unusable("Use a new Idempotency-Key, or ask the operator to remove the folder. The log names it.")

    @contextlib.contextmanager
    def _counted(self, root: int, manifest_bytes: int) -> Iterator[None]:
        """Count a new export from the check of the limits until the block ends. Raise what `Quota.check_new` raises.

        Other processes may create exports at the same moment, so a limit may be exceeded by as many as there are.
        """
        with self._counting:
            self.quota.check_new(root, manifest_bytes=manifest_bytes, others=self._creating)
            self._creating += 1
        try:
            yield
        finally:
            with self._counting:
                self._creating -= 1

    def _publish(self, root: int, manifest: Manifest) -> bool:
        """Create the folder of an export atomically. Return False if there is one of this name."""
        name = NEW_PREFIX + secrets.token_hex(8)
        os.mkdir(name, durable_files.FOLDER_MODE, dir_fd=root)
        try:
            with durable_files.open_folder(name, root) as folder:
                durable_files.close(durable_files.create_file(folder, LOCK))
                durable_files.write_file(folder, MANIFEST, write_manifest(manifest))
            os.rename(name, manifest.id, src_dir_fd=root, dst_dir_fd=root)
        except OSError as error:
            durable_files.remove_folder(root, name, name)
            if durable_files.is_name_taken(error):
                return False
            raise
        os.fsync(root)
        return True

    # --- running ----------------------------------------------------------------------------------------------------

    def claim(self, skipped: Container[str] = ()) -> Claim | None:
        """Claim the next export to run, and a slot. Return None if there is no export or no slot.

        skipped: ids to leave out. Raise StorageUnavailable, NoSpaceLeft.
        """
        with self.store.open_root() as root, ExitStack() as held:
            with self.store.known(root, states=False) as known:
                some_wait = known.any_pending
            slot = self._take_slot(root) if some_wait else None
            if slot is None:
                return None
            held.callback(durable_files.close, slot)
            for id in self._due(root, skipped):
                claim = self._claim_pending(root, id)
                if claim is not None:
                    claim.attach_slot(slot)
                    held.pop_all()
                    return claim
        return None

    def _due(self, root: int, skipped: Container[str]) -> list[str]:
        """Return the ids of the exports that wait and may run now, oldest first, as of the last look at each."""
        now = utc_now()
        with self.store.known(root, states=False) as known:
            waiting = [record.entry.manifest for record in known.pending()]
        return [each.id for each in waiting if each.id not in skipped and _is_due(each, now)]

    def _take_slot(self, root: int) -> int | None:
        """Take one of MAX_RUNNING_EXPORTS. Return the descriptor that holds it until it is closed."""
        for number in range(self._max_running):
            slot = durable_files.try_lock(root, f"{_SLOT_PREFIX}{number}")
            if slot is not None:
                return slot
        return None

    def _claim_pending(self, root: int, id: str) -> Claim | None:
        """Claim this export if it is still waiting. An error that concerns only this export is logged."""
        with contextlib.suppress(ExportUnreadable), ExitStack() as held:
            claim = self.take(root, id)
            if claim is not None:
                held.callback(claim.close)
                with self.store.errors_of(id):
                    waits = claim.manifest.status == "pending" and not claim.cancel_requested()
                    runnable = waits and _is_due(claim.manifest, utc_now())
                if not runnable:
                    self.store.see(root, id)
                if runnable:
                    held.pop_all()
                    return claim
        return None

    def take(self, root: int, id: str) -> Claim | None:
        """Lock this export and read its manifest under the lock. Raise ExportUnreadable, NoSpaceLeft.

        Return None if another process holds the lock or the export is gone.
        """
        with ExitStack() as held, self.store.errors_of(id):
            try:
                lock = take_lock(root, id)
                if lock is None:
                    return None
                held.callback(lock.close)
                manifest = self.store.read_entry(lock.folder, id).manifest
            except (FileNotFoundError, ExportNotFound):
                return None
            claim = Claim(lock, manifest, quota=self.quota, max_attempts=self._max_attempts)
            held.pop_all()
            return claim

    def release(self, claim: Claim) -> None:
        """Release a claim, and look at the export again: it may have ended, or wait again."""
        claim.close()
        with contextlib.suppress(ExportError), self.store.open_root() as root:
            self.store.see(root, claim.manifest.id)

    # --- ending -----------------------------------------------------------------------------------------------------

    def cancel(self, id: str) -> bool:
        """Request the cancellation of an export, durably. Return whether the export has ended.

        Raise ExportNotFound, ExportUnreadable, NoSpaceLeft, StorageUnavailable.
        """
        with self.store.open_root() as root:
            with self.store.open_folder(root, id) as folder:
                if self.store.read_entry(folder, id).manifest.finished:
                    return True
                with self.store.errors_of(id):
                    durable_files.create_marker(folder, CANCEL)
            claim = self.take(root, id)
            if claim is None:
                return False
            with contextlib.closing(claim), self.store.errors_of(id):
                if not claim.manifest.finished:
                    try:
                        claim.cancel()
                    except LockLost:
                        emit(ExportLockLost(export_id=id))
                        return False
            return True

    def remove(self, id: str) -> bool:
        """Remove a finished export with its file. Return False if another process holds its lock.

        An unfinished export is a newer one of the same key: it stays, and True is returned. Raise ExportNotFound,
        ExportUnreadable, NoSpaceLeft, StorageUnavailable.
        """
        with self.store.open_root() as root:
            with self.store.open_folder(root, id) as folder:
                manifest = self.store.read_entry(folder, id).manifest
            with self.store.errors_of(id):
                return not manifest.finished or self.quota.remove(root, manifest)

    def sweep(self) -> None:
        """Recover exports whose processes were killed, carry out cancellations, remove what exceeds the limits.

        Raise StorageUnavailable, NoSpaceLeft.
        """
        with self.store.open_root() as root:
            self.store.compare_some(root)
            with self.store.known(root) as known:
                unfinished = [record.entry.manifest for id in known.unfinished if (record := known.get(id)) is not None]
            for manifest in unfinished:
                try:
                    self._recover(root, manifest)
                except ExportUnreadable:
                    pass  # reported already
                except (OSError, ExportError) as error:
                    self.store.report(manifest.id, str(error))
        self.quota.remove_expired()
        with contextlib.suppress(ExportError):
            self.quota.enforce_limit()

    def _recover(self, root: int, manifest: Manifest) -> None:
        claim = self.take(root, manifest.id) if may_need_recovery(root, manifest) else None
        if claim is not None:
            with contextlib.closing(claim):
                try:
                    recover(claim)
                except LockLost:
                    emit(ExportLockLost(export_id=manifest.id))
                self.store.see(root, manifest.id)


def _is_due(manifest: Manifest, now: datetime.datetime) -> bool:
    """Return whether the export may run now. A wait longer than any back-off counts as over."""
    wait = datetime.timedelta() if manifest.not_before is None else manifest.not_before - now
    return not datetime.timedelta() < wait < _LONGEST_WAIT

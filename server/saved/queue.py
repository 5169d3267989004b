"""Saved exports on the disk: a new one, the next one to run, the end of one, and what a crash has left of one.

An export is a folder with its manifest, a lock and its file. Files only: no event loop, no PostgreSQL, no HTTP. Every
method may block on the disk, so call it in a thread; several may run at once, and so may other processes.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import os
import secrets
from collections.abc import Container, Iterator

import structlog

from server.errors import ExportError, ExportNotFound, ExportUnreadable, KeyReused, ServerBusy
from server.saved import durable_files
from server.saved.claim import Claim
from server.saved.manifest import Manifest, utc_now, write_manifest
from server.saved.quota import NEW, Quota
from server.saved.status import Progress
from server.saved.store import CANCEL, LOCK, MANIFEST, Entry, Store, disk_full_errors
from server.settings import Settings

log = structlog.stdlib.get_logger("sluice.queue")

# Names of our own in the folder; no id begins with a dot.
_SLOT, _SECRET = ".slot-", ".secret"
_SECRET_BYTES = 32
_ID_BYTES = 16
# Runner that may wait: more are the mistake of some loop.
MOST_WAITING = 1000
# How often an export may vanish between "there is one of this key" and the look at it, before something else is wrong.
_MOST_TRIES = 5
# More than any back-off.
_LONGEST_WAIT = datetime.timedelta(minutes=2)


class ExportInterrupted(ExportError):
    """Whoever made the export was killed each time."""

    code = "interrupted"


class Queue:
    """The saved exports in the folder of these settings."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.export_storage_path)
        self.quota = Quota(self.store, settings)
        self._max_attempts = settings.export_max_attempts
        self._max_running = settings.max_running_exports

    def prepare(self) -> None:
        """Make the folder if there is none, and see whether it takes files. Raises StorageUnavailable, NoSpaceLeft."""
        try:
            self.store.path.mkdir(mode=durable_files.FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise self.store.unavailable(error) from error
        with self.store.root() as root:
            self._secret(root)
            trial = NEW + secrets.token_hex(8)
            os.mkdir(trial, durable_files.FOLDER_MODE, dir_fd=root)
            os.rmdir(trial, dir_fd=root)

    # --- a new one --------------------------------------------------------------------------------------------------

    def find(self, key: str, target: str, query: str) -> Entry | None:
        """The export that this Idempotency-Key has made already. Raises KeyReused if for another request."""
        with self.store.root() as root:
            id = self._id_of(root, key)
            try:
                with self.store.folder(root, id) as folder:
                    entry = self.store.entry(folder, id)
            except ExportNotFound:
                return None
            if (entry.manifest.target, entry.manifest.query) != (target, query):
                raise KeyReused(
                    "This Idempotency-Key was given with another request before.",
                    hint="Take a new key for each new request.",
                )
            os.fsync(root)  # whoever made it may not have come as far
            return entry

    def create(
        self, *, target: str, query: str, relation: str, format: str, total_rows: int | None, key: str | None = None
    ) -> tuple[Entry, bool]:
        """A new export, on the disk when this returns; or the one that the key has made, and False.

        Raises NoSpaceLeft, ServerBusy, KeyReused, StorageUnavailable, ExportUnreadable.
        """
        self.quota.check_disk()
        with self.store.root() as root:
            if sum(not entry.manifest.finished for entry in self.store.entries(root)) >= MOST_WAITING:
                raise ServerBusy("Too many exports are waiting.", hint="Try again when some of them are finished.")
            manifest = Manifest(
                id=_random_id() if key is None else self._id_of(root, key),
                target=target,
                query=query,
                relation=relation,
                format=format,
                status="pending",
                created_at=utc_now(),
                total_rows=total_rows,
            )
            for _ in range(_MOST_TRIES):
                if self._publish(root, manifest):
                    return Entry(manifest, Progress()), True
                existing = None if key is None else self.find(key, target, query)
                if existing is not None:  # else it has been removed just now
                    return existing, False
        self.store.report(manifest.id, "there is something without a manifest in its place")
        raise ExportUnreadable(
            "What is in the place of this export cannot be used.",
            hint="Take a new Idempotency-Key, or ask the operator to remove the folder; the log names it.",
        )

    def _publish(self, root: int, manifest: Manifest) -> bool:
        """Put a whole new folder in place, at once; False if there is one of this name."""
        name = NEW + secrets.token_hex(8)
        os.mkdir(name, durable_files.FOLDER_MODE, dir_fd=root)
        try:
            with durable_files.open_folder(name, root) as folder:
                os.close(durable_files.create_file(folder, LOCK))
                durable_files.write_file(folder, MANIFEST, write_manifest(manifest))
            os.rename(name, manifest.id, src_dir_fd=root, dst_dir_fd=root)
        except OSError as error:
            durable_files.remove_folder(root, name, name)
            if durable_files.is_taken(error):
                return False
            raise
        os.fsync(root)
        return True

    def _id_of(self, root: int, key: str) -> str:
        """The id that belongs to this key, the same in all processes on the folder and for nobody else to guess."""
        digest = hmac.digest(self._secret(root), key.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:_ID_BYTES]).decode().rstrip("=")

    def _secret(self, root: int) -> bytes:
        try:
            secret = durable_files.read_file(root, _SECRET, _SECRET_BYTES)
        except FileNotFoundError:
            durable_files.create_once(root, _SECRET, secrets.token_bytes(_SECRET_BYTES))
            secret = durable_files.read_file(root, _SECRET, _SECRET_BYTES)
        if len(secret) != _SECRET_BYTES:
            raise OSError(f"{_SECRET} has been changed")
        return secret

    # --- the next one -----------------------------------------------------------------------------------------------

    def claim(self, skipped: Container[str] = ()) -> Claim | None:
        """The export that is to be run next, now in the hands of this process; None where there is none to run."""
        now = utc_now()
        with self.store.root() as root:
            waiting = [
                entry.manifest
                for entry in self.store.entries(root)
                if entry.manifest.status == "pending"
                and entry.manifest.id not in skipped
                and _is_due(entry.manifest, now)
            ]
            slot = self._free_slot(root) if waiting else None
            if slot is None:
                return None
            for manifest in sorted(waiting, key=lambda manifest: (manifest.created_at, manifest.id)):
                claim = None
                with contextlib.suppress(ExportUnreadable):  # said in the log; the others are not to wait for it
                    claim = self._take(root, manifest.id)
                if claim is None:
                    continue
                if claim.manifest.status == "pending" and not claim.cancel_wanted():
                    claim.hold(slot)
                    return claim
                claim.close()  # another process was quicker
            os.close(slot)
        return None

    def _free_slot(self, root: int) -> int | None:
        """One of MAX_RUNNING_EXPORTS, taken as long as its descriptor is open."""
        for number in range(self._max_running):
            slot = durable_files.try_lock(root, f"{_SLOT}{number}")
            if slot is not None:
                return slot
        return None

    def _take(self, root: int, id: str) -> Claim | None:
        """The export's lock, if nobody holds it, with its manifest as it is under the lock. Raises ExportUnreadable."""
        with contextlib.ExitStack() as stack, self._only(id):
            try:
                folder = durable_files.folder_descriptor(id, root)
                stack.callback(os.close, folder)
                lock = durable_files.try_lock(folder, LOCK)
                if lock is None:
                    return None
                stack.callback(os.close, lock)
                manifest = self.store.entry(folder, id).manifest
                kept = os.dup(root)
                stack.callback(os.close, kept)
            except (FileNotFoundError, ExportNotFound):
                return None
            claim = Claim(stack, kept, folder, manifest, quota=self.quota, max_attempts=self._max_attempts)
            if claim.in_place():
                return claim
            claim.close()
            return None

    # --- the end of one ---------------------------------------------------------------------------------------------

    def cancel(self, id: str) -> bool:
        """Ask for the end of an export; whether it has ended. Durable, whoever runs it.

        Raises ExportNotFound, ExportUnreadable.
        """
        with self.store.root() as root:
            with self.store.folder(root, id) as folder:
                if self.store.entry(folder, id).manifest.finished:
                    return True
                with self._only(id):
                    durable_files.mark(folder, CANCEL)
            claim = self._take(root, id)
            if claim is None:
                return False
            with contextlib.closing(claim), self._only(id):
                if not claim.manifest.finished:
                    claim.cancel()
            return True

    def remove(self, id: str) -> bool:
        """Remove a finished export with its file; False while another holds its lock.

        One that is not finished is another of the same key, begun since: it stays. Raises ExportNotFound,
        ExportUnreadable.
        """
        with self.store.root() as root:
            with self.store.folder(root, id) as folder:
                manifest = self.store.entry(folder, id).manifest
            with self._only(id):
                return not manifest.finished or self.quota.remove(root, manifest)

    @contextlib.contextmanager
    def _only(self, id: str) -> Iterator[None]:
        """What the disk refuses inside the block is this export's trouble, not that of all, unless the disk is full."""
        try:
            with disk_full_errors():
                yield
        except FileNotFoundError:
            raise
        except OSError as error:
            self.store.report(id, error.strerror or "it cannot be changed")
            raise ExportUnreadable(
                "The folder of this export cannot be used as it is.",
                hint="The operator may remove it; the log says what is wrong with it.",
            ) from error

    def sweep(self) -> None:
        """Put right what killed processes have left, end what is to be cancelled, remove what has expired."""
        with self.store.root() as root:
            for entry in self.store.entries(root):
                if not entry.manifest.finished:
                    try:
                        self._recover(root, entry.manifest)
                    except (OSError, ExportError) as error:
                        self.store.report(entry.manifest.id, str(error))
        self.quota.remove_expired()
        with contextlib.suppress(ExportError):
            self.quota.check_limit()

    def _recover(self, root: int, manifest: Manifest) -> None:
        """An export that nobody works on though its manifest says so, or that is to be cancelled."""
        if manifest.status == "pending":
            try:
                os.stat(f"{manifest.id}/{CANCEL}", dir_fd=root, follow_symlinks=False)
            except FileNotFoundError:
                return
        claim = self._take(root, manifest.id)
        if claim is None:
            return
        with contextlib.closing(claim):
            attempts = claim.manifest.attempts
            if claim.manifest.finished:
                return
            if claim.cancel_wanted():
                claim.cancel()
            elif claim.begun and attempts >= claim.max_attempts:
                log.warning("export failed", exportId=manifest.id, attempts=attempts, code=ExportInterrupted.code)
                claim.fail(ExportInterrupted(f"The server was stopped in the middle of it {attempts} times."))
            elif claim.begun:
                log.info("export interrupted", exportId=manifest.id, attempts=attempts)
                claim.give_back(counted=True)


def _is_due(manifest: Manifest, now: datetime.datetime) -> bool:
    """Whether it is not to wait; a wait of which no clock can be right counts as none."""
    wait = datetime.timedelta() if manifest.not_before is None else manifest.not_before - now
    return not datetime.timedelta() < wait < _LONGEST_WAIT


def _random_id() -> str:
    return secrets.token_urlsafe(_ID_BYTES)

"""A saved export that this process works on: its lock, the file it writes, and every end that an attempt can have.

Only the process that holds the lock of an export writes its manifest and its file; one that has lost the lock writes
nothing more. Every method may block on the disk: call it in a thread. What a method has written is on the disk when it
returns.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from server.chunk import Chunk
from server.errors import ExportError
from server.saved import durable_files
from server.saved.folder import CANCEL, MANIFEST, MOST_MANIFEST_BYTES, PROGRESS, disk_full_errors, progress_in
from server.saved.lock import ExportLock
from server.saved.manifest import Manifest, ManifestError, Reading, read_manifest, utc_now, write_manifest
from server.saved.quota import Quota
from server.saved.status import write_progress

# Seconds between two checks of EXPORT_STORAGE_LIMIT during an export.
LIMIT_SECONDS = 0.25
# Bytes written between two fsyncs. The scan continues during each; a single fsync at the end would delay the end.
SYNC_BYTES = 32 << 20


class LockLost(Exception):
    """Another process has, or has had, the lock of the export: this one must not write in its folder any more."""


class Claim:
    """An export whose lock this process holds until `close`. max_attempts: how many times it may be started."""

    def __init__(self, lock: ExportLock, manifest: Manifest, *, quota: Quota, max_attempts: int) -> None:
        """manifest: as read under the lock."""
        self.manifest = manifest
        self.quota = quota
        self.max_attempts = max_attempts
        self._lock = lock
        self._part: Part | None = None
        # What the manifest on the disk may be: several if writing one failed, perhaps after it was in place.
        self._written = [manifest]
        # A thread that saves the progress checks the manifest while another one may be replacing it.
        self._replacing = threading.RLock()

    @property
    def folder(self) -> int:
        """The descriptor of the export's folder."""
        return self._lock.folder

    def attach_slot(self, slot: int) -> None:
        """Close this descriptor in `close`: it holds the lock of one of MAX_RUNNING_EXPORTS."""
        self._lock.close_with_it(slot)

    def close(self) -> None:
        """Release the lock and close the file. Call nothing else afterwards."""
        if self._part is not None:
            self._part.close()
        self._lock.close()

    def in_place(self) -> bool:
        """Return whether the folder still has its name: an operator may have removed it. Raise OSError."""
        return self._lock.in_place()

    def cancel_requested(self) -> bool:
        """Return whether the cancellation of the export has been requested. Raise OSError."""
        return durable_files.exists(self.folder, CANCEL)

    def check_lock(self) -> None:
        """Raise LockLost unless the lock is still held and no other process has written the manifest. Raise OSError."""
        with self._replacing:
            if not self._lock.is_held() or self._manifest_on_disk() not in self._written:
                raise LockLost

    def start(self, reading: Reading) -> Part:
        """Count this attempt, before anything in it can kill the process, and create its file.

        reading: how it reads its rows. Raise LockLost, NoSpaceLeft, OSError.
        """
        self._remove_files()
        self._write(
            replace(
                self.manifest,
                status="processing",
                attempts=self.manifest.attempts + 1,
                started_at=utc_now(),
                not_before=None,
                snapshot_at=reading.snapshot_at,
                scan=reading.scan,
                ranges=reading.ranges,
            )
        )
        self._part = Part(self)
        return self._part

    def save_progress(self) -> None:
        """Write how much has been written, for all processes to read. Ignore errors of the disk. Raise LockLost."""
        if self._part is not None:
            with contextlib.suppress(OSError):
                self.check_lock()
                self._part.save_progress()

    def complete(self, part: Part) -> None:
        """Publish the complete file, then write that it is complete.

        Raise LockLost, OSError, and NoSpaceLeft if the file exceeds EXPORT_STORAGE_LIMIT.
        """
        part.finish()
        with contextlib.suppress(OSError):  # the manifest has the final figures
            part.save_progress()
        # Checked with the final size: a completed export must not be removed a moment later to keep the limit.
        self.quota.enforce_limit()
        self.check_lock()
        with disk_full_errors():
            os.rename(part.name, self.manifest.file_name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
            os.fsync(self.folder)
        self._write(
            replace(
                self.manifest,
                status="completed",
                completed_at=utc_now(),
                rows=part.progress.rows,
                bytes=part.progress.bytes,
                sha256=part.sha256,
            )
        )

    def fail(self, error: ExportError) -> None:
        """End the export for this reason. Raise LockLost, NoSpaceLeft, OSError."""
        self._remove_files()
        self._write(
            replace(
                self.manifest,
                status="failed",
                completed_at=utc_now(),
                error_code=error.code,
                error_detail=error.detail if error.hint is None else f"{error.detail} {error.hint}",
            )
        )

    def cancel(self) -> None:
        """End the export as cancelled; its manifest stays. Raise LockLost, NoSpaceLeft, OSError."""
        self._remove_files()
        self._write(replace(self.manifest, status="cancelled", completed_at=utc_now()))
        with contextlib.suppress(IsADirectoryError):
            durable_files.remove_file(self.folder, CANCEL)

    def give_back(self, *, counted: bool = False, setback: bool = False, after: float = 0.0) -> None:
        """Return the export to the queue. Raise LockLost, NoSpaceLeft, OSError.

        counted: this attempt counts towards `max_attempts`. setback: it counts as a setback. after: seconds until the
        next attempt.
        """
        self._remove_files()
        self._write(
            replace(
                self.manifest,
                status="pending",
                attempts=self.attempts_with_this - (not counted),
                setbacks=self.manifest.setbacks + setback,
                not_before=utc_now() + datetime.timedelta(seconds=after) if after else None,
                started_at=None,
                snapshot_at=None,
                scan=None,
                ranges=None,
            )
        )

    @property
    def started(self) -> bool:
        """Whether the attempt has been counted."""
        return self.manifest.status == "processing"

    @property
    def attempts_with_this(self) -> int:
        """The number of attempts, including this one even if it failed before `start`."""
        return self.manifest.attempts + (not self.started)

    def _remove_files(self) -> None:
        """Remove the data of this attempt and everything that killed processes have left."""
        self.check_lock()
        if len(self._written) > 1:  # the manifest on the disk may say that the file is complete
            self._write(self.manifest)
        if self._part is not None:
            self._part.close()  # an open file keeps its space on the disk
        part = re.compile(re.escape(self.manifest.file_name) + r"(\.[0-9a-f]+)?\.part")
        for name in durable_files.list_names(self.folder):
            if name == self.manifest.file_name or part.fullmatch(name) or name.endswith(durable_files.TEMPORARY):
                with contextlib.suppress(IsADirectoryError):  # not ours; only an export that needs the name fails
                    durable_files.remove_file(self.folder, name)

    def _write(self, manifest: Manifest) -> None:
        with self._replacing, disk_full_errors():
            self._written.append(manifest)
            durable_files.write_file(self.folder, MANIFEST, write_manifest(manifest), check=self.check_lock)
            self._written = [manifest]
            self.manifest = manifest

    def _manifest_on_disk(self) -> Manifest | None:
        try:
            return read_manifest(self._lock.id, durable_files.read_file(self.folder, MANIFEST, MOST_MANIFEST_BYTES))
        except (FileNotFoundError, ManifestError):
            return None


class Part:
    """The file of one attempt while it is written, with its sha256 and the progress."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._total_rows = claim.manifest.total_rows
        # Unique: if two processes believe that they hold the lock, neither publishes what the other has written.
        self.name = f"{claim.manifest.file_name}.{secrets.token_hex(8)}.part"
        self.progress = progress_in(claim.folder).restarted()
        self._started = self._limit_checked = time.monotonic()
        self._saving_progress = threading.Lock()
        self._hash = hashlib.sha256()
        self._unsynced = 0
        with disk_full_errors():
            self._descriptor = durable_files.create_file(claim.folder, self.name)
            try:
                self.save_progress()
            except BaseException:
                self.close()
                raise

    @property
    def sha256(self) -> str:
        """The SHA-256 of what has been written, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, chunks: Sequence[Chunk]) -> None:
        """Append these chunks, at least one. Raise NoSpaceLeft, OSError."""
        self._claim.quota.check_free_space()
        rows = size = 0
        for chunk in chunks:
            with disk_full_errors():
                durable_files.write_all(self._descriptor, chunk.data)
            self._hash.update(chunk.data)
            rows += chunk.rows
            size += len(chunk.data)
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES:
            self._sync()
        now = time.monotonic()
        self.progress = self.progress.advanced(
            rows=self.progress.rows + rows,
            bytes=self.progress.bytes + size,
            seconds=now - self._started,
            done=chunks[-1].done,
            total_rows=self._total_rows,
        )
        if now - self._limit_checked >= LIMIT_SECONDS:
            self._limit_checked = now
            self._claim.quota.enforce_limit()

    def finish(self) -> None:
        """Wait until everything written is on the disk and close the file. Raise NoSpaceLeft, OSError."""
        self._sync()
        self.close()

    def close(self) -> None:
        """Close the file. It stays in the folder."""
        if self._descriptor >= 0:
            durable_files.close(self._descriptor)
            self._descriptor = -1

    def save_progress(self) -> None:
        """Write the progress; an older one never replaces a newer one. Raise OSError."""
        with self._saving_progress:
            durable_files.write_file(self._claim.folder, PROGRESS, write_progress(self.progress), durably=False)

    def _sync(self) -> None:
        with disk_full_errors():
            os.fsync(self._descriptor)
        self._unsynced = 0

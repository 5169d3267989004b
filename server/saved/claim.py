"""One saved export in the hands of this process: its lock, the file being written, and the ends it can come to.

Whoever holds the lock of an export, and nobody else, writes its manifest and its file. Every method may block on the
disk, so call it in a thread. What is promised at the end of each is on the disk when it returns.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from server.chunk import Chunk
from server.errors import ExportError
from server.saved import durable_files
from server.saved.manifest import Manifest, utc_now, write_manifest
from server.saved.quota import Quota
from server.saved.status import write_progress
from server.saved.store import CANCEL, MANIFEST, PROGRESS, disk_full_errors, progress_in

# Seconds between two looks at what all exports take, which reads every manifest.
LIMIT_SECONDS = 0.25
# Bytes written between two waits for the disk. The scan goes on meanwhile; one wait at the end would come on top of it.
SYNC_BYTES = 32 << 20


class Claim:
    """An export whose lock this process holds until `close`.

    root, folder: descriptors. held: what closes them and the lock.
    """

    def __init__(
        self, held: ExitStack, root: int, folder: int, manifest: Manifest, *, quota: Quota, max_attempts: int
    ) -> None:
        self.manifest = manifest
        self.folder = folder
        self.quota = quota
        self._root = root
        self._held = held.pop_all()
        self.max_attempts = max_attempts
        self._part: Part | None = None

    def hold(self, slot: int) -> None:
        """Take over this descriptor too, which is one of MAX_RUNNING_EXPORTS."""
        self._held.callback(os.close, slot)

    def close(self) -> None:
        """Let go of it: the last thing to do."""
        self._held.close()

    def in_place(self) -> bool:
        """Whether the folder is still where it was: somebody may have removed it by hand."""
        return durable_files.in_place(self._root, self.manifest.id, self.folder)

    def cancel_wanted(self) -> bool:
        """Whether somebody has asked for an end."""
        try:
            os.stat(CANCEL, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def begin(self, snapshot_at: datetime.datetime | None) -> Part:
        """Count this attempt, before anything of it can kill the process, and open its file."""
        self._remove_files()
        self._write(
            replace(
                self.manifest,
                status="processing",
                attempts=self.manifest.attempts + 1,
                started_at=utc_now(),
                not_before=None,
                snapshot_at=snapshot_at,
            )
        )
        self._part = Part(self)
        self._held.callback(self._part.close)
        return self._part

    def note_progress(self) -> None:
        """Let everybody see how far it is. Lost without harm."""
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._part.note()

    def complete(self, part: Part) -> None:
        """The file is whole: put it in place, then say so. Raises NoSpaceLeft where it is more than may be kept."""
        part.finish()
        part.note()
        self.quota.check_limit()  # of its final size, now: what is completed is promised, and must not be swept away
        os.rename(self.manifest.part_name, self.manifest.file_name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
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
        """It will not be tried again, for this reason."""
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
        """Somebody asked for this end. Leaves the manifest, which says so."""
        self._remove_files()
        self._write(replace(self.manifest, status="cancelled", completed_at=utc_now()))
        with contextlib.suppress(IsADirectoryError):
            durable_files.remove_file(self.folder, CANCEL)

    def give_back(self, *, counted: bool = False, setback: bool = False, after: float = 0.0) -> None:
        """It is to be run again, by whoever sees it first. counted: this attempt was one. after: seconds from now."""
        self._remove_files()
        manifest = self.manifest
        self._write(
            replace(
                manifest,
                status="pending",
                attempts=self.attempts_with_this - (not counted),
                setbacks=manifest.setbacks + setback,
                not_before=utc_now() + datetime.timedelta(seconds=after) if after else None,
                started_at=None,
                snapshot_at=None,
            )
        )

    @property
    def begun(self) -> bool:
        """Whether this attempt is among those counted."""
        return self.manifest.status == "processing"

    @property
    def attempts_with_this(self) -> int:
        """How many there were, this one among them though it may have failed before it was begun."""
        return self.manifest.attempts + (not self.begun)

    def _remove_files(self) -> None:
        if self._part is not None:
            self._part.close()  # an open file keeps its room on the disk
        names = [self.manifest.part_name, self.manifest.file_name]
        # Of a process that was killed: those who write here hold the lock.
        names += [name for name in durable_files.names_in(self.folder) if name.endswith(durable_files.TEMPORARY)]
        for name in names:
            with contextlib.suppress(IsADirectoryError):  # not ours; whoever needs the name fails, and can be ended
                durable_files.remove_file(self.folder, name)

    def _write(self, manifest: Manifest) -> None:
        with disk_full_errors():
            durable_files.write_file(self.folder, MANIFEST, write_manifest(manifest))
        self.manifest = manifest


class Part:
    """The file while it is being written, with its sha256 and how far it has come."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._total_rows = claim.manifest.total_rows
        self.progress = progress_in(claim.folder).begun_again()
        self._started = self._looked = time.monotonic()
        self._noting = threading.Lock()
        self._hash = hashlib.sha256()
        self._unsynced = 0
        self._descriptor = durable_files.create_file(claim.folder, claim.manifest.part_name)
        try:
            with disk_full_errors():
                self.note()
        except BaseException:
            self.close()
            raise

    @property
    def sha256(self) -> str:
        """Of what has been written, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, chunks: Sequence[Chunk]) -> None:
        """Append these. Raises NoSpaceLeft, OSError."""
        self._claim.quota.check_disk()
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
        if now - self._looked >= LIMIT_SECONDS:
            self._looked = now
            self._claim.quota.check_limit()

    def finish(self) -> None:
        """Everything written is on the disk."""
        self._sync()
        self.close()

    def close(self) -> None:
        """Close the file; what becomes of it is the claim's business."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync(self) -> None:
        with disk_full_errors():
            os.fsync(self._descriptor)
        self._unsynced = 0

    def note(self) -> None:
        """Write down how far it is; never what is older than the note before."""
        with self._noting:
            durable_files.write_file(self._claim.folder, PROGRESS, write_progress(self.progress), durably=False)

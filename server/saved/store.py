"""The folder of saved exports as it is read: which exports there are, and what the disk says of each.

There is no other state: any number of processes see the same. Changes nothing. Every method may block on the disk, so
call it in a thread; several may run at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from server.errors import ExportFailed, ExportNotFound, ExportUnreadable, NoSpaceLeft, StorageUnavailable
from server.saved import durable_files
from server.saved.manifest import EXPORT_ID, Manifest, ManifestError, read_manifest
from server.saved.status import Progress, read_progress

log = structlog.stdlib.get_logger("sluice.queue")

# What is in the folder of an export, beside its file.
MANIFEST: Final = "manifest.json"
LOCK: Final = "lock"
PROGRESS: Final = "progress.json"
# Asks whoever makes the export to stop: the one file that is written without the lock.
CANCEL: Final = "cancel"

# Bytes: the longest request line, escaped as JSON escapes at worst, and the rest.
_MOST_MANIFEST_BYTES = 1 << 20
# Bytes of a note of the progress; one is about 100.
_MOST_PROGRESS_BYTES = 4096
# Manifests with longer queries are read anew each time, so that memory stays bounded by the number of exports.
_MOST_CACHED_QUERY = 2048

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A saved export as it is now."""

    manifest: Manifest
    progress: Progress


class Store:
    """The folder at this path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # By id, with the stamp of the manifest that it was read from. Manifests are replaced, never changed.
        self._known: dict[str, tuple[Stamp, Entry]] = {}
        self._reported: dict[str, str] = {}

    @contextlib.contextmanager
    def root(self) -> Iterator[int]:
        """The descriptor of the folder, opened anew each time: it may be mounted, or put back, at any time.

        Whatever the disk refuses inside the block is StorageUnavailable or NoSpaceLeft.
        """
        try:
            with durable_files.open_folder(self.path) as root:
                yield root
        except OSError as error:
            if durable_files.is_disk_full(error):
                raise no_space_left() from error
            raise self.unavailable(error) from error
        self._reported.pop("", None)

    @contextlib.contextmanager
    def folder(self, root: int, id: str) -> Iterator[int]:
        """The descriptor of an export's folder. Raises ExportNotFound, also for what is no id at all."""
        if not EXPORT_ID.fullmatch(id):
            raise not_found()
        try:
            folder = durable_files.folder_descriptor(id, root)
        except OSError as error:
            if durable_files.is_missing(error):
                raise not_found() from None
            raise
        try:
            yield folder
        finally:
            os.close(folder)

    def newest_first(self) -> list[Entry]:
        """All exports, newest first. What cannot be understood is reported in the log and left out."""
        with self.root() as root:
            found = self.entries(root)
        return sorted(found, key=lambda entry: (entry.manifest.created_at, entry.manifest.id), reverse=True)

    def get(self, id: str) -> Entry:
        """One export. Raises ExportNotFound, ExportUnreadable."""
        with self.root() as root, self.folder(root, id) as folder:
            return self.entry(folder, id)

    def open_data(self, id: str) -> tuple[Manifest, int]:
        """A completed export, and the descriptor of its file. Raises ExportFailed where that is not what was saved."""
        with self.root() as root, self.folder(root, id) as folder:
            manifest = self.entry(folder, id).manifest
            with contextlib.suppress(OSError):
                descriptor = durable_files.open_file(folder, manifest.file_name)
                if os.fstat(descriptor).st_size == manifest.bytes:
                    return manifest, descriptor
                os.close(descriptor)
        raise ExportFailed(
            "The file of this export has been removed or changed.",
            code="file_damaged",
            hint="Delete the export and save it again.",
        )

    def entries(self, root: int) -> list[Entry]:
        """All exports, in no order."""
        found: list[Entry] = []
        with os.scandir(root) as names:
            ids = [each.name for each in names if EXPORT_ID.fullmatch(each.name) and each.is_dir(follow_symlinks=False)]
        for id in ids:
            try:
                known = self._known.get(id)
                if (
                    known is not None
                    and known[1].manifest.finished
                    and known[0] == _stamp(os.stat(f"{id}/{MANIFEST}", dir_fd=root, follow_symlinks=False))
                ):
                    found.append(known[1])
                    continue
                with self.folder(root, id) as folder:
                    found.append(self.entry(folder, id))
            except (ExportNotFound, ExportUnreadable, FileNotFoundError):
                continue  # gone meanwhile, or reported
            except OSError as error:
                self.report(id, error.strerror or "it cannot be read")
        for gone in self._known.keys() - set(ids):
            self._known.pop(gone, None)
        return found

    def entry(self, folder: int, id: str) -> Entry:
        """The export in this folder. Raises ExportUnreadable, and ExportNotFound where there is no manifest."""
        try:
            return self._read(folder, id)
        except FileNotFoundError:
            raise not_found() from None
        except ManifestError as error:
            reason = str(error)
        except OSError as error:  # a link, a folder, a file of somebody else
            reason = f"it cannot be read ({error.strerror})"
        self.report(id, reason)
        raise ExportUnreadable(
            f"The manifest of this export cannot be used: {reason}.",
            hint="The operator may remove its folder, or start the version of the server that wrote it.",
        )

    def _read(self, folder: int, id: str) -> Entry:
        descriptor = durable_files.open_file(folder, MANIFEST)
        try:
            status = os.fstat(descriptor)
            stamp = _stamp(status)
            stamped, known = self._known.get(id, (None, None))
            if known is not None and stamped == stamp:
                return known if known.manifest.finished else Entry(known.manifest, progress_in(folder))
            if status.st_size > _MOST_MANIFEST_BYTES:
                raise ManifestError("it is too long")
            manifest = read_manifest(id, os.read(descriptor, _MOST_MANIFEST_BYTES))
        finally:
            os.close(descriptor)
        entry = Entry(manifest, progress_in(folder))
        if len(manifest.target) + len(manifest.query) <= _MOST_CACHED_QUERY:
            self._known[id] = (stamp, entry)
        return entry

    def report(self, id: str, reason: str) -> None:
        """Say it in the log, once."""
        if self._reported.get(id) != reason:
            self._reported[id] = reason
            log.warning("a saved export is left alone", exportId=id, reason=reason)

    def unavailable(self, error: OSError) -> StorageUnavailable:
        """The folder cannot be used; the log says why, once."""
        reason = error.strerror or type(error).__name__
        if self._reported.get("") != reason:
            self._reported[""] = reason
            log.error("the folder of saved exports cannot be used", path=str(self.path), reason=reason)
        return StorageUnavailable(
            "The server cannot save exports now.",
            hint="Download it directly with GET, or tell the operator; the log says what is wrong with the folder.",
        )


def progress_in(folder: int) -> Progress:
    """The last progress noted in this folder."""
    try:
        return read_progress(durable_files.read_file(folder, PROGRESS, _MOST_PROGRESS_BYTES))
    except OSError:
        return Progress()


def not_found() -> ExportNotFound:
    """No such export."""
    return ExportNotFound("There is no saved export of this id, or no longer.", hint="GET /exports lists them.")


def no_space_left() -> NoSpaceLeft:
    """No room for what was asked."""
    return NoSpaceLeft(
        "There is no space left for saved exports.",
        hint="Remove saved exports that are not needed, or ask the operator for room.",
    )


@contextlib.contextmanager
def disk_full_errors() -> Iterator[None]:
    """An OSError that means a full disk as NoSpaceLeft."""
    try:
        yield
    except OSError as error:
        if durable_files.is_disk_full(error):
            raise no_space_left() from error
        raise


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

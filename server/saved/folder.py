"""The folder of saved exports and the folder of each export, as they are read: one manifest, one file, and the errors.

Changes nothing. Every method may block on the disk: call it in a thread. Several threads may call at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.events import emit
from server.saved import durable_files
from server.saved.errors import ExportFailed, ExportNotFound, ExportUnreadable, NoSpaceLeft, StorageUnavailable
from server.saved.events import ExportLeftAlone, StorageUnusable
from server.saved.manifest import EXPORT_ID, Manifest, ManifestError, read_manifest
from server.saved.status import Entry, Progress, read_progress

# The files in the folder of an export, besides its data and its lock.
MANIFEST: Final = "manifest.json"
PROGRESS: Final = "progress.json"
# Asks the process that runs the export to stop. The only file that is written without the lock.
CANCEL: Final = "cancel"

# Bytes: holds the longest request line, with every character escaped in JSON, and the other fields. A longer file is
# not read.
MOST_MANIFEST_BYTES = 1 << 20
# Bytes of a progress file; one has about 100.
_MOST_PROGRESS_BYTES = 4096
# Exports of which a reason is kept and logged. More than this are not the work of accidents, and would fill the log.
_MOST_REPORTED = 1000

# What changes when a manifest is replaced: inode, times in nanoseconds, size in bytes.
Stamp = tuple[int, int, int, int]


class Folder:
    """The folder of saved exports at this path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The last reason that was logged for each export, "" for the folder itself.
        self._reported: dict[str, str] = {}

    @contextlib.contextmanager
    def open_root(self) -> Iterator[int]:
        """Open the folder and yield its descriptor. It is opened anew each time, as it may be mounted at any time.

        An OSError in the block is raised as StorageUnavailable or NoSpaceLeft.
        """
        try:
            with disk_full_errors(), durable_files.open_folder(self.path) as root:
                yield root
        except OSError as error:
            raise self.unavailable(error) from error
        self._reported.pop("", None)

    @contextlib.contextmanager
    def open_folder(self, root: int, id: str) -> Iterator[int]:
        """Open the folder of an export and yield its descriptor. Raise ExportNotFound, also if `id` is not an id."""
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
            durable_files.close(folder)

    def get(self, id: str) -> Entry:
        """Return one export, with its whole query.

        Raise ExportNotFound, ExportUnreadable, StorageUnavailable, NoSpaceLeft.
        """
        with self.open_root() as root, self.open_folder(root, id) as folder:
            return self.read_entry(folder, id)

    def open_data(self, id: str) -> tuple[Manifest, int]:
        """Return a completed export and the descriptor of its file, which the caller closes.

        Raise ExportFailed if the file is missing or has another size. Raise ExportNotFound, ExportUnreadable,
        StorageUnavailable, NoSpaceLeft.
        """
        with self.open_root() as root, self.open_folder(root, id) as folder:
            manifest = self.read_entry(folder, id).manifest
            with contextlib.suppress(OSError):
                return manifest, _open_file_of_size(folder, manifest.file_name, manifest.bytes)
        raise ExportFailed(
            "The file of this export has been removed or changed.",
            code="file_damaged",
            hint="Delete the export and save it again.",
        )

    def read_entry(self, folder: int, id: str) -> Entry:
        """Return the export in this folder. Raise ExportUnreadable, and ExportNotFound if there is no manifest."""
        return self.read_stamped(folder, id)[1]

    def read_stamped(self, folder: int, id: str) -> tuple[Stamp, Entry]:
        """Return the export in this folder and the stamp of its manifest. Raise as `read_entry` does.

        The cause of ExportUnreadable is None if the manifest was read and cannot be used.
        """
        cause: OSError | None = None
        try:
            return _read(folder, id)
        except FileNotFoundError:
            raise not_found() from None
        except ManifestError as error:
            reason = str(error)
        except OSError as error:  # a symbolic link, a folder, a file of another user
            reason, cause = f"it cannot be read ({error.strerror})", error
        self.report(id, reason)
        raise ExportUnreadable(
            f"The manifest of this export cannot be used: {reason}.",
            hint="Ask the operator to remove its folder, or to run the version of the server that wrote it.",
        ) from cause

    @contextlib.contextmanager
    def errors_of(self, id: str) -> Iterator[None]:
        """Raise ExportUnreadable for an OSError in the block: it concerns this export and not the whole folder.

        A full disk is NoSpaceLeft, and FileNotFoundError is left as it is.
        """
        try:
            with disk_full_errors():
                yield
        except FileNotFoundError:
            raise
        except OSError as error:
            self.report(id, error.strerror or "it cannot be changed")
            raise folder_unusable("Ask the operator to remove it. The log names the reason.") from error

    def report(self, id: str, reason: str) -> None:
        """Log that this export is left alone, once for each reason."""
        if self._reported.get(id) != reason and (id in self._reported or len(self._reported) < _MOST_REPORTED):
            self._reported[id] = reason
            emit(ExportLeftAlone(export_id=id, reason=reason))

    def forget(self, id: str) -> None:
        """Forget what was logged of this export: it has been removed."""
        self._reported.pop(id, None)

    def unavailable(self, error: OSError) -> StorageUnavailable:
        """Return the error to raise because the folder cannot be used; log the reason once."""
        reason = error.strerror or type(error).__name__
        if self._reported.get("") != reason:
            self._reported[""] = reason
            emit(StorageUnusable(path=str(self.path), reason=reason))
        return StorageUnavailable(
            "The server cannot save exports now.",
            hint="Download the file directly with GET, or ask the operator: the log names the reason.",
        )


def _read(folder: int, id: str) -> tuple[Stamp, Entry]:
    """Return the stamp of a manifest and what it says. Raise ManifestError, OSError."""
    descriptor = durable_files.open_file(folder, MANIFEST)
    try:
        status = os.fstat(descriptor)
        if status.st_size > MOST_MANIFEST_BYTES:
            raise ManifestError("it is too long")
        manifest = read_manifest(id, os.read(descriptor, MOST_MANIFEST_BYTES))
    finally:
        durable_files.close(descriptor)
    return stamp_of(status), Entry(manifest, progress_in(folder))


def _open_file_of_size(folder: int, name: str, size: int | None) -> int:
    descriptor = durable_files.open_file(folder, name)
    try:
        if os.fstat(descriptor).st_size != size:
            raise OSError("the file has another size")
    except BaseException:
        durable_files.close(descriptor)
        raise
    return descriptor


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a manifest with this status."""
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def progress_in(folder: int) -> Progress:
    """Return the last progress that was saved in this folder."""
    try:
        return read_progress(durable_files.read_file(folder, PROGRESS, _MOST_PROGRESS_BYTES))
    except OSError:
        return Progress()


def not_found() -> ExportNotFound:
    """Return the error for an id that no export has."""
    return ExportNotFound("There is no saved export with this id.", hint="GET /exports lists the saved exports.")


def no_space_left() -> NoSpaceLeft:
    """Return the error for a full disk or an exhausted quota."""
    return NoSpaceLeft(
        "There is no space left for saved exports.",
        hint="Delete saved exports that are not needed, or ask the operator for more space or a higher "
        "EXPORT_STORAGE_LIMIT.",
    )


def folder_unusable(hint: str) -> ExportUnreadable:
    """Return the error for an export whose folder cannot be read or changed. hint: what the client can do."""
    return ExportUnreadable("The folder of this export cannot be used.", hint=hint)


@contextlib.contextmanager
def disk_full_errors() -> Iterator[None]:
    """Raise NoSpaceLeft for an OSError in the block that means a full disk."""
    try:
        yield
    except OSError as error:
        if durable_files.is_disk_full(error):
            raise no_space_left() from error
        raise

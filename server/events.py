"""What is worth observing, as values: one class for each event, with named fields, made where the event happens.

`emit` hands an event to every observer. The log line is made in `server/process/logs.py`; metrics and an audit trail
are to be observers too. An event never holds SQL text, a password or a value of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event. name: what the log calls it. level: its severity, as in `logging`. error: the exception to log."""

    name: ClassVar[str]
    level: ClassVar[int] = logging.INFO

    error: BaseException | None = None

    def fields(self) -> dict[str, object]:
        """Return the fields that have a value, by name in camel case."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "error")
        return {_camel_case(name): value for name, value in values if value is not None}


Observer = Callable[[Event], None]

_observers: list[Observer] = []


def subscribe(observer: Observer) -> None:
    """Call the observer with every event from now on. An observer must not block or raise."""
    if observer not in _observers:
        _observers.append(observer)


def emit(event: Event) -> None:
    """Hand the event to every observer. Safe in any thread."""
    for observer in _observers:
        observer(event)


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


# --- downloads ---


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStreamed(Event):
    """A streamed download has ended or was refused. scan: how the rows were read. code, reason: of its error."""

    name = "export"
    relation: str
    format: str
    outcome: str
    rows: int
    bytes: int
    scan: str
    seconds: float
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedExportSent(Event):
    """A download of a saved export has ended. bytes: of the file, as many as were sent."""

    name = "saved export sent"
    export_id: str
    outcome: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadCrashed(Event):
    """A download ended with an error that nobody expected."""

    name = "a download failed"
    level = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFileTooShort(Event):
    """The file of a completed export has fewer bytes than its manifest says."""

    name = "the file of a saved export is shorter than it was"
    level = logging.ERROR
    export_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStarted(Event):
    """The server stops and waits for downloads. running: how many; seconds: how long at most."""

    name = "waiting for downloads"
    running: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCrashed(Event):
    """A request ended with an error that nobody expected."""

    name = "a request failed"
    level = logging.ERROR
    method: str
    path: str


# --- the database ---


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUnreachable(Event):
    """No connection could be made."""

    name = "database unreachable"
    level = logging.WARNING
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseNotReady(Event):
    """The database could not be reached when the worker started."""

    name = "the database cannot be reached yet; exports begin as soon as it is there"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementNotCancelled(Event):
    """A statement could not be cancelled and may still run. pid: of its backend."""

    name = "a statement may still run in the database"
    level = logging.WARNING
    pid: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderFailed(Event):
    """A reader beside the first one of an export failed."""

    name = "a reader ended early"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PureEncoderInUse(Event):
    """The worker encodes rows in Python."""

    name = "the pure-Python encoder is in use: the same bytes, more slowly"
    level = logging.WARNING


# --- saved exports ---


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSaved(Event):
    """A saved export is complete."""

    name = "export saved"
    rows: int | None
    bytes: int | None
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFailed(Event):
    """A saved export has failed and is not tried again."""

    name = "export failed"
    level = logging.WARNING
    export_id: str | None = None
    attempts: int | None = None
    code: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCrashed(Event):
    """An attempt at a saved export ended with an error that nobody expected."""

    name = "an export failed"
    level = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPostponed(Event):
    """An attempt at a saved export failed; the next one begins after so many seconds."""

    name = "export will be tried again"
    level = logging.WARNING
    code: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInterrupted(Event):
    """The process that made a saved export was killed; the export waits for its next attempt."""

    name = "export interrupted"
    export_id: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCancelled(Event):
    """A saved export was cancelled while it was being made."""

    name = "export cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStopped(Event):
    """The server stops; another process, or the next start, makes the export."""

    name = "export stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFolderRemoved(Event):
    """Somebody removed the folder of an export while it was being made."""

    name = "export removed by hand"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLockLost(Event):
    """The lock of an export went to another process, as a network file system may do: its file is not published."""

    name = "export lost its lock"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportNotEnded(Event):
    """The outcome of an attempt could not be written to the disk."""

    name = "a saved export could not be ended"
    level = logging.WARNING
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportExpired(Event):
    """A saved export was removed after EXPORT_RETENTION."""

    name = "export expired"
    export_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportEvicted(Event):
    """A saved export was removed because of EXPORT_STORAGE_LIMIT."""

    name = "export removed to make room"
    export_id: str
    bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLeftAlone(Event):
    """A folder of a saved export is not understood or cannot be used."""

    name = "a saved export is left alone"
    level = logging.WARNING
    export_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUnusable(Event):
    """The folder of saved exports cannot be used."""

    name = "the folder of saved exports cannot be used"
    level = logging.ERROR
    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTimedOut(Event):
    """The server stops although saved exports are still being ended; the next start continues with them."""

    name = "saved exports did not stop in time"
    level = logging.WARNING
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCrashed(Event):
    """A look at the folder of saved exports ended with an error that nobody expected."""

    name = "looking after saved exports failed"
    level = logging.ERROR

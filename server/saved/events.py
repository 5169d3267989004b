"""The events of saved exports. `server/events.py` defines what an event is."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from server.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSaved(Event):
    """A saved export is complete."""

    name = "export saved"
    rows: int | None
    bytes: int | None
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportGivenUp(Event):
    """A saved export has failed and is not tried again. code, sqlstate, reason: of the error."""

    name = "export failed"
    level = logging.WARNING
    export_id: str | None = None
    attempts: int | None = None
    code: str
    sqlstate: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCrashed(Event):
    """An attempt at a saved export failed with an unexpected error."""

    name = "an export failed"
    level = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPostponed(Event):
    """An attempt at a saved export failed. The next one starts after `seconds`."""

    name = "export will be tried again"
    level = logging.WARNING
    code: str
    sqlstate: str | None = None
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInterrupted(Event):
    """The process that ran a saved export was killed. The export waits for its next attempt."""

    name = "export interrupted"
    export_id: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCancelled(Event):
    """A saved export was cancelled while it was running."""

    name = "export cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStopped(Event):
    """A saved export was given back to the queue because the server stops."""

    name = "export stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFolderRemoved(Event):
    """Somebody removed the folder of a saved export while it was running."""

    name = "export removed by hand"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLockLost(Event):
    """Another process took the lock of a running export, as a network file system may allow. Nothing is published."""

    name = "export lost its lock"
    level = logging.WARNING
    export_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportNotEnded(Event):
    """The outcome of an attempt could not be written to the disk."""

    name = "a saved export could not be ended"
    level = logging.WARNING
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportExpired(Event):
    """A finished export was removed after EXPORT_RETENTION."""

    name = "export expired"
    export_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportEvicted(Event):
    """A finished export was removed to keep within EXPORT_STORAGE_LIMIT."""

    name = "export removed to make room"
    export_id: str
    bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLeftAlone(Event):
    """The folder of a saved export cannot be read or changed."""

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
    """The server stops although saved exports still wait for the disk. The next start recovers them."""

    name = "saved exports did not stop in time"
    level = logging.WARNING
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCrashed(Event):
    """Processing the queue failed with an unexpected error."""

    name = "looking after saved exports failed"
    level = logging.ERROR

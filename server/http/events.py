"""The events of requests and downloads. What an event is: `server/events.py`."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from server.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStreamed(Event):
    """A streamed download has ended or was refused.

    outcome: one of `transfer.Outcome`. scan: how the rows were read. ranges: the number of block ranges, None without
    any. status, code, sqlstate, reason: of the error that ended it.
    """

    name = "export"
    relation: str
    format: str
    outcome: str
    rows: int
    bytes: int
    scan: str
    ranges: int | None = None
    seconds: float
    status: int | None = None
    code: str | None = None
    sqlstate: str | None = None
    reason: str | None = None

    @property
    def severity(self) -> int:
        """A warning if the download failed for another reason than its request or its client."""
        at_fault = self.status is not None and self.status < 500
        failed = self.outcome == "failed" or (self.outcome == "rejected" and not at_fault)
        return logging.WARNING if failed else logging.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedExportSent(Event):
    """A download of a saved export has ended. outcome: as of `ExportStreamed`. bytes: how many were sent."""

    name = "saved export sent"
    export_id: str
    outcome: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadCrashed(Event):
    """An unexpected error ended a download. error: the exception."""

    name = "a download failed"
    level = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFileTooShort(Event):
    """The file of a completed export has become shorter than its manifest says."""

    name = "the file of a saved export is shorter than it was"
    level = logging.ERROR
    export_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStarted(Event):
    """The server stops and waits for downloads. running: how many. seconds: how long it waits at most."""

    name = "waiting for downloads"
    running: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsClosed(Event):
    """There were too many connections. At most one event a minute.

    open: how many are open now. closed, refused: waiting ones closed and new ones refused since the last event.
    """

    name = "too many connections"
    level = logging.WARNING
    open: int
    closed: int
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed(Event):
    """The server, the database or a relation is the cause that a request failed. The fields are those of its error.

    Also of an error that a page shows in its place.
    """

    name = "request failed"
    level = logging.WARNING
    method: str
    path: str
    status: int
    code: str
    sqlstate: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCrashed(Event):
    """An unexpected error ended a request. error: the exception."""

    name = "a request failed"
    level = logging.ERROR
    method: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMalformed(Event):
    """Bytes that are not an HTTP request. They may hold a password, so the event repeats none of them.

    kind: the class of aiohttp's error. reason: one of the parser's fixed sentences, if it gives one. position: the
    number of bytes before the wrong one in its line, if it is known.
    """

    name = "not an HTTP request"
    kind: str
    reason: str | None
    position: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopError(Event):
    """The event loop reports an error that nobody waits for. what: how it calls it. error: the exception."""

    name = "an error outside of any request"
    level = logging.ERROR
    what: str

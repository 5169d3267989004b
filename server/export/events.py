"""The events of reading a relation. What an event is: `server/events.py`."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from server.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderFailed(Event):
    """A reader other than the first one of an export failed.

    Those that are left read the range that it gives back. If it cannot give it back, the file ends there. error: only
    if it is no ExportError.
    """

    name = "a reader ended early"
    sqlstate: str | None = None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PureEncoderInUse(Event):
    """The worker has no native encoder and encodes rows in Python."""

    name = "the pure-Python encoder is in use: the same bytes, more slowly"
    level = logging.WARNING

"""The events of connections and statements. `server/events.py` defines what an event is."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from server.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUnreachable(Event):
    """No connection could be made. reason: what libpq says about one of the addresses. sqlstate: of its server."""

    name = "database unreachable"
    level = logging.WARNING
    reason: str
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerErrorReported(Event):
    """PostgreSQL has sent an error. Its primary message, detail, hint and context (where) may hold values of rows."""

    name = "PostgreSQL reports an error"
    level = logging.DEBUG
    sqlstate: str | None
    message: str
    detail: str | None = None
    hint: str | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseNotReady(Event):
    """The database could not be reached when the worker started."""

    name = "the database cannot be reached yet; exports begin as soon as it is there"
    level = logging.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementNotCancelled(Event):
    """A statement could not be cancelled and may still run. pid: the process ID of its backend."""

    name = "a statement may still run in the database"
    level = logging.WARNING
    pid: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsLeftOpen(Event):
    """The worker stops while threads still read from connections. count: how many connections stay open."""

    name = "connections that are still read stay open until the process ends"
    level = logging.WARNING
    count: int

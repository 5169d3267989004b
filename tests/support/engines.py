"""Sluice's database and engine without HTTP, for tests in this process."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator

from server.encode.encoders import Encoders, choose_encoders
from server.export.engine import Engine
from server.memory import Memory
from server.postgres.connections import Connections
from server.postgres.database import Database, reading_connections
from server.postgres.portal import PortalReader
from server.postgres.tls import addresses
from server.settings import Settings
from server.threads import Threads


def make_threads(settings: Settings) -> Threads:
    """The thread pools of a worker with these settings."""
    return Threads(readers=reading_connections(settings), exports=settings.max_concurrent_exports)


@functools.cache
def encoders(*, native: bool) -> Encoders:
    """The encoders of a worker. native: the native one, which must be built."""
    chosen = choose_encoders(addresses(), PortalReader, pure_python=not native)
    assert chosen.native is native, "the native encoder is not built"
    return chosen


@contextlib.asynccontextmanager
async def open_connections(dsn: str) -> AsyncIterator[Connections]:
    """The connections of a worker to this database, of which one is kept when it is idle."""
    threads = make_threads(Settings())
    connections = Connections(dsn, 1, threads.names)
    try:
        yield connections
    finally:
        connections.close()
        threads.close()


@contextlib.asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """A database with threads of its own."""
    threads = make_threads(settings)
    async with Database(settings, threads) as database:
        yield database
    threads.close()


def make_engine(database: Database, *, native: bool = True, settings: Settings | None = None) -> Engine:
    """An engine over this database."""
    used = settings or Settings()
    return Engine(database, encoders(native=native), make_threads(used), Memory(used.most_memory))

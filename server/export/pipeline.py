"""A request → its session, its plan and its chunks: what a download, a saved export and a preview begin with alike.

Puts the stages together and nothing else: no HTTP, no disk, and no second way to compile a request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from server.chunk import Chunk
from server.encode.encoders import make_encoder
from server.errors import ExportError, InvalidRequest, QueryFailed
from server.export.compress import gzipped
from server.export.diagnose import diagnose
from server.export.scan import scan
from server.export.strategy import Strategy
from server.postgres.database import Database
from server.postgres.session import Session
from server.query.plan import ExportPlan, make_plan
from server.query.request import ExportRequest

# Seconds before a transient error (a connection that died in the pool, a conflict on a replica) is tried
# again, as long as nothing has been sent.
RETRY_DELAYS = (0.0, 0.2)

Result = TypeVar("Result")


async def with_retries(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """What the attempt gives, begun anew after a transient error."""
    for delay in RETRY_DELAYS:
        try:
            return await attempt()
        except ExportError as error:
            if not error.transient:
                raise
            await asyncio.sleep(delay)
    return await attempt()


@contextlib.asynccontextmanager
async def open_plan(
    database: Database, wanted: ExportRequest, *, control: bool = False
) -> AsyncIterator[tuple[Session, ExportPlan]]:
    """A session with the plan of this request. control: beside the exports' slots, for what is short.

    An error about a value that leaves the block names the column whose filter caused it. Raises ExportError.
    """
    plan = None
    try:
        async with database.control_session() if control else database.session() as session:
            plan = make_plan(wanted, await session.relation(wanted.relation, exact=not control))
            yield session, plan
    except (InvalidRequest, QueryFailed) as error:
        if plan is None:
            raise
        raise await diagnose(database, plan, error) from None


def chunks_of(
    database: Database,
    session: Session,
    plan: ExportPlan,
    strategy: Strategy,
    *,
    native: bool,
    encoded: bool = False,
) -> AsyncGenerator[Chunk, None]:
    """The file of this plan, compressed if the plan says so or the way to the client is to be `encoded`."""
    chunks = scan(database, session, plan, strategy, make_encoder(plan.dialect, plan.format, native=native))
    return gzipped(chunks) if plan.gzip or encoded else chunks

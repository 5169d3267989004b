"""A request → an open export: its transaction, its plan and its chunks.

Every download, saved export, preview and explanation starts here, and so do the answers that need a relation or a plan
but no rows. Puts the stages together and does nothing else: it must not know HTTP or the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from server.chunk import Chunk
from server.errors import ExportError, PlanTimeout, QueryFailed, RelationFailed
from server.events import add_context
from server.export.compress import gzipped
from server.export.diagnose import diagnose
from server.export.engine import Engine
from server.export.relation_faults import relation_fault
from server.export.scan import choose_strategy, read_rows, scan
from server.export.strategy import Outline, Strategy, outline, reads_in_order
from server.postgres.database import Database
from server.postgres.explained import Explained
from server.postgres.portal import RowWriter
from server.postgres.session import Session
from server.query.catalogue import LONGEST_RELATION_NAME, Relation, RelationName
from server.query.filters import conditions_of
from server.query.plan import ExportPlan, make_plan, preview_of
from server.query.request import ExportRequest
from server.query.sql import has_parts, select_statement
from server.query.switches import refuse_switched_off
from server.threads import give_way

# Seconds to wait before each new attempt after a transient error (a connection that died in the pool, a conflict on a
# replica). The first attempt is repeated at once: a new connection is usually enough.
RETRY_DELAYS = (0.0, 0.2)

Result = TypeVar("Result")


async def with_retries(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what the attempt returns. Repeat it after a transient error, once for each of RETRY_DELAYS.

    attempt: raises a transient error only if it has sent nothing.
    """
    for delay in RETRY_DELAYS:
        try:
            return await attempt()
        except ExportError as error:
            if not error.transient:
                raise
            await asyncio.sleep(delay)
    return await attempt()


class OpenExport:
    """An export whose transaction is open. Made by `open_export`; use it only within that block.

    session: its transaction. plan: what it reads.
    """

    def __init__(self, engine: Engine, session: Session, plan: ExportPlan, *, told: bool = False) -> None:
        """told: whether a user is told how the export is read."""
        self.session = session
        self.plan = plan
        self._engine = engine
        self._told = told
        self._explained: Explained | None = None
        self._strategy: Strategy | None = None

    @property
    def snapshot_at(self) -> datetime.datetime | None:
        """When the transaction started, whose snapshot the rows come from."""
        return self.session.snapshot_at

    async def explained(self) -> Explained:
        """Return PostgreSQL's plan of the query. PostgreSQL is asked once.

        Locks the relations that the query reads. Raise ExportError as the query itself would.
        """
        if self._explained is None:
            began = time.perf_counter()
            plan, statement = self.plan, select_statement(self.plan)
            await give_way(began)
            with _reading_the_relation():
                self._explained = await self.session.explain(
                    statement.text,
                    statement.values,
                    timezone=plan.timezone,
                    in_order=reads_in_order(plan),
                    told_about=plan.relation.oid if self._told else None,
                    relation_alone=not has_parts(plan),
                )
        return self._explained

    async def estimated_rows(self) -> int | None:
        """Return how many rows PostgreSQL expects, None if the user must not be told. Raise as `explained` does."""
        explained = await self.explained()
        return None if explained.withheld else explained.rows

    async def outline(self) -> Outline:
        """Return what the user may be told of the strategy. Raise as `explained` does."""
        return outline(self.plan, await self.explained(), await self.strategy())

    async def check(self) -> None:
        """Begin to run the query, and read no row. Raise ExportError as the query itself would before its first row.

        Finds what EXPLAIN does not: a materialized view without data.
        """
        await self.explained()
        statement = select_statement(replace(self.plan, limit=0))
        with _reading_the_relation():
            await self.session.query(statement.text, statement.values)

    async def strategy(self) -> Strategy:
        """Return how the rows are read: by one reader, or by several over ranges of blocks. Decided once."""
        if self._strategy is None:
            self._strategy = await choose_strategy(self._engine, self.session, self.plan, await self.explained())
        return self._strategy

    async def chunks(self, *, compressed: bool = False) -> AsyncGenerator[Chunk, None]:
        """Yield the file in chunks, each as soon as it is there. Call this once, and close the generator.

        compressed: gzip the chunks for the transfer, unless the file itself is gzip. Raise ExportError: before
        the first chunk if the query fails at once, else after the chunks that were read until then.
        """
        chunks = scan(self._engine, self.session, self.plan, await self.strategy())
        if self.plan.gzip or compressed:
            chunks = gzipped(chunks, self._engine.threads.compression)
        async with contextlib.aclosing(chunks):
            with _reading_the_relation():
                async for chunk in chunks:
                    yield chunk

    async def first_rows(self, writer: RowWriter) -> None:
        """Pass the first PREVIEW_ROWS rows to the writer, instead of the file. Call this once. Raise ExportError."""
        await self.explained()  # locks, and finds out whether the snapshot fits
        with _reading_the_relation():
            await read_rows(self.session, select_statement(preview_of(self.plan)), writer)


@contextlib.contextmanager
def _reading_the_relation() -> Iterator[None]:
    """Raise an error of PostgreSQL as a fault of the relation, if it is one."""
    try:
        yield
    except QueryFailed as error:
        raise relation_fault(error) from None


@contextlib.asynccontextmanager
async def open_export(
    engine: Engine,
    request: ExportRequest,
    *,
    control: bool = False,
    preview_wait: float | None = None,
    told: bool = False,
) -> AsyncIterator[OpenExport]:
    """Open a transaction for this request and resolve the names in it, in an export slot.

    control: on a connection for planning instead, if no row is read. preview_wait: on a connection for previews, with
    these seconds to wait for it and for a lock. told: `OpenExport.estimated_rows` or `outline` is needed; otherwise
    they tell nothing. Raise ExportError. If a fault of the relation leaves the block, or PlanTimeout, the transaction
    is closed, and if a part of the request is the cause, an error that names it is raised instead.
    """
    database = engine.database
    plan = None
    _name_in_the_log(request.relation)
    refuse_switched_off(request, regular_expressions=engine.regular_expressions)
    try:
        async with _session_of(database, control, preview_wait) as session:
            plan = await _plan(session, request)
            yield OpenExport(engine, session, plan, told=told)
    except (RelationFailed, PlanTimeout) as error:
        if plan is None:
            raise
        raise await diagnose(database, plan, error) from None


def _session_of(
    database: Database, control: bool, preview_wait: float | None
) -> contextlib.AbstractAsyncContextManager[Session]:
    if preview_wait is not None:
        return database.preview_session(wait=preview_wait)
    return database.planning_session() if control else database.session()


async def describe(engine: Engine, name: RelationName) -> Relation:
    """Return the relation of this name, on a control connection and without waiting for a lock on the relation.

    Raise RelationNotFound and the other ExportErrors of a control session.
    """
    relation, _ = await describe_with_timezone(engine, name)
    return relation


async def describe_with_timezone(engine: Engine, name: RelationName) -> tuple[Relation, str]:
    """Return the relation of this name, and the time zone of an export that chooses none. Raise as `describe` does."""
    _name_in_the_log(name)
    async with engine.database.control_session() as session:
        return await session.relation(name, statistics=True), session.timezone


async def plan_headers(engine: Engine, request: ExportRequest) -> ExportPlan:
    """Return a plan for the headers of this request: run no query on the relation and take no export slot.

    Raise the errors of `describe` and of `make_plan`.
    """
    refuse_switched_off(request, regular_expressions=engine.regular_expressions)
    _name_in_the_log(request.relation)
    async with engine.database.control_session() as session:
        return await _plan(session, request)


async def _plan(session: Session, request: ExportRequest) -> ExportPlan:
    filtered = {condition.column for condition in conditions_of(request.filters)}
    relation = await session.relation(request.relation, filtered=filtered)
    began = time.perf_counter()
    plan = make_plan(request, relation)
    await give_way(began)
    return plan


def _name_in_the_log(name: RelationName) -> None:
    """Give the name of the relation to all later events of the task."""
    add_context(relation=str(name)[:LONGEST_RELATION_NAME])

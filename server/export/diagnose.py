"""Find the part of a request that PostgreSQL rejects: a condition, a sort key, a cast, or the time zone.

Turns a failed query into an error that names the column and its type, but only if a probe shows that this part fails:
every other error is the relation's own. Runs one query for each part, and only after the export's own query has failed
or has taken too long to be planned. Reads no row of the relation, except for a cast, without which it counts the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from server.errors import (
    TRY_AGAIN,
    DatabaseUnavailable,
    ExportError,
    Forbidden,
    InvalidRequest,
    PlanTimeout,
    QueryFailed,
    RelationFailed,
    ServerBusy,
)
from server.export.rejected_values import message_about
from server.export.rejections import NO_OPERATOR, about_value, no_cast, rejected, too_complex, too_complex_together
from server.export.relation_faults import not_populated, relation_fault
from server.postgres.database import Database
from server.postgres.queries import Row
from server.postgres.server_errors import in_brackets
from server.postgres.session import Session
from server.query.filters import REGULAR_EXPRESSIONS
from server.query.plan import ExportPlan
from server.query.sql import Probe, Statement, count_without_casts, empty_statement, has_parts, probes, value_probes
from server.threads import cancel_and_wait

# The SQLSTATEs of a value that a cast does not accept. NaN is no integer (0A000), JSON may be nested too deep (54001).
_NO_CAST = ("0A000", "22003", "22007", "22008", "22009", "22015", "22018", "22023", "22P02", "54001")
# The kinds of relations that compute their values when they are read.
_COMPUTED = ("view", "foreign table")
# Seconds for the whole search. Who has waited for an error should not wait longer for its cause.
DIAGNOSIS_SECONDS = 1.0
# Seconds to read a relation without the casts.
COUNT_SECONDS = 0.5
# Seconds for a condition on no row. PostgreSQL may need a minute to find that a regular expression is too complex.
CONDITION_SECONDS = 0.4

_SET_TIMEZONE = "SELECT pg_catalog.set_config('TimeZone', $1, true)"

# Whether the materialized view $1, or one that the view $1 reads, has no data, and whether that is $1 itself.
_UNPOPULATED = """
WITH RECURSIVE used (oid) AS (
    SELECT $1::pg_catalog.oid
    UNION
    SELECT d.refobjid
    FROM used
    JOIN pg_catalog.pg_class AS c
        ON c.oid OPERATOR(pg_catalog.=) used.oid AND c.relkind OPERATOR(pg_catalog.=) 'v'
    JOIN pg_catalog.pg_rewrite AS r ON r.ev_class OPERATOR(pg_catalog.=) c.oid
    JOIN pg_catalog.pg_depend AS d ON d.objid OPERATOR(pg_catalog.=) r.oid
        AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass
    WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
)
SELECT c.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid AS itself
FROM used JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) used.oid
WHERE c.relkind OPERATOR(pg_catalog.=) 'm' AND NOT c.relispopulated
ORDER BY 1 DESC LIMIT 1
"""


async def diagnose(database: Database, plan: ExportPlan, error: RelationFailed | PlanTimeout) -> ExportError:
    """Return an error that names the part of the request that causes this one, or this one if none does.

    Also names a materialized view that has no data. If nothing of the relation can be read, return the error for that:
    this one may be about a value of the request, which PostgreSQL reads first. Takes at most DIAGNOSIS_SECONDS; an
    error whose cause is not found until then blames nobody. Raise ServerBusy or DatabaseUnavailable if the search
    cannot begin.
    """
    if isinstance(error, PlanTimeout) and not has_parts(plan):
        return error
    search = _Search(database, plan, error)
    try:
        async with asyncio.timeout(DIAGNOSIS_SECONDS):
            return await search.run()
    except TimeoutError:
        return search.unfinished()
    except (ServerBusy, DatabaseUnavailable):
        raise
    except Forbidden as refused:  # so it is in any case
        return refused
    except ExportError:
        return error


class _Search:
    """The search for the cause of one error."""

    def __init__(self, database: Database, plan: ExportPlan, error: RelationFailed | PlanTimeout) -> None:
        self._database = database
        self._plan = plan
        self._error = error
        self._begun = False
        # Whether the relation was read without the request.
        self._readable = False

    async def run(self) -> ExportError:
        started = asyncio.get_running_loop().time()
        fault = await self._unreadable()
        if fault is not None:
            return await self._unpopulated(fault) if fault.sqlstate == "55000" else fault
        taken = asyncio.get_running_loop().time() - started
        if isinstance(self._error, PlanTimeout) and taken > self._error.seconds / 2:
            return self._error
        self._readable = True
        if self._error.sqlstate == "55000":
            return await self._unpopulated(self._error)
        part = await self._rejected_part()
        if isinstance(self._error, PlanTimeout):
            return part or self.unfinished()
        return part or await self._rejected_operator() or await self._rejected_value() or self._error

    def unfinished(self) -> ExportError:
        """Return the error if no single part of the request is known to be the cause. Raise ServerBusy."""
        error = self._error
        if not self._begun:
            raise ServerBusy("Other queries are checked at the moment.", hint=TRY_AGAIN)
        if isinstance(error, PlanTimeout):
            return too_complex_together(error) if self._readable else error
        unknown = QueryFailed(
            f"PostgreSQL stopped the query{in_brackets(error.sqlstate)}.",
            hint="Whether the request or the relation is the cause was not found in time. Try fewer conditions.",
        )
        unknown.sqlstate, unknown.server_message = error.sqlstate, error.server_message
        return unknown

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        async with self._database.planning_session() as session:
            self._begun = True
            yield session

    async def _unreadable(self) -> ExportError | None:
        """Return how the relation fails without the request, before its first row, or None if it does not."""
        async with self._session() as session:
            reason = await _failure(session, empty_statement(self._plan))
        return None if reason is None else relation_fault(reason)

    async def _unpopulated(self, error: ExportError) -> ExportError:
        async with self._session() as session:
            found = await session.query(_UNPOPULATED, (self._plan.relation.oid,))
        return not_populated(error, itself=found[0]["itself"]) if found else error

    async def _rejected_part(self) -> InvalidRequest | None:
        """Return the error for the first part of the request that PostgreSQL rejects by itself, or plans for long."""
        plan, parts = self._plan, probes(self._plan)
        if not (parts or plan.timezone):
            return None
        async with self._session() as session:
            if plan.timezone is not None and await _failure(session, Statement(_SET_TIMEZONE, [plan.timezone])):
                return InvalidRequest(
                    f'The database does not know the time zone "{plan.timezone}".', code="invalid_value"
                )
            number, reason = await self._first_failure(session, parts)
        if number == len(parts):
            return None
        probe = parts[number]
        return too_complex(plan, probe) if reason is None else await self._rejected(probe, reason)

    async def _first_failure(self, session: Session, parts: Sequence[Probe]) -> tuple[int, QueryFailed | None]:
        """Return the number of the first probe that fails, and how; None for how if it takes too long.

        The number of probes if there is none. The session can only be left if there is one.
        """
        finished: list[list[Row]] = []
        statements = [(probe.statement.text, probe.statement.values) for probe in parts]
        running = asyncio.create_task(session.query_all(statements, finished))
        try:
            while True:
                before = len(finished)
                await asyncio.wait([running], timeout=CONDITION_SECONDS)
                if running.done():
                    break
                if len(finished) == before and self._may_take_long(parts[before]):
                    return before, None
        finally:
            if not running.done():
                await cancel_and_wait(running)
        try:
            running.result()
        except QueryFailed as reason:
            return len(finished), reason
        return len(parts), None

    def _may_take_long(self, probe: Probe) -> bool:
        """Return whether it is the probe that takes long, and not the server that does everything slowly."""
        return probe.part == "condition" and (
            isinstance(self._error, PlanTimeout) or (probe.operator or "").startswith(REGULAR_EXPRESSIONS)
        )

    async def _rejected(self, probe: Probe, reason: QueryFailed) -> InvalidRequest:
        """Return the error for this probe. reason: what it met, whose message may hold a value of a row."""
        message = None if probe.names_relation else reason.server_message
        if probe.names_relation and about_value(reason):
            async with self._session() as session:
                message = await message_about(session, probe.statement)
        return rejected(self._plan, probe, reason, message)

    async def _rejected_operator(self) -> InvalidRequest | None:
        """Return the error for an operator that PostgreSQL rejects only when it has a value to compare."""
        if self._error.sqlstate in NO_OPERATOR:
            for probe in value_probes(self._plan):
                async with self._session() as session:
                    reason = await _failure(session, probe.statement)
                if reason is not None and reason.sqlstate == self._error.sqlstate:
                    return await self._rejected(probe, reason)
        return None

    async def _rejected_value(self) -> InvalidRequest | None:
        """Return the error for a cast of the request that does not accept some value.

        A view, a policy or a generated column may convert values too. A relation is to blame if it cannot be read
        without the casts, and a view unless it can be within COUNT_SECONDS.
        """
        plan = self._plan
        casts = [output.field for output in plan.columns if output.field.cast not in (None, "text", "varchar")]
        if not casts or self._error.sqlstate not in _NO_CAST:
            return None
        try:
            async with asyncio.timeout(COUNT_SECONDS), self._session() as session:
                if await _failure(session, count_without_casts(plan)):
                    return None
        except TimeoutError:
            if plan.relation.kind in _COMPUTED:
                return None
        return no_cast(casts)


async def _failure(session: Session, statement: Statement) -> QueryFailed | None:
    """Return how this statement fails, after which the session can only be left."""
    try:
        await session.query(statement.text, statement.values)
    except QueryFailed as reason:
        return reason
    return None

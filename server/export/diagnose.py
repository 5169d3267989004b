"""Find the part of a request that PostgreSQL rejects: a condition, a sort key, a cast, or the time zone.

Turns a failed query into an error that names the column and its type, but only if a probe shows that this part fails:
every other error is the relation's own. Runs one query for each part, and only after the export's own query has failed.
Reads no row of the relation, except for a cast, without which it counts the rows.
"""

from __future__ import annotations

from dataclasses import replace

from server.errors import (
    DatabaseUnavailable,
    ExportError,
    Forbidden,
    InvalidRequest,
    QueryCancelled,
    QueryFailed,
    RelationFailed,
    ServerBusy,
)
from server.export.rejected_values import message_about
from server.export.relation_faults import not_populated, relation_fault
from server.postgres.database import Database
from server.postgres.session import Session
from server.query.columns import type_of
from server.query.fields import CASTS
from server.query.grammar import shorten
from server.query.plan import ExportPlan
from server.query.sql import Probe, Statement, count_without_casts, empty_statement, probes, value_probes

# The SQLSTATEs of an operator that a type does not have, also of one that only some values would need: equality of JSON
# in an array, a pattern under a nondeterministic collation.
_NO_OPERATOR = ("0A000", "42725", "42804", "42809", "42883", "42P22")

# The SQLSTATEs of a value that a cast does not accept. NaN is no integer (0A000), JSON may be nested too deep (54001).
_NO_CAST = ("0A000", "22003", "22007", "22008", "22009", "22015", "22018", "22023", "22P02", "54001")
# The kinds of relations that compute their values when they are read.
_COMPUTED = ("view", "foreign table")
# Casts that an error names. Which of them failed is not known.
MOST_CASTS = 5

# Seconds to read a relation without the casts: control connections are few.
COUNT_SECONDS = 2
# Seconds for a condition on no row. PostgreSQL may need a minute to find that a regular expression is too complex.
CONDITION_SECONDS = 2

_SET_TIMEOUT = "SELECT pg_catalog.set_config('statement_timeout', $1, true)"
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


async def diagnose(database: Database, plan: ExportPlan, error: RelationFailed) -> ExportError:
    """Return an error that names the part of the request that causes this one, or this one if none does.

    Also names a materialized view that has no data. If nothing of the relation can be read, return the error for that:
    this one may be about a value of the request, which PostgreSQL reads first. Raise ServerBusy or DatabaseUnavailable
    if the cause cannot be found out now: nobody is blamed then.
    """
    try:
        fault = await _unreadable(database, plan) or error
        if fault.sqlstate == "55000":
            return await _unpopulated(database, plan, fault)
        if fault is not error:
            return fault
        return (
            await _rejected_part(database, plan)
            or await _rejected_operator(database, plan, error)
            or await _rejected_value(database, plan, error)
            or error
        )
    except (ServerBusy, DatabaseUnavailable):
        raise
    except Forbidden as refused:  # so it is in any case
        return refused
    except ExportError:
        return error


async def _unreadable(database: Database, plan: ExportPlan) -> ExportError | None:
    """Return how the relation fails without the request, before its first row, or None if it does not."""
    async with database.control_session() as session:
        reason = await _failure(session, empty_statement(plan))
    return None if reason is None else relation_fault(reason)


async def _unpopulated(database: Database, plan: ExportPlan, error: ExportError) -> ExportError:
    async with database.control_session() as session:
        found = await session.query(_UNPOPULATED, (plan.relation.oid,))
    return not_populated(error, itself=found[0]["itself"]) if found else error


async def _rejected_part(database: Database, plan: ExportPlan) -> InvalidRequest | None:
    """Return the error for the first part of the request that PostgreSQL rejects by itself."""
    parts = probes(plan)
    if not (parts or plan.timezone):
        return None
    rejected: tuple[Probe, QueryFailed] | None = None
    async with database.control_session() as session:
        if plan.timezone is not None and await _failure(session, Statement(_SET_TIMEZONE, [plan.timezone])):
            return InvalidRequest(f'The database does not know the time zone "{plan.timezone}".', code="invalid_value")
        await session.query(_SET_TIMEOUT, (f"{CONDITION_SECONDS}s",))
        for probe in parts:
            try:
                reason = await _failure(session, probe.statement)
            except QueryCancelled:
                if probe.part != "condition":
                    raise
                return _too_complex(plan, probe)
            if reason is not None:
                rejected = probe, reason
                break
    return None if rejected is None else await _rejected(database, plan, *rejected)


async def _rejected_operator(database: Database, plan: ExportPlan, error: RelationFailed) -> InvalidRequest | None:
    """Return the error for an operator that PostgreSQL rejects only when it has a value to compare."""
    if error.sqlstate in _NO_OPERATOR:
        for probe in value_probes(plan):
            async with database.control_session() as session:
                reason = await _failure(session, probe.statement)
            if reason is not None and reason.sqlstate == error.sqlstate:
                return await _rejected(database, plan, probe, reason)
    return None


async def _rejected_value(database: Database, plan: ExportPlan, error: RelationFailed) -> InvalidRequest | None:
    """Return the error for a cast of the request that does not accept some value.

    A view, a policy or a generated column may convert values too. A relation is to blame if it cannot be read without
    the casts, and a view unless it can be within COUNT_SECONDS.
    """
    casts = [output.field for output in plan.columns if output.field.cast not in (None, "text", "varchar")]
    if not casts or error.sqlstate not in _NO_CAST:
        return None
    async with database.control_session() as session:
        await session.query(_SET_TIMEOUT, (f"{COUNT_SECONDS}s",))
        try:
            if await _failure(session, count_without_casts(plan)):
                return None
        except QueryCancelled:
            if plan.relation.kind in _COMPUTED:
                raise
    names = [f'"{shorten(str(field))}"' for field in dict.fromkeys(casts)]
    if len(names) > MOST_CASTS:
        names[MOST_CASTS:] = ["another"]
    named = " or ".join(names)
    return InvalidRequest(
        f"A row has a value that cannot be cast: {named}.",
        code="invalid_value",
        hint="Select it without the cast, or leave such rows out by a filter.",
    )


async def _failure(session: Session, statement: Statement) -> QueryFailed | None:
    """Return how this statement fails, after which the session can only be left."""
    try:
        await session.query(statement.text, statement.values)
    except QueryFailed as reason:
        return reason
    return None


async def _rejected(database: Database, plan: ExportPlan, probe: Probe, reason: QueryFailed) -> InvalidRequest:
    """Return the error for this probe. reason: what the probe met, whose message may hold a value of a row."""
    column = _named(plan, probe)
    if probe.part == "sort key":
        return InvalidRequest(f"{column} cannot be sorted by.", code="operator_not_supported")
    if probe.part == "column":
        target = CASTS.get(probe.field.cast or "", "jsonb")
        return InvalidRequest(f"{column} cannot be cast to {target}.", code="operator_not_supported")
    if reason.sqlstate in _NO_OPERATOR:
        return InvalidRequest(
            f'The operator "{probe.operator}" cannot be used on {column}.', code="operator_not_supported"
        )
    what = "PostgreSQL does not understand its value."
    if (reason.sqlstate or "").startswith(("22", "54")):
        message: str | None = reason.server_message
        if probe.names_relation:
            async with database.control_session() as session:
                message = await message_about(session, probe.statement)
        what = f"PostgreSQL rejected a value: {message}." if message else what
    return InvalidRequest(f"The filter on {column} is not valid. {what}", code="invalid_value", hint=probe.hint)


def _too_complex(plan: ExportPlan, probe: Probe) -> InvalidRequest:
    """Return the error for a condition that PostgreSQL cannot even begin to compare with within CONDITION_SECONDS."""
    return InvalidRequest(
        f"The filter on {_named(plan, probe)} is too complex for PostgreSQL.",
        code="too_complex",
        hint="Use a simpler value. In a regular expression, avoid repetitions within repetitions.",
    )


def _named(plan: ExportPlan, probe: Probe) -> str:
    """Return the name and the type of what the probe is about."""
    field = replace(probe.field, cast=None)
    type = type_of(field, next(column for column in plan.relation.columns if column.name == field.column))
    return f'"{shorten(str(field))}" ({type})'

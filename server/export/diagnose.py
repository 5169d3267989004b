"""Find the condition or sort key of a plan that PostgreSQL rejects.

Turns an error about some value into one that names the column and its type. Runs one query for each condition, and
only after the export's own query has failed. Reads no row of the relation.
"""

from __future__ import annotations

from dataclasses import replace

from server.errors import ExportError, InvalidRequest, QueryFailed
from server.postgres.database import Database
from server.postgres.session import Session
from server.query.columns import type_of
from server.query.fields import CASTS
from server.query.grammar import shorten
from server.query.plan import ExportPlan
from server.query.sql import Probe, empty_statement, probes

# Casts that an error names.
MOST_CASTS = 5


async def diagnose(database: Database, plan: ExportPlan, error: ExportError) -> ExportError:
    """Return an error that names the condition or sort key that causes this one, or this one if none does.

    An error that the request does not cause (a view that fails by itself) names no operator and no value.
    """
    try:
        async with database.control_session() as session:
            return await _cause(session, plan, error)
    except ExportError:  # the probes cannot be run now; the first error is still true
        return error


async def _cause(session: Session, plan: ExportPlan, error: ExportError) -> ExportError:
    columns = {column.name: column for column in plan.relation.columns}
    empty = empty_statement(plan)
    await session.query(empty.text, empty.values)
    for probe in probes(plan):
        field = replace(probe.field, cast=None)
        column = f'"{shorten(str(field))}" ({type_of(field, columns[field.column])})'
        try:
            await session.query(probe.statement.text, probe.statement.values)
        except InvalidRequest as reason:
            return _rejected(probe, column, reason.code, reason.detail)
        except QueryFailed as reason:
            return _rejected(probe, column, reason.code, "PostgreSQL does not understand its value.")
    if error.code == "invalid_value" and (failing := _casts(plan)):
        return InvalidRequest(
            f"A row has a value that cannot be cast: {' or '.join(failing)}.",
            code="invalid_value",
            hint="Select it without the cast, or leave such rows out by a filter.",
        )
    if error.code == "operator_not_supported":
        return QueryFailed("PostgreSQL stopped the query: something in the relation itself does not work.")
    return error


def _casts(plan: ExportPlan) -> list[str]:
    """Return the fields of this plan whose cast fails for some values, in double quotes."""
    fields = (output.field for output in plan.columns if output.field.cast not in (None, "text", "varchar"))
    return [f'"{shorten(str(field))}"' for field in fields][:MOST_CASTS]


def _rejected(probe: Probe, column: str, code: str, detail: str) -> InvalidRequest:
    """Return the error for this probe. column: with its type. code, detail: of the error that the probe met."""
    if probe.part == "sort key":
        return InvalidRequest(f"{column} cannot be sorted by.", code="operator_not_supported")
    if probe.part == "column":
        target = CASTS.get(probe.field.cast or "", "jsonb")
        return InvalidRequest(f"{column} cannot be cast to {target}.", code="operator_not_supported")
    if code == "operator_not_supported":
        return InvalidRequest(f'The operator "{probe.operator}" cannot be used on {column}.', code=code)
    return InvalidRequest(f"The filter on {column} is not valid. {detail}", code="invalid_value", hint=probe.hint)

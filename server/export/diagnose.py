"""Which condition of a plan PostgreSQL cannot make sense of: asked one by one, only after a query was refused.

Turns an error about some value into one that names the column and its type. Reads no row of the relation.
"""

from __future__ import annotations

from server.errors import ExportError, InvalidRequest, QueryFailed
from server.postgres.database import Database
from server.postgres.session import Session
from server.query.filters import Condition
from server.query.plan import ExportPlan
from server.query.sql import empty_statement, probes


async def diagnose(database: Database, plan: ExportPlan, error: ExportError) -> ExportError:
    """The error, naming the condition or sort key that causes it where one does.

    One that nothing in the request causes (a view that fails by itself) is no operator's or value's fault.
    """
    try:
        async with database.control_session() as session:
            return await _traced(session, plan, error)
    except ExportError:  # nothing can be asked now: what is known is still true
        return error


async def _traced(session: Session, plan: ExportPlan, error: ExportError) -> ExportError:
    types = {column.name: column.type for column in plan.relation.columns}
    empty = empty_statement(plan)
    await session.query(empty.text, empty.values)
    for subject, probe in probes(plan):
        try:
            await session.query(probe.text, probe.values)
        except (InvalidRequest, QueryFailed) as reason:
            return _named(subject, types, reason)
    if error.code == "operator_not_supported":
        return QueryFailed("PostgreSQL stopped the query: something in the relation itself does not work.")
    return error


def _named(subject: Condition | str, types: dict[str, str], reason: ExportError) -> InvalidRequest:
    if isinstance(subject, str):
        return InvalidRequest(f'"{subject}" ({types[subject]}) cannot be sorted by.', code="operator_not_supported")
    column = f'"{subject.column}" ({types[subject.column]})'
    if reason.code == "operator_not_supported":
        return InvalidRequest(f'The operator "{subject.operator}" cannot be used on {column}.', code=reason.code)
    detail = reason.detail if isinstance(reason, InvalidRequest) else "PostgreSQL does not understand its value."
    return InvalidRequest(f"The filter on {column} cannot work. {detail}", code="invalid_value")

"""The errors that name a part of the request that PostgreSQL rejects or takes too long for. Pure.

`diagnose.py` finds the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.errors import InvalidRequest, PlanTimeout, QueryFailed
from server.query.columns import type_of
from server.query.fields import CASTS, Field
from server.query.grammar import shorten
from server.query.plan import ExportPlan
from server.query.sql import Probe

# The SQLSTATEs of an operator that a type does not have, also of one that only some values would need: equality of JSON
# in an array, a pattern under a nondeterministic collation.
NO_OPERATOR = ("0A000", "42725", "42804", "42809", "42883", "42P22")
# Casts that an error names. Which of them failed is not known.
MOST_CASTS = 5


def no_cast(casts: Sequence[Field]) -> InvalidRequest:
    """Return the error for a value that one of these casts does not accept."""
    names = [f'"{shorten(str(field))}"' for field in dict.fromkeys(casts)]
    if len(names) > MOST_CASTS:
        names[MOST_CASTS:] = ["another"]
    named = " or ".join(names)
    return InvalidRequest(
        f"A row has a value that cannot be cast: {named}.",
        code="invalid_value",
        hint="Select it without the cast, or leave such rows out by a filter.",
    )


def about_value(reason: QueryFailed) -> bool:
    """Return whether PostgreSQL rejects a value."""
    return (reason.sqlstate or "").startswith(("22", "54"))


def rejected(plan: ExportPlan, probe: Probe, reason: QueryFailed, message: str | None) -> InvalidRequest:
    """Return the error for this probe. reason: what it met. message: of PostgreSQL about a value of the request."""
    column = _named(plan, probe)
    if probe.part == "sort key":
        return InvalidRequest(f"{column} cannot be sorted by.", code="operator_not_supported")
    if probe.part == "column":
        target = CASTS.get(probe.field.cast or "", "jsonb")
        return InvalidRequest(f"{column} cannot be cast to {target}.", code="operator_not_supported")
    if reason.sqlstate in NO_OPERATOR:
        return InvalidRequest(
            f'The operator "{probe.operator}" cannot be used on {column}.', code="operator_not_supported"
        )
    what = "PostgreSQL does not understand its value."
    if about_value(reason) and message:
        what = f"PostgreSQL rejected a value: {message}."
    return InvalidRequest(f"The filter on {column} is not valid. {what}", code="invalid_value", hint=probe.hint)


def too_complex(plan: ExportPlan, probe: Probe) -> InvalidRequest:
    """Return the error for a condition that PostgreSQL cannot even begin to compare with in time."""
    return InvalidRequest(
        f"The filter on {_named(plan, probe)} is too complex for PostgreSQL.",
        code="too_complex",
        hint="Use a simpler value. In a regular expression, avoid repetitions within repetitions.",
    )


def too_complex_together(error: PlanTimeout) -> InvalidRequest:
    """Return the error for a request that takes PostgreSQL too long to plan, while the relation alone does not."""
    return InvalidRequest(
        f"{error.detail} The relation alone does not take that long.",
        code="too_complex",
        hint="Use fewer or simpler conditions.",
    )


def _named(plan: ExportPlan, probe: Probe) -> str:
    """Return the name and the type of what the probe is about."""
    field = replace(probe.field, cast=None)
    type = type_of(field, next(column for column in plan.relation.columns if column.name == field.column))
    return f'"{shorten(str(field))}" ({type})'

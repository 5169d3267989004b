"""The operators that the operator of the server has switched off. Pure."""

from __future__ import annotations

from server.errors import InvalidRequest
from server.query.filters import REGULAR_EXPRESSIONS, conditions_of
from server.query.grammar import shorten
from server.query.request import ExportRequest


def refuse_switched_off(request: ExportRequest, *, regular_expressions: bool) -> None:
    """Raise InvalidRequest if the request uses regular expressions and they are switched off."""
    if regular_expressions:
        return
    for condition in conditions_of(request.filters):
        if condition.operator in REGULAR_EXPRESSIONS:
            raise InvalidRequest(
                f'The filter on "{shorten(str(condition.field))}" uses the operator "{condition.operator}", which is '
                "switched off on this server.",
                code="operator_switched_off",
                hint="Use like or ilike, or ask the operator of the server to set REGULAR_EXPRESSIONS to 1.",
            )

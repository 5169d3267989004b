"""The plus signs of a query string that stand where a time has the sign of its time zone.

A `+` in a query string is a space. `ts=gte.2024-01-01T12:00+02:00` would be another time without an error, so it is
refused where the column holds times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from server.errors import InvalidRequest
from server.query.catalogue import Relation
from server.query.filters import Condition

# The types with dates or times, as format_type() writes them: also in an array or a range.
_TIMES = re.compile(r"(date|time|timestamp)\b|(date|ts|tstz)(multi)?range\b")


def check_plus_signs(conditions: Iterable[Condition], relation: Relation) -> None:
    """Raise InvalidRequest if a time has an unencoded plus sign. conditions: on columns of the relation."""
    columns = {column.name: column for column in relation.columns}
    for condition in conditions:
        column = columns[condition.column]
        if condition.raw_plus and condition.field.plain and _TIMES.match(column.base or column.type):
            raise InvalidRequest(
                f'The filter on "{column.name}" ({column.type}) has a "+" that is not encoded, which means a space.',
                code="unencoded_plus",
                hint="Write %2B for a plus sign, for example 2024-01-01T12:00:00%2B02:00. Write T or %20 for a space.",
            )

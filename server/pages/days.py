"""A date without a time in a filter on a timestamp column: the whole day ↔ conditions with its bounds. Pure.

In the form, a date without a time means all of that day. In a query string, as in PostgreSQL, it means midnight, in the
time zone of the export. Every input of the form has a text of its own, so that reading a query string gives it back:

| form | query string |
|---|---|
| from 2024-01-02 | `at=gte.2024-01-02` |
| before 2024-01-02 | `at=lt.2024-01-02` |
| after 2024-01-02 | `at=gte.2024-01-03T00:00` |
| up to 2024-01-02 | `at=lt.2024-01-03T00:00` |
| is 2024-01-02 | `and=(at.gte.2024-01-02,at.lt.2024-01-03)` |
| is not 2024-01-02 | `not.and=(at.gte.2024-01-02,at.lt.2024-01-03)` |
| is one of 2024-01-02, 2024-01-05T12:00 | `or=(and(at.gte.2024-01-02,at.lt.2024-01-03),at.eq.2024-01-05T12:00)` |
| after 2024-01-02 00:00 | `at=gt.2024-01-02T00:00` |

A midnight that a query string writes as `gt.2024-01-02` is shown with its time, 00:00.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import replace

from server.pages.controls import FilterInput, comparison_of, condition_of, input_of
from server.query.fields import Field
from server.query.filters import Condition, Filter, Group, conditions_of

KIND = "timestamp"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOMENT = re.compile(r"([0-9]{4,5}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)")
MIDNIGHT = "T00:00"
# The day after the last one that `datetime.date` has, which often stands for "for ever".
_LAST_DAY, _DAY_AFTER_IT = datetime.date.max.isoformat(), "10000-01-01"


def filter_of(column: str, filled: FilterInput) -> Filter | None:
    """Return what these inputs on a timestamp column write, or None while the value is missing.

    filled: with the items of a list as its values. Text that is not a date alone is written as it is.
    """
    comparison, values = filled.comparison, filled.values
    if comparison.takes_list and any(map(_is_day, values)):
        return Group("or", tuple(_equal(column, value) for value in values), comparison.negated)
    value = values[0] if values else ""
    key = comparison.key
    if key in ("gte", "lt") and value.endswith(MIDNIGHT) and _is_day(value.removesuffix(MIDNIGHT)):
        value = value.removesuffix(MIDNIGHT)  # from midnight on is the whole day
    if comparison.fixed is not None or comparison.takes_list or not _is_day(value):
        return condition_of(column, filled)
    if key in ("eq", "neq"):
        return replace(_day(column, value), negated=key == "neq")
    if key in ("gt", "lte"):
        return Condition(Field(column), "gte" if key == "gt" else "lt", (_next_day(value) + MIDNIGHT,))
    return Condition(Field(column), key, (value,))


def days_of(item: Filter) -> FilterInput | None:
    """Return the inputs on a timestamp column that write a filter of the same meaning, or None if none do."""
    column = conditions_of((item,))[0].column
    found = _grouped(item) if isinstance(item, Group) else _single(item)
    expected = item if isinstance(item, Group) else _with_times(item)
    return found if found is not None and filter_of(column, found) == expected else None


def bounds(filled: FilterInput) -> str:
    """Return the bounds of this filter in words, "" if it has none. filled: with the items of a list as its values."""
    comparison, values = filled.comparison, filled.values
    if comparison.fixed is not None or not any(values):
        return ""
    if comparison.takes_list:
        return "A date without a time is the whole day" if any(map(_is_day, values)) else ""
    value, key = values[0], comparison.key
    if _is_day(value):
        start, end = f"{value} 00:00", f"{_next_day(value)} 00:00"
        return {
            "gte": f"From {start}",
            "lt": f"Before {start}",
            "gt": f"From {end}",
            "lte": f"Before {end}",
            "eq": f"From {start}, before {end}",
            "neq": f"Before {start}, or from {end}",
        }[key]
    moment = _MOMENT.fullmatch(value)
    if moment is None:
        return ""
    words = {"gte": "From", "lt": "Before", "gt": "After", "lte": "Up to", "eq": "Exactly at", "neq": "Not exactly at"}
    return f"{words[key]} {moment[1]} {moment[2]}"


def _is_day(text: str) -> bool:
    if not _DAY.fullmatch(text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _next_day(day: str) -> str:
    if day == _LAST_DAY:
        return _DAY_AFTER_IT
    return (datetime.date.fromisoformat(day) + datetime.timedelta(days=1)).isoformat()


def _previous_day(day: str) -> str:
    """Return the day before this one; the first day has none, and is returned itself."""
    if day == _DAY_AFTER_IT:
        return _LAST_DAY
    date = datetime.date.fromisoformat(day)
    return day if date == datetime.date.min else (date - datetime.timedelta(days=1)).isoformat()


def _day(column: str, day: str) -> Group:
    return Group("and", (Condition(Field(column), "gte", (day,)), Condition(Field(column), "lt", (_next_day(day),))))


def _equal(column: str, value: str) -> Filter:
    return _day(column, value) if _is_day(value) else Condition(Field(column), "eq", (value,))


def _with_times(condition: Condition) -> Condition:
    """Return the condition with midnights that have their time, where a date alone would mean the whole day."""
    if condition.operator in ("gte", "lt") and not condition.negated:
        return condition
    values = tuple(value + MIDNIGHT if _is_day(value) else value for value in condition.values)
    return replace(condition, values=values)


def _single(condition: Condition) -> FilterInput | None:
    """Return inputs that may write this condition."""
    value = condition.values[0] if condition.values else ""
    if condition.operator in ("gte", "lt") and value.endswith(MIDNIGHT):
        day = value.removesuffix(MIDNIGHT)
        if _is_day(day) or day == _DAY_AFTER_IT:
            key = {"gte": "gt", "lt": "lte"}[condition.operator]
            return FilterInput(comparison_of(KIND, key), (_previous_day(day),))
    return input_of(_with_times(condition), KIND)


def _grouped(group: Group) -> FilterInput | None:
    """Return inputs that may write this group."""
    if group.joined_by == "and":
        first = group.members[0]
        return None if isinstance(first, Group) else _input("neq" if group.negated else "eq", first.values)
    firsts = [member.members[0] if isinstance(member, Group) else member for member in group.members]
    if any(isinstance(first, Group) or not first.values for first in firsts):
        return None
    values = tuple(first.values[0] for first in firsts if isinstance(first, Condition))
    return _input("not_in" if group.negated else "in", values)


def _input(key: str, values: tuple[str, ...]) -> FilterInput:
    return FilterInput(comparison_of(KIND, key), values)

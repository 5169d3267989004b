"""The filters of a query string: text → conditions, in PostgREST's grammar.

Values only: which columns there are and what SQL comes of a condition is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.errors import InvalidRequest
from server.query.grammar import read_name, read_quoted, shorten

# Operators with one value, and what PostgreSQL calls them.
COMPARISONS = {
    "eq": "=",
    "neq": "<>",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "like": "LIKE",
    "ilike": "ILIKE",
    "match": "~",
    "imatch": "~*",
    "cs": "@>",
    "cd": "<@",
    "ov": "&&",
}
OPERATORS = (*COMPARISONS, "in", "is")
IS_VALUES = ("null", "true", "false", "unknown")
# A request line of 128 kB could otherwise hold tens of thousands of conditions, or nest as deep.
MOST_CONDITIONS = 1000
DEEPEST_NEST = 20

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. values: one; any number for `in`; for `is` one of IS_VALUES."""

    column: str
    operator: str
    values: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Conditions joined by `and` or `or`."""

    joined_by: str
    members: tuple[Condition | Group, ...]
    negated: bool = False


Filter = Condition | Group


def conditions_of(filters: tuple[Filter, ...]) -> list[Condition]:
    """Every condition in these filters, in the order in which they are written."""
    found: list[Condition] = []
    waiting = list(reversed(filters))
    while waiting:
        item = waiting.pop()
        if isinstance(item, Condition):
            found.append(item)
        else:
            waiting.extend(reversed(item.members))
    return found


def parse_condition(column: str, text: str) -> Condition:
    """`op.value` or `not.op.value`, the value of a parameter named like a column; the rest is the value."""
    where = f'the filter on "{shorten(column)}"'
    negated, operator, position = _read_operator(text, 0, where)
    if operator == "in":
        values, position = _read_list(text, position, where)
        _expect_end(text, position, where)
    else:
        values = (text[position:],)
    return _checked(Condition(column, operator, values, negated), where)


def parse_group(joined_by: str, text: str, *, negated: bool = False) -> Group:
    """`(a.eq.1,or(b.lt.2,c.not.is.null))`, the value of `and` and `or`."""
    where = f'"{joined_by}"'
    members, position = _read_members(text, 0, where, 1)
    _expect_end(text, position, where)
    return Group(joined_by, members, negated)


def _read_members(text: str, start: int, where: str, depth: int) -> tuple[tuple[Filter, ...], int]:
    if depth > DEEPEST_NEST:
        raise InvalidRequest(f"{where} is nested more than {DEEPEST_NEST} deep.", code="too_deep")
    if text[start : start + 1] != "(":
        raise InvalidRequest(
            f"{where} needs an opening bracket at position {start + 1}.",
            code="invalid_filter",
            hint="Write or=(a.eq.1,b.is.null)",
        )
    return _read_items(text, start, where, lambda position: _read_member(text, position, where, depth))


def _read_items(
    text: str, start: int, where: str, read_item: Callable[[int], tuple[Item, int]]
) -> tuple[tuple[Item, ...], int]:
    """The items between the bracket at `start` and the one that closes it, with commas between them."""
    items: list[Item] = []
    position = start + 1
    while True:
        item, position = read_item(position)
        items.append(item)
        stop = text[position : position + 1]
        if stop == ")":
            return tuple(items), position + 1
        if stop != ",":
            raise InvalidRequest(
                f"The bracket in {where} at position {start + 1} is not closed.", code="unbalanced_brackets"
            )
        position += 1


def _read_member(text: str, start: int, where: str, depth: int) -> tuple[Filter, int]:
    for joined_by in ("and", "or"):
        for prefix, negated in ((joined_by, False), (f"not.{joined_by}", True)):
            if text.startswith(prefix + "(", start):
                members, position = _read_members(text, start + len(prefix), where, depth + 1)
                return Group(joined_by, members, negated), position
    column, position = read_name(text, start, ".,()", where)
    if text[position : position + 1] != ".":
        raise InvalidRequest(
            f'The condition on "{shorten(column)}" in {where} has no operator, at position {position + 1}.',
            code="invalid_filter",
            hint="Write column.operator.value, for example id.eq.1",
        )
    negated, operator, position = _read_operator(text, position + 1, where)
    if operator == "in":
        values, position = _read_list(text, position, where)
    else:
        value, position = _read_value(text, position, where)
        values = (value,)
    return _checked(Condition(column, operator, values, negated), where), position


def _read_operator(text: str, start: int, where: str) -> tuple[bool, str, int]:
    """(negated, operator, where the value begins)."""
    negated = text.startswith("not.", start)
    begin = start + 4 if negated else start
    end = begin
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    operator = text[begin:end]
    if operator not in OPERATORS or text[end : end + 1] != ".":
        raise InvalidRequest(
            f'{_capital(where)} has no operator at position {begin + 1}: "{shorten(text[begin : end + 1])}".',
            code="unknown_operator",
            hint=f"Write operator.value with one of {', '.join(OPERATORS)}; not. before it negates.",
        )
    return negated, operator, end + 1


def _read_value(text: str, start: int, where: str) -> tuple[str, int]:
    """A value inside brackets: in double quotes, in braces, or up to the next comma or bracket."""
    if text[start : start + 1] == '"':
        value, position = read_quoted(text, start, where)
        if text[position : position + 1] not in (",", ")", ""):
            raise InvalidRequest(
                f"There is text after the closing quote in {where} at position {position + 1}.", code="invalid_quotes"
            )
        return value, position
    if text[start : start + 1] == "{":
        position = _after_braces(text, start, where)
        if text[position : position + 1] not in (",", ")", ""):
            raise InvalidRequest(
                f"There is text after the closing brace in {where} at position {position + 1}.",
                code="unbalanced_brackets",
            )
        return text[start:position], position
    position = start
    while position < len(text) and text[position] not in ",)":
        position += 1
    return text[start:position], position


def _after_braces(text: str, start: int, where: str) -> int:
    """The position after the brace that closes the one at `start`: an array's or a JSON object's text."""
    depth = 0
    position = start
    while position < len(text):
        if text[position] == '"':
            position = _after_inner_quotes(text, position)
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
        if depth == 0:
            return position
    raise InvalidRequest(f"The brace in {where} at position {start + 1} is not closed.", code="unbalanced_brackets")


def _after_inner_quotes(text: str, start: int) -> int:
    position = start + 1
    while position < len(text) and text[position] != '"':
        position += 2 if text[position] == "\\" else 1
    return position + 1


def _read_list(text: str, start: int, where: str) -> tuple[tuple[str, ...], int]:
    """`(a,"b,c")`: the items of `in`."""
    if text[start : start + 1] != "(":
        raise InvalidRequest(
            f"{_capital(where)} needs a list in brackets at position {start + 1}.",
            code="invalid_filter",
            hint='Write in.(1,2,3), an item with a comma in double quotes: in.("a,b",c)',
        )
    if text.startswith("()", start):
        return (), start + 2
    return _read_items(text, start, where, lambda position: _read_listed(text, position, where))


def _read_listed(text: str, start: int, where: str) -> tuple[str, int]:
    item, position = _read_value(text, start, where)
    if position == start:
        raise InvalidRequest(
            f"An item is missing in {where} at position {start + 1}.",
            code="invalid_filter",
            hint='The empty string is written as ""',
        )
    return item, position


def _checked(condition: Condition, where: str) -> Condition:
    if condition.operator == "is":
        value = condition.values[0].lower()
        if value not in IS_VALUES:
            raise InvalidRequest(
                f'{_capital(where)} cannot compare with "is.{shorten(value)}".',
                code="invalid_filter",
                hint=f"After is. there is one of {', '.join(IS_VALUES)}.",
            )
        return Condition(condition.column, "is", (value,), condition.negated)
    if condition.operator in ("like", "ilike"):
        pattern = condition.values[0].replace("*", "%")
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise InvalidRequest(
                f'{_capital(where)} has a pattern on "{shorten(condition.column)}" that ends in a backslash.',
                code="invalid_value",
                hint="A backslash takes away the meaning of the next character; itself it is written twice.",
            )
        return Condition(condition.column, condition.operator, (pattern,), condition.negated)
    return condition


def _expect_end(text: str, position: int, where: str) -> None:
    if position < len(text):
        raise InvalidRequest(
            f'There is text after the closing bracket in {where} at position {position + 1}: "'
            f'{shorten(text[position:])}".',
            code="unbalanced_brackets",
        )


def _capital(where: str) -> str:
    return where[0].upper() + where[1:]

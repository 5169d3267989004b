"""The filters of a query string: text → conditions, in PostgREST's grammar.

The grammar is that of PostgREST's documentation, "Tables and Views", "Horizontal Filtering" and "Logical operators".
`*` in a pattern of `like` becomes `%` here. Knows neither the columns of a relation nor SQL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.errors import InvalidRequest
from server.query.fields import Field, read_field
from server.query.grammar import read_quoted, shorten

# Operators that take one value, and the PostgreSQL operator of each.
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
# Conditions of one request, and levels of nesting in one of its groups. A request line of 128 kB has space for tens of
# thousands of either, which neither the recursive reader here nor PostgreSQL's parser should be given.
MOST_CONDITIONS = 1000
MOST_NESTING = 20

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a column, or of a part of its JSON.

    field: without a cast. operator: one of OPERATORS. values: exactly one; any number for `in`; for `is` one of
    IS_VALUES. A pattern of `like` and `ilike` has `%` as its wildcard, as in SQL.
    """

    field: Field
    operator: str
    values: tuple[str, ...]
    negated: bool = False

    @property
    def column(self) -> str:
        """The column that is compared, or that holds the JSON."""
        return self.field.column


@dataclass(frozen=True, slots=True)
class Group:
    """Filters joined by `and` or `or`. joined_by: one of the two words. members: at least one."""

    joined_by: str
    members: tuple[Condition | Group, ...]
    negated: bool = False


Filter = Condition | Group


def conditions_of(filters: tuple[Filter, ...]) -> list[Condition]:
    """Return every condition of these filters, also those in groups, in the order in which they are written."""
    found: list[Condition] = []
    pending = list(reversed(filters))
    while pending:
        item = pending.pop()
        if isinstance(item, Condition):
            found.append(item)
        else:
            pending.extend(reversed(item.members))
    return found


def parse_condition(field: Field, text: str) -> Condition:
    """Parse `op.value` or `not.op.value`, the value of a parameter that is named after a field.

    field: from the decoded name of the parameter. text: its decoded value. The value of an operator other than
    `in` is all text that follows, without quotes. Raise InvalidRequest with the position of what does not fit.
    """
    where = f'the filter on "{shorten(str(field))}"'
    negated, operator, position = _read_operator(text, 0, where)
    if operator == "in":
        values, position = _read_list(text, position, where)
        _expect_end(text, position, where)
    else:
        values = (text[position:],)
    return _with_sql_wildcards(Condition(field, operator, values, negated), where)


def parse_group(joined_by: str, text: str, *, negated: bool = False) -> Group:
    """Parse `(a.eq.1,or(b.lt.2,c.not.is.null))`, the decoded value of a parameter `and`, `or`, `not.and` or `not.or`.

    joined_by: `and` or `or`. Raise InvalidRequest with the position of what does not fit, or if groups nest deeper than
    MOST_NESTING.
    """
    where = f'"{joined_by}"'
    members, position = _read_members(text, 0, where, 1)
    _expect_end(text, position, where)
    return Group(joined_by, members, negated)


def _read_members(text: str, start: int, where: str, depth: int) -> tuple[tuple[Filter, ...], int]:
    if depth > MOST_NESTING:
        raise InvalidRequest(f"{where} is nested more than {MOST_NESTING} levels deep.", code="too_deep")
    if text[start : start + 1] != "(":
        raise InvalidRequest(
            f"Expected an opening bracket in {where} at position {start + 1}.",
            code="invalid_filter",
            hint="Write conditions in brackets, for example or=(a.eq.1,b.is.null)",
        )
    return _read_items(text, start, where, lambda position: _read_member(text, position, where, depth))


def _read_items(
    text: str, start: int, where: str, read_item: Callable[[int], tuple[Item, int]]
) -> tuple[tuple[Item, ...], int]:
    """Read the comma-separated items from the bracket at `start` to the one that closes it."""
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
    field, position = read_field(text, start, ".,()", where)
    if text[position : position + 1] != ".":
        raise InvalidRequest(
            f'Expected an operator after "{shorten(str(field))}" in {where} at position {position + 1}.',
            code="invalid_filter",
            hint="Write column.operator.value, for example id.eq.1",
        )
    negated, operator, position = _read_operator(text, position + 1, where)
    if operator == "in":
        values, position = _read_list(text, position, where)
    else:
        value, position = _read_value(text, position, where)
        values = (value,)
    return _with_sql_wildcards(Condition(field, operator, values, negated), where), position


def _read_operator(text: str, start: int, where: str) -> tuple[bool, str, int]:
    """Return whether the operator at `start` is negated, the operator, and the position of its value."""
    negated = text.startswith("not.", start)
    begin = start + len("not.") if negated else start
    end = begin
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    operator = text[begin:end]
    if operator not in OPERATORS or text[end : end + 1] != ".":
        raise InvalidRequest(
            f'Expected an operator in {where} at position {begin + 1}, found "{shorten(text[begin : end + 1])}".',
            code="unknown_operator",
            hint=f"Write operator.value with one of the operators {', '.join(OPERATORS)}. The prefix not. negates it.",
        )
    return negated, operator, end + 1


def _read_value(text: str, start: int, where: str) -> tuple[str, int]:
    """Read a value inside brackets: in double quotes, in braces, or up to the next comma or closing bracket."""
    if text[start : start + 1] == '"':
        value, position = read_quoted(text, start, where)
        if text[position : position + 1] not in (",", ")", ""):
            raise InvalidRequest(
                f"Unexpected text after the closing quote in {where} at position {position + 1}.", code="invalid_quotes"
            )
        return value, position
    if text[start : start + 1] == "{":
        position = _end_of_braces(text, start, where)
        if text[position : position + 1] not in (",", ")", ""):
            raise InvalidRequest(
                f"Unexpected text after the closing brace in {where} at position {position + 1}.",
                code="unbalanced_brackets",
            )
        return text[start:position], position
    position = start
    while position < len(text) and text[position] not in ",)":
        position += 1
    return text[start:position], position


def _end_of_braces(text: str, start: int, where: str) -> int:
    """Return the position after the brace that closes the one at `start`: the end of an array or a JSON object."""
    depth = 0
    position = start
    while position < len(text):
        if text[position] == '"':
            position = _end_of_json_string(text, position)
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
        if depth == 0:
            return position
    raise InvalidRequest(f"The brace in {where} at position {start + 1} is not closed.", code="unbalanced_brackets")


def _end_of_json_string(text: str, start: int) -> int:
    """Return the position after the quote that closes the one at `start`, in the text of an array or JSON object."""
    position = start + 1
    while position < len(text) and text[position] != '"':
        position += 2 if text[position] == "\\" else 1
    return position + 1


def _read_list(text: str, start: int, where: str) -> tuple[tuple[str, ...], int]:
    """Read `(a,"b,c")`, the list of `in`."""
    if text[start : start + 1] != "(":
        raise InvalidRequest(
            f"Expected a list in brackets in {where} at position {start + 1}.",
            code="invalid_filter",
            hint='Write in.(1,2,3). Put an item that contains a comma in double quotes: in.("a,b",c)',
        )
    if text.startswith("()", start):
        return (), start + 2
    return _read_items(text, start, where, lambda position: _read_list_item(text, position, where))


def _read_list_item(text: str, start: int, where: str) -> tuple[str, int]:
    item, position = _read_value(text, start, where)
    if position == start:
        raise InvalidRequest(
            f"An item is missing in {where} at position {start + 1}.",
            code="invalid_filter",
            hint='Write "" for the empty string.',
        )
    return item, position


def _with_sql_wildcards(condition: Condition, where: str) -> Condition:
    """Return the condition with the word after `is` in lower case and the wildcard of a pattern as `%`."""
    if condition.operator == "is":
        value = condition.values[0].lower()
        if value not in IS_VALUES:
            raise InvalidRequest(
                f'Unknown value "{shorten(value)}" after "is" in {where}.',
                code="invalid_filter",
                hint=f"Use one of {', '.join(IS_VALUES)}.",
            )
        return Condition(condition.field, "is", (value,), condition.negated)
    if condition.operator in ("like", "ilike"):
        pattern = condition.values[0].replace("*", "%")
        # PostgreSQL would report it only at the first row that the rest of the pattern matches.
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise InvalidRequest(
                f'The pattern for "{shorten(str(condition.field))}" ends with an unpaired backslash.',
                code="invalid_value",
                hint="A backslash escapes the next character. Write two backslashes for a backslash.",
            )
        return Condition(condition.field, condition.operator, (pattern,), condition.negated)
    return condition


def _expect_end(text: str, position: int, where: str) -> None:
    if position < len(text):
        raise InvalidRequest(
            f'Unexpected text after the closing bracket in {where} at position {position + 1}: "'
            f'{shorten(text[position:])}".',
            code="unbalanced_brackets",
        )

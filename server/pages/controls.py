"""What a person picks in a form to filter a column ↔ a condition: operators in words, by the column's kind.

Pure. A condition is shown by a control only where the control writes that very condition again; all others are
for `form.py` to keep as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.query.catalogue import Column
from server.query.filters import OPERATORS, Condition
from server.query.grammar import read_quoted, write_quoted

_NUMBER = re.compile(r"(smallint|integer|bigint|numeric|real|double precision)\b")
_TEXT = re.compile(r"(text|character|citext|name)\b")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?")


@dataclass(frozen=True, slots=True)
class Choice:
    """One operator as a person reads it. key: its name in the form. fixed: a value that leaves none to give.

    around: what a pattern has before and after the value. many: it takes a list of values.
    """

    key: str
    label: str
    operator: str
    negated: bool = False
    fixed: str | None = None
    around: tuple[str, str] | None = None
    many: bool = False


_NULL = (
    Choice("null", "is empty (NULL)", "is", fixed="null"),
    Choice("not_null", "is not empty", "is", True, fixed="null"),
)
_LIST = (
    Choice("in", "is one of", "in", many=True),
    Choice("not_in", "is not one of", "in", True, many=True),
)
_ORDERED = (
    Choice("eq", "is", "eq"),
    Choice("neq", "is not", "neq"),
    Choice("gte", "at least", "gte"),
    Choice("lte", "at most", "lte"),
    Choice("gt", "more than", "gt"),
    Choice("lt", "less than", "lt"),
)
_DAYS = (
    Choice("gte", "from", "gte"),
    Choice("lt", "before", "lt"),
    Choice("gt", "after", "gt"),
    Choice("lte", "up to", "lte"),
    Choice("eq", "is exactly", "eq"),
    Choice("neq", "is not", "neq"),
)
_TEXTS = (
    Choice("contains", "contains", "ilike", around=("%", "%")),
    Choice("not_contains", "does not contain", "ilike", True, around=("%", "%")),
    Choice("begins", "begins with", "ilike", around=("", "%")),
    Choice("ends", "ends with", "ilike", around=("%", "")),
    Choice("eq", "is", "eq"),
    Choice("neq", "is not", "neq"),
    *_LIST,
    Choice("blank", 'is the empty text ""', "eq", fixed=""),
    Choice("not_blank", 'is not the empty text ""', "neq", fixed=""),
    *_NULL,
    Choice("gte", "sorts at or after", "gte"),
    Choice("lt", "sorts before", "lt"),
    Choice("like", "is like (pattern, exact case)", "like"),
    Choice("match", "matches regular expression", "match"),
    Choice("imatch", "matches, any case", "imatch"),
)
_SETS = (
    Choice("cs", "contains", "cs"),
    Choice("cd", "is contained in", "cd"),
    Choice("ov", "overlaps with", "ov"),
    Choice("eq", "is", "eq"),
    Choice("neq", "is not", "neq"),
    *_NULL,
)
# The first is what a new filter begins with.
CHOICES: dict[str, tuple[Choice, ...]] = {
    "boolean": (
        Choice("true", "is true", "is", fixed="true"),
        Choice("false", "is false", "is", fixed="false"),
        Choice("not_true", "is not true", "is", True, fixed="true"),
        Choice("not_false", "is not false", "is", True, fixed="false"),
        *_NULL,
    ),
    "enum": (*_LIST, *_NULL),
    "number": (*_ORDERED, *_LIST, *_NULL),
    "date": (*_DAYS, *_NULL),
    "timestamp": (*_DAYS, *_NULL),
    "text": _TEXTS,
    "set": _SETS,
    "other": (
        *_ORDERED,
        *_LIST,
        *_NULL,
        *(Choice(name, name, name) for name in OPERATORS if name in ("like", "ilike", "match", "cs", "cd", "ov")),
    ),
}


def kind_of(column: Column | None) -> str:
    """Which of CHOICES suits this column; "other" for one that is not there."""
    if column is None:
        return "other"
    if column.values is not None:
        return "enum"
    if column.type in ("boolean", "date"):
        return column.type
    if column.type.startswith("timestamp"):
        return "timestamp"
    if column.type.endswith(("[]", "range")) or column.type == "jsonb":
        return "set"
    if _NUMBER.match(column.type):
        return "number"
    return "text" if _TEXT.match(column.type) else "other"


def choice_of(kind: str, key: str) -> Choice | None:
    """The choice of this key."""
    return next((choice for choice in CHOICES[kind] if choice.key == key), None)


def has_picker(kind: str, values: tuple[str, ...]) -> bool:
    """Whether the date picker can show these values of a date or timestamp column; infinity and the like it cannot."""
    pattern = _DATE if kind == "date" else _MOMENT
    return all(pattern.fullmatch(value) for value in values)


def condition_of(column: str, choice: Choice, values: tuple[str, ...]) -> Condition | None:
    """The condition behind what was picked; None while its value is still missing. Raises InvalidRequest."""
    if choice.fixed is not None:
        return Condition(column, choice.operator, (choice.fixed,), choice.negated)
    if not any(values):
        return None
    if choice.around is not None:
        values = (choice.around[0] + _pattern(values[0]) + choice.around[1],)
    return Condition(column, choice.operator, values, choice.negated)


def control_of(condition: Condition, kind: str, labels: tuple[str, ...] = ()) -> tuple[Choice, tuple[str, ...]] | None:
    """What was picked for this condition, or None where no control of this kind writes it. labels: of the enum."""
    for choice in CHOICES[kind]:
        if (choice.operator, choice.negated) != (condition.operator, condition.negated):
            continue
        values = condition.values if choice.fixed is None else ()
        if choice.around is not None:
            values = (_unpattern(values[0], choice.around),)
        if kind == "enum" and not set(values) <= set(labels):
            continue
        if condition_of(condition.column, choice, values) == condition:
            return choice, values
    return None


def list_text(values: tuple[str, ...]) -> str:
    """The values with commas between, one in double quotes where it needs them; `read_list` reads it."""
    return ", ".join(_item(value) for value in values)


def read_list(text: str) -> tuple[str, ...]:
    """The values of a list with commas between; spaces around a value do not count. Raises InvalidRequest."""
    items: list[str] = []
    position = 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        if text[position] == '"':
            item, position = read_quoted(text, position, "the list")
            rest, comma, _ = text[position:].partition(",")
            if rest.strip():
                raise InvalidRequest("There is text after a closing quote in the list.", code="invalid_quotes")
        else:
            rest, comma, _ = text[position:].partition(",")
            item = rest.rstrip()
        items.append(item)
        position += len(rest) + len(comma)
    return tuple(items)


def write_condition(condition: Condition) -> str:
    """`op.value`, as `filters.parse_condition` reads it."""
    if condition.operator == "in":
        value = "(" + ",".join(_bracketed(value) for value in condition.values) + ")"
    else:
        value = condition.values[0]
        if condition.operator in ("like", "ilike"):
            value = value.replace("%", "*")  # reads better in a URL, and is read as the same
    return f"{'not.' if condition.negated else ''}{condition.operator}.{value}"


def _bracketed(value: str) -> str:
    """A value as it stands in the brackets of `in`."""
    plain = value and not value.startswith(('"', "{")) and "," not in value and ")" not in value
    return value if plain else write_quoted(value)


def _item(value: str) -> str:
    plain = value and value == value.strip() and not value.startswith('"') and "," not in value
    return value if plain else write_quoted(value)


def _pattern(text: str) -> str:
    """The LIKE pattern for this text, in which * stands for anything and no other character for another."""
    return re.sub(r"[\\%_]", r"\\\g<0>", text).replace("*", "%")


def _unpattern(pattern: str, around: tuple[str, str]) -> str:
    """The text behind such a pattern; `condition_of` finds out where it was none."""
    inner = pattern[len(around[0]) : len(pattern) - len(around[1])]
    return re.sub(r"\\([\\%_])|%", lambda found: found[1] or "*", inner)

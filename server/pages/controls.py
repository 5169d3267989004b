"""The inputs of one filter in the form ↔ a condition: operators in words, by the kind of the column.

Pure. A condition is shown in inputs only if the same inputs write the same condition again. `form.py` keeps all other
conditions as text. `days.py` adds what a date without a time means on a timestamp column.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.query import patterns
from server.query.catalogue import Column
from server.query.fields import BLANKS, Field, write_field
from server.query.filters import OPERATORS, PATTERNS, REGULAR_EXPRESSIONS, Condition, Filter, Group
from server.query.grammar import read_quoted, write_quoted

_NUMBER = re.compile(r"(smallint|integer|bigint|numeric|real|double precision)\b")
_TEXT = re.compile(r"(text|character|citext|name)\b")
# PostgreSQL pads values of this type with spaces. `character varying` is another type.
_FIXED_LENGTH = re.compile(r"(character(\(\d+\))?|bpchar)$")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?)?")


@dataclass(frozen=True, slots=True)
class Comparison:
    """An entry of the menu of comparisons.

    key: its value in the form. label: its text. fixed: the value of the condition, for a comparison that asks for none.
    wildcards: what a pattern has before and after the value. takes_list: whether it takes a list of values.
    """

    key: str
    label: str
    operator: str
    negated: bool = False
    fixed: str | None = None
    wildcards: tuple[str, str] | None = None
    takes_list: bool = False


@dataclass(frozen=True, slots=True)
class FilterInput:
    """What the inputs of one filter hold: the comparison chosen, and the values (none for a fixed one)."""

    comparison: Comparison
    values: tuple[str, ...]


_NULL = (
    Comparison("null", "is NULL", "is", fixed="null"),
    Comparison("not_null", "is not NULL", "is", True, fixed="null"),
)
_LIST = (
    Comparison("in", "is one of", "in", takes_list=True),
    Comparison("not_in", "is not one of", "in", True, takes_list=True),
)
_EQUAL = (
    Comparison("eq", "is", "eq"),
    Comparison("neq", "is not", "neq"),
)
_ORDERED = (
    *_EQUAL,
    Comparison("gte", "at least", "gte"),
    Comparison("lte", "at most", "lte"),
    Comparison("gt", "more than", "gt"),
    Comparison("lt", "less than", "lt"),
)
_DATES = (
    Comparison("gte", "from", "gte"),
    Comparison("lt", "before", "lt"),
    Comparison("gt", "after", "gt"),
    Comparison("lte", "up to", "lte"),
    *_EQUAL,
    *_LIST,
    *_NULL,
)
_CONTAINS = (
    Comparison("contains", "contains", "ilike", wildcards=("%", "%")),
    Comparison("not_contains", "does not contain", "ilike", True, wildcards=("%", "%")),
    Comparison("begins", "begins with", "ilike", wildcards=("", "%")),
)
_OTHERS_OF_TEXT = (
    Comparison("blank", 'is the empty text ""', "eq", fixed=""),
    Comparison("not_blank", 'is not the empty text ""', "neq", fixed=""),
    *_NULL,
    Comparison("gte", "sorts at or after", "gte"),
    Comparison("lt", "sorts before", "lt"),
    Comparison("like", "matches pattern (case-sensitive)", "like"),
    Comparison("match", "matches regular expression", "match"),
    Comparison("imatch", "matches regular expression (any case)", "imatch"),
)
_SETS = (
    Comparison("cs", "contains", "cs"),
    Comparison("cd", "is contained in", "cd"),
    Comparison("ov", "overlaps", "ov"),
    *_EQUAL,
    *_NULL,
)
# The comparisons of each kind of column. The first is the default of a new filter.
COMPARISONS_BY_KIND: dict[str, tuple[Comparison, ...]] = {
    "boolean": (
        Comparison("true", "is true", "is", fixed="true"),
        Comparison("false", "is false", "is", fixed="false"),
        Comparison("not_true", "is not true", "is", True, fixed="true"),
        Comparison("not_false", "is not false", "is", True, fixed="false"),
        *_NULL,
    ),
    "enum": (*_LIST, *_NULL),
    "number": (*_ORDERED, *_LIST, *_NULL),
    "date": _DATES,
    "timestamp": _DATES,
    "text": (
        *_CONTAINS,
        Comparison("ends", "ends with", "ilike", wildcards=("%", "")),
        *_EQUAL,
        *_LIST,
        *_OTHERS_OF_TEXT,
    ),
    # Mostly codes. Without "ends with": LIKE sees the spaces that PostgreSQL pads such a value with.
    "fixed-length text": (*_EQUAL, *_LIST, *_CONTAINS, *_OTHERS_OF_TEXT),
    "set": _SETS,
    "other": (
        *_ORDERED,
        *_LIST,
        *_NULL,
        *(Comparison(name, name, name) for name in OPERATORS if name in ("like", "ilike", "match", "cs", "cd", "ov")),
    ),
}
# The same where the operator of the server has switched regular expressions off.
WITHOUT_REGULAR_EXPRESSIONS = {
    kind: tuple(each for each in comparisons if each.operator not in REGULAR_EXPRESSIONS)
    for kind, comparisons in COMPARISONS_BY_KIND.items()
}


def kind_of(column: Column | None) -> str:
    """Return the key of COMPARISONS_BY_KIND for this column; "other" for None, a column that does not exist."""
    if column is None:
        return "other"
    if column.values is not None:
        return "enum"
    return _kind_of_type(column.base or column.type)


@functools.lru_cache(maxsize=1000)  # a page asks for it tens of thousands of times
def _kind_of_type(type: str) -> str:
    if type in ("boolean", "date"):
        return type
    if type.endswith(("[]", "range")) or type == "jsonb":
        return "set"
    if type.startswith("timestamp"):
        return "timestamp"
    if _FIXED_LENGTH.match(type):
        return "fixed-length text"
    if _NUMBER.match(type):
        return "number"
    return "text" if _TEXT.match(type) else "other"


def comparison_of(kind: str, key: str) -> Comparison:
    """Return the comparison of this kind with this key, or the default one if there is none."""
    comparisons = COMPARISONS_BY_KIND[kind]
    return next((comparison for comparison in comparisons if comparison.key == key), comparisons[0])


def fits_picker(kind: str, filled: FilterInput) -> bool:
    """Return whether a date picker can show these values. kind: date or timestamp. It cannot show `infinity`."""
    pattern = _DATE if kind == "date" else _TIMESTAMP
    return not filled.comparison.takes_list and all(pattern.fullmatch(value) for value in filled.values)


def condition_of(column: str, filled: FilterInput) -> Condition | None:
    """Return the condition that these inputs write, or None while the value is missing."""
    comparison, values = filled.comparison, filled.values
    if comparison.fixed is not None:
        return Condition(Field(column), comparison.operator, (comparison.fixed,), comparison.negated)
    if not any(values):
        return None
    if comparison.wildcards is not None:
        before, after = comparison.wildcards
        values = (before + _like_pattern(values[0]) + after,)
    elif comparison.operator in PATTERNS:
        values = (patterns.to_sql(values[0]),)
    return Condition(Field(column), comparison.operator, values, comparison.negated)


def input_of(condition: Condition, kind: str, labels: tuple[str, ...] = ()) -> FilterInput | None:
    """Return the inputs that write this condition, or None if no comparison of this kind does. labels: of the enum."""
    for comparison in COMPARISONS_BY_KIND[kind]:
        if (comparison.operator, comparison.negated) != (condition.operator, condition.negated):
            continue
        values = condition.values if comparison.fixed is None else ()
        if comparison.wildcards is not None:
            values = (_text_of_pattern(values[0], comparison.wildcards),)
        elif comparison.operator in PATTERNS:
            values = (patterns.from_sql(values[0]),)
        if kind == "enum" and not set(values) <= set(labels):
            continue
        filled = FilterInput(comparison, values)
        if condition_of(condition.column, filled) == condition:
            return filled
    return None


def write_list(values: tuple[str, ...]) -> str:
    """Return the values with commas between them, in double quotes where needed, as `read_list` reads them."""
    return ", ".join(_list_item(value) for value in values)


def read_list(text: str) -> tuple[str, ...]:
    """Return the values of a comma-separated list. Spaces around a value are ignored, unless it is in double quotes.

    Raise InvalidRequest if a double quote is not closed, or text follows a closing one.
    """
    items: list[str] = []
    text = text.strip()
    position = 0
    while position < len(text):
        while text[position].isspace():
            position += 1
        quoted = text[position] == '"'
        if quoted:
            item, position = read_quoted(text, position, "the list")
        comma = text.find(",", position)
        end = len(text) if comma < 0 else comma
        rest = text[position:end].rstrip()
        if quoted and rest.strip():
            raise InvalidRequest("Unexpected text after a closing quote in the list.", code="invalid_quotes")
        items.append(item if quoted else rest)
        position = end + 1
    return tuple(items)


def write_condition(condition: Condition) -> str:
    """Return `op.value` or `not.op.value`, as `filter_reader.parse_condition` reads it."""
    if condition.operator == "in":
        value = "(" + ",".join(_operand(value) for value in condition.values) + ")"
    else:
        value = condition.values[0]
        if condition.operator in PATTERNS:
            value = patterns.from_sql(value, array=condition.modifier is not None)
    return f"{'not.' if condition.negated else ''}{condition.operator_text}.{value}"


def write_members(group: Group) -> str:
    """Return `(a.gte.1,and(b.lt.2,c.eq.3))`, as `filter_reader.parse_group` reads it.

    The conditions are comparisons with one value: no lists and no patterns.
    """
    return "(" + ",".join(_write_member(member) for member in group.members) + ")"


def _write_member(member: Filter) -> str:
    negation = "not." if member.negated else ""
    if isinstance(member, Group):
        return f"{negation}{member.joined_by}{write_members(member)}"
    return f"{write_field(member.field, '.,()')}.{negation}{member.operator_text}.{_operand(member.values[0])}"


def _operand(value: str) -> str:
    """Return a value inside brackets, in double quotes where needed."""
    plain = value and value == value.strip(BLANKS) and value[0] not in '"{' and not set(value) & set(",()")
    return value if plain else write_quoted(value)


def _list_item(value: str) -> str:
    plain = value and value == value.strip() and not value.startswith('"') and "," not in value
    return value if plain else write_quoted(value)


def _like_pattern(text: str) -> str:
    """Return the LIKE pattern for this text: `*` is a wildcard, all other characters are literal."""
    return re.sub(r"[\\%_]", r"\\\g<0>", text).replace("*", "%")


def _text_of_pattern(pattern: str, wildcards: tuple[str, str]) -> str:
    """Return the text of a pattern that `_like_pattern` made. For any other pattern the result is meaningless."""
    before, after = wildcards
    inner = pattern[len(before) : len(pattern) - len(after)]
    return re.sub(r"\\([\\%_])|%", lambda found: found[1] or "*", inner)

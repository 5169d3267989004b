"""One condition → SQL. Pure.

No text of a request is in the SQL: its values are parameters of the protocol, and its words choose among the words
here. Each operator is named with its schema: that of the column's type, or pg_catalog. There PostgreSQL gives a
parameter the type of the column that it is compared with (manual, "Type Conversion", "Operators"), so that the column's
indexes can be used; the array of ANY and ALL gets the array type of the column's.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.query.filters import COMPARISONS, FULL_TEXT, Condition
from server.query.operators import OtherType
from server.query.quoting import write_array

_IS = {"null": "NULL", "not_null": "NOT NULL", "true": "TRUE", "false": "FALSE", "unknown": "UNKNOWN"}
_QUANTIFIERS = {"any": "ANY", "all": "ALL"}


@dataclass(frozen=True, slots=True)
class Operand:
    """What is compared.

    text: its SQL. type: as format_type() writes it, for a domain the type under it. other: what the catalogue has of
    the type, if it is not PostgreSQL's own.
    """

    text: str
    type: str
    other: OtherType | None = None


def comparison(operand: Operand, condition: Condition, values: list[str]) -> str:
    """Return the condition as SQL, and append the values of its parameters."""
    operator = condition.operator
    if operator == "is":
        text = f"{operand.text} IS {_IS[condition.values[0]]}"
    elif operator == "in":
        text = _in(operand, condition, values)
    elif operator in FULL_TEXT:
        text = _full_text_search(operand, condition, values)
    else:
        text = _with_one_value(operand, condition, values)
    return f"NOT ({text})" if condition.negated else text


def regular_expression_check(condition: Condition, values: list[str]) -> str:
    """Return a query that fails if the regular expression of this condition, or one of its array, is invalid.

    PostgreSQL looks at a regular expression only if there is text to match.
    """
    value = bind(condition.values[0], values)
    match = f"SELECT ''::pg_catalog.text OPERATOR(pg_catalog.{COMPARISONS[condition.operator]})"
    if condition.modifier is None:
        return f"{match} {value}"
    return f"{match} item FROM pg_catalog.unnest({value}::pg_catalog.text[]) AS item"


def bind(value: str, values: list[str]) -> str:
    """Append the value and return its parameter."""
    values.append(value)
    return f"${len(values)}"


def _with_one_value(operand: Operand, condition: Condition, values: list[str]) -> str:
    symbol = COMPARISONS[condition.operator]
    own = {} if operand.other is None else operand.other.operators
    opposite = symbol == "<>" and symbol not in own and "=" in own
    left, type = _left(operand, "=" if opposite else symbol)
    value = bind(condition.values[0], values)
    if condition.modifier is None:
        text = left + (value if type is None else f"{value}::{type}")
    else:
        text = f"{left}{_QUANTIFIERS[condition.modifier]} ({value if type is None else f'{value}::{type}[]'})"
    if opposite:
        return f"NOT ({text})"
    # The value is never NULL.
    return f"({text}) IS NOT TRUE" if condition.operator == "isdistinct" else text


def _in(operand: Operand, condition: Condition, values: list[str]) -> str:
    if not condition.values:
        return "FALSE"
    left, type = _left(operand, "=")
    cast = "" if type is None else f"::{type}"
    # There are no arrays of arrays, and those of boxes have another delimiter.
    delimiter = ";" if operand.type == "box" else "," if operand.other is None else operand.other.delimiter
    if len(condition.values) == 1 or operand.type.endswith("[]") or delimiter != ",":
        text = " OR ".join(f"{left}{bind(value, values)}{cast}" for value in condition.values)
        return text if len(condition.values) == 1 else f"({text})"
    return f"{left}ANY ({bind(write_array(condition.values), values)}{cast and f'{cast}[]'})"


def _left(operand: Operand, symbol: str) -> tuple[str, str | None]:
    """Return the SQL of an operator and what is before it, and the type of the parameter after it, None for any.

    PostgreSQL then finds the type of the parameter itself, except for a composite type, whose operators take any row.
    """
    other = operand.other
    if other is not None and symbol in other.operators:
        operator = other.operators[symbol]
        return f"CAST({operand.text} AS {other.text}) {operator.text} ", operator.right
    composite = other is not None and other.composite
    return f"{operand.text} OPERATOR(pg_catalog.{symbol}) ", other.text if other and composite else None


def _full_text_search(operand: Operand, condition: Condition, values: list[str]) -> str:
    """A column of another type than tsvector is converted with the same text search configuration as the query.

    PostgreSQL looks the name of a configuration up in the search path, where the users' own are. None of them calls a
    function of their makers: parsers and templates of dictionaries are made by superusers only.
    """
    configuration = ""
    if condition.modifier is not None:
        configuration = f"{bind(condition.modifier, values)}::pg_catalog.regconfig, "
    vector = operand.text
    if operand.type != "tsvector":
        vector = f"pg_catalog.to_tsvector({configuration}{vector})"
    query = f"pg_catalog.{FULL_TEXT[condition.operator]}({configuration}{bind(condition.values[0], values)})"
    return f"{vector} OPERATOR(pg_catalog.@@) {query}"

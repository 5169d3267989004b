"""One condition → SQL. Pure.

No text of a request is in the SQL: its values are parameters of the protocol, and its words choose among the words
here. PostgreSQL gives a parameter the type of the column that it is compared with (manual, "Type Conversion",
"Operators"), so that the column's indexes can be used; the array of ANY and ALL gets the array type of the column's.
"""

from __future__ import annotations

from server.query.filters import COMPARISONS, FULL_TEXT, Condition

_IS = {"null": "NULL", "not_null": "NOT NULL", "true": "TRUE", "false": "FALSE", "unknown": "UNKNOWN"}
_QUANTIFIERS = {"any": "ANY", "all": "ALL"}


def comparison(operand: str, type: str, condition: Condition, values: list[str]) -> str:
    """Return the condition as SQL, and append the values of its parameters.

    operand: the SQL of what is compared. type: its type, as format_type() writes it.
    """
    operator = condition.operator
    if operator == "is":
        text = f"{operand} IS {_IS[condition.values[0]]}"
    elif operator == "in":
        items = ", ".join(bind(value, values) for value in condition.values)
        text = f"{operand} IN ({items})" if items else "FALSE"
    elif operator in FULL_TEXT:
        text = _full_text_search(operand, type, condition, values)
    else:
        value = bind(condition.values[0], values)
        if condition.modifier is not None:
            value = f"{_QUANTIFIERS[condition.modifier]} ({value})"
        text = f"{operand} {COMPARISONS[operator]} {value}"
    return f"NOT ({text})" if condition.negated else text


def regular_expression_check(condition: Condition, values: list[str]) -> str:
    """Return a query that fails if the regular expression of this condition, or one of its array, is invalid.

    PostgreSQL looks at a regular expression only if there is text to match.
    """
    value = bind(condition.values[0], values)
    operator = COMPARISONS[condition.operator]
    if condition.modifier is None:
        return f"SELECT text '' {operator} {value}"
    return f"SELECT text '' {operator} item FROM pg_catalog.unnest({value}::pg_catalog.text[]) AS item"


def bind(value: str, values: list[str]) -> str:
    """Append the value and return its parameter."""
    values.append(value)
    return f"${len(values)}"


def _full_text_search(operand: str, type: str, condition: Condition, values: list[str]) -> str:
    """A column of another type than tsvector is converted with the same text search configuration as the query."""
    configuration = ""
    if condition.modifier is not None:
        configuration = f"{bind(condition.modifier, values)}::pg_catalog.regconfig, "
    vector = operand if type == "tsvector" else f"pg_catalog.to_tsvector({configuration}{operand})"
    function = FULL_TEXT[condition.operator]
    return f"{vector} @@ pg_catalog.{function}({configuration}{bind(condition.values[0], values)})"

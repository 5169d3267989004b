"""The filters of a query string as values: conditions, groups, and the operators of PostgREST's grammar.

`filter_reader.py` reads them. Sources: PostgREST's documentation, "Tables and Views", "Operators", "Operator
Modifiers", "Full-Text Search", "Logical operators". docs/postgrest.md lists what differs. Knows neither the columns of
a relation nor SQL, except for the names of PostgreSQL's operators and functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from server.query.fields import Field

# Operators that take one value, and the PostgreSQL operator of each. LIKE, ILIKE and IS DISTINCT FROM are other names
# for uses of these, under which no schema can be named (PostgreSQL manual, "Pattern Matching", "Comparison Functions
# and Operators").
COMPARISONS = {
    "eq": "=",
    "neq": "<>",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "like": "~~",
    "ilike": "~~*",
    "match": "~",
    "imatch": "~*",
    "isdistinct": "=",
    "cs": "@>",
    "cd": "<@",
    "ov": "&&",
    "sl": "<<",
    "sr": ">>",
    "nxr": "&<",
    "nxl": "&>",
    "adj": "-|-",
}
# Operators of full text search, and the PostgreSQL function that makes the query of each.
FULL_TEXT = {
    "fts": "to_tsquery",
    "plfts": "plainto_tsquery",
    "phfts": "phraseto_tsquery",
    "wfts": "websearch_to_tsquery",
}
OPERATORS = (*COMPARISONS, *FULL_TEXT, "in", "is")
# Operators that may be followed by one of QUANTIFIERS in brackets, and then compare with each element of an array.
QUANTIFIED = ("eq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch")
QUANTIFIERS = ("any", "all")
PATTERNS = ("like", "ilike")
REGULAR_EXPRESSIONS = ("match", "imatch")
IS_VALUES = ("null", "not_null", "true", "false", "unknown")
# Levels of nesting in a group. A request line of 128 kB has space for tens of thousands, which neither the recursive
# reader nor PostgreSQL's parser should be given.
MOST_NESTING = 20


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a column, or of a part of its JSON.

    field: without a cast. operator: one of OPERATORS. values: exactly one; any number for `in`; for `is` one of
    IS_VALUES. A pattern of PATTERNS has `%` as its wildcard, as in SQL.
    modifier: what stands in brackets after the operator. For QUANTIFIED, one of QUANTIFIERS: the value is then an array
    in PostgreSQL's text form. For FULL_TEXT, the name of a text search configuration. None if there are no brackets.
    raw_plus: whether a `+` that may be a sign stood in the address as it is, where it means a space.
    """

    field: Field
    operator: str
    values: tuple[str, ...]
    negated: bool = False
    modifier: str | None = None
    raw_plus: bool = dataclasses.field(default=False, compare=False)

    @property
    def column(self) -> str:
        """The column that is compared, or that holds the JSON."""
        return self.field.column

    @property
    def operator_text(self) -> str:
        """The operator with its modifier, as it is written: `eq`, `eq(any)`, `fts(english)`."""
        return self.operator if self.modifier is None else f"{self.operator}({self.modifier})"


@dataclass(frozen=True, slots=True)
class Group:
    """Filters joined by `and` or `or`. joined_by: one of the two words. members: at least one."""

    joined_by: str
    members: tuple[Condition | Group, ...]
    negated: bool = False


Filter = Condition | Group


def conditions_of(filters: Sequence[Filter]) -> list[Condition]:
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

"""The parameters `select` and `order`: the text of each → its items.

Grammar only: knows no catalogue. The grammar is that of PostgREST's documentation, "Tables and Views", "Vertical
Filtering" and "Ordering", with the fields of `fields.py`. Blanks around an item or a name do not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from server.errors import InvalidRequest, RequestTooLarge
from server.query.fields import Field, read_cast, read_field, read_field_name
from server.query.grammar import shorten
from server.query.tally import check_steps

# The characters that end a name in each parameter.
SELECT_STOPS = ",:"
ORDER_STOPS = ".,"
# Columns of a file: PostgreSQL's limit for the results of a query (manual, "PostgreSQL Limits").
MOST_COLUMNS = 1664
# Sort keys: in PostgreSQL each is a result column, if only of the sort.
MOST_SORT_KEYS = MOST_COLUMNS
# Bytes of an identifier (PostgreSQL manual, "Lexical Structure": NAMEDATALEN - 1). ndjson uses an alias as one.
LONGEST_NAME = 63

_ALL_COLUMNS = re.compile(r"[ \t]*\*[ \t]*(?=,|$)")
_DIRECTIONS = {"asc": False, "desc": True}
_NULLS = {"nullsfirst": True, "nullslast": False}

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class SelectedColumn:
    """One item of `select=`. field: None for `*`, all columns. alias: its name in the file; None for its own."""

    field: Field | None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class SortKey:
    """One item of `order=`.

    field: without a cast. nulls_first: None for PostgreSQL's default (NULLs last if ascending, else first).
    """

    field: Field
    descending: bool = False
    nulls_first: bool | None = None

    @property
    def column(self) -> str:
        """The column that is sorted by, or that holds the JSON."""
        return self.field.column


def parse_select(text: str, name: str) -> tuple[SelectedColumn, ...] | None:
    """Parse `id,full_name:name,data->>city,amount::text,*`: fields in order, each with an optional alias and cast.

    Return None for `*` alone, which means all columns. Raise InvalidRequest.
    """
    items = _read_items(text, f'"{name}"', _read_selected, MOST_COLUMNS, "columns")
    return None if items == (SelectedColumn(None),) else items


def _read_items(
    text: str, where: str, read: Callable[[str, int, str], tuple[Item, int]], most: int, what: str
) -> tuple[Item, ...]:
    """Read items between commas. read: returns the one at a position and the position after it. what: the items."""
    check_steps(text.count("->"))  # before any is read
    items: list[Item] = []
    position = -1
    while position < len(text):
        if len(items) == most:
            raise RequestTooLarge(f"{where} names more than {most:,} {what}.", hint=f"Name at most {most:,}.")
        item, position = read(text, position + 1, where)
        items.append(item)
    return tuple(items)


def _read_selected(text: str, start: int, where: str) -> tuple[SelectedColumn, int]:
    every = _ALL_COLUMNS.match(text, start)
    if every:
        return SelectedColumn(None), every.end()
    field, position = read_field(text, start, SELECT_STOPS, where)
    alias = None
    if field.plain and text.startswith(":", position) and not text.startswith("::", position):
        alias = _alias(field.column, where)
        field, position = read_field(text, position + 1, SELECT_STOPS, where)
    cast, position = read_cast(text, position, SELECT_STOPS, where)
    if text[position : position + 1] not in ("", ","):
        raise InvalidRequest(
            f"Expected a comma in {where} at position {position + 1}.",
            code="invalid_select",
            hint="Write alias:column->key::type; all but the column may be left out. "
            "Put a name that contains a colon in double quotes.",
        )
    return SelectedColumn(field if cast is None else replace(field, cast=cast), alias), position


def _alias(name: str, where: str) -> str:
    if len(name.encode()) > LONGEST_NAME:
        raise InvalidRequest(
            f'The alias "{shorten(name)}" in {where} is longer than {LONGEST_NAME} bytes.', code="invalid_select"
        )
    return name


def parse_order(text: str, name: str) -> tuple[SortKey, ...]:
    """Parse `signup_date.desc.nullslast,data->>city`: sort keys in order, each a field with optional modifiers.

    Raise InvalidRequest.
    """
    return _read_items(text, f'"{name}"', _read_key, MOST_SORT_KEYS, "sort keys")


def _read_key(text: str, start: int, where: str) -> tuple[SortKey, int]:
    field, position = read_field(text, start, ORDER_STOPS, where)
    descending = nulls_first = None
    while text.startswith(".", position):
        modifier, position = read_field_name(text, position + 1, ORDER_STOPS, where)
        if modifier in _DIRECTIONS and descending is None and nulls_first is None:
            descending = _DIRECTIONS[modifier]
        elif modifier in _NULLS and nulls_first is None:
            nulls_first = _NULLS[modifier]
        else:
            raise InvalidRequest(
                f'Unexpected "{shorten(modifier)}" after "{shorten(str(field))}" in {where}.',
                code="invalid_order",
                hint="Write column, then .asc or .desc, then .nullsfirst or .nullslast. "
                "Put a name that contains a dot in double quotes.",
            )
    if text.startswith("->", position):
        raise InvalidRequest(
            f"Unexpected -> in {where} at position {position + 1}.",
            code="invalid_order",
            hint="Put a name that contains a dot or an arrow in double quotes.",
        )
    return SortKey(field, bool(descending), nulls_first), position

"""The form of the page ↔ the query string of an export. Pure, and no second grammar: `request.py` reads every piece.

A form is what a person sees: rows of columns, filters and sort keys, options as text, and in `more` whatever no
control can show, word for word. Nothing of a query is dropped, and what is wrong with it stays where it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from server.errors import ExportError, InvalidRequest
from server.pages.controls import (
    Choice,
    condition_of,
    read_list,
    write_condition,
)
from server.query.catalogue import Relation
from server.query.grammar import write_name, write_quoted
from server.query.parameters import DIALECT_PARAMETERS
from server.query.request import FORMATS, GZIP_SUFFIX, PARAMETERS, ExportRequest, parse_relation_request

# Everything in a query string that has a control of its own and is one text.
OPTIONS = ("limit", "offset", *DIALECT_PARAMETERS, "timezone", "filename")
# The page's own parameter; its values are no operators, so a column called format can still be filtered.
FORMAT = "format"
SUFFIXES = tuple(name + gzip for name in FORMATS for gzip in ("", f".{GZIP_SUFFIX}"))
# What may stand in a query string as it is (RFC 3986) and reads better so.
_PLAIN = "!$*(),;:@/?-._~"


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A column in the order of the file. alias: "" keeps its name."""

    column: str
    alias: str = ""
    taken: bool = True


@dataclass(frozen=True, slots=True)
class FilterRow:
    """One filter as picked. number: of its fields' names. values: as in its fields, a list being one text."""

    number: int
    column: str
    kind: str
    choice: Choice
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SortRow:
    """One sort key. direction: what follows the column in `order=`."""

    number: int
    column: str
    direction: str


@dataclass(frozen=True, slots=True)
class Form:
    """What the form shows. options: those that are not left as they are. more: pieces of a query string."""

    relation: Relation
    format: str = FORMATS[0]
    gzip: bool = False
    columns: tuple[ColumnRow, ...] = ()
    filters: tuple[FilterRow, ...] = ()
    sorts: tuple[SortRow, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What the file's name ends with: csv, csv.gz, …"""
        return f"{self.format}.{GZIP_SUFFIX}" if self.gzip else self.format

    @property
    def query(self) -> str:
        """The query string of the export."""
        return "&".join(piece for _, piece in pieces(self))

    @property
    def page_query(self) -> str:
        """The query string of the page that shows this form."""
        own = [] if self.suffix == FORMATS[0] else [f"{FORMAT}={self.suffix}"]
        return "&".join([*own, *filter(None, [self.query])])

    def unused(self, taken: Iterable[str]) -> tuple[str, ...]:
        """The readable columns that are not among these."""
        names = set(taken)
        return tuple(c.name for c in self.relation.columns if c.readable and c.name not in names)


def pieces(form: Form) -> list[tuple[str, str]]:
    """(field, piece) of the query string, percent-encoded, in the order in which they are written."""
    found: list[tuple[str, str]] = []
    every = [column.name for column in form.relation.columns]
    taken = [row for row in form.columns if row.taken]
    chosen = any(line.startswith("select=") for line in form.more) and len(taken) == len(form.columns)
    whole = [row.column for row in taken] == every and not any(row.alias for row in taken)
    if not whole and not chosen:
        found.append(("columns", _pair("select", _select_text(taken))))
    for row in form.filters:
        text = _condition_text(row)
        if text is not None:
            found.append((f"f{row.number}", _pair(_parameter_name(row.column), text)))
    found += [("more", encoded(line)) for line in form.more]
    if form.sorts:
        keys = (write_name(row.column, ".,") + (f".{row.direction}" if row.direction else "") for row in form.sorts)
        found.append(("sort", _pair("order", ",".join(keys))))
    found += [(name, _pair(name, form.options[name])) for name in OPTIONS if name in form.options]
    return found


def field_of(error: ExportError, form: Form) -> str:
    """The field that the error is about, as `pieces` calls it; "" where that cannot be told."""
    written = pieces(form)
    if isinstance(error, InvalidRequest):
        for name, piece in written:
            if read_alone(piece) is None:
                return name
    for name, _ in written:
        if name in OPTIONS and error.code == "contradiction" and re.search(rf'"{name}["=]', error.detail):
            return name
    known = {column.name for column in form.relation.columns if column.readable}
    missing = error.code in ("unknown_column", "columns_not_readable")
    if missing and any(row.taken and row.column not in known for row in form.columns):
        return "columns"
    suspects = [row for row in form.filters if _named(row.column, error) and (row.column not in known or not missing)]
    suspects.sort(key=lambda row: not any(value and value in error.detail for value in row.values))
    sorted_by = any(_named(row.column, error) for row in form.sorts)
    if sorted_by and ("sort" in error.detail or not suspects):
        return "sort"
    if suspects:
        return f"f{suspects[0].number}"
    return "more" if form.more and _named_at_all(error) else ""


def readable(piece: str) -> str:
    """A piece of a query string as a person reads it; `encoded` writes the same piece again."""
    piece = piece.replace("+", "%20")
    text = unquote(piece, errors="strict") if _is_text(piece) else piece
    return text if not set(text) & {"\n", "\r"} and encoded(text) == encoded(piece) and text.strip() == text else piece


def encoded(line: str) -> str:
    """A line that a person wrote as a piece of a query string: only what may not stand there is percent-encoded."""
    name, equals, value = line.partition("=")
    return quote(name, safe=_PLAIN + "%") + equals + quote(value, safe=_PLAIN + "=%")


def _is_text(piece: str) -> bool:
    try:
        unquote(piece, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def read_alone(piece: str) -> ExportRequest | None:
    """What this piece of a query string asks for; None where it is wrong by itself."""
    try:
        return parse_relation_request("relation", piece)
    except InvalidRequest:
        return None


def _select_text(rows: list[ColumnRow]) -> str:
    items = ((f"{write_name(row.alias, ',:')}:" if row.alias else "") + write_name(row.column, ",:") for row in rows)
    text = ",".join(items)
    return write_quoted(text) if text == "*" else text  # a column of this name, not all of them


def _condition_text(row: FilterRow) -> str | None:
    values = row.values
    if row.choice.many and row.kind != "enum":
        try:
            values = read_list("".join(values))
        except InvalidRequest:  # refused by the grammar too, which says why
            return f"{'not.' if row.choice.negated else ''}in.({''.join(values)}"
    condition = condition_of(row.column, row.choice, values)
    return None if condition is None else write_condition(condition)


def _parameter_name(column: str) -> str:
    return write_quoted(column) if column in PARAMETERS else write_name(column, "")


def _pair(name: str, value: str) -> str:
    return f"{quote(name, safe=_PLAIN)}={quote(value, safe=_PLAIN + '=')}"


def _named(column: str, error: ExportError) -> bool:
    return f'"{column}"' in error.detail or f'"{column[:100]}"' in error.detail


def _named_at_all(error: ExportError) -> bool:
    return '"' in error.detail and error.code != "relation_not_found"

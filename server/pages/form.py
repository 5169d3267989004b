"""The form of a relation as a value, and the query string that it writes. Pure.

The form shows rows of columns, filters and sort keys, and options as text. `more` holds every pair of the query string
that no input can show, as text. There is no second grammar: `request.py` parses every pair. Nothing of a query is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from server.errors import InvalidRequest, RequestTooLarge
from server.pages import days
from server.pages.controls import FilterInput, condition_of, read_list, write_condition, write_members
from server.query.catalogue import Relation
from server.query.fields import write_field_name
from server.query.filters import Filter, Group
from server.query.grammar import write_quoted
from server.query.parameters import DIALECT_PARAMETERS
from server.query.request import (
    FORMATS,
    PARAMETERS,
    ExportRequest,
    full_format,
    parse_export_request,
    parse_relation_request,
    relation_path,
)
from server.query.selection import ORDER_STOPS, SELECT_STOPS
from server.query.tally import Tally

# The parameters that have an input of their own, whose text is the value.
OPTIONS = ("limit", "offset", *DIALECT_PARAMETERS, "timezone", "filename")
# The page's own parameter. Its values are no operators, so a column named format can still be filtered.
FORMAT_PARAMETER = "format"
SUFFIXES = tuple(full_format(name, gzip) for name in FORMATS for gzip in (False, True))
# Characters that a query string may contain as they are (RFC 3986, section 3.4), except & + = and the apostrophe.
_PLAIN = "!$*(),;:@/?-._~"


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A column in the order of the file. alias: its name in the file, "" for its own. taken: whether it is selected."""

    column: str
    alias: str = ""
    taken: bool = True


@dataclass(frozen=True, slots=True)
class FilterRow:
    """A filter with inputs of its own. number: in the names of its fields.

    A list of values is one text, as in its field, except for an enum, which has a checkbox for each label.
    """

    number: int
    column: str
    kind: str
    filled: FilterInput

    @property
    def items(self) -> FilterInput:
        """The inputs with the items of a list as their values. Raise InvalidRequest if the list is not valid."""
        if not self.filled.comparison.takes_list or self.kind == "enum":
            return self.filled
        return FilterInput(self.filled.comparison, read_list("".join(self.filled.values)))

    @property
    def filter(self) -> Filter | None:
        """What this row asks for, None while its value is missing. Raise InvalidRequest if its list is not valid."""
        return (days.filter_of if self.kind == days.KIND else condition_of)(self.column, self.items)


@dataclass(frozen=True, slots=True)
class SortRow:
    """A sort key. number: in the names of its fields. direction: the modifiers after the column in `order=`."""

    number: int
    column: str
    direction: str


@dataclass(frozen=True, slots=True)
class FieldPair:
    """A pair `name=value` of the query string, percent-encoded, and the field of the form that writes it."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Form:
    """What the form shows. options: text by name, without those left at their default. more: pairs as text."""

    relation: Relation
    format: str = FORMATS[0]
    gzip: bool = False
    columns: tuple[ColumnRow, ...] = ()
    filters: tuple[FilterRow, ...] = ()
    sorts: tuple[SortRow, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    @property
    def full_format(self) -> str:
        """The end of the file's name without its dot: csv, csv.gz, …"""
        return full_format(self.format, self.gzip)

    @property
    def query(self) -> str:
        """The query string of the export."""
        return "&".join(pair.text for pair in query_pairs(self))

    @property
    def page_query(self) -> str:
        """The query string of the page that shows this form."""
        own = [] if self.full_format == FORMATS[0] else [f"{FORMAT_PARAMETER}={self.full_format}"]
        return "&".join([*own, *filter(None, [self.query])])

    @property
    def readable_columns(self) -> tuple[str, ...]:
        """The names of the columns that may be read, in table order."""
        return tuple(column.name for column in self.relation.columns if column.readable)

    @property
    def selects_elsewhere(self) -> bool:
        """Whether `more` has a selection of its own."""
        return any(line.startswith("select=") for line in self.more)


def parse_form(form: Form) -> ExportRequest:
    """Return the request of the export that the form describes. Raise InvalidRequest if a field is invalid."""
    target = f"{relation_path(form.relation.schema, form.relation.name)}.{form.full_format}"
    return parse_export_request(target, form.query)


def query_pairs(form: Form) -> list[FieldPair]:
    """Return the pairs of the export's query string in the order in which they are written."""
    found: list[FieldPair] = []
    selected = _select_text(form)
    if selected is not None:
        found.append(FieldPair("columns", _write_pair("select", selected)))
    for row in form.filters:
        pair = _filter_pair(row)
        if pair is not None:
            found.append(FieldPair(f"f{row.number}", pair))
    found += [FieldPair("more", encode_pair(line)) for line in form.more]
    if form.sorts:
        keys = (
            ".".join(filter(None, [write_field_name(row.column, ORDER_STOPS), row.direction])) for row in form.sorts
        )
        found.append(FieldPair("sort", _write_pair("order", ",".join(keys))))
    found += [FieldPair(name, _write_pair(name, form.options[name])) for name in OPTIONS if name in form.options]
    return found


def readable_pair(pair: str) -> str:
    """Return a pair of a query string decoded for a reader, if `encode_pair` writes the same pair from it."""
    pair = pair.replace("+", "%20")
    try:
        text = unquote(pair, errors="strict")
    except UnicodeDecodeError:
        return pair
    kept = not set(text) & {"\n", "\r"} and encode_pair(text) == encode_pair(pair) and text.strip() == text
    return text if kept else pair


def encode_pair(line: str) -> str:
    """Return a line that a user wrote as a pair of a query string: percent-encoded only where it must be.

    A `+` stays, which means a space.
    """
    name, equals, value = line.partition("=")
    return quote(name, safe=_PLAIN + "%+") + equals + quote(value, safe=_PLAIN + "=%+")


def parse_pair(pair: str, tally: Tally | None = None) -> ExportRequest | None:
    """Return what this pair of a query string asks for by itself, or None if it is invalid.

    tally: of all pairs that are read. With it, raise RequestTooLarge where it does.
    """
    try:
        return parse_relation_request("relation", pair, tally)
    except RequestTooLarge:
        if tally is not None:
            raise
        return None
    except InvalidRequest:
        return None


def _select_text(form: Form) -> str | None:
    """Return the value of `select=`, or None if all columns are selected or `more` has a selection of its own."""
    taken = [row for row in form.columns if row.taken]
    all_taken = [row.column for row in taken] == [column.name for column in form.relation.columns]
    if all_taken and not any(row.alias for row in taken):
        return None
    if len(taken) == len(form.columns) and form.selects_elsewhere:
        return None
    names = ([row.alias] * bool(row.alias) + [row.column] for row in taken)
    return ",".join(":".join(write_field_name(name, SELECT_STOPS) for name in pair) for pair in names)


def _filter_pair(row: FilterRow) -> str | None:
    try:
        item = row.filter
    except InvalidRequest:  # written as it is: the grammar refuses it too, and says why
        negation = "not." if row.filled.comparison.negated else ""
        return _write_pair(_parameter_name(row.column), f"{negation}in.({''.join(row.filled.values)}")
    if isinstance(item, Group):
        return _write_pair(f"{'not.' if item.negated else ''}{item.joined_by}", write_members(item))
    return None if item is None else _write_pair(_parameter_name(row.column), write_condition(item))


def _parameter_name(column: str) -> str:
    return write_quoted(column) if column in PARAMETERS else write_field_name(column, "")


def _write_pair(name: str, value: str) -> str:
    return f"{quote(name, safe=_PLAIN)}={quote(value, safe=_PLAIN + '=')}"

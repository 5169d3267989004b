"""What a browser sends → the form: the query string of the page, or the fields of the form.

Pure. What is invalid or has no input is kept as it is, so that the page can show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from server.errors import InvalidRequest, RequestTooLarge
from server.pages import days
from server.pages.controls import FilterInput, comparison_of, input_of, kind_of, write_list
from server.pages.form import (
    FORMAT_PARAMETER,
    OPTIONS,
    SUFFIXES,
    ColumnRow,
    FilterRow,
    Form,
    SortRow,
    parse_pair,
    readable_pair,
)
from server.query.catalogue import Column, Relation
from server.query.filters import Condition, conditions_of
from server.query.grammar import percent_decode
from server.query.request import FORMATS, ExportRequest, filters_column, read_pairs
from server.query.selection import SelectedColumn, SortKey
from server.query.tally import LONGEST_QUERY, MOST_PARAMETERS, Tally

# Filters, and sort keys, that get inputs. Each row has a list of the columns: thousands would be a page of 80 MB.
MOST_ROWS = 100
# Entries of all those lists together, of filters and of sort keys: 1 MB of HTML each.
MOST_ENTRIES = 10_000
# Lines of More conditions: as many as a request may have parameters.
MOST_LINES = MOST_PARAMETERS
_SHORTER = "Use fewer or shorter conditions."


def check_size(query: str) -> None:
    """Raise RequestTooLarge if this query string of a page asks for more than an export may, whatever the relation."""
    tally = Tally()
    for pair in read_pairs(query):
        parse_pair(pair, tally)


def form_of_query(relation: Relation, query: str) -> Form:
    """Return the form that shows this query string of the page. Raise RequestTooLarge if no export may be as large."""
    reader = _QueryReader(relation)
    for pair in read_pairs(query):
        reader.read(pair)
    return reader.form()


def most_rows(relation: Relation) -> int:
    """Return how many filters, and how many sort keys, of this relation get inputs."""
    return min(MOST_ROWS, max(MOST_ENTRIES // max(len(relation.columns), 1), 1))


def readable_query(query: str) -> str:
    """Return a query string decoded for a reader, except for what would then mean something else."""
    return "&".join(readable_pair(pair) for pair in query.split("&") if pair)


def form_of_fields(relation: Relation, fields: Iterable[tuple[str, str]]) -> Form:
    """Return the form with these fields, after what the pressed button asks for: `move` a column, `remove` a row.

    fields: (name, value) as a browser sends them, decoded. Raise RequestTooLarge if there are too many rows.
    """
    sent = _Fields(relation, fields)
    if sent.length > LONGEST_QUERY:
        raise RequestTooLarge("The form describes an address that is too long.", code="too_long", hint=_SHORTER)
    for rows, letter in (("filters", "f"), ("sort keys", "s")):
        if len(sent.numbered(letter)) > 2 * MOST_ROWS:  # those of the page, and some that its reader has added
            raise RequestTooLarge(
                f"The form has more than {2 * MOST_ROWS} {rows}.",
                hint="Write further conditions under More conditions.",
            )
    lines = [line.strip() for line in re.split("[\r\n]+", sent.text("more")) if line.strip()]
    if len(lines) > MOST_LINES:
        raise RequestTooLarge(f"More conditions has more than {MOST_LINES:,} lines.", hint=_SHORTER)
    format, removed = sent.text(FORMAT_PARAMETER), sent.text("remove")
    return Form(
        relation,
        format if format in FORMATS else FORMATS[0],
        bool(sent.text("gzip")),
        tuple(_moved(_column_rows(sent), sent.text("move"))) or _all_columns(relation, None),
        tuple(row for row in _filter_rows(relation, sent) if removed != f"f{row.number}"),
        tuple(
            SortRow(number, column, sent.text(f"s{number}.direction"))
            for number, column in sent.numbered("s")
            if column and removed != f"s{number}"
        ),
        # Spaces around the text for NULL are part of it.
        {name: text for name in OPTIONS if (text := sent.first(name) if name == "null" else sent.text(name))},
        tuple(lines),
    )


class _QueryReader:
    """Builds a form from the pairs of a query string. A pair that no input can show goes to `more`."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation
        self._by_name = {column.name: column for column in relation.columns}
        self._most_rows = most_rows(relation)
        self._tally = Tally()
        self._suffix: str | None = None
        self._columns: tuple[ColumnRow, ...] | None = None
        self._filters: list[FilterRow] = []
        self._sorts: tuple[SortRow, ...] = ()
        self._options: dict[str, str] = {}
        self._more: list[str] = []
        self._names: set[str] = set()

    def read(self, pair: str) -> None:
        """Add a pair, still percent-encoded. Raise RequestTooLarge."""
        name, value = _decoded(pair)
        if name == FORMAT_PARAMETER and value in SUFFIXES and self._suffix is None:
            self._suffix = value
        elif name in OPTIONS and name not in self._options and not filters_column(name, value):
            self._options[name] = value
        elif (name, value) == ("select", "") and name not in self._names:
            self._columns = ()  # no column is ticked
            self._names.add(name)
        else:
            request = parse_pair(pair, self._tally)
            if request is None or not self._read_request(name, request):
                # A `+` that is refused on a column of times must stay one, so that it is refused here too.
                signed = request is not None and any(each.raw_plus for each in conditions_of(request.filters))
                self._more.append(pair if signed else readable_pair(pair))
            self._names.add(name)

    def form(self) -> Form:
        """Return the form with the pairs read so far."""
        format, _, gzip = (self._suffix or FORMATS[0]).partition(".")
        return Form(
            self._relation,
            format,
            bool(gzip),
            _all_columns(self._relation, self._columns),
            tuple(self._filters),
            self._sorts,
            self._options,
            tuple(self._more),
        )

    def _read_request(self, name: str, request: ExportRequest) -> bool:
        """Show what a pair of this name asks for. Return False if no input can, or has been given another pair."""
        has_room = len(self._filters) < self._most_rows
        row = _filter_row(self._by_name, request, len(self._filters)) if has_room else None
        if row is not None:
            self._filters.append(row)
            return True
        if name in self._names:
            return False
        if name == "select":
            selected = request.select or ()
            if not all(map(_has_inputs, selected)):
                return False
            fields = [(item.field, item.alias or "") for item in selected if item.field is not None]
            self._columns = tuple(ColumnRow(field.column, alias) for field, alias in fields) or None
            return True
        if name == "order" and len(request.order) <= self._most_rows and all(key.field.plain for key in request.order):
            keys = enumerate(request.order)
            self._sorts = tuple(SortRow(number, key.column, _direction(key)) for number, key in keys)
            return True
        return False


class _Fields:
    """The fields of a form as a browser sends them: values by name, in order."""

    def __init__(self, relation: Relation, fields: Iterable[tuple[str, str]]) -> None:
        # HTML, "Constructing the entry list": a browser sends every line break, also one in a column's name, as CR LF.
        sent_as = {"\r\n".join(re.split("\r\n?|\n", column.name)): column.name for column in relation.columns}
        self._values: dict[str, list[str]] = {}
        # Of the values that stand in the query string: the columns are there only if they are taken.
        self.length = 0
        for name, value in fields:
            self.length += 0 if name in ("c", "a", "t") else len(value)
            self._values.setdefault(name, []).append(sent_as.get(value, value))

    def all(self, name: str) -> list[str]:
        """Return all values of this name."""
        return self._values.get(name, [])

    def first(self, name: str) -> str:
        """Return the first value of this name, or ""."""
        return self._values.get(name, [""])[0]

    def text(self, name: str) -> str:
        """Return the first value of this name without spaces around it, or ""."""
        return self.first(name).strip()

    def numbered(self, letter: str) -> list[tuple[int, str]]:
        """Return (number, column) of each row of filters (letter `f`) or sort keys (`s`), by number."""
        matches = ((re.fullmatch(rf"{letter}(\d{{1,6}})\.column", name), name) for name in self._values)
        return sorted((int(match[1]), self.first(name)) for match, name in matches if match)


def _decoded(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    try:
        return percent_decode(name.replace("+", " "), ""), percent_decode(value.replace("+", " "), "")
    except InvalidRequest:
        return "", ""


def _filter_row(columns: Mapping[str, Column], request: ExportRequest, number: int) -> FilterRow | None:
    """Return the row that shows the only filter of this request, or None if there is no such filter or row.

    columns: of the relation, by name.
    """
    if len(request.filters) != 1:
        return None
    item = request.filters[0]
    conditions = conditions_of((item,))
    name = conditions[0].column
    column = columns.get(name)
    kind = kind_of(column)
    if any(condition.raw_plus for condition in conditions) and "text" not in kind:
        return None
    if kind == days.KIND:
        filled = days.days_of(item)
    elif isinstance(item, Condition):
        filled = input_of(item, kind, () if column is None else column.values or ())
    else:
        return None
    if filled is None or any(_has_line_break(value) for value in filled.values):
        return None
    if filled.comparison.takes_list and kind != "enum":
        filled = FilterInput(filled.comparison, (write_list(filled.values),))
    return FilterRow(number, name, kind, filled)


def _has_inputs(item: SelectedColumn) -> bool:
    """Return whether a row of the form shows all of this: a column and the name that it may have in the file."""
    return item.field is not None and item.field.plain and not _has_line_break(item.alias or "")


def _has_line_break(text: str) -> bool:
    """Return whether an input, which holds one line, would change this text."""
    return "\n" in text or "\r" in text


def _column_rows(sent: _Fields) -> list[ColumnRow]:
    taken = set(sent.all("t"))
    return [
        ColumnRow(name, alias.strip(), str(number) in taken)
        for number, (name, alias) in enumerate(zip(sent.all("c"), sent.all("a"), strict=False))
    ]


def _filter_rows(relation: Relation, sent: _Fields) -> Iterator[FilterRow]:
    columns = {column.name: column for column in relation.columns}
    for number, column in sent.numbered("f"):
        if not column:
            continue
        kind = kind_of(columns.get(column))
        values = sent.all(f"f{number}.value")
        time = sent.first(f"f{number}.time")
        if kind == "timestamp" and time and values and values[0]:
            values = [f"{values[0]}T{time}"]
        comparison = comparison_of(kind, sent.first(f"f{number}.op"))
        yield FilterRow(number, column, kind, FilterInput(comparison, tuple(values)))


def _moved(rows: list[ColumnRow], wanted: str) -> list[ColumnRow]:
    """Return the rows after a move. wanted: the number of a row and a direction, `3.up` or `3.down`."""
    number, _, direction = wanted.partition(".")
    if number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(rows):
        row = rows.pop(int(number))
        rows.insert(max(0, int(number) + (-1 if direction == "up" else 1)), row)
    return rows


def _all_columns(relation: Relation, chosen: tuple[ColumnRow, ...] | None) -> tuple[ColumnRow, ...]:
    """Return the chosen columns, then the other readable ones, not taken. chosen: None to take all readable ones."""
    names = [column.name for column in relation.columns if column.readable]
    if chosen is None:
        return tuple(ColumnRow(name) for name in names)
    taken = {row.column for row in chosen}
    return (*chosen, *(ColumnRow(name, taken=False) for name in names if name not in taken))


def _direction(key: SortKey) -> str:
    nulls = {None: (), True: ("nullsfirst",), False: ("nullslast",)}[key.nulls_first]
    return ".".join((*(("desc",) if key.descending else ()), *nulls))

"""What a browser sends → the form: the query string of the page, or the fields of the form itself.

Pure, and raises nothing: what is wrong or has no control is kept as it came, for `form.py` to say so beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from server.errors import InvalidRequest
from server.pages.controls import CHOICES, choice_of, control_of, kind_of, list_text
from server.pages.form import FORMAT, OPTIONS, SUFFIXES, ColumnRow, FilterRow, Form, SortRow, read_alone, readable
from server.query.catalogue import Relation
from server.query.filters import Condition
from server.query.grammar import percent_decode
from server.query.parameters import SortKey
from server.query.request import FORMATS, ExportRequest


def form_of_query(relation: Relation, query: str) -> Form:
    """The form that shows this query string of the page. Raises nothing: what is wrong is kept to be shown."""
    columns: tuple[ColumnRow, ...] | None = None
    filters: list[FilterRow] = []
    sorts: tuple[SortRow, ...] = ()
    options: dict[str, str] = {}
    more: list[str] = []
    seen: set[str] = set()
    suffix = None
    for piece in filter(None, query.split("&")):
        name, value = _decoded(piece)
        if name == FORMAT and value in SUFFIXES and suffix is None:
            suffix = value
            continue
        if name in OPTIONS and name not in options:
            options[name] = value
            continue
        read = read_alone(piece)
        row = None if read is None else _filter_row(relation, read, len(filters))
        if row is not None:
            filters.append(row)
        elif read is None or name in seen or name not in ("select", "order"):
            more.append(readable(piece))
        elif name == "select" and not any(_has_line_break(item.alias or "") for item in read.select or ()):
            columns = tuple(ColumnRow(item.column, item.alias or "") for item in read.select or ()) or None
        elif name == "select":
            more.append(readable(piece))
        else:
            sorts = tuple(SortRow(number, key.column, _direction(key)) for number, key in enumerate(read.order))
        seen.add(name)
    format, _, gzip = (suffix or FORMATS[0]).partition(".")
    return Form(
        relation,
        format,
        bool(gzip),
        _all_columns(relation, columns),
        tuple(filters),
        sorts,
        options,
        tuple(more),
    )


def readable_query(query: str) -> str:
    """A query string as a person reads it."""
    return "&".join(readable(piece) for piece in query.split("&") if piece)


def form_of_fields(relation: Relation, fields: Iterable[tuple[str, str]]) -> Form:
    """The form whose fields were sent, with whatever its buttons ask for done."""
    # A browser sends every line break, also one in the name of a column, as CR LF.
    names_sent = {"\r\n".join(re.split("\r\n?|\n", column.name)): column.name for column in relation.columns}
    given: dict[str, list[str]] = {}
    for name, value in fields:
        given.setdefault(name, []).append(names_sent.get(value, value))

    def one(name: str) -> str:
        return given.get(name, [""])[0].strip() if name != "null" else given.get(name, [""])[0]

    taken = set(given.get("t", []))
    names, aliases = given.get("c", []), given.get("a", [])
    rows = [
        ColumnRow(name, alias.strip(), str(number) in taken)
        for number, (name, alias) in enumerate(zip(names, aliases, strict=False))
    ]
    return Form(
        relation,
        one(FORMAT) if one(FORMAT) in FORMATS else FORMATS[0],
        bool(one("gzip")),
        tuple(_moved(rows, one("move"))) or _all_columns(relation, None),
        tuple(_filters_of_fields(relation, given, one("drop"))),
        tuple(
            SortRow(number, column, one(f"s{number}.direction"))
            for number, column in _numbered(given, "s")
            if column and one("drop") != f"s{number}"
        ),
        {name: one(name) for name in OPTIONS if one(name)},
        tuple(line.strip() for line in re.split("[\r\n]+", one("more")) if line.strip()),
    )


def _decoded(piece: str) -> tuple[str, str]:
    name, _, value = piece.partition("=")
    try:
        return percent_decode(name.replace("+", " "), ""), percent_decode(value.replace("+", " "), "")
    except InvalidRequest:
        return "", ""


def _filter_row(relation: Relation, read: ExportRequest, number: int) -> FilterRow | None:
    if len(read.filters) != 1 or not isinstance(read.filters[0], Condition):
        return None
    condition = read.filters[0]
    column = next((column for column in relation.columns if column.name == condition.column), None)
    kind = kind_of(column)
    found = control_of(condition, kind, () if column is None else column.values or ())
    if found is None:
        return None
    choice, values = found
    if any(_has_line_break(value) for value in values):
        return None  # an input would lose it
    if choice.many and kind != "enum":
        values = (list_text(values),)
    return FilterRow(number, condition.column, kind, choice, values)


def _has_line_break(text: str) -> bool:
    return "\n" in text or "\r" in text


def _filters_of_fields(relation: Relation, given: Mapping[str, list[str]], dropped: str) -> Iterable[FilterRow]:
    columns = {column.name: column for column in relation.columns}
    for number, column in _numbered(given, "f"):
        if not column or dropped == f"f{number}":
            continue
        kind = kind_of(columns.get(column))
        choice = choice_of(kind, given.get(f"f{number}.op", [""])[0]) or CHOICES[kind][0]
        values = given.get(f"f{number}.value", [])
        time = given.get(f"f{number}.time", [""])[0]
        if kind == "timestamp" and time and values and values[0]:
            values = [f"{values[0]}T{time}"]
        yield FilterRow(number, column, kind, choice, tuple(values))


def _numbered(given: Mapping[str, list[str]], letter: str) -> list[tuple[int, str]]:
    """(number, column) of each row of filters or sort keys, in order."""
    found = ((re.fullmatch(rf"{letter}(\d{{1,6}})\.column", name), values[0]) for name, values in given.items())
    return sorted((int(match[1]), column) for match, column in found if match)


def _moved(rows: list[ColumnRow], wanted: str) -> list[ColumnRow]:
    """The rows after `3.up` or `3.down`."""
    number, _, way = wanted.partition(".")
    if number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(rows):
        row = rows.pop(int(number))
        rows.insert(max(0, int(number) + (-1 if way == "up" else 1)), row)
    return rows


def _all_columns(relation: Relation, chosen: tuple[ColumnRow, ...] | None) -> tuple[ColumnRow, ...]:
    """The chosen columns, then all others that may be read."""
    names = [column.name for column in relation.columns if column.readable]
    if chosen is None:
        return tuple(ColumnRow(name) for name in names)
    taken = {row.column for row in chosen}
    return (*chosen, *(ColumnRow(name, taken=False) for name in names if name not in taken))


def _direction(key: SortKey) -> str:
    nulls = {None: (), True: ("nullsfirst",), False: ("nullslast",)}[key.nulls_first]
    return ".".join((*(("desc",) if key.descending else ()), *nulls))

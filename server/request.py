"""Path and query string → ExportRequest: grammar only.

Knows no catalogue and resolves no name: what a name means is the plan's business. Everything that is not
understood is an InvalidRequest that names it; nothing is silently ignored.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from server.catalogue import RelationName
from server.dialect import DELIMITERS, FORMULA_STARTS, LINE_ENDS, QUOTE_STYLES, Dialect
from server.errors import InvalidRequest
from server.filters import MOST_CONDITIONS, OPERATORS, Filter, conditions_of, parse_condition, parse_group
from server.grammar import percent_decode, read_name, read_names, shorten, write_name

FORMATS = ("csv", "tsv", "ndjson")
GZIP_SUFFIX = "gz"
DIALECT_PARAMETERS = ("delimiter", "quote", "header", "null", "eol", "bom", "guard", "excel")
GROUP_PARAMETERS = ("and", "or", "not.and", "not.or")
PARAMETERS = (
    "select",
    *GROUP_PARAMETERS,
    "order",
    "limit",
    "offset",
    *DIALECT_PARAMETERS,
    "timezone",
    "filename",
)
# What a filter's value begins with, as against the value of a misspelt parameter.
OPERATOR_AHEAD = re.compile(r"(not\.)?[A-Za-z_]+\.")
# Bytes of an identifier (NAMEDATALEN - 1).
LONGEST_NAME = 63
# Bytes of what stands for NULL: it is written for every NULL of a batch.
LONGEST_NULL = 100
# Rows that LIMIT and OFFSET can count (bigint).
MOST_ROWS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SelectedColumn:
    """One item of `select=`: a column, and the name that the file's header gives it."""

    column: str
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class SortKey:
    """One item of `order=`. nulls_first: None for PostgreSQL's default (last when ascending)."""

    column: str
    descending: bool = False
    nulls_first: bool | None = None


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What a URL asks for. select: None for all columns; filters are joined by AND; limit: None for all rows."""

    relation: RelationName
    format: str = "csv"
    gzip: bool = False
    select: tuple[SelectedColumn, ...] | None = None
    filters: tuple[Filter, ...] = ()
    order: tuple[SortKey, ...] = ()
    limit: int | None = None
    offset: int = 0
    dialect: Dialect = field(default_factory=Dialect)
    timezone: str | None = None
    filename: str | None = None


def parse_export_request(target: str, query: str) -> ExportRequest:
    """The request behind `/export/{target}?{query}`, both still percent-encoded. Raises InvalidRequest."""
    parts = _split_target(target)
    gzip = len(parts) > 1 and parts[-1] == GZIP_SUFFIX
    if gzip:
        parts.pop()
    example = f"Write /export/{{relation}}.{FORMATS[0]}"
    if len(parts) < 2:
        raise InvalidRequest("The path has no format.", code="unknown_format", hint=example)
    format = parts.pop()
    if format not in FORMATS:
        raise InvalidRequest(
            f'The format "{shorten(format)}" is not known.',
            code="unknown_format",
            hint=f"Known formats: {', '.join(FORMATS)}, each also with .{GZIP_SUFFIX}. {example}",
        )
    return _parse_parameters(query, _relation_name(parts), format, gzip)


def parse_relation_request(target: str, query: str) -> ExportRequest:
    """The same behind `/relations/{target}…`, whose path has no format."""
    return _parse_parameters(query, _relation_name(_split_target(target)), FORMATS[0], gzip=False)


def export_path(schema: str | None, name: str, format: str) -> str:
    """The percent-encoded path that `parse_export_request` reads as this relation and format."""
    return f"/export/{relation_path(schema, name)}.{format}"


def relation_path(schema: str | None, name: str) -> str:
    """The percent-encoded segment of a path that is read as this relation."""
    parts = [name] if schema is None else [schema, name]
    return quote(".".join(write_name(part, ".") for part in parts), safe="")


def _split_target(target: str) -> list[str]:
    return [name for name, _ in read_names(percent_decode(target, "the path"), ".", "the path")]


def _relation_name(parts: list[str]) -> RelationName:
    if len(parts) > 2:
        raise InvalidRequest(
            "The path has more than a schema and a relation.",
            code="invalid_relation",
            hint='A name that holds a dot is written in double quotes: /export/"my.table".csv',
        )
    return RelationName(parts[-1], parts[0] if len(parts) == 2 else None)


def _parse_parameters(query: str, relation: RelationName, format: str, gzip: bool) -> ExportRequest:
    options, filters = _read_query(query)
    dialect = _parse_dialect({name: options.pop(name) for name in DIALECT_PARAMETERS if name in options}, format)
    values = {name: _OPTIONS[name](text, name) for name, text in options.items()}
    return ExportRequest(relation, format, gzip, filters=filters, dialect=dialect, **values)


def _read_query(query: str) -> tuple[dict[str, str], tuple[Filter, ...]]:
    """The options by name, and the filters. In a query string + means a space (WHATWG URL)."""
    options: dict[str, str] = {}
    filters: list[Filter] = []
    for pair in query.split("&"):
        if not pair:
            continue
        raw_name, equals, raw_value = pair.partition("=")
        name = percent_decode(raw_name.replace("+", " "), "the name of a parameter")
        value = percent_decode(raw_value.replace("+", " "), f'the value of "{shorten(name)}"')
        if name in GROUP_PARAMETERS:
            filters.append(parse_group(name.removeprefix("not."), value, negated=name.startswith("not.")))
        elif name in PARAMETERS:
            if name in options:
                raise InvalidRequest(f'The parameter "{name}" is given twice.', code="repeated_parameter")
            options[name] = value
        else:
            filters.append(_parse_filter(name, value, bool(equals)))
    if len(conditions_of(tuple(filters))) > MOST_CONDITIONS:
        raise InvalidRequest(f"There are more than {MOST_CONDITIONS} conditions.", code="too_many_conditions")
    return options, tuple(filters)


def _parse_filter(name: str, value: str, has_value: bool) -> Filter:
    column, _ = read_name(name, 0, "", "the name of a parameter")
    if not has_value or not OPERATOR_AHEAD.match(value):
        raise InvalidRequest(
            f'The parameter "{shorten(name)}" is not known; as a filter on a column it would need an operator.',
            code="unknown_parameter",
            hint=f"Known parameters: {', '.join(PARAMETERS)}. A filter is column=operator.value with one of "
            f"{', '.join(OPERATORS)}.",
        )
    return parse_condition(column, value)


def _parse_select(text: str, name: str) -> tuple[SelectedColumn, ...] | None:
    """`id,full_name:name`: columns in order, an alias before a colon; `*` alone for all columns."""
    if text == "*":
        return None
    items: list[SelectedColumn] = []
    alias: str | None = None
    for found, stop in read_names(text, ",:", f'"{name}"'):
        if stop != ":":
            items.append(SelectedColumn(found, alias))
            alias = None
        elif alias is not None:
            raise InvalidRequest(
                f'"{name}" has two aliases before one column, at "{shorten(found)}".',
                code="invalid_select",
                hint="Write alias:column; a name that holds a colon goes in double quotes.",
            )
        elif len(found.encode()) > LONGEST_NAME:
            raise InvalidRequest(
                f'The alias "{shorten(found)}" in "{name}" is longer than {LONGEST_NAME} bytes.', code="invalid_select"
            )
        else:
            alias = found
    return tuple(items)


def _parse_order(text: str, name: str) -> tuple[SortKey, ...]:
    """`signup_date.desc.nullslast,id`."""
    keys: list[SortKey] = []
    words: list[str] = []
    for found, stop in read_names(text, ".,", f'"{name}"'):
        words.append(found)
        if stop == ".":
            continue
        column, *modifiers = words
        words = []
        descending = nulls_first = None
        for modifier in modifiers:
            if modifier in _DIRECTIONS and descending is None and nulls_first is None:
                descending = _DIRECTIONS[modifier]
            elif modifier in _NULLS and nulls_first is None:
                nulls_first = _NULLS[modifier]
            else:
                raise InvalidRequest(
                    f'"{name}" does not understand "{shorten(modifier)}" after "{shorten(column)}".',
                    code="invalid_order",
                    hint="Write column, then .asc or .desc, then .nullsfirst or .nullslast; "
                    "a name that holds a dot goes in double quotes.",
                )
        keys.append(SortKey(column, bool(descending), nulls_first))
    return tuple(keys)


def _parse_count(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) > MOST_ROWS:
        raise InvalidRequest(
            f'"{name}" is "{shorten(text)}"; a whole number from 0 to {MOST_ROWS} is needed.', code="invalid_count"
        )
    return int(text)


def _parse_timezone(text: str, name: str) -> str:
    if text not in timezones():
        raise InvalidRequest(
            f'The time zone "{shorten(text)}" is not known.',
            code="unknown_timezone",
            hint="Write a name of the IANA database, for example timezone=Europe/Berlin or timezone=UTC",
        )
    return text


@functools.cache
def timezones() -> frozenset[str]:
    """The names of the IANA database; read from the disk the first time, so call it once at start."""
    return frozenset(zoneinfo.available_timezones()) - {"localtime"}  # which PostgreSQL does not know


def _parse_filename(text: str, name: str) -> str:
    if not text.strip():
        raise InvalidRequest(f'"{name}" is empty.', code="invalid_filename")
    return text


def _parse_dialect(options: dict[str, str], format: str) -> Dialect:
    if format == "ndjson" and options:
        raise InvalidRequest(
            f'"{next(iter(options))}" says how CSV is written; it means nothing for ndjson.', code="contradiction"
        )
    if format == "tsv" and "delimiter" in options:
        raise InvalidRequest("The delimiter of tsv is the tab.", code="contradiction", hint="Write .csv instead.")
    values: dict[str, Any] = {"delimiter": b"\t"} if format == "tsv" else {}
    values |= {_DIALECT_FIELDS.get(name, name): _DIALECT[name](text, name) for name, text in options.items()}
    if values.pop("excel", False):
        for name, value in _EXCEL.items():
            if values.setdefault(name, value) != value:
                raise InvalidRequest(
                    f'"excel=true" and "{name}={options[name]}" contradict each other.', code="contradiction"
                )
    if values.get("guard") and values.get("null", b"").startswith(FORMULA_STARTS):
        raise InvalidRequest(
            'With "guard=formulas" what "null" stands for cannot begin like a formula itself.', code="contradiction"
        )
    return Dialect(**values)


def _parse_null(text: str, name: str) -> bytes:
    null = text.encode()
    if len(null) > LONGEST_NULL:
        raise InvalidRequest(f'"{name}" is longer than {LONGEST_NULL} bytes.', code="invalid_option")
    return null


def _one_of(choices: Mapping[str, Any]) -> Callable[[str, str], Any]:
    def parse(text: str, name: str) -> Any:
        if text not in choices:
            raise InvalidRequest(
                f'"{name}" is "{shorten(text)}"; one of {" ".join(choices)} is needed.', code="invalid_option"
            )
        return choices[text]

    return parse


_DIRECTIONS = {"asc": False, "desc": True}
_NULLS = {"nullsfirst": True, "nullslast": False}
_TRUTH = {"true": True, "false": False}
_EXCEL = {"bom": True, "eol": b"\r\n", "guard": True}
_DIALECT_FIELDS = {"quote": "quote_style"}
_DIALECT: dict[str, Callable[[str, str], Any]] = {
    "delimiter": _one_of(DELIMITERS),
    "quote": _one_of({style: style for style in QUOTE_STYLES}),
    "header": _one_of(_TRUTH),
    "null": _parse_null,
    "eol": _one_of(LINE_ENDS),
    "bom": _one_of(_TRUTH),
    "guard": _one_of({"formulas": True}),
    "excel": _one_of(_TRUTH),
}
_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "select": _parse_select,
    "order": _parse_order,
    "limit": _parse_count,
    "offset": _parse_count,
    "timezone": _parse_timezone,
    "filename": _parse_filename,
}

"""Path and query string → ExportRequest: grammar only.

Knows no catalogue and resolves no name: what a name means is the plan's business. Everything that is not
understood is an InvalidRequest that names it; nothing is silently ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote

from server.errors import InvalidRequest
from server.query.catalogue import RelationName
from server.query.dialect import Dialect
from server.query.filters import MOST_CONDITIONS, OPERATORS, Filter, conditions_of, parse_condition, parse_group
from server.query.grammar import percent_decode, read_name, read_names, shorten, write_name
from server.query.parameters import DIALECT_PARAMETERS, OPTIONS, SelectedColumn, SortKey, parse_dialect

FORMATS = ("csv", "tsv", "ndjson")
GZIP_SUFFIX = "gz"
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
    "parallel",
)
# What a filter's value begins with, as against the value of a misspelt parameter.
OPERATOR_AHEAD = re.compile(r"(not\.)?[A-Za-z_]+\.")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What a URL asks for. select: None for all columns; filters are joined by AND; limit: None for all rows.

    parallel: the most readers, None for as many as the server likes.
    """

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
    parallel: int | None = None


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
    dialect = parse_dialect({name: options.pop(name) for name in DIALECT_PARAMETERS if name in options}, format)
    values = {name: OPTIONS[name](text, name) for name, text in options.items()}
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

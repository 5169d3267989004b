"""The path and the query string of a URL → ExportRequest.

Grammar only: knows no catalogue and resolves no name, which `plan.py` does. Text that is not understood
raises an InvalidRequest that names it; nothing is ignored silently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from server.errors import InvalidRequest, RequestTooLarge
from server.query.catalogue import RelationName
from server.query.dialect import Dialect
from server.query.fields import read_field
from server.query.filter_reader import parse_condition, parse_group
from server.query.filters import OPERATORS, Filter
from server.query.grammar import form_decode, percent_decode, read_names, shorten, write_name
from server.query.parameters import DIALECT_PARAMETERS, PARSERS, parse_dialect
from server.query.selection import LONGEST_NAME, SelectedColumn, SortKey
from server.query.tally import LONGEST_QUERY, MOST_PARAMETERS, Tally

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
# How the value of a filter begins. The value of a misspelt parameter seldom does.
OPERATOR_PREFIX = re.compile(r"(not\.)?[A-Za-z_]+(\([^()]*\))?\.")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What a URL asks for, with names as the user wrote them.

    format: one of FORMATS. gzip: whether the file is a gzip file. select: None for all columns. filters: joined by AND.
    limit: rows, None for all. offset: rows to skip. timezone: None for the database's. filename: None for the
    relation's name. parallel: the largest number of readers, None for the server's choice.
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

    @property
    def full_format(self) -> str:
        """The format with the suffix for gzip, as it stands in the path: csv, csv.gz."""
        return full_format(self.format, self.gzip)


def full_format(format: str, gzip: bool) -> str:
    """Return the format with the suffix for gzip, for example csv.gz."""
    return f"{format}.{GZIP_SUFFIX}" if gzip else format


def parse_export_request(target: str, query: str) -> ExportRequest:
    """Parse `/export/{target}?{query}`, both still percent-encoded. Raise InvalidRequest if anything is wrong."""
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
            hint=f"Known formats: {', '.join(FORMATS)}, each optionally followed by .{GZIP_SUFFIX}. {example}",
        )
    return _parse_parameters(query, _relation_name(parts), format, gzip)


def parse_relation_request(target: str, query: str, tally: Tally | None = None) -> ExportRequest:
    """Parse the target of `/relations/{target}…`, which has no format, and its query string.

    Both are still percent-encoded. tally: counts the parts of several requests together. Raise InvalidRequest if
    anything is wrong.
    """
    return _parse_parameters(query, _relation_name(_split_target(target)), FORMATS[0], gzip=False, tally=tally)


def export_path(schema: str | None, name: str, format: str) -> str:
    """Return the percent-encoded path of an export.

    schema: None to leave it out. format: with `.gz` if the file is to be a gzip file.
    """
    return f"/export/{relation_path(schema, name)}.{format}"


def schema_in_path(schema: str, export_schemas: Sequence[str]) -> str | None:
    """Return the schema as paths and pages name it: None if a name without a schema is looked up in it first.

    export_schemas: the setting EXPORT_SCHEMAS.
    """
    return None if schema == export_schemas[0] else schema


def relation_path(schema: str | None, name: str) -> str:
    """Return the percent-encoded path segment that names this relation. schema: None to leave it out.

    The segment has no slash and is never `.` or `..`, which clients and proxies resolve (RFC 3986, section 5.2.4).
    """
    parts = [name] if schema is None else [schema, name]
    return quote(".".join(write_name(part, ".") for part in parts), safe="")


def _split_target(target: str) -> list[str]:
    return [name for name, _ in read_names(percent_decode(target, "the path"), ".", "the path")]


def _relation_name(parts: list[str]) -> RelationName:
    if len(parts) > 2:
        whole = ".".join(parts)
        example = whole if len(whole) <= LONGEST_NAME else "my.table"
        raise InvalidRequest(
            "The path names more than a schema and a relation.",
            code="invalid_relation",
            hint=f"Put a name that contains a dot in double quotes: {export_path(None, example, FORMATS[0])}",
        )
    return RelationName(parts[-1], parts[0] if len(parts) == 2 else None)


def _parse_parameters(
    query: str, relation: RelationName, format: str, gzip: bool, tally: Tally | None = None
) -> ExportRequest:
    options, filters = _read_query(query, Tally() if tally is None else tally)
    dialect = parse_dialect({name: options.pop(name) for name in DIALECT_PARAMETERS if name in options}, format)
    values = {name: PARSERS[name](text, name) for name, text in options.items()}
    return ExportRequest(relation, format, gzip, filters=filters, dialect=dialect, **values)


def _read_query(query: str, tally: Tally) -> tuple[dict[str, str], tuple[Filter, ...]]:
    """Return the decoded text of each option by name, and the filters.

    Pairs and `+` for a space follow the WHATWG URL standard, "application/x-www-form-urlencoded parsing".
    """
    options: dict[str, str] = {}
    filters: list[Filter] = []
    for pair in read_pairs(query):
        raw_name, equals, raw_value = pair.partition("=")
        name, _ = form_decode(raw_name, "the name of a parameter")
        value, signs = form_decode(raw_value, f'the value of "{shorten(name)}"')
        if name in GROUP_PARAMETERS:
            negated = name.startswith("not.")
            filters.append(parse_group(name.removeprefix("not."), value, negated=negated, signs=signs, tally=tally))
        elif name in PARAMETERS and not filters_column(name, value):
            if name in options:
                raise InvalidRequest(f'The parameter "{name}" is given twice.', code="repeated_parameter")
            options[name] = value
        else:
            filters.append(_parse_filter(name, value if equals else None, signs, tally))
    return options, tuple(filters)


def read_pairs(query: str) -> list[str]:
    """Return the pairs of a query string, still percent-encoded. Raise RequestTooLarge before any is read.

    A form that is sent as a body may describe a longer query string than a request line can hold.
    """
    if len(query) > LONGEST_QUERY:
        raise RequestTooLarge(
            f"The query string is longer than {LONGEST_QUERY:,} characters.",
            code="too_long",
            hint="Use fewer or shorter values.",
        )
    pairs = [pair for pair in query.split("&") if pair]
    if len(pairs) > MOST_PARAMETERS:
        raise RequestTooLarge(
            f"There are more than {MOST_PARAMETERS:,} parameters.",
            code="too_many_conditions",
            hint="Put several values of one column in a list: id=in.(1,2,3)",
        )
    return pairs


def filters_column(name: str, value: str) -> bool:
    """Return whether a filter on the column "text" is meant: many relations have one, and no value of `text` is one."""
    return name == "text" and OPERATOR_PREFIX.match(value) is not None


def _parse_filter(name: str, value: str | None, signs: Sequence[int], tally: Tally) -> Filter:
    """value: None if the parameter has none, not even an empty one. signs: see `grammar.form_decode`."""
    field, _ = read_field(name, 0, "", "the name of a parameter")
    if value is None or not OPERATOR_PREFIX.match(value):
        raise InvalidRequest(
            f'The parameter "{shorten(name)}" is not known. A filter on a column of this name needs an operator.',
            code="unknown_parameter",
            hint=f"Known parameters: {', '.join(PARAMETERS)}. Write a filter as column=operator.value with one of the "
            f"operators {', '.join(OPERATORS)}.",
        )
    return parse_condition(field, value, signs, tally)

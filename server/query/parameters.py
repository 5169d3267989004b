"""The parameters of a query string that are not filters: the text of each → its value.

Grammar only: knows no catalogue. `request.py` splits the query string and calls the parsers here by the name of the
parameter. A parser takes the decoded text and the parameter's name, and raises InvalidRequest, which names the
parameter. `select` and `order` follow PostgREST's grammar (its documentation, "Tables and Views").
"""

from __future__ import annotations

import functools
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest
from server.query.dialect import DELIMITERS, FORMULA_STARTS, LINE_ENDS, QUOTE_STYLES, Dialect
from server.query.grammar import read_names, shorten

DIALECT_PARAMETERS = ("delimiter", "quote", "header", "null", "eol", "bom", "guard", "excel")
# Bytes of an identifier (PostgreSQL manual, "Lexical Structure": NAMEDATALEN - 1). ndjson uses an alias as one.
LONGEST_NAME = 63
# Bytes of the text for NULL. It is written for every NULL, so a long one would multiply the size of a chunk.
LONGEST_NULL = 100
# Readers that a request can ask for; the server applies its own limit too.
MOST_READERS = 64
# Rows: the largest value of LIMIT and OFFSET, which PostgreSQL counts in bigint.
MOST_ROWS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SelectedColumn:
    """One item of `select=`. alias: the column's name in the file; None for its own."""

    column: str
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class SortKey:
    """One item of `order=`. nulls_first: None for PostgreSQL's default (NULLs last if ascending, else first)."""

    column: str
    descending: bool = False
    nulls_first: bool | None = None


def _parse_select(text: str, name: str) -> tuple[SelectedColumn, ...] | None:
    """Parse `id,full_name:name`: columns in order, each with an optional alias before a colon.

    Return None for `*` alone, which means all columns.
    """
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
                f'"{name}" gives a column a second alias, "{shorten(found)}".',
                code="invalid_select",
                hint="Write alias:column. Put a name that contains a colon in double quotes.",
            )
        elif len(found.encode()) > LONGEST_NAME:
            raise InvalidRequest(
                f'The alias "{shorten(found)}" in "{name}" is longer than {LONGEST_NAME} bytes.', code="invalid_select"
            )
        else:
            alias = found
    return tuple(items)


def _parse_order(text: str, name: str) -> tuple[SortKey, ...]:
    """Parse `signup_date.desc.nullslast,id`: sort keys in order, each a column with optional modifiers."""
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
                    f'Unexpected "{shorten(modifier)}" after "{shorten(column)}" in "{name}".',
                    code="invalid_order",
                    hint="Write column, then .asc or .desc, then .nullsfirst or .nullslast. "
                    "Put a name that contains a dot in double quotes.",
                )
        keys.append(SortKey(column, bool(descending), nulls_first))
    return tuple(keys)


def _parse_count(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) > MOST_ROWS:
        raise InvalidRequest(
            f'"{name}" must be a whole number from 0 to {MOST_ROWS}, not "{shorten(text)}".', code="invalid_count"
        )
    return int(text)


def _parse_readers(text: str, name: str) -> int:
    digits = text.lstrip("0")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9 or int(digits) > MOST_READERS:
        raise InvalidRequest(
            f'"{name}" must be a whole number from 1 to {MOST_READERS}, not "{shorten(text)}".', code="invalid_count"
        )
    return int(digits)


def _parse_timezone(text: str, name: str) -> str:
    if text not in timezones():
        raise InvalidRequest(
            f'The time zone "{shorten(text)}" is not known.',
            code="unknown_timezone",
            hint="Use a name of the IANA time zone database, for example timezone=Europe/Berlin or timezone=UTC",
        )
    return text


@functools.cache
def timezones() -> frozenset[str]:
    """Return the names in the IANA time zone database that PostgreSQL knows.

    The first call reads the disk: make it before the event loop serves requests.
    """
    return frozenset(zoneinfo.available_timezones()) - {"localtime"}  # unknown to PostgreSQL


def _parse_filename(text: str, name: str) -> str:
    if not text.strip():
        raise InvalidRequest(f'"{name}" is empty.', code="invalid_filename")
    return text


def parse_dialect(options: dict[str, str], format: str) -> Dialect:
    """Return the dialect that these parameters describe.

    options: decoded text by name, names from DIALECT_PARAMETERS only. format: one of request.FORMATS; `tsv` sets the
    delimiter, and `ndjson` has no dialect. `excel=true` stands for the options in _EXCEL.
    Raise InvalidRequest if a value is unknown, or if options contradict each other or the format.
    """
    if format == "ndjson" and options:
        raise InvalidRequest(f'"{next(iter(options))}" applies to csv and tsv, not to ndjson.', code="contradiction")
    if format == "tsv" and "delimiter" in options:
        raise InvalidRequest(
            "The delimiter of tsv is the tab.", code="contradiction", hint="Use .csv for another delimiter."
        )
    values: dict[str, Any] = {"delimiter": b"\t"} if format == "tsv" else {}
    values |= {_DIALECT_FIELDS.get(name, name): _DIALECT_PARSERS[name](text, name) for name, text in options.items()}
    if values.pop("excel", False):
        for name, value in _EXCEL.items():
            if values.setdefault(name, value) != value:
                raise InvalidRequest(
                    f'"excel=true" and "{name}={options[name]}" contradict each other.', code="contradiction"
                )
    if values.get("guard") and values.get("null", b"").startswith(FORMULA_STARTS):
        raise InvalidRequest(
            '"null" must not begin like a formula while formulas are guarded.',
            code="contradiction",
            hint="Remove guard=formulas or excel=true, or choose another text for NULL.",
        )
    return Dialect(**values)


def _parse_null(text: str, name: str) -> bytes:
    null = text.encode()
    if len(null) > LONGEST_NULL:
        raise InvalidRequest(f'"{name}" is longer than {LONGEST_NULL} bytes.', code="invalid_option")
    return null


def _one_of(choices: Mapping[str, Any]) -> Callable[[str, str], Any]:
    """Return a parser that accepts exactly these texts."""

    def parse(text: str, name: str) -> Any:
        if text not in choices:
            allowed = " or ".join(f'"{choice}"' for choice in choices)
            raise InvalidRequest(f'"{name}" must be {allowed}, not "{shorten(text)}".', code="invalid_option")
        return choices[text]

    return parse


_DIRECTIONS = {"asc": False, "desc": True}
_NULLS = {"nullsfirst": True, "nullslast": False}
_BOOLEANS = {"true": True, "false": False}
# The fields of the dialect that `excel=true` sets: Excel needs a byte order mark to read a file as UTF-8.
_EXCEL = {"bom": True, "eol": b"\r\n", "guard": True}
# Parameters that set a field of Dialect of another name.
_DIALECT_FIELDS = {"quote": "quote_style"}
_DIALECT_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "delimiter": _one_of(DELIMITERS),
    "quote": _one_of({style: style for style in QUOTE_STYLES}),
    "header": _one_of(_BOOLEANS),
    "null": _parse_null,
    "eol": _one_of(LINE_ENDS),
    "bom": _one_of(_BOOLEANS),
    "guard": _one_of({"formulas": True}),
    "excel": _one_of(_BOOLEANS),
}
# The parsers of all other parameters, whose names are those of fields of ExportRequest.
PARSERS: dict[str, Callable[[str, str], Any]] = {
    "select": _parse_select,
    "order": _parse_order,
    "limit": _parse_count,
    "offset": _parse_count,
    "timezone": _parse_timezone,
    "filename": _parse_filename,
    "parallel": _parse_readers,
}

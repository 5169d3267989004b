"""The values of the parameters that are no filters → what they mean, one at a time.

Grammar only, as in `request.py`, which reads the query string that they stand in: knows no catalogue. What is not
understood is an InvalidRequest that names the parameter.
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
# Bytes of an identifier (NAMEDATALEN - 1).
LONGEST_NAME = 63
# Bytes of what stands for NULL: it is written for every NULL of a batch.
LONGEST_NULL = 100
# Readers that a request can name; the server has a limit of its own.
MOST_READERS = 64
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


def _parse_readers(text: str, name: str) -> int:
    digits = text.lstrip("0")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9 or int(digits) > MOST_READERS:
        raise InvalidRequest(
            f'"{name}" is "{shorten(text)}"; a whole number from 1 to {MOST_READERS} is needed.', code="invalid_count"
        )
    return int(digits)


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


def parse_dialect(options: dict[str, str], format: str) -> Dialect:
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
OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "select": _parse_select,
    "order": _parse_order,
    "limit": _parse_count,
    "offset": _parse_count,
    "timezone": _parse_timezone,
    "filename": _parse_filename,
    "parallel": _parse_readers,
}

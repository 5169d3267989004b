"""The parameters of a query string that are not filters: the text of each → its value.

Grammar only: knows no catalogue. `request.py` splits the query string and calls the parsers here by the name of the
parameter. A parser takes the decoded text and the parameter's name, and raises InvalidRequest, which names the
parameter. `selection.py` has those of `select` and `order`.
"""

from __future__ import annotations

import functools
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any

from server.errors import InvalidRequest
from server.query.dialect import DELIMITERS, LINE_ENDS, QUOTE_STYLES, Dialect
from server.query.grammar import shorten
from server.query.selection import parse_order, parse_select
from server.query.spreadsheets import write_text

DIALECT_PARAMETERS = ("delimiter", "quote", "header", "null", "eol", "bom", "guard", "text", "excel")
# Bytes of the text for NULL. It is written for every NULL, so a long one would multiply the size of a chunk.
LONGEST_NULL = 100
# Characters of the name of a file. Each of them is looked at, and file systems take fewer.
LONGEST_FILENAME = 1000
# Readers that a request can ask for; the server applies its own limit too.
MOST_READERS = 64
# Rows: the largest value of LIMIT and OFFSET, which PostgreSQL counts in bigint.
MOST_ROWS = 2**63 - 1


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
    if len(text) > LONGEST_FILENAME:
        raise InvalidRequest(
            f'"{name}" is longer than {LONGEST_FILENAME} characters.',
            code="invalid_filename",
            hint="File systems take names of about 200 characters.",
        )
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
    null = values.get("null", b"")
    if values.get("guard") and write_text(null, guard=True, protect=False) != null:
        raise InvalidRequest(
            '"null" must not begin like a formula while formulas are guarded, nor hold one after a separator.',
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


_BOOLEANS = {"true": True, "false": False}
# The fields of the dialect that `excel=true` sets: Excel needs a byte order mark to read a file as UTF-8.
_EXCEL = {"bom": True, "eol": b"\r\n", "guard": True}
# Parameters that set a field of Dialect of another name.
_DIALECT_FIELDS = {"quote": "quote_style", "text": "protect"}
_DIALECT_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "delimiter": _one_of(DELIMITERS),
    "quote": _one_of({style: style for style in QUOTE_STYLES}),
    "header": _one_of(_BOOLEANS),
    "null": _parse_null,
    "eol": _one_of(LINE_ENDS),
    "bom": _one_of(_BOOLEANS),
    "guard": _one_of({"formulas": True}),
    "text": _one_of({"protect": True}),
    "excel": _one_of(_BOOLEANS),
}
# The parsers of all other parameters, whose names are those of fields of ExportRequest.
PARSERS: dict[str, Callable[[str, str], Any]] = {
    "select": parse_select,
    "order": parse_order,
    "limit": _parse_count,
    "offset": _parse_count,
    "timezone": _parse_timezone,
    "filename": _parse_filename,
    "parallel": _parse_readers,
}

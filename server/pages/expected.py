"""What a value of a PostgreSQL type looks like, in words and with an example. Pure."""

from __future__ import annotations

import re

# Of the integer types: the name and the number of bits.
_BITS = {"smallint": 16, "integer": 32, "bigint": 64}
# By the type, as format_type() writes it: the first pattern that matches its beginning.
_EXPECTED = (
    (r"(smallint|integer|bigint|numeric|real|double precision)\b.*\[\]$", "a list in braces, for example {1,2}"),
    (r".*\[\]$", "a list in braces, for example {a,b}"),
    (r".*multirange$", "ranges in braces, for example {[1,5)}"),
    (r".*range$", "a range, for example [1,5)"),
    (r"(smallint|integer|bigint|oid)\b", "whole numbers"),
    (r"(numeric|real|double precision)\b", "numbers"),
    (r"money\b", "amounts, for example 12.50"),
    (r"date\b", "dates, for example 2024-01-31"),
    (r"timestamp\b", "dates with or without a time, for example 2024-01-31 12:30"),
    (r"time\b", "times, for example 12:30"),
    (r"interval\b", "durations, for example 1 day 02:30"),
    (r"boolean\b", "true or false"),
    (r"uuid\b", "UUIDs, for example 123e4567-e89b-12d3-a456-426614174000"),
    (r"jsonb?\b", 'JSON, for example {"a": 1}'),
    (r"(inet|cidr)\b", "network addresses, for example 192.0.2.1"),
    (r"macaddr", "MAC addresses, for example 08:00:2b:01:02:03"),
    (r"bytea\b", "bytes in hexadecimal, for example \\x00ff"),
    (r"bit\b", "the digits 0 and 1"),
)


def expected(type: str, values: tuple[str, ...] = ()) -> str:
    """Return what a column of this type takes.

    values: those that it did not take. If one is a whole number, it is too large or too small, and the range is given.
    """
    bound = 2 ** (_BITS.get(type, 1) - 1)
    if type in _BITS and any(_outside(value, bound) for value in values):
        return f"whole numbers from {-bound} to {bound - 1}"
    found = next((text for pattern, text in _EXPECTED if re.match(pattern, type)), None)
    return f"values of the type {type}" if found is None else found


def _outside(text: str, bound: int) -> bool:
    """Return whether the text is a whole number that is less than -bound, or not less than bound."""
    found = re.fullmatch(r"\s*([+-]?)0*([0-9]+)\s*", text)
    return found is not None and (len(found[2]) > 19 or not -bound <= int(found[1] + found[2]) < bound)

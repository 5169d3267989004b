"""The values of settings: parsers of the text of a variable. Each raises ValueError with a message that says what is
needed. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError(f"a whole number from {least} to {most} is needed")
        return number

    return parse


def seconds(text: str) -> float:
    """Parse a number of seconds that PostgreSQL takes as a time-out."""
    number = float(text)
    if not 0 <= number <= 2_000_000:  # PostgreSQL's timeouts are 32-bit integers in milliseconds
        raise ValueError("a number of seconds from 0 to 2000000 is needed")
    return number


def retention(text: str) -> float:
    """Parse a number of seconds up to a hundred years."""
    number = float(text)
    if not 0 <= number <= 3_200_000_000:  # a hundred years
        raise ValueError("a number of seconds from 0 to 3200000000 is needed")
    return number


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


def byte_count(text: str) -> int:
    """Parse a number of bytes: `500000000`, `10GB` (decimal unit) or `512MiB` (binary unit)."""
    found = re.fullmatch(r"(\d{1,18})\s*(?:([KMGTP]?)(I?)B)?", text.strip().upper(), re.ASCII)
    if found is None or (found[3] and not found[2]):
        raise ValueError("a number of bytes is needed, such as 500000000 or 500MB")
    unit = _UNITS[found[2] or ""]
    if found[3]:
        unit = 1024 ** list(_UNITS).index(found[2])
    number = int(found[1]) * unit
    if number >= 2**63:
        raise ValueError("the number is larger than any disk")
    return number


def names(text: str) -> tuple[str, ...]:
    """Parse names, separated by commas."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("at least one name is needed")
    return names


def flag(text: str) -> bool:
    """Parse 1 or 0."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[text.lower()]
    except KeyError:
        raise ValueError("1 or 0 is needed") from None


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser of one of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is needed")
        return text

    return parse

"""Numbers, sizes and times as text for a reader: the filters of the templates. Pure."""

from __future__ import annotations

import datetime
import functools
import re

# Short names of types with long ones, mostly those of PostgreSQL's manual, "Data Types", table 8.1.
_SHORT_TYPES = (
    (re.compile(r"character varying"), "varchar"),
    (re.compile(r"character(?=\(|$|\[)"), "char"),
    (re.compile(r"bit varying"), "varbit"),
    (re.compile(r"double precision"), "double"),
    (re.compile(r"(timestamp|time)(\(\d\))? with time zone"), r"\1tz\2"),
    (re.compile(r"(timestamp|time)(\(\d\))? without time zone"), r"\1\2"),
)


def grouped(number: float | None) -> str:
    """Return a whole number with separators: 1234567 → 1,234,567; "" for None."""
    return "" if number is None else f"{round(number):,}"


def rounded(number: float) -> str:
    """Return an estimate with three significant digits: 1234567 → 1,230,000."""
    return f"{float(f'{number:.3g}'):,.0f}"


def size(count: float | None) -> str:
    """Return a number of bytes in a suitable unit (powers of 1000): 12345678 → 12.3 MB; "" for None."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def utc_time(text: str | None) -> str:
    """Return a time of the API (ISO 8601) to the minute: 2026-01-31 12:30 UTC; "" for None."""
    if text is None:
        return ""
    return f"{datetime.datetime.fromisoformat(text).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def duration(seconds: float) -> str:
    """Return a duration in one unit: 5 s, 3 min, 2 h or 4 days."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


@functools.lru_cache(maxsize=1000)
def short_type(type: str) -> str:
    """Return the short name of a type that format_type() wrote: timestamp(3) with time zone → timestamptz(3)."""
    for long, short in _SHORT_TYPES:
        if found := long.match(type):
            return found.expand(short) + type[found.end() :]
    return type


FILTERS = {
    "grouped": grouped,
    "rounded": rounded,
    "size": size,
    "utc_time": utc_time,
    "duration": duration,
    "short_type": short_type,
}

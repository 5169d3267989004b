"""Which bytes of a file answer a request: its preconditions and its Range (RFC 9110, 13 and 14).

Pure. The file has a strong ETag and never changes. One range is served; for several, which the RFC
allows, the whole file is.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from dataclasses import dataclass

from multidict import MultiMapping

# RFC 9110, 8.8.3.
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
# RFC 9110, 14.1.2: one int-range or suffix-range; elements of a list may be empty.
_ONE_RANGE = re.compile(r"bytes[ \t]*=[ \t,]*(\d*)-(\d*)[ \t,]*", re.IGNORECASE | re.ASCII)
# Digits past which a number is larger than any file.
_MOST_DIGITS = 19
# Seconds for which a date may stand for two versions, being as coarse as that (RFC 9110, 8.8.2.2).
_DATE_IS_STRONG_AFTER = datetime.timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer's status (200, 206, 304, 412, 416), and for 200 and 206 which bytes."""

    status: int
    first: int = 0
    length: int = 0


def select(method: str, headers: MultiMapping[str], *, size: int, etag: str, modified: datetime.datetime) -> Selection:
    """What answers a GET or HEAD with these headers. etag: with its quotes; modified: of Last-Modified."""
    modified = modified.replace(microsecond=0)
    if "If-Match" in headers:
        if not _matches(_joined(headers, "If-Match"), etag, weakly=False):
            return Selection(412)
    elif (since := _date(headers.get("If-Unmodified-Since"))) is not None and modified > since:
        return Selection(412)
    if "If-None-Match" in headers:
        if _matches(_joined(headers, "If-None-Match"), etag, weakly=True):
            return Selection(304)
    elif (since := _date(headers.get("If-Modified-Since"))) is not None and modified <= since:
        return Selection(304)
    whole = Selection(200, 0, size)
    if method != "GET" or "Range" not in headers or not _same(headers.get("If-Range"), etag, modified):
        return whole
    return _range(headers["Range"], size) or whole


def _range(text: str, size: int) -> Selection | None:
    """206 or 416 for one range; None for what is to be ignored: several, other units, what is no range."""
    found = _ONE_RANGE.fullmatch(text.strip())
    if found is None or found[1] == found[2] == "" or not size:
        return None  # whoever adds a Range to everything would see an empty file as an error
    if not found[1]:
        length = min(_number(found[2]), size)
        return Selection(206, size - length, length) if length else Selection(416)
    first = _number(found[1])
    last = _number(found[2]) if found[2] else size
    if last < first and found[2]:
        return None
    if first >= size:
        return Selection(416)
    return Selection(206, first, min(last, size - 1) - first + 1)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _joined(headers: MultiMapping[str], name: str) -> str:
    """The lines of a list as one (RFC 9110, 5.3)."""
    return ", ".join(headers.getall(name))


def _matches(text: str, etag: str, *, weakly: bool) -> bool:
    """Whether a list of ETags, or `*`, has this one. Ours is strong, so that a weak one matches only weakly."""
    if text.strip() == "*":
        return True
    return any(given == etag or (weakly and given == f"W/{etag}") for given in _ETAG.findall(text))


def _same(if_range: str | None, etag: str, modified: datetime.datetime) -> bool:
    """Whether a part fits to what the client has: the very ETag, or the very date where that is precise enough."""
    if if_range is None or if_range.strip() == etag:
        return True
    precise = datetime.datetime.now(datetime.UTC) - modified > _DATE_IS_STRONG_AFTER
    return precise and _date(if_range) == modified


def _date(text: str | None) -> datetime.datetime | None:
    """The time of an HTTP-date; None for what is none, which counts as not sent."""
    if text is None:
        return None
    try:
        time = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC)

"""Which bytes of a file answer a request, by its preconditions and its Range (RFC 9110, 13 and 14).

Pure. The file has a strong ETag and never changes. One range is served. For several the whole file is sent, which
RFC 9110, 14.2 allows.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from dataclasses import dataclass

from multidict import MultiMapping

# RFC 9110, 8.8.3.
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
# Characters of a list of ETags: a request may have a hundred lines of 8 kB.
LONGEST_LIST = 8192
# RFC 9110, 14.1.2: one int-range or suffix-range. Elements of a list may be empty.
_ONE_RANGE = re.compile(r"bytes[ \t]*=[ \t,]*(\d*)-(\d*)[ \t,]*", re.IGNORECASE | re.ASCII)
# Digits of a number. A number with more of them lies past the end of any file.
_MOST_DIGITS = 19
# A date has a resolution of a second, so a younger date may belong to two versions (RFC 9110, 8.8.2.2).
_DATE_IS_STRONG_AFTER = datetime.timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer. status: 200, 206, 304, 412 or 416. first, length: the bytes of the file, for 200 and 206."""

    status: int
    first: int = 0
    length: int = 0


def unmet_precondition(headers: MultiMapping[str], *, etag: str, modified: datetime.datetime) -> int | None:
    """Return 412 or 304 if the preconditions of a GET or HEAD ask for it, else None (RFC 9110, 13.2.2).

    etag: strong, with its quotes. modified: the time of Last-Modified.
    """
    modified = modified.replace(microsecond=0)
    if "If-Match" in headers:
        if not _matches(_joined(headers, "If-Match"), etag, weakly=False):
            return 412
    elif (since := _date(headers.get("If-Unmodified-Since"))) is not None and modified > since:
        return 412
    if "If-None-Match" in headers:
        if _matches(_joined(headers, "If-None-Match"), etag, weakly=True):
            return 304
    elif (since := _date(headers.get("If-Modified-Since"))) is not None and modified <= since:
        return 304
    return None


def select(method: str, headers: MultiMapping[str], *, size: int, etag: str, modified: datetime.datetime) -> Selection:
    """Return the answer to a GET or HEAD with these headers, in the order of RFC 9110, 13.2.2.

    size: of the file in bytes. etag: with its quotes. modified: the time of Last-Modified.
    """
    status = unmet_precondition(headers, etag=etag, modified=modified)
    if status is not None:
        return Selection(status)
    modified = modified.replace(microsecond=0)
    whole = Selection(200, 0, size)
    if method != "GET" or "Range" not in headers or not _same(headers.get("If-Range"), etag, modified):
        return whole
    return _range(headers["Range"], size) or whole


def _range(text: str, size: int) -> Selection | None:
    """Return 206 or 416 for one range. Return None for a header to ignore: several ranges, other units, no range.

    The range of an empty file is ignored too: a client that sends a Range with every request would get an error.
    """
    found = _ONE_RANGE.fullmatch(text.strip())
    if found is None or found[1] == found[2] == "" or not size:
        return None
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
    """Return the lines of a list as one line (RFC 9110, 5.3)."""
    return ", ".join(headers.getall(name))


def _matches(text: str, etag: str, *, weakly: bool) -> bool:
    """Return whether a list of ETags, or `*`, includes this strong ETag (RFC 9110, 8.8.3.2). A long list does not."""
    if text.strip() == "*":
        return True
    if len(text) > LONGEST_LIST:
        return False
    return any(given == etag or (weakly and given == f"W/{etag}") for given in _ETAG.findall(text))


def _same(if_range: str | None, etag: str, modified: datetime.datetime) -> bool:
    """Return whether If-Range names this version of the file: by its ETag, or by a date that is a strong validator."""
    if if_range is None or if_range.strip() == etag:
        return True
    date_is_strong = datetime.datetime.now(datetime.UTC) - modified > _DATE_IS_STRONG_AFTER
    return date_is_strong and _date(if_range) == modified


def _date(text: str | None) -> datetime.datetime | None:
    """Return the time of an HTTP-date, or None if there is no valid one: such a header is ignored."""
    if text is None:
        return None
    try:
        time = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC)

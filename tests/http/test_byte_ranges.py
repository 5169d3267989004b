"""Preconditions and ranges by the rules of RFC 9110: tables of headers and the selections that they must give."""

from __future__ import annotations

import datetime
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from server.http.byte_ranges import Selection, select
from tests.support.byte_ranges import RANGES, REFUSED, SIZE, WHOLE

ETAG = '"' + "ab" * 32 + '"'
MODIFIED = datetime.datetime(2024, 2, 29, 12, 30, 15, 999_999, tzinfo=datetime.UTC)
THE_DATE = "Thu, 29 Feb 2024 12:30:15 GMT"
BEFORE, AFTER = "Thu, 29 Feb 2024 12:30:14 GMT", "Thu, 29 Feb 2024 12:30:16 GMT"


def selected(headers: dict[str, str], *, method: str = "GET", size: int = SIZE) -> Selection:
    return select(method, CIMultiDict(headers), size=size, etag=ETAG, modified=MODIFIED)


@pytest.mark.parametrize(("header", "expected"), RANGES)
def test_a_range(header: str, expected: Selection) -> None:
    assert selected({"Range": header}) == expected


@pytest.mark.parametrize("header", [header for header, _ in RANGES])
def test_a_range_is_ignored_for_head_and_for_an_empty_file(header: str) -> None:
    assert selected({"Range": header}, method="HEAD") == WHOLE
    assert selected({"Range": header}, size=0) == Selection(200, 0, 0)


PART = Selection(206, 5, 995)


@pytest.mark.parametrize(
    ("if_range", "expected"),
    [
        (ETAG, PART),
        (THE_DATE, PART),
        # Stale: the client has a part of another file.
        ('"' + "cd" * 32 + '"', WHOLE),
        (BEFORE, WHOLE),
        (AFTER, WHOLE),
        # A weak validator must not be used here (RFC 9110, 13.1.5).
        ("W/" + ETAG, WHOLE),
        (ETAG.strip('"'), WHOLE),
        ("*", WHOLE),
        ("", WHOLE),
        ("yesterday", WHOLE),
    ],
)
def test_if_range(if_range: str, expected: Selection) -> None:
    assert selected({"Range": "bytes=5-", "If-Range": if_range}) == expected
    # It is ignored without a range. A range past the end is refused only if the client has this version.
    assert selected({"If-Range": if_range}) == WHOLE
    past = selected({"Range": "bytes=1000-", "If-Range": if_range})
    assert past == (REFUSED if expected == PART else WHOLE)


def test_the_date_of_a_file_younger_than_a_second_is_no_strong_validator() -> None:
    young = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    headers = CIMultiDict({"Range": "bytes=5-", "If-Range": email.utils.format_datetime(young, usegmt=True)})
    assert select("GET", headers, size=SIZE, etag=ETAG, modified=young) == WHOLE


# The order of the preconditions: RFC 9110, 13.2.2.
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": ETAG}, 304),
        ({"If-None-Match": "W/" + ETAG}, 304),
        ({"If-None-Match": f'"a", {ETAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"a"'}, 200),
        ({"If-None-Match": '"a", W/"b"'}, 200),
        ({"If-None-Match": ""}, 200),
        ({"If-Modified-Since": THE_DATE}, 304),
        ({"If-Modified-Since": AFTER}, 304),
        ({"If-Modified-Since": BEFORE}, 200),
        ({"If-Modified-Since": "never"}, 200),
        ({"If-Modified-Since": "Thu, 99 Feb 2024 12:30:16 GMT"}, 200),
        ({"If-None-Match": '"a"', "If-Modified-Since": AFTER}, 200),
        ({"If-None-Match": ETAG, "If-Modified-Since": BEFORE}, 304),
        ({"If-Match": ETAG}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": f'"a", {ETAG}'}, 200),
        ({"If-Match": '"a"'}, 412),
        ({"If-Match": "W/" + ETAG}, 412),
        ({"If-Unmodified-Since": THE_DATE}, 200),
        ({"If-Unmodified-Since": AFTER}, 200),
        ({"If-Unmodified-Since": BEFORE}, 412),
        ({"If-Unmodified-Since": "never"}, 200),
        ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, 200),
        ({"If-Match": '"a"', "If-None-Match": ETAG}, 412),
        ({"If-Match": ETAG, "If-None-Match": ETAG}, 304),
        ({"If-None-Match": ETAG, "Range": "bytes=0-1"}, 304),
        ({"If-Match": '"a"', "Range": "bytes=0-1"}, 412),
        ({"If-Match": ETAG, "Range": "bytes=0-1"}, 206),
        ({"If-Match": ETAG, "Range": "bytes=1000-"}, 416),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_preconditions(headers: dict[str, str], status: int, method: str) -> None:
    without_ranges = 200 if status in (206, 416) else status
    assert selected(headers, method=method).status == (status if method == "GET" else without_ranges)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 1500))
def test_a_range_is_a_slice(first: int, last: int, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    found = selected({"Range": f"bytes={first}-{last}"}, size=size)
    if last < first:
        assert found == Selection(200, 0, size)
    elif first >= size:
        assert found.status == 416
    else:
        assert data[found.first : found.first + found.length] == data[first : last + 1]


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_no_header_raises(name: str, value: str) -> None:
    for header in ("Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"):
        found = selected({"Range": "bytes=1-", header: value + name})
        assert found.status in (200, 206, 304, 412, 416)
        assert 0 <= found.first + found.length <= SIZE


@pytest.mark.parametrize(("name", "status"), [("If-None-Match", 304), ("If-Match", 200)])
@pytest.mark.parametrize("etags", [(ETAG, '"other"'), ('"other"', ETAG)])
def test_the_lines_of_a_list_are_joined(name: str, status: int, etags: tuple[str, str]) -> None:
    headers = CIMultiDict([(name, etag) for etag in etags])
    assert select("GET", headers, size=SIZE, etag=ETAG, modified=MODIFIED).status == status

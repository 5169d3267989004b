"""Negotiation by the rules of RFC 9110, 12: which headers accept gzip, and which accept a page."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from server.http.negotiation import accepts_gzip, accepts_html, weights


def accept_encoding(*lines: str) -> CIMultiDict[str]:
    return CIMultiDict([("Accept-Encoding", line) for line in lines])


def accept(*lines: str) -> CIMultiDict[str]:
    return CIMultiDict([("Accept", line) for line in lines])


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        # RFC 9110, 12.5.3: named, with a weight above 0 or none.
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br, gzip", True),
        ("deflate,gzip;q=0.5", True),
        ("gzip;q=1", True),
        ("gzip;q=0.001", True),
        ("gzip ; q=0.5", True),
        ("\tgzip;\tq=0.5 ,br", True),
        # Codings are compared without regard to case, and x-gzip is gzip (RFC 9110, 8.4.1.3).
        ("GZIP", True),
        ("GZip;Q=0.5", True),
        ("x-gzip", True),
        ("X-GZIP;q=0.2", True),
        # * stands for every coding that is not named.
        ("*", True),
        ("*;q=0.1", True),
        ("br, *", True),
        ("identity;q=0.5, *", True),
        ("identity;q=0, *;q=0.5", True),
        ("identity;q=0, gzip;q=0.1", True),
        ("*;q=0, gzip", True),
        # Not named, or refused.
        ("", False),
        (" ", False),
        (",", False),
        (",, ,", False),
        ("identity", False),
        ("deflate, br", False),
        ("deflate;q=0.5", False),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("gzip;q=0.000", False),
        ("gzip;Q=0", False),
        ("gzip; q=0 , *", False),
        ("gzip;q=0, *;q=1", False),
        ("x-gzip;q=0", False),
        ("*;q=0", False),
        ("identity;q=0.5, *;q=0", False),
        ("gzipped", False),
        ("not-gzip", False),
        ("gzip2, agzip", False),
        ("deflate;gzip", False),
        # The client prefers no compression. * stands for identity too if that is not named.
        ("identity, gzip;q=0.5", False),
        ("gzip;q=0.5, identity;q=0.8", False),
        ("gzip;q=0.8, identity;q=0.5", True),
        ("gzip, identity", True),
        ("gzip;q=0.5, *;q=1", False),
        # A weight that is not valid refuses.
        ("gzip;q=", False),
        ("gzip;q", False),
        ("gzip;q=abc", False),
        ("gzip;q=-1", False),
        ("gzip;q=nan", False),
        ("gzip;q=0,5", False),
        ("gzip;q=inf", False),
        (";", False),
        ("=;=;,;q=1", False),
        ("\xff\udcff;q=\xff", False),
        # Parameters other than q are ignored.
        ("gzip;level=9", True),
        ("gzip;level=9;q=0", False),
        ("gzip;;q=1;", True),
        (", ,gzip,", True),
        ("gzip, " + "x, " * 5000, True),
        # The lowest weight of a repeated coding counts.
        ("gzip, gzip;q=0", False),
        ("gzip;q=0, gzip", False),
    ],
)
def test_gzip_is_used_if_the_client_accepts_it(header: str, accepted: bool) -> None:
    assert accepts_gzip(accept_encoding(header)) is accepted


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        # Browsers.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", True),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", True),
        ("text/html", True),
        ("TEXT/HTML;Q=0.1", True),
        ("application/json, text/html;q=0.5", True),
        ("text/html;level=1", True),
        ("text/html;charset=utf-8;q=0.4", True),
        # Scripts, and the page's own requests: a range that includes text/html does not name it.
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("application/json, text/plain, */*", False),
        ("text/htmlx", False),
        ("xtext/html", False),
        # Refused.
        ("text/html;q=0", False),
        ("text/html;q=0., */*", False),
        ("text/html;q=0.000, */*", False),
        ("text/html; q=0 , */*", False),
        ("text/html;level=1;q=0", False),
        ("text/html;q=none", False),
    ],
)
def test_a_page_is_given_to_a_client_that_names_html(header: str, accepted: bool) -> None:
    assert accepts_html(accept(header)) is accepted


def test_a_client_without_the_header_gets_no_gzip_and_no_page() -> None:
    assert not accepts_gzip(CIMultiDict())
    assert not accepts_html(CIMultiDict())


def test_the_lines_of_a_list_are_joined() -> None:
    assert accepts_gzip(accept_encoding("br", "gzip;q=0.1"))
    assert not accepts_gzip(accept_encoding("gzip;q=0.1", "identity"))
    assert accepts_html(accept("*/*", "text/html"))
    assert not accepts_html(accept("text/html", "text/html;q=0"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a, b;q=0.5, c;q=0", {"a": 1.0, "b": 0.5, "c": 0.0}),
        ("a;q=0.123", {"a": 0.123}),
        ("a;q=1.000", {"a": 1.0}),
        ("a;q=0.1234", {"a": 0.0}),
        ("a;q=1.001", {"a": 0.0}),
        ("a;q=\u0660.5", {"a": 0.0}),
        ("a;q=0.1;q=0.2", {"a": 0.2}),
        ("A;Q=0.5", {"a": 0.5}),
        ("a;q = 0.5", {"a": 0.5}),
        (" , ;q=1,, ", {}),
    ],
)
def test_weights(header: str, expected: dict[str, float]) -> None:
    assert weights(accept(header), "Accept") == expected


ANY_TEXT = st.text(st.characters(max_codepoint=255) | st.sampled_from("gzip;q=0.5,* \t"), max_size=60)
ITEMS = st.sampled_from(["gzip", "x-gzip", "identity", "*", "br", "text/html", "*/*", "text/html;level=1", ""])
WEIGHTS = st.sampled_from(["", ";q=0", ";q=0.000", ";q=0.5", "; q=0.501", ";Q=1", ";q=1.0", ";q=2", ";q"])
LISTS = st.lists(st.tuples(ITEMS, WEIGHTS).map("".join), max_size=8)


@given(ANY_TEXT)
@example("q=;q=,;")
@example("gzip;q=" + "9" * 5000)
def test_no_header_raises(text: str) -> None:
    found = weights(accept(text), "Accept")
    assert all(0.0 <= weight <= 1.0 for weight in found.values())
    assert accepts_gzip(accept_encoding(text)) in (True, False)
    assert accepts_html(accept(text)) in (True, False)


@given(LISTS, LISTS, st.sampled_from(["0", "0.", "0.0", "0.00", "0.000"]))
def test_a_weight_of_zero_refuses(before: list[str], after: list[str], zero: str) -> None:
    def having(item: str) -> str:
        return ", ".join([*before, f"{item};q={zero}", *after])

    assert not accepts_gzip(accept_encoding(having("gzip")))
    assert not accepts_html(accept(having("text/html")))


@given(LISTS, st.randoms(use_true_random=False))
def test_the_order_of_a_list_does_not_matter(items: list[str], chance: random.Random) -> None:
    shuffled = chance.sample(items, len(items))
    assert weights(accept(", ".join(shuffled)), "Accept") == weights(accept(", ".join(items)), "Accept")


@given(LISTS)
def test_a_list_in_one_line_is_the_same_as_in_several(items: list[str]) -> None:
    assert weights(accept(*items), "Accept") == weights(accept(",".join(items)), "Accept")

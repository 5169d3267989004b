"""Values that are written in parts: the same bytes as in one piece, wherever the parts end.

How both readers cut values into parts is tested in tests/postgres/test_portal.py.
"""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.encode.encoders import PureEncoder
from server.encode.kinds import ALWAYS, GUARD, JSON, PLAIN, SCAN
from server.encode.large_values import LargeValue
from server.postgres.reader import HELD_BYTES
from server.query.dialect import Dialect
from server.query.spreadsheets import GuardInParts, write_text

KINDS = [PLAIN, SCAN, ALWAYS, SCAN | GUARD, ALWAYS | GUARD, JSON]
DIALECT = Dialect(null=b"never in a value")
# Bytes of separators, quotes, and whole and broken signs, also of full width.
PIECES = [b",", b";", b'"', b"\n", b"\r", b"\t", b"=", b"-", b"\xef", b"\xbc", b"\x9d", b"\xa0", b"a", b"'"]


def in_one_piece(value: bytes, kind: int) -> bytes:
    return PureEncoder(DIALECT, lambda oid: kind).lines([[value]], [kind]).removesuffix(DIALECT.eol)


def in_parts(parts: list[bytes], kind: int) -> bytes:
    writer = LargeValue(DIALECT, kind, b"")
    written = []
    for part in parts:
        assert writer.add(part, may_hold=False)
        while (some := writer.take()) is not None:
            written.append(some)
    writer.end()
    while (some := writer.take()) is not None:
        written.append(some)
    assert writer.held_bytes == 0
    return b"".join(written)


@pytest.mark.parametrize("kind", KINDS)
def test_every_short_value_cut_at_every_byte(kind: int) -> None:
    for value in map(b"".join, itertools.product(PIECES, repeat=3)):
        expected = in_one_piece(value, kind)
        for places in ([1], [2], [1, 2]):
            parts = [value[start:end] for start, end in itertools.pairwise([0, *places, len(value)])]
            assert in_parts(parts, kind) == expected, (value, parts)


@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(b"".join), min_size=1, max_size=8))
def test_any_value_in_any_parts(parts: list[bytes]) -> None:
    value = b"".join(parts)
    for kind in KINDS:
        assert in_parts(parts, kind) == in_one_piece(value, kind)
    guard = GuardInParts()
    assert b"".join(map(guard.write, parts)) + guard.end() == write_text(value, guard=True, protect=False)


def test_nothing_of_a_value_is_written_before_it_is_known_whether_it_needs_quotes() -> None:
    writer = LargeValue(DIALECT, SCAN, b",")
    assert writer.take() == b","
    assert writer.add(b"x" * HELD_BYTES, may_hold=False)
    assert (writer.take(), writer.held_bytes) == (None, HELD_BYTES)
    assert not writer.add(b"x", may_hold=False)  # more would have to be held
    assert (writer.take(), writer.held_bytes) == (None, HELD_BYTES)
    assert writer.add(b'"', may_hold=False)  # this one shows that it needs quotes
    assert writer.take() == b'"'
    assert writer.take() == b"x" * HELD_BYTES
    assert writer.take() == b'""'
    assert (writer.take(), writer.held_bytes) == (None, 0)
    assert writer.add(b"y", may_hold=False)
    assert writer.take() == b"y"


@pytest.mark.parametrize("kind", [PLAIN, ALWAYS, ALWAYS | GUARD, JSON])
def test_a_value_is_not_held_if_its_quotes_do_not_depend_on_it(kind: int) -> None:
    writer = LargeValue(DIALECT, kind, b"")
    if kind & ALWAYS:
        assert writer.take() == b'"'
    for _ in range(5):
        assert writer.add(b"x" * HELD_BYTES, may_hold=False)
        assert writer.take() == b"x" * HELD_BYTES
        assert writer.held_bytes == 0


def test_a_guarded_text_of_quotes_takes_time_in_proportion_to_its_length() -> None:
    # Each `"` may belong to a cell that begins with a sign, which only the end shows.
    guard = GuardInParts()
    parts = [b",", *[b'"' * 65_536] * 400, b"=1"]
    assert re.fullmatch(b",\"+'=1", b"".join(map(guard.write, parts)) + guard.end())

"""The messages of the protocol, built and parsed, and the small queries that are made of them. No server is needed.

The expected bytes are written out by hand, after "Message Formats" of the PostgreSQL manual.
"""

from __future__ import annotations

import datetime
import itertools
import re
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.postgres import messages
from server.postgres.messages import KEPT_BYTES, MOST_VALUES, Messages, ProtocolError
from server.postgres.queries import Query, Results, Row, Value, encode_value, encode_values
from tests.support.fake_backend import (
    BOOL,
    BOUND,
    CLOSED,
    COMPLETE,
    EMPTY_QUERY,
    INT4,
    JSON,
    NO_DATA,
    PARSED,
    READY,
    SUSPENDED,
    TEXT,
    description,
    error,
    field,
    message,
    notice,
    notification,
    parameter_status,
    row,
    split,
)

# --- Built: what Sluice sends. ---

BUILT = {
    "Parse": (messages.parse("SELECT 1"), b"P\0\0\0\x10" + b"\0" + b"SELECT 1\0" + b"\0\0"),
    "Parse with a name": (messages.parse("x", "s1"), b"P\0\0\0\x0b" + b"s1\0" + b"x\0" + b"\0\0"),
    "Parse with types": (
        messages.parse("x", types=[23, 4_000_000_000]),
        b"P\0\0\0\x11" + b"\0" + b"x\0" + b"\0\2" + b"\0\0\0\x17" + b"\xee\x6b\x28\0",
    ),
    "Describe of a statement": (messages.describe_statement("s1"), b"D\0\0\0\x08" + b"Ss1\0"),
    "Parse of no ASCII": (messages.parse("é", "ü"), b"P\0\0\0\x0c" + b"\xc3\xbc\0" + b"\xc3\xa9\0" + b"\0\0"),
    "Bind": (messages.bind([]), b"B\0\0\0\x0c" + b"\0" + b"\0" + b"\0\0" + b"\0\0" + b"\0\0"),
    "Bind with values": (
        messages.bind([b"7", None, b""], statement="s1", portal="p"),
        b"B\0\0\0\x1c" + b"p\0" + b"s1\0" + b"\0\0" + b"\0\3" + b"\0\0\0\x017" + b"\xff\xff\xff\xff" + b"\0\0\0\0\0\0",
    ),
    "Describe": (messages.describe(), b"D\0\0\0\6P\0"),
    "Describe of a portal": (messages.describe("p1"), b"D\0\0\0\x08Pp1\0"),
    "Execute": (messages.execute(), b"E\0\0\0\x09\0" + b"\0\0\0\0"),
    "Execute with a limit": (messages.execute("p1", 10_000), b"E\0\0\0\x0bp1\0" + b"\0\0\x27\x10"),
    "Close": (messages.close("p1"), b"C\0\0\0\x08Pp1\0"),
    "Sync": (messages.SYNC, b"S\0\0\0\4"),
    "Flush": (messages.FLUSH, b"H\0\0\0\4"),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_message_has_the_bytes_of_the_manual(name: str) -> None:
    built, expected = BUILT[name]
    assert built == expected


def test_a_bind_message_can_count_the_most_values() -> None:
    bound = messages.bind([b"x"] * MOST_VALUES)
    assert len(bound) == 1 + struct.unpack_from("!I", bound, 1)[0]
    assert bound[5:11] == b"\0\0" + b"\0\0" + b"\xff\xff"
    assert bound[11:] == b"\0\0\0\1x" * 65535 + b"\0\0"


@given(st.lists(st.none() | st.binary(max_size=20), max_size=20))
def test_any_values_can_be_read_from_a_bind_message(values: list[bytes | None]) -> None:
    # From the count on, a Bind message has the form of a DataRow, which is followed by the formats of the columns.
    bound = messages.bind(values, statement="name")
    assert bound.startswith(b"B")
    assert bound[5:13] == b"\0name\0\0\0"
    assert bound[13:] == row(*values)[5:] + b"\0\0"


# --- Split: what the backend sends. ---

EVERY_MESSAGE = [
    PARSED,
    BOUND,
    notice("careful"),
    description([TEXT, INT4]),
    row(b"a", None),
    notification(b"hello"),
    row(b"x" * 300, b""),
    parameter_status(b"TimeZone", b"UTC"),
    SUSPENDED,
    READY,
    row(),
    COMPLETE,
    CLOSED,
    EMPTY_QUERY,
    NO_DATA,
    message(b"t", b"\0\0"),
    error(S="ERROR", C="22012", M="division by zero"),
    message(b"D"),
    READY,
]
EVERY_BYTE = b"".join(EVERY_MESSAGE)
# Types of messages that belong to no statement. They are dropped.
DROPPED = b"ANS"


def taken(sent: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Return the messages that are taken when these were sent."""
    return [(each[0], each[5:]) for each in sent if each[0] not in DROPPED]


EVERY = taken(EVERY_MESSAGE)


def split_up(pieces: Sequence[bytes]) -> tuple[list[tuple[int, bytes]], Messages]:
    """Return the messages in these pieces, taken after each piece."""
    found, received = [], Messages()
    for piece in pieces:
        received.feed(piece)
        found += list(received)
    return found, received


def test_bytes_cut_at_any_place_are_the_same_messages() -> None:
    for place in range(len(EVERY_BYTE) + 1):
        found, received = split_up([EVERY_BYTE[:place], EVERY_BYTE[place:]])
        assert found == EVERY, place
        assert received.empty


def test_bytes_that_come_one_by_one_are_the_same_messages() -> None:
    found, received = split_up(split(EVERY_BYTE, range(1, len(EVERY_BYTE))))
    assert found == EVERY
    assert received.empty


def test_a_message_is_there_with_its_last_byte_and_nothing_is_left_of_it() -> None:
    received = Messages()
    assert received.empty
    for each in EVERY_MESSAGE:
        for at in range(len(each)):
            assert list(received) == []
            assert received.empty == (at == 0)
            received.feed(each[at : at + 1])
        assert received.empty == (each[0] in DROPPED)
        assert list(received) == taken([each])
        assert received.empty


def test_an_iteration_goes_on_where_the_one_before_has_stopped() -> None:
    # It stops after each message, and between two of them more bytes arrive.
    pieces = split(EVERY_BYTE, range(50, len(EVERY_BYTE), 50))
    found: list[tuple[int, bytes]] = []
    received = Messages()
    while pieces:
        received.feed(pieces.pop(0))
        found += itertools.islice(received, 1)
    assert not received.empty
    assert found + list(received) == EVERY
    assert received.empty


@pytest.mark.parametrize("kind", [b"D", b"N"])
def test_a_large_message_in_many_pieces(kind: bytes) -> None:
    sent = [READY, message(kind, bytes(range(256)) * 4096), READY]
    stream = b"".join(sent)
    found, received = split_up(split(stream, range(3, len(stream), 10_007)))
    assert found == taken(sent)
    assert received.empty


def taken_with_long_rows(received: Messages, pieces: Sequence[bytes]) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the messages, and the bodies of all rows that are too long."""
    found: list[tuple[int, bytes]] = []
    bodies = b""
    for piece in pieces:
        received.feed(piece)
        found += received
        while received.row_left and (part := received.take_part()):
            bodies += part
            found += received
    return found, bodies


def test_the_body_of_a_long_row_is_taken_in_parts() -> None:
    long = message(b"D", bytes(range(256)) * 4)
    stream = READY + row(b"a") + long + row(b"b") + long + READY
    for step in (1, 7, 300, 1000):
        received = Messages(longest_row=1000)
        found, bodies = taken_with_long_rows(received, split(stream, range(step, len(stream), step)))
        assert found == taken([READY, row(b"a"), row(b"b"), READY])
        assert bodies == 2 * long[5:]
        assert received.empty


def test_a_long_row_is_no_message_and_leaves_something() -> None:
    received = Messages(longest_row=1000)
    received.feed(message(b"D", bytes(100), length=1001))
    assert list(received) == []
    assert not received.empty
    assert received.take_part() == bytes(100)
    assert received.take_part() == b""
    assert received.row_left == 1001 - 4 - 100
    assert not received.empty


def test_of_a_long_error_the_beginning_is_kept() -> None:
    failure = message(b"E", b"CXX000\0M" + b"m" * 3_000_000 + b"\0\0")
    for step in (10_007, 65_536, KEPT_BYTES, 5 * KEPT_BYTES):
        stream = READY + failure + READY
        received = Messages()
        tracemalloc.start()
        try:
            found: list[tuple[int, bytes]] = []
            for start in range(0, len(stream), step):
                received.feed(stream[start : start + step])
                found += received
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        (first, (kind, body), last) = found
        assert (first, last) == ((ord("Z"), b"T"), (ord("Z"), b"T"))
        assert kind == ord("E")
        assert failure[5:].startswith(body)
        assert len(body) > KEPT_BYTES - 10
        assert received.empty
        if step <= KEPT_BYTES:
            assert most < 6 * KEPT_BYTES


@pytest.mark.parametrize("size", range(KEPT_BYTES - 6, KEPT_BYTES + 6))
def test_an_error_as_long_as_what_is_kept(size: int) -> None:
    failure = message(b"E", b"x" * size)
    received = Messages()
    found: list[tuple[int, bytes]] = []
    for piece in split(READY + failure + READY, [3, 70_000, 200_000, KEPT_BYTES, KEPT_BYTES + 7]):
        received.feed(piece)
        found += received
    assert [kind for kind, _ in found] == [ord("Z"), ord("E"), ord("Z")]
    assert size - 10 <= len(found[1][1]) <= size
    assert received.empty


@pytest.mark.parametrize("kind", [b"A", b"N", b"S"])
def test_a_message_that_is_dropped_is_not_kept_while_it_arrives(kind: bytes) -> None:
    received = Messages()
    received.feed(kind + struct.pack("!I", (1 << 31) - 1))
    assert list(received) == []
    tracemalloc.start()
    try:
        for _ in range(100):
            received.feed(bytes(100_000))
            assert list(received) == []
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
    assert not received.empty


# Types and the lengths that they may have, None for any.
ALLOWED = {b"1": 4, b"2": 4, b"3": 4, b"I": 4, b"n": 4, b"s": 4, b"Z": 5} | dict.fromkeys(
    (b"A", b"C", b"D", b"E", b"N", b"S", b"T", b"t")
)


def allowed(kind: bytes, length: int) -> bool:
    """Whether a message of this type may state this length."""
    right = ALLOWED.get(kind, -1)
    return length == right or (right is None and 4 <= length < 0x80000000)


LENGTHS = [0, 1, 2, 3, 4, 5, 6, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_type_with_every_length(length: int) -> None:
    for kind in (bytes([code]) for code in range(256)):
        received = Messages()
        received.feed(kind + struct.pack("!I", length) + b"xxxx")
        if allowed(kind, length):
            complete = 5 + length - 4 <= 9 and kind not in DROPPED
            assert next(iter(received), None) == ((kind[0], b"x" * (length - 4)) if complete else None), kind
        else:
            for _ in range(2):  # it stays wrong
                with pytest.raises(ProtocolError):
                    next(iter(received))
            assert not received.empty


def test_a_wrong_message_is_found_with_its_header_and_after_those_before_it() -> None:
    received = Messages()
    received.feed(PARSED + row(b"a") + b"?\0\0\0")
    assert list(received) == [(ord("1"), b""), (ord("D"), row(b"a")[5:])]
    received.feed(b"\4")
    with pytest.raises(ProtocolError):
        list(received)
    assert not received.empty


SOME_MESSAGES = st.lists(
    st.sampled_from(EVERY_MESSAGE) | st.binary(max_size=30).map(lambda body: message(b"D", body)), max_size=12
)


@given(SOME_MESSAGES, st.data())
def test_any_messages_in_any_pieces(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent)
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    found, received = split_up(split(stream, places))
    assert found == taken(sent)
    assert received.empty


@given(st.lists(st.binary(max_size=40) | st.sampled_from(EVERY_MESSAGE), max_size=12))
def test_any_bytes_are_messages_or_an_error(pieces: list[bytes]) -> None:
    found, received, wrong = [], Messages(), False
    try:
        for piece in pieces:
            received.feed(piece)
            for kind, body in received:
                found.append(message(bytes([kind]), body))
    except ProtocolError:
        wrong = True
    expected, rest = [], b"".join(pieces)
    while len(rest) >= 5 and allowed(rest[:1], length := int.from_bytes(rest[1:5], "big")) and len(rest) > length:
        expected.append(rest[: length + 1])
        rest = rest[length + 1 :]
    assert found == [each for each in expected if each[0] not in DROPPED]
    assert wrong == (len(rest) >= 5 and not allowed(rest[:1], length))
    assert received.empty == (not rest)


# --- Parsed: what is in them. ---


def column(name: bytes, oid: int) -> bytes:
    """Return the part of a RowDescription about one column, of table 1 and no fixed size."""
    return name + b"\0" + struct.pack("!IHIhih", 1, 2, oid, -1, -1, 0)


TWO_COLUMNS = b"\0\2" + column(b"a", 25) + column("größe".encode(), 4_000_000_000)


def test_the_columns_of_a_description() -> None:
    assert messages.columns(b"\0\0") == []
    assert messages.columns(b"\0\1" + column(b"", 16)) == [("", 16)]
    assert messages.columns(TWO_COLUMNS) == [("a", 25), ("größe", 4_000_000_000)]
    assert messages.columns(b"\0\1" + column(b"\xff", 16)) == [("\ufffd", 16)]
    assert messages.columns(b"\x06\x80" + column(b"x", 23) * 1664) == [("x", 23)] * 1664


def test_the_types_of_parameters() -> None:
    assert messages.parameter_types(b"\0\0") == []
    assert messages.parameter_types(b"\0\2" + b"\0\0\0\x17" + b"\xee\x6b\x28\0") == [23, 4_000_000_000]


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\1", b"\0\1\0\0\0", b"\0\0\0", b"\0\1" + b"\0" * 5])
def test_types_of_parameters_that_are_cut_off_or_too_long_are_an_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.parameter_types(body)


def test_a_description_that_is_cut_off_or_too_long_is_an_error() -> None:
    wrong = [TWO_COLUMNS[:length] for length in range(len(TWO_COLUMNS))]
    wrong += [TWO_COLUMNS + b"\0", b"\0\1" + TWO_COLUMNS[2:], b"\0\3" + TWO_COLUMNS[2:], b"\xff\xff" + TWO_COLUMNS[2:]]
    for each in wrong:
        with pytest.raises(ProtocolError):
            messages.columns(each)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_description_or_an_error(data: bytes) -> None:
    try:
        found = messages.columns(data)
    except ProtocolError:
        return
    assert len(found) == int.from_bytes(data[:2], "big")


@given(st.lists(st.none() | st.binary(max_size=20), max_size=20))
def test_the_values_of_a_row(values: list[bytes | None]) -> None:
    body = row(*values)[5:]
    assert messages.fields(body, len(values)) == values
    for wrong in (len(values) + 1, len(values) - 1):
        with pytest.raises(ProtocolError):
            messages.fields(body, wrong)


def test_a_row_that_is_cut_off_or_too_long_is_an_error() -> None:
    right = b"\0\3" + field(b"a") + field(None) + field(b"bc")
    assert messages.fields(right, 3) == [b"a", None, b"bc"]
    for wrong in [right[:length] for length in range(len(right))] + [right + b"\0"]:
        with pytest.raises(ProtocolError):
            messages.fields(wrong, 3)


@pytest.mark.parametrize("length", [-2, -0x80000000, 2, 0x7FFFFFFF])
@pytest.mark.parametrize("place", [0, 1])
def test_a_value_of_a_wrong_length_is_an_error(length: int, place: int) -> None:
    values = [field(b"a"), field(b"b")]
    values[place] = struct.pack("!i", length) + (b"a" if length > 0 else b"")
    with pytest.raises(ProtocolError):
        messages.fields(b"\0\2" + b"".join(values), 2)


FAILURE = b"SERROR\0VERROR\0C22P02\0Minvalid: \xe2\x82\xac\0DDetail\0Wline 1\nline 2\0\0"


def test_the_fields_of_an_error() -> None:
    assert messages.error_fields(FAILURE) == {
        "S": "ERROR",
        "V": "ERROR",
        "C": "22P02",
        "M": "invalid: €",
        "D": "Detail",
        "W": "line 1\nline 2",
    }
    assert messages.error_fields(b"") == messages.error_fields(b"\0") == {}
    assert messages.error_fields(b"M\0\0") == {"M": ""}
    assert messages.error_fields(b"Mfirst\0Msecond\0\0") == {"M": "first"}
    assert messages.error_fields(b"M\xff\0\xe9text\0\0") == {"M": "\ufffd", "é": "text"}


def test_the_fields_of_an_error_that_is_cut_off() -> None:
    whole = messages.error_fields(FAILURE)
    for length in range(len(FAILURE)):
        found = messages.error_fields(FAILURE[:length])
        assert list(found) == list(whole)[: len(found)], length
        for code, text in list(found.items())[:-1]:
            assert text == whole[code], length
        for code, text in list(found.items())[-1:]:
            assert whole[code].startswith(text.rstrip("\ufffd")), length


# --- The values of parameters. ---

VALUES: list[tuple[Value, bytes | None]] = [
    ("text", b"text"),
    ("", b""),
    ("größer", b"gr\xc3\xb6\xc3\x9fer"),
    (0, b"0"),
    (-(2**63), b"-9223372036854775808"),
    (None, None),
    ([], b"{}"),
    (["a"], b'{"a"}'),
    (("a", "b"), b'{"a","b"}'),
    (["", "NULL", " "], b'{"","NULL"," "}'),
    (["a,b", "{}", "c\nd"], b'{"a,b","{}","c\nd"}'),
    (['say "hi"', "C:\\", '\\"'], rb'{"say \"hi\"","C:\\","\\\""}'),
    (["é"], b'{"\xc3\xa9"}'),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_a_value_is_sent_as_text(value: Value, expected: bytes | None) -> None:
    assert encode_value(value) == expected
    assert encode_values([value, value]) == [expected, expected]


@given(st.lists(st.text(max_size=10) | st.text('\\",{} ', max_size=6), max_size=8))
def test_the_items_of_any_array_can_be_read_from_its_text(items: list[str]) -> None:
    encoded = encode_value(items)
    assert encoded is not None
    text = encoded.decode()
    item = r'"((?:[^"\\]|\\.)*)"'
    assert re.fullmatch(rf"\{{(?:{item}(?:,{item})*)?\}}", text, re.DOTALL)
    found = re.findall(item, text, re.DOTALL)
    assert [re.sub(r"\\(.)", r"\1", each, flags=re.DOTALL) for each in found] == items


def test_more_values_than_the_protocol_can_count_are_refused() -> None:
    assert len(encode_values(["x"] * MOST_VALUES)) == 65535
    with pytest.raises(InvalidRequest, match=r"65,536 values; PostgreSQL takes at most 65,535") as caught:
        encode_values(["x"] * (MOST_VALUES + 1))
    assert caught.value.code == "too_complex"


# --- The results of small queries. ---


def results_of(queries: Sequence[Query], stream: bytes) -> Results:
    """Return the results after all messages of the stream, of which only the last may be ReadyForQuery."""
    received, results = Messages(), Results(queries)
    received.feed(stream)
    ready = [results.take(kind, body) for kind, body in received]
    assert received.empty
    assert not any(ready[:-1])
    assert ready[-1] == (stream[-6:-1] == READY[:5])
    return results


def answer(types: Sequence[int], *rows: Sequence[bytes | None]) -> bytes:
    """Return the answer to Bind, Describe and Execute of one query."""
    return BOUND + description(types) + b"".join(row(*values) for values in rows) + COMPLETE


def test_the_results_of_several_queries() -> None:
    seen: list[tuple[int, list[Row]]] = []
    queries = [
        Query("BEGIN"),
        Query("SELECT 1", then=lambda rows: seen.append((len(results.finished), rows))),
        Query(""),
        Query("SELECT 2"),
    ]
    results = Results(queries)
    received = Messages()
    received.feed(
        (PARSED + BOUND + NO_DATA + COMPLETE)
        + notice("careful")
        + (PARSED + answer([INT4, TEXT], [b"1", b"a"], [None, None]))
        + parameter_status(b"TimeZone", b"UTC")
        + (PARSED + BOUND + NO_DATA + EMPTY_QUERY)
        + (answer([BOOL]))
        + READY
    )
    ready = [results.take(kind, body) for kind, body in received]
    assert ready.index(True) == len(ready) - 1
    second: list[Row] = [{"c0": 1, "c1": "a"}, {"c0": None, "c1": None}]
    assert results.finished == [[], second, [], []]
    assert seen == [(2, second)]  # at once, not at the end
    assert (results.parsed, results.error) == (3, None)


def test_the_parameters_of_a_statement_that_is_only_parsed() -> None:
    parameters = message(b"t", b"\0\2" + b"\0\0\0\x17" + b"\0\0\0\x19")
    parsed = PARSED + parameters + description([INT4])
    stream = parsed + PARSED + answer([TEXT], [b"x"]) + PARSED + message(b"t", b"\0\0") + NO_DATA + READY
    queries = [Query("SELECT $1", runs=False), Query("SELECT 'x'"), Query("SET a = b", runs=False)]
    assert results_of(queries, stream).finished == [[{"type": 23}, {"type": 25}], [{"c0": "x"}], []]


UTC = datetime.UTC
DECODED: list[tuple[int, bytes, Any]] = [
    (BOOL, b"t", True),
    (BOOL, b"f", False),
    (INT4, b"-7", -7),
    (20, b"9223372036854775807", 2**63 - 1),
    (21, b"0", 0),
    (26, b"4294967295", 2**32 - 1),
    (701, b"-1.5e-300", -1.5e-300),
    (700, b"Infinity", float("inf")),
    (JSON, b'[{"Plan": null}]', [{"Plan": None}]),
    (1184, b"2026-11-25 09:30:01.25+00", datetime.datetime(2026, 11, 25, 9, 30, 1, 250_000, UTC)),
    (1184, b"2026-11-25 09:30:01+05:30", datetime.datetime(2026, 11, 25, 4, 0, 1, 0, UTC)),
    (TEXT, b"1", "1"),
    (TEXT, "größe".encode(), "größe"),
    (TEXT, b"\xff", "\ufffd"),
    (1700, b"1.50", "1.50"),
]


@pytest.mark.parametrize(("oid", "text", "expected"), DECODED)
def test_a_value_has_the_type_of_its_column(oid: int, text: bytes, expected: object) -> None:
    found = results_of([Query("")], answer([oid, oid], [text, None]) + READY).finished
    assert found == [[{"c0": expected, "c1": None}]]
    assert type(found[0][0]["c0"]) is type(expected)


@pytest.mark.parametrize("oid", [20, 701, JSON, 1184])
def test_a_value_that_is_not_of_its_type_is_an_error_of_the_protocol(oid: int) -> None:
    with pytest.raises(ProtocolError):
        results_of([Query("")], answer([oid], [b"nonsense"]) + READY)


def test_an_error_ends_the_queries() -> None:
    failure = error(S="ERROR", C="22012", M="division by zero")
    stream = PARSED + answer([INT4], [b"1"]) + PARSED + BOUND + description([INT4]) + row(b"2") + failure + READY
    results = results_of([Query("1"), Query("2"), Query("3")], stream)
    assert results.finished == [[{"c0": 1}]]
    assert results.error == failure[5:]
    assert results.parsed == 2
    # The first error counts, for example the one before the server closes the connection.
    results.take(ord("E"), error(C="57P01")[5:])
    assert results.error == failure[5:]


WRONG_RESULTS = {
    "more results than queries": answer([INT4]) + COMPLETE,
    "a row without a description": BOUND + row(b"1"),
    "a row after its result": answer([INT4], [b"1"]) + row(b"1"),
    "a row with more values": BOUND + description([INT4]) + row(b"1", b"2"),
    "a row with fewer values": BOUND + description([INT4, INT4]) + row(b"1"),
    "a malformed description": BOUND + message(b"T", b"\0\1x"),
    "no result": PARSED + BOUND + description([INT4]) + row(b"1") + READY,
    "a result that is suspended": PARSED + BOUND + description([INT4]) + row(b"1") + SUSPENDED + READY,
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_results_that_do_not_fit_the_queries_are_an_error_of_the_protocol(name: str) -> None:
    with pytest.raises(ProtocolError):
        results_of([Query("")], WRONG_RESULTS[name])

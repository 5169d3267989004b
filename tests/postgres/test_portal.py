"""Both readers of rows, the native one and the one in Python, against a scripted backend on a socket pair.

What a real server sends is tested in test_rows.py. Here are the ways in which it may be cut into pieces, and what no
server should send.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.encode.encoders import PureEncoder
from server.encode.kinds import kinds_for
from server.postgres.reader import (
    END,
    FAILED,
    HELD_BYTES,
    LARGE_BYTES,
    LOST,
    MORE,
    ROOM,
    TIMED_OUT,
    UNITS_AHEAD,
    WOKEN,
    RowReader,
)
from server.query.dialect import Dialect
from tests.support.engines import encoders
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
    FakeBackend,
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

# Milliseconds: far longer than any read here takes.
PATIENCE = 20_000
ALL = 1 << 40
# Bytes of the native encoder's receive buffer.
BUFFER = 64 << 10

OPENING = PARSED + BOUND + description([TEXT, INT4])
CLOSING = COMPLETE + CLOSED + READY
ROWS = row(b"a,b", b"1") + row(None, b"-2") + row(b"", None) + row(b'say "hi"\r\n', b"3")
LINES = b'"a,b",1\n,-2\n"",\n"say ""hi""\r\n",3\n'
ASYNCHRONOUS = notice("careful") + parameter_status(b"TimeZone", b"UTC") + notification(b"hello")
STREAM = OPENING + ROWS + ASYNCHRONOUS + row(b"end", b"4") + CLOSING
STREAM_LINES = LINES + b"end,4\n"


@pytest.fixture(params=[True, False], ids=["native", "pure"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    with FakeBackend() as made:
        yield made


@dataclass(frozen=True)
class Result:
    """What the reads up to the end of a statement gave."""

    lines: bytes
    rows: int
    ended: int
    clean: bool


def make_reader(native: bool, dialect: Dialect | None = None, format: str = "csv") -> RowReader:
    return encoders(native=native).reader(dialect or Dialect(), format)


def read_on(reader: RowReader, backend: FakeBackend, most: int = ALL, *, arrived: int = 0) -> Result:
    """Read until the statement has ended, in one way or another. arrived: how often to read what has arrived first."""
    lines, count, ended = b"", 0, MORE
    while ended in (MORE, ROOM):
        if ended == ROOM:
            reader.hold()
        result = None
        while result is None and arrived:
            result = reader.read_arrived(backend.wire, most)
            arrived -= 1
        more, rows, ended = result or reader.read(backend.wire, backend.wake, most, PATIENCE)
        lines += more
        count += rows
    return Result(lines, count, ended, reader.clean)


def started(native: bool, units: int = 1, more: bytes = b"") -> RowReader:
    reader = make_reader(native)
    reader.start(b"messages", units, more)
    return reader


def read_stream(native: bool, pieces: Sequence[bytes], most: int = ALL, *, ends: bool = False) -> Result:
    with FakeBackend() as backend:
        backend.play(pieces, ends=ends)
        return read_on(started(native), backend, most)


def expected_lines(
    rows: Sequence[Sequence[bytes | None]], types: Sequence[int], dialect: Dialect, format: str
) -> bytes:
    kind_of = kinds_for(dialect, format)
    return PureEncoder(dialect, kind_of).lines(rows, [kind_of(oid) for oid in types])


# --- A statement, in pieces. ---


def test_a_stream_cut_at_any_byte_gives_the_same_lines(native: bool) -> None:
    for place in range(len(STREAM)):
        assert read_stream(native, split(STREAM, [place])) == Result(STREAM_LINES, 5, END, True), place


@pytest.mark.parametrize("most", [1, 10, ALL])
def test_a_stream_that_comes_byte_by_byte_gives_the_same_lines(native: bool, most: int) -> None:
    assert read_stream(native, split(STREAM, range(1, len(STREAM))), most) == Result(STREAM_LINES, 5, END, True)


def test_a_connection_that_ends_at_any_byte_is_lost(native: bool) -> None:
    for place in range(len(STREAM)):
        result = read_stream(native, [STREAM[:place]], ends=True)
        assert (result.ended, result.clean) == (LOST, False), place
        assert STREAM_LINES.startswith(result.lines)
        assert result.rows == count_of_rows(STREAM[:place]), place


def count_of_rows(data: bytes) -> int:
    """Return how many DataRow messages the data holds whole."""
    count = at = 0
    while len(data) - at >= 5:
        end = at + 1 + struct.unpack_from("!I", data, at + 1)[0]
        count += data[at] == ord("D") and end <= len(data)
        at = end
    return count


@pytest.mark.parametrize("types", [[], [TEXT], [INT4] * 1600, [TEXT, INT4] * 800])
def test_any_number_of_columns(native: bool, types: list[int]) -> None:
    rows: list[list[bytes | None]] = [[b"7"] * len(types), [None] * len(types), [b"1"] * len(types)]
    stream = PARSED + BOUND + description(types) + b"".join(row(*values) for values in rows) + CLOSING
    expected = expected_lines(rows, types, Dialect(), "csv")
    assert read_stream(native, [stream]) == Result(expected, 3, END, True)
    third = len(stream) // 3
    assert read_stream(native, split(stream, [third, 2 * third]), 1) == Result(expected, 3, END, True)


@pytest.mark.parametrize(
    "between",
    [notice("x" * 200_000), parameter_status(b"name", b"v" * 100_000), notification(b"p" * 70_000), ASYNCHRONOUS],
)
def test_messages_between_rows_change_nothing(native: bool, between: bytes) -> None:
    parts = [PARSED, BOUND, description([TEXT]), row(b"a"), row(b"b"), COMPLETE, CLOSED, READY]
    stream = between + between.join(parts)
    for pieces in ([stream], split(stream, range(1, len(stream), 50_000))):
        assert read_stream(native, pieces) == Result(b"a\nb\n", 2, END, True)


def test_a_result_without_rows(native: bool) -> None:
    assert read_stream(native, [OPENING + CLOSING]) == Result(b"", 0, END, True)


# --- What the protocol does not allow. ---

BIG = b"x" * (2 * BUFFER)
BAD_ROWS = {
    "a field of length -2": struct.pack("!Hi", 2, -2) + field(b"1"),
    "a field longer than the message": struct.pack("!Hi", 2, 100) + b"short" + field(b"1"),
    "a last field longer than the message": struct.pack("!H", 2) + field(b"a") + struct.pack("!i", 2) + b"1",
    "a field of 2 GB in a short message": struct.pack("!Hi", 2, 0x7FFFFFFF) + b"short" + field(b"1"),
    "bytes after the last field": struct.pack("!H", 2) + field(b"a") + field(b"1") + b"!",
    "fewer fields": struct.pack("!H", 1) + field(b"a"),
    "more fields": struct.pack("!H", 3) + field(b"a") + field(b"1") + field(b"2"),
    "fewer fields than it counts": struct.pack("!H", 2) + field(b"a"),
    "a length that is cut off": struct.pack("!H", 2) + field(b"a") + b"\0\0\0",
    "no fields": struct.pack("!H", 0),
    "no number of fields": b"",
    "half a number of fields": b"\0",
}
BAD_LARGE_ROWS = {
    "a field of length -2": struct.pack("!H", 2) + field(BIG) + struct.pack("!i", -2),
    "a field longer than the message": struct.pack("!Hi", 2, len(BIG) + 1) + BIG,
    "a last field longer than the message": struct.pack("!H", 2) + field(BIG) + struct.pack("!i", 2) + b"1",
    "bytes after the last field": struct.pack("!H", 2) + field(BIG) + field(b"1") + b"!",
    "fewer fields": struct.pack("!H", 1) + field(BIG),
    "more fields": struct.pack("!H", 3) + field(BIG) + field(b"1") + field(b"2"),
    "fewer fields than it counts": struct.pack("!H", 2) + field(BIG),
    "a length that is cut off": struct.pack("!H", 2) + field(BIG) + b"\0\0\0",
}
BAD_DESCRIPTIONS = {
    "nothing": b"",
    "a name without end": struct.pack("!H", 1) + b"name",
    "a column that is cut off": description([TEXT])[5:-1],
    "bytes after the last column": description([TEXT])[5:] + b"\0",
    "fewer columns than it counts": struct.pack("!H", 2) + description([TEXT])[7:],
    "more columns than it counts": struct.pack("!H", 0) + description([TEXT])[7:],
}
BAD_MESSAGES = {
    **{f"a row with {name}": message(b"D", body) for name, body in BAD_ROWS.items()},
    **{f"columns with {name}": message(b"T", body) for name, body in BAD_DESCRIPTIONS.items()},
    **{
        f"{kind!r} of length {length}": message(kind, length=length)
        for kind in (b"D", b"T", b"C", b"E", b"N", b"Z")
        for length in (3, 0, -1, -0x80000000)
    },
    **{f"{kind!r} with a body": message(kind, b"x") for kind in (b"1", b"2", b"3", b"I", b"n", b"s")},
    "ReadyForQuery without a body": message(b"Z"),
    "ReadyForQuery with two bytes": message(b"Z", b"TT"),
    "PortalSuspended without a row limit": SUSPENDED,
    **{f"type {kind!r}": message(kind, b"body") for kind in (b"\0", b"?", b"d", b"H", b"R", b"K", b"c", b"\xff")},
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_nonsense_is_a_lost_connection(native: bool, backend: FakeBackend, name: str) -> None:
    # The connection stays open: only the message itself can end the read.
    backend.send(OPENING + row(b"a", b"1") + BAD_MESSAGES[name] + CLOSING)
    assert read_on(started(native), backend) == Result(b"a,1\n", 1, LOST, False)


@pytest.mark.parametrize("name", BAD_LARGE_ROWS)
def test_nonsense_in_a_row_larger_than_the_buffer_is_a_lost_connection(
    native: bool, backend: FakeBackend, name: str
) -> None:
    backend.play([OPENING + row(b"a", b"1") + message(b"D", BAD_LARGE_ROWS[name]) + CLOSING])
    result = read_on(started(native), backend)
    assert (result.rows, result.ended, result.clean) == (1, LOST, False)
    assert result.lines.startswith(b"a,1\n")


@pytest.mark.parametrize("first", [row(b"a"), row(), row(BIG)], ids=["a row", "no columns", "a large row"])
def test_a_row_before_its_columns_is_a_lost_connection(native: bool, backend: FakeBackend, first: bytes) -> None:
    backend.play([PARSED + BOUND + first + CLOSING])
    result = read_on(started(native), backend)
    assert (result.rows, result.ended, result.clean) == (0, LOST, False)


def test_an_answer_to_nothing_is_a_lost_connection(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    backend.send(STREAM)
    assert read_on(reader, backend).ended == END
    backend.send(READY)
    assert read_on(reader, backend) == Result(b"", 0, LOST, False)


@pytest.mark.parametrize("kind", [b"D", b"T", b"E", b"N", b"C"])
def test_a_message_of_2_gb_of_which_only_the_header_comes(native: bool, kind: bytes) -> None:
    stream = OPENING + row(b"a", b"1") + message(kind, b"\0\2", length=0x7FFFFFFF)
    assert read_stream(native, [stream], ends=True) == Result(b"a,1\n", 1, LOST, False)


def test_a_field_of_2_gb_of_which_only_the_header_comes(native: bool) -> None:
    stream = OPENING + message(b"D", struct.pack("!Hi", 2, 0x7FFFFFFF - 14), length=0x7FFFFFFF) + b"begin"
    result = read_stream(native, [stream], ends=True)
    assert (result.rows, result.ended, result.clean) == (0, LOST, False)


@pytest.mark.parametrize("left", [notice("late"), row(b"x", b"1"), b"N", READY[:5], READY])
def test_a_connection_with_bytes_left_over_is_not_clean(native: bool, backend: FakeBackend, left: bytes) -> None:
    backend.send(STREAM + left)
    assert read_on(started(native), backend) == Result(STREAM_LINES, 5, END, False)


# --- Errors of the server. ---


def test_an_error_after_some_rows_ends_the_read_when_every_unit_was_answered(
    native: bool, backend: FakeBackend
) -> None:
    reader = started(native, units=2)
    reader.start(b"", 1, b"")
    backend.send(OPENING + row(b"a", b"1") + error(S="ERROR", C="22012", M="division by zero") + READY)
    lines, rows, ended = reader.read(backend.wire, backend.wake, ALL, 50)
    assert (lines, rows) == (b"a,1\n", 1)
    assert ended in (MORE, TIMED_OUT)
    assert not reader.clean
    backend.send(error(S="ERROR", C="25P02", M="in failed transaction") + READY)
    assert reader.read(backend.wire, backend.wake, ALL, 50) == (b"", 0, TIMED_OUT)
    assert not reader.clean
    backend.send(READY)
    assert read_on(reader, backend) == Result(b"", 0, FAILED, True)
    assert reader.failure() == error(S="ERROR", C="22012", M="division by zero")[5:]


def test_an_error_cut_at_any_byte(native: bool) -> None:
    failure = error(S="ERROR", V="ERROR", C="57014", M="canceling statement due to user request")
    stream = OPENING + row(b"a", b"1") + failure + READY
    for place in range(len(stream)):
        with FakeBackend() as backend:
            reader = started(native)
            assert reader.failure() is None
            backend.play(split(stream, [place]))
            assert read_on(reader, backend) == Result(b"a,1\n", 1, FAILED, True), place
            assert reader.failure() == failure[5:]


def test_an_error_before_the_connection_ends_is_known(native: bool, backend: FakeBackend) -> None:
    failure = error(S="FATAL", C="57P01", M="terminating connection due to administrator command")
    reader = started(native)
    backend.send(OPENING + failure)
    backend.end()
    assert read_on(reader, backend) == Result(b"", 0, LOST, False)
    assert reader.failure() == failure[5:]


def test_an_error_is_known_if_the_connection_was_closed_before_the_messages_were_sent(
    native: bool, backend: FakeBackend
) -> None:
    # As when a conflict with recovery ends a session between two statements.
    failure = error(S="FATAL", C="40001", M="terminating connection due to conflict with recovery")
    reader = started(native)
    backend.send(STREAM)
    assert read_on(reader, backend).ended == END
    backend.send(failure)
    backend.close()
    reader.start(b"more", 1, b"")
    assert read_on(reader, backend) == Result(b"", 0, LOST, False)
    assert reader.failure() == failure[5:]


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_the_beginning_of_a_large_error_is_kept(native: bool, backend: FakeBackend, size: int) -> None:
    failure = error(S="ERROR", C="22P02", M="invalid", D="d" * size)
    reader = started(native)
    backend.play([OPENING + failure + READY])
    assert read_on(reader, backend) == Result(b"", 0, FAILED, True)
    kept = reader.failure()
    assert kept is not None
    assert len(kept) >= 64 << 10
    assert failure[5:].startswith(kept)


# --- Rows larger than the receive buffer. ---

LARGE_TYPES = [TEXT, BOOL, JSON, TEXT, INT4, TEXT]
LARGE_ROWS: list[list[bytes | None]] = [
    [b"x" * 100_000, b"t", b"{}", b"", b"1", None],
    [b'"' * 70_000, None, b'{\n"a":\r1}' + b" " * 70_000, b"NULL", b"-1", b"=1+1"],
    [b"=" + b'"' * BUFFER, b"f", b"[\n]" * 30_000, None, None, b"NULL"],
    [b"y" * (BUFFER - 40), b"t", b"1", b"a,b", b"2", b"+" + b"z" * 90_000],
    [None, None, None, b"l\n" * 50_000, None, b"'"],
    [b"-" * 200_000, b"t", b"1", b"\\.", b"3", b"\r" + b"c" * 10],
]
DIALECTS = [
    (Dialect(), "csv"),
    (Dialect(guard=True, null=b"NULL", eol=b"\r\n"), "csv"),
    (Dialect(quote_style="all", delimiter=b"\t", null=b"'=1+1", guard=True), "csv"),
    (Dialect(quote_style="strings", delimiter=b";"), "csv"),
    (Dialect(header=False), "ndjson"),
]


@pytest.mark.parametrize(("dialect", "format"), DIALECTS)
@pytest.mark.parametrize("piece", [ALL, 30_011, BUFFER])
@pytest.mark.parametrize("most", [1, 50_000, ALL])
def test_rows_larger_than_the_receive_buffer(
    native: bool, backend: FakeBackend, dialect: Dialect, format: str, piece: int, most: int
) -> None:
    # With most=1 the native encoder's read ends between two fields.
    stream = description(LARGE_TYPES) + b"".join(row(*values) for values in LARGE_ROWS) + CLOSING
    reader = make_reader(native, dialect, format)
    reader.start(b"messages", 1, b"")
    backend.play(split(stream, range(piece, len(stream), piece)))
    expected = expected_lines(LARGE_ROWS, LARGE_TYPES, dialect, format)
    assert read_on(reader, backend, most) == Result(expected, len(LARGE_ROWS), END, True)


def test_a_read_of_a_large_row_may_end_within_a_value(backend: FakeBackend) -> None:
    reader = started(native=True)
    backend.play([description([TEXT] * 3) + row(BIG, BIG, BIG) + CLOSING])
    line = b",".join([BIG] * 3) + b"\n"
    lines = b""
    while len(lines) < len(line) - 1:
        more, rows, ended = reader.read(backend.wire, backend.wake, len(BIG) // 2, PATIENCE)
        assert (rows, ended) == (0, MORE)
        assert len(more) < len(BIG)
        lines += more
    rest = read_on(reader, backend)
    assert lines + rest.lines == line
    assert (rest.rows, rest.ended, rest.clean) == (1, END, True)


@pytest.mark.parametrize("size", range(BUFFER - 12, BUFFER + 4))
def test_rows_about_as_large_as_the_receive_buffer(native: bool, size: int) -> None:
    value = b"v" * size
    stream = description([TEXT]) + row(value) + row(b"a") + row(value) + CLOSING
    assert read_stream(native, [stream]) == Result(value + b"\na\n" + value + b"\n", 3, END, True)


# --- Values that have to be held. ---

# More than a reader holds without being asked.
HELD = b"h" * (HELD_BYTES + 100_000)


def held_stream(*rows: tuple[bytes, bytes]) -> bytes:
    return description([TEXT, TEXT]) + b"".join(row(*values) for values in rows) + CLOSING


@pytest.mark.parametrize("after", [b"", b"\n", b'"'])
@pytest.mark.parametrize("most", [1000, ALL])
def test_a_reader_asks_before_it_holds_a_value(native: bool, backend: FakeBackend, most: int, after: bytes) -> None:
    rows = [(b"small", b"1"), (b"2", HELD + after), (b"3", b"3")]
    reader = started(native)
    backend.play([held_stream(*rows)])
    lines, count, ended = b"", 0, MORE
    while ended == MORE:
        more, some, ended = reader.read(backend.wire, backend.wake, most, PATIENCE)
        lines, count = lines + more, count + some
    # What comes before it was written.
    assert (lines, count, ended) == (b"small,1\n2,", 1, ROOM)
    assert (reader.wanted, reader.column, reader.held_bytes) == (len(HELD + after), 1, 0)
    # It asks again as long as it is not told.
    assert reader.read(backend.wire, backend.wake, most, PATIENCE) == (b"", 0, ROOM)
    reader.hold()
    most_held = 0
    ended = MORE
    while ended == MORE:
        more, some, ended = reader.read(backend.wire, backend.wake, most, PATIENCE)
        assert len(more) <= most + 3 * LARGE_BYTES
        lines, count = lines + more, count + some
        most_held = max(most_held, reader.held_bytes)
    assert lines == expected_lines(rows, [TEXT, TEXT], Dialect(), "csv")
    assert (count, ended, reader.clean, reader.held_bytes, reader.wanted) == (3, END, True, 0, 0)
    if most < LARGE_BYTES:
        assert most_held > HELD_BYTES


def test_a_value_is_not_held_once_it_is_known_that_it_needs_quotes(native: bool, backend: FakeBackend) -> None:
    value = b"x" * 500_000 + b"," + b"y" * 5_000_000
    reader = started(native)
    backend.play([held_stream((value, b"1"))])
    ended = MORE
    lines = b""
    while ended == MORE:
        more, _, ended = reader.read(backend.wire, backend.wake, 1000, PATIENCE)
        assert len(more) <= 1000 + 3 * LARGE_BYTES
        lines += more
    assert (lines, ended) == (b'"%b",1\n' % value, END)


@pytest.mark.parametrize(("dialect", "format"), [(Dialect(quote_style="all"), "csv"), (Dialect(), "ndjson")])
def test_a_value_is_not_held_if_its_quotes_do_not_depend_on_it(
    native: bool, backend: FakeBackend, dialect: Dialect, format: str
) -> None:
    rows: list[list[bytes | None]] = [[HELD * 3], [None], [b"1"]]
    reader = make_reader(native, dialect, format)
    reader.start(b"messages", 1, b"")
    backend.play([description([TEXT]) + b"".join(row(*values) for values in rows) + CLOSING])
    ended = MORE
    lines = b""
    while ended == MORE:
        more, _, ended = reader.read(backend.wire, backend.wake, 1000, PATIENCE)
        assert len(more) <= 1000 + 3 * LARGE_BYTES
        lines += more
    assert (lines, ended) == (expected_lines(rows, [TEXT], dialect, format), END)


def test_a_value_that_nobody_uses_is_passed_over(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    backend.play([held_stream((HELD, HELD + b","), (b"1", HELD))])
    count, ended = 0, MORE
    while ended in (MORE, ROOM):
        if ended == ROOM:
            reader.pass_over()
        _, rows, ended = reader.read(backend.wire, backend.wake, 1000, PATIENCE)
        assert reader.held_bytes == 0
        count += rows
    assert (count, ended, reader.clean) == (2, END, True)


def test_a_reader_that_is_closed_holds_nothing_and_reads_nothing(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    backend.play([held_stream((b"1", HELD))])
    assert reader.read(backend.wire, backend.wake, ALL, PATIENCE)[2] == ROOM
    reader.hold()
    assert reader.read(backend.wire, backend.wake, 1000, PATIENCE)[2] == MORE
    assert reader.held_bytes > 0
    reader.close()
    assert (reader.held_bytes, reader.clean) == (0, False)
    assert reader.read(backend.wire, backend.wake, ALL, PATIENCE) == (b"", 0, LOST)


def test_a_reader_that_is_closed_between_rows_stays_clean(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    backend.send(STREAM)
    assert read_on(reader, backend).ended == END
    reader.close()
    assert reader.clean


@pytest.mark.parametrize("ending", [b"", b'"', b";=1", b";\xef\xbc\x9d1", b';""\xef\xbc\x9d1', b"\xef\xbc", b",\xef"])
def test_a_large_value_cut_near_its_ends(native: bool, ending: bytes) -> None:
    value = b"\xef\xbc\x9d" + b"v" * LARGE_BYTES + ending
    dialect = Dialect(guard=True)
    stream = description([TEXT, TEXT]) + row(value, None) + row(b"x" * HELD_BYTES, value) + CLOSING
    expected = expected_lines([[value, None], [b"x" * HELD_BYTES, value]], [TEXT, TEXT], dialect, "csv")
    begins = stream.index(value)
    ends = stream.rindex(ending) if ending else len(stream) - len(CLOSING)
    for place in [*range(begins, begins + 6), *range(begins + len(value) - 8, begins + len(value) + 2), ends]:
        with FakeBackend() as backend:
            reader = make_reader(native, dialect)
            reader.start(b"messages", 1, b"")
            backend.play(split(stream, [place]))
            assert read_on(reader, backend) == Result(expected, 2, END, True), place


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x7FFFFFF0])
def test_a_row_that_says_it_is_huge_takes_no_memory_before_it_comes(
    native: bool, backend: FakeBackend, length: int
) -> None:
    reader = started(native)
    backend.send(OPENING)
    backend.send(message(b"D", struct.pack("!Hi", 2, length - 20) + b"x" * 50_000, length=length))
    backend.end()
    assert read_on(reader, backend).ended == LOST
    assert reader.held_bytes == 0


# --- Batches. ---

NEXT = b"next;"
BATCH = row(b"a", b"1") + SUSPENDED + READY


def test_the_next_batch_is_asked_for_when_the_portal_is_suspended(native: bool, backend: FakeBackend) -> None:
    reader = make_reader(native)
    reader.start(b"open;" + 2 * NEXT, 2, NEXT)
    backend.send(OPENING)
    for batch in range(5):
        backend.send(BATCH)
        lines, rows, ended = reader.read(backend.wire, backend.wake, ALL, 50)
        assert (lines, rows, ended) == (b"a,1\n", 1, MORE)
        # As many as were answered; so UNITS_AHEAD - 1 are with the server.
        assert backend.received() == (b"open;" + 2 * NEXT if batch == 0 else b"") + NEXT
        assert not reader.clean
    # The last batch, and the units ahead, which find no more rows.
    backend.send(row(b"z", b"9") + COMPLETE + READY)
    assert reader.read(backend.wire, backend.wake, ALL, 50) == (b"z,9\n", 1, MORE)
    backend.send((COMPLETE + READY) * (UNITS_AHEAD - 2))
    assert read_on(reader, backend) == Result(b"", 0, END, True)
    assert backend.received() == b""


def test_batches_cut_at_any_byte(native: bool) -> None:
    # Before each ReadyForQuery of a suspended portal UNITS_AHEAD are unanswered.
    # What was asked for is answered only after the reader has sent it, before it receives the next piece.
    batches, ending = OPENING + BATCH * 2, (COMPLETE + READY) * (UNITS_AHEAD - 1)
    for place in range(len(batches)):
        with FakeBackend() as backend:
            backend.play(split(batches, [place]) + split(ending, [place % len(ending)]))
            reader = started(native, 2, NEXT)
            assert read_on(reader, backend) == Result(b"a,1\n" * 2, 2, END, True), place


def test_an_error_in_a_batch_ends_the_read_when_the_units_ahead_were_answered(
    native: bool, backend: FakeBackend
) -> None:
    reader = started(native, 2, NEXT)
    failure = error(S="ERROR", C="22012", M="division by zero")
    backend.send(OPENING + BATCH + failure + READY)
    assert reader.read(backend.wire, backend.wake, ALL, 50) == (b"a,1\n", 1, MORE)
    assert backend.received() == b"messages" + NEXT
    assert reader.read(backend.wire, backend.wake, ALL, 20) == (b"", 0, TIMED_OUT)
    backend.send(error(S="ERROR", C="25P02", M="aborted") + READY)
    assert read_on(reader, backend) == Result(b"", 0, FAILED, True)
    assert reader.failure() == failure[5:]
    assert backend.received() == b""


def test_statements_end_one_after_another(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    reader.start(b" and more", 1, b"")
    backend.send(STREAM + BOUND + row(b"second", None) + CLOSING)
    first, second = read_on(reader, backend), read_on(reader, backend)
    assert first == Result(STREAM_LINES, 5, END, False)
    assert second == Result(b"second,\n", 1, END, True)
    assert backend.received() == b"messages and more"


@pytest.mark.parametrize("answer", [EMPTY_QUERY, NO_DATA, message(b"t", b"\0\0")])
def test_answers_without_meaning_here_are_passed_over(native: bool, answer: bytes) -> None:
    assert read_stream(native, [OPENING + answer + row(b"a", b"1") + CLOSING]) == Result(b"a,1\n", 1, END, True)


# --- Waiting. ---


def test_a_wake_ends_the_read(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    waking = threading.Timer(0.05, backend.wake_up)
    waking.start()
    assert reader.read(backend.wire, backend.wake, ALL, -1) == (b"", 0, WOKEN)
    waking.join()
    assert not reader.clean


def test_a_wake_before_the_read_ends_it(native: bool, backend: FakeBackend) -> None:
    backend.wake_up()
    assert started(native).read(backend.wire, backend.wake, ALL, PATIENCE) == (b"", 0, WOKEN)


def test_patience_ends_a_read_without_rows_and_not_one_with_rows(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    begun = time.monotonic()
    assert reader.read(backend.wire, backend.wake, ALL, 100) == (b"", 0, TIMED_OUT)
    assert time.monotonic() - begun >= 0.1
    backend.send(OPENING + row(b"a", b"1"))
    begun = time.monotonic()
    assert reader.read(backend.wire, backend.wake, ALL, PATIENCE) == (b"a,1\n", 1, MORE)
    assert time.monotonic() - begun < PATIENCE / 1000 / 2  # it lingers, and does not wait for the patience
    assert not reader.clean


def test_messages_larger_than_the_socket_takes_are_sent_while_rows_are_read(native: bool, backend: FakeBackend) -> None:
    reader = make_reader(native)
    data = bytes(range(256)) * 8192
    reader.start(data, 1, b"")
    backend.send(OPENING + row(b"a", b"1"))
    received = b""
    while len(received) < len(data):
        assert reader.read(backend.wire, backend.wake, ALL, 20)[2] in (MORE, TIMED_OUT)
        received += backend.received()
    assert received == data
    backend.send(CLOSING)
    assert read_on(reader, backend).ended == END
    assert reader.clean


def test_a_peer_that_closes_while_messages_are_sent_is_a_lost_connection(native: bool, backend: FakeBackend) -> None:
    reader = make_reader(native)
    reader.start(b"m" * (8 << 20), 1, b"")
    backend.end()
    assert read_on(reader, backend) == Result(b"", 0, LOST, False)


# --- What has arrived. ---


def test_the_messages_are_sent_though_nothing_has_arrived(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    assert reader.read_arrived(backend.wire, ALL) is None
    assert backend.received() == b"messages"
    assert not reader.clean
    backend.send(STREAM)
    assert reader.read_arrived(backend.wire, ALL) == (STREAM_LINES, 5, END)
    assert reader.clean


@pytest.mark.parametrize("most", [1, 10, ALL])
def test_what_has_arrived_up_to_any_byte_is_the_beginning_of_the_next_read(native: bool, most: int) -> None:
    for place in range(len(STREAM)):
        with FakeBackend() as backend:
            reader = started(native)
            backend.send(STREAM[:place])
            lines, rows = b"", 0
            while (arrived := reader.read_arrived(backend.wire, most)) is not None:
                assert arrived[2] == MORE
                lines, rows = lines + arrived[0], rows + arrived[1]
            backend.send(STREAM[place:])
            rest = read_on(reader, backend, most)
            assert Result(lines + rest.lines, rows + rest.rows, rest.ended, rest.clean) == Result(
                STREAM_LINES, 5, END, True
            ), place


def test_rows_that_have_arrived_are_not_held_back_by_one_that_has_not(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    backend.send(OPENING + row(b"a", b"1"))
    assert reader.read_arrived(backend.wire, ALL) is None
    assert reader.read(backend.wire, backend.wake, ALL, PATIENCE) == (b"a,1\n", 1, MORE)


def test_a_large_row_that_has_begun_is_left_to_the_next_read(native: bool, backend: FakeBackend) -> None:
    reader = started(native)
    value = b"x" * (BUFFER * 3)
    stream = OPENING + row(b"a", b"1") + row(value, b"2") + CLOSING
    backend.play([stream[: 2 * BUFFER]])
    for _ in range(100):
        assert reader.read_arrived(backend.wire, ALL) is None
    backend.play([stream[2 * BUFFER :]])
    assert read_on(reader, backend) == Result(b"a,1\n" + value + b",2\n", 2, END, True)


@pytest.mark.parametrize("wrong", [b"?\0\0\0\4", b"Z\0\0\0\4", row(b"too", b"early")])
def test_nonsense_that_has_arrived_is_a_lost_connection(native: bool, backend: FakeBackend, wrong: bytes) -> None:
    reader = started(native)
    backend.send(wrong)
    assert reader.read_arrived(backend.wire, ALL) == (b"", 0, LOST)
    assert reader.read_arrived(backend.wire, ALL) == (b"", 0, LOST)
    assert not reader.clean


def test_an_end_that_has_arrived_is_a_lost_connection(native: bool, backend: FakeBackend) -> None:
    failure = error(S="FATAL", C="57P01", M="terminating connection")
    reader = started(native)
    backend.send(OPENING + failure)
    backend.end()
    assert reader.read_arrived(backend.wire, ALL) is None
    assert reader.read_arrived(backend.wire, ALL) == (b"", 0, LOST)
    assert reader.failure() == failure[5:]


# --- Any stream. ---

TYPES = st.lists(st.sampled_from([TEXT, INT4, BOOL, JSON]), max_size=5)
VALUES = st.none() | st.binary(max_size=12) | st.sampled_from([b'"', b",", b"\\.", b"=1", b"NULL", b"x" * 66_000])
BETWEEN = st.sampled_from([b"", b"", b"", notice("n"), parameter_status(b"a", b"b"), notification(b"")])


@settings(max_examples=150)
@given(data=st.data())
def test_any_rows_in_any_pieces(data: st.DataObject) -> None:
    types = data.draw(TYPES)
    rows = data.draw(st.lists(st.tuples(*[VALUES for _ in types]), max_size=8))
    dialect, format = data.draw(st.sampled_from(DIALECTS))
    stream = PARSED + BOUND + description(types)
    stream += b"".join(data.draw(BETWEEN) + row(*values) for values in rows) + CLOSING
    places = sorted(data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=10)))
    most = data.draw(st.sampled_from([1, 20, 66_000, ALL]))
    expected = Result(expected_lines(rows, types, dialect, format), len(rows), END, True)
    arrived = data.draw(st.integers(0, 3))
    for native in (True, False):
        with FakeBackend() as backend:
            backend.play(split(stream, places))
            reader = make_reader(native, dialect, format)
            reader.start(b"messages", 1, b"")
            assert read_on(reader, backend, most, arrived=arrived) == expected, native

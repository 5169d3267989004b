"""Fuzz one build of the native encoder with random streams, and compare it with the reader and encoder in Python.

Streams are whole or damaged, in random dialects, and arrive in random pieces, through TLS or a socket.

    python tests/support/encode_fuzz.py FOLDER ROUNDS SEED

FOLDER holds the extension `_encode`. tests/encode/test_memory_safety.py runs this with a build that checks every memory
access; any other build can be fuzzed too, which compares only what it returns.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's folder is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from server.encode import encoders
from server.encode.encoders import PureEncoder, native_encoder
from server.encode.kinds import kinds_for
from server.postgres.portal import PortalReader
from server.postgres.reader import END, FAILED, LOST, MORE, ROOM, TIMED_OUT, WOKEN, RowReader
from tests.support.fake_backend import READY
from tests.support.random_streams import BUFFER, Stream, Writing, damaged, some_script, some_stream, some_writing
from tests.support.scripted_openssl import ScriptedSession, Step

ALL = 1 << 40


@dataclass(frozen=True)
class Ended:
    """What the reads of one statement gave."""

    lines: bytes
    rows: int
    ended: int


@dataclass(frozen=True)
class Outcome:
    """What the reads of a stream gave.

    cut: whether a read was interrupted within a large row, after which the reader may give the connection up.
    """

    statements: list[Ended]
    sent: bytes
    clean: bool
    failure: bytes | None
    cut: bool = False


class InPieces:
    """A `reader.Bytes` for the reader in Python: the whole stream, which needs no wait."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sent = b""
        self.descriptor = self.ssl = 0

    def receive(self) -> bytes | None:
        data, self._data = self._data[:BUFFER], self._data[BUFFER:]
        return data

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)


class Plain:
    """A `reader.Bytes` over a socket pair, without TLS. The stream has arrived whole, and the connection ends then.

    data: at most MOST bytes, which the socket holds.
    """

    MOST = 150_000

    def __init__(self, data: bytes) -> None:
        self._peer, self._socket = socket.socketpair()
        self._peer.sendall(data)
        self._peer.shutdown(socket.SHUT_WR)
        self._peer.setblocking(False)
        self._socket.setblocking(False)
        self.descriptor, self.ssl = self._socket.fileno(), 0

    def close(self) -> bytes:
        """Close the connection. Return what the encoder has written."""
        sent = b""
        with self._socket, self._peer, contextlib.suppress(BlockingIOError):
            while more := self._peer.recv(1 << 16):
                sent += more
        return sent

    def receive(self) -> bytes | None:
        raise AssertionError("the native encoder reads by itself")

    def send(self, data: bytes) -> int:
        raise AssertionError("the native encoder writes by itself")


def started(reader: RowReader, stream: Stream) -> RowReader:
    for start in stream.starts:
        reader.start(*start)
    return reader


class Statements:
    """Puts the reads of a stream together, and counts them: each must bring the stream on."""

    def __init__(self, stream: Stream, reader: RowReader) -> None:
        self._reader = reader
        self._started = len(stream.starts)
        self._reads_left = 3 * len(stream.data) + 1000
        self._lines: list[bytes] = []
        self._rows = 0
        self.ended: list[Ended] = []

    def add(self, lines: bytes, rows: int, ended: int) -> bool:
        """Take what a read has given. Return whether there is more to read."""
        self._reads_left -= 1
        assert self._reads_left, "the reads do not come to an end"
        self._lines.append(lines)
        self._rows += rows
        if ended == ROOM:
            assert self._reader.wanted > 0
            self._reader.hold()
        if ended in (MORE, ROOM, TIMED_OUT, WOKEN):
            return True
        self.ended.append(Ended(b"".join(self._lines), self._rows, ended))
        self._lines, self._rows = [], 0
        return ended == END and len(self.ended) < self._started


def read_in_python(stream: Stream, writing: Writing) -> Outcome:
    reader = started(PortalReader(PureEncoder(writing.dialect, kinds_for(writing.dialect, writing.format))), stream)
    wire = InPieces(stream.data)
    statements = Statements(stream, reader)
    while statements.add(*reader.read(wire, -1, ALL, -1)):
        pass
    return Outcome(statements.ended, wire.sent, reader.clean, reader.failure())


def read_natively(rng: random.Random, stream: Stream, writing: Writing, script: list[Step]) -> Outcome:
    reader = started(native_encoder(writing.dialect, kinds_for(writing.dialect, writing.format)), stream)
    most = rng.choice([1, 300, 5000, 100_000, ALL, ALL])
    statements = Statements(stream, reader)
    with ScriptedSession(rng, script) as session:
        cut = False
        more = True
        while more:
            arrived = reader.read_arrived(session, most) if rng.random() < 0.3 else None
            lines, rows, ended = arrived or reader.read(session, session.wake, most, 0)
            assert not session.faults, session.faults
            if ended == WOKEN:
                session.sleep_again()
            if ended in (WOKEN, TIMED_OUT):
                cut = cut or in_large_row(stream, session.given_before) or in_large_row(stream, session.given)
            more = statements.add(lines, rows, ended)
    return Outcome(statements.ended, session.sent, reader.clean, reader.failure(), cut)


def read_plainly(rng: random.Random, stream: Stream, writing: Writing) -> Outcome:
    reader = started(native_encoder(writing.dialect, kinds_for(writing.dialect, writing.format)), stream)
    most = rng.choice([1, 5000, ALL])
    statements = Statements(stream, reader)
    wire = Plain(stream.data)
    never, waker = socket.socketpair()
    with never, waker:
        while statements.add(*(reader.read_arrived(wire, most) or reader.read(wire, never.fileno(), most, -1))):
            pass
    return Outcome(statements.ended, wire.close(), reader.clean, reader.failure())


def in_large_row(stream: Stream, given: int) -> bool:
    """Return whether the stream is within a row that does not fit the receive buffer, after so many bytes.

    A damaged one may be so anywhere.
    """
    start = 0
    for message in stream.messages:
        if start < given < start + len(message):
            return stream.damaged or (message[:1] == b"D" and len(message) > BUFFER)
        start += len(message)
    return stream.damaged


def expected(stream: Stream, writing: Writing) -> list[Ended]:
    """Return what the reads of a stream that is not damaged give."""
    kind_of = kinds_for(writing.dialect, writing.format)
    encoder = PureEncoder(writing.dialect, kind_of)
    kinds = [kind_of(oid) for oid in stream.types]
    statements = [Ended(encoder.lines(rows, kinds), len(rows), END) for rows in stream.rows]
    if stream.fails:
        statements[-1] = Ended(statements[-1].lines, statements[-1].rows, FAILED)
    return statements


def compare_whole(stream: Stream, writing: Writing, native: Outcome, pure: Outcome) -> None:
    wanted = expected(stream, writing)
    assert pure.statements == wanted, "the reader in Python"
    if native.cut and native.statements[-1].ended == LOST:
        compare_beginning(native.statements, wanted)
        return
    assert native.statements == wanted, "the native encoder"
    # What a batch asks for may not be sent yet when the end of a stream that knows no time has come.
    ((opening, units, more), *others) = stream.starts
    answered = stream.messages.count(READY)
    everything = b"".join([opening, *[start[0] for start in others]])
    everything += more * (answered - units if more else 0)
    for outcome in (native, pure):
        assert everything.startswith(outcome.sent), outcome.sent
        assert outcome.clean == (outcome.sent == everything), outcome.sent
    assert (native.failure is None) == (pure.failure is None) == (not stream.fails)
    # Of a long error each reader keeps the beginning.
    shorter, longer = sorted([native.failure or b"", pure.failure or b""], key=len)
    assert longer.startswith(shorter)
    assert len(shorter) >= min(len(longer), BUFFER)


def compare_damaged(native: Outcome, pure: Outcome) -> None:
    *whole, last = native.statements
    if native.cut and last.ended == LOST:
        compare_beginning(native.statements, pure.statements)
        return
    assert len(native.statements) == len(pure.statements)
    assert whole == pure.statements[:-1]
    assert (last.rows, last.ended) == (pure.statements[-1].rows, pure.statements[-1].ended)
    # Each reader may have written the beginning of a large row that was not whole.
    written = pure.statements[-1].lines
    assert last.lines == written or last.ended == LOST
    assert last.lines.startswith(written) or written.startswith(last.lines)


def compare_beginning(native: list[Ended], wanted: list[Ended]) -> None:
    """Compare what came before the native encoder gave the connection up, within a row."""
    *whole, last = native
    assert whole == wanted[: len(whole)]
    assert last.rows <= wanted[len(whole)].rows


def may_change_columns(stream: Stream) -> bool:
    return stream.damaged and sum(each[:1] == b"T" for each in stream.messages) != 1


def fuzz(rounds: int, seed: int) -> int:
    """Read one stream each round; return how many bytes were compared. Raise AssertionError."""
    compared = 0
    for number in range(rounds):
        rng = random.Random(seed << 32 | number)
        writing = some_writing(rng)
        stream = some_stream(rng, writing.dialect)
        if rng.random() < 0.5:
            stream = damaged(rng, stream)
        script = some_script(rng, stream)
        try:
            pure = read_in_python(stream, writing)
            if len(stream.data) <= Plain.MOST and rng.random() < 0.1:
                native = read_plainly(rng, stream, writing)
            else:
                native = read_natively(rng, stream, writing, script)
            if stream.damaged:
                compare_damaged(native, pure)
            else:
                compare_whole(stream, writing, native, pure)
        except Exception as fault:
            if isinstance(fault, ValueError) and "same columns" in str(fault) and may_change_columns(stream):
                continue
            raise AssertionError(f"round {number}, seed {seed}: {writing} {stream!r:.2000}") from fault
        compared += sum(len(each.lines) for each in pure.statements)
    return compared


def main() -> None:
    folder, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.path.insert(0, folder)
    native = importlib.import_module("_encode")
    assert Path(str(native.__file__)).parent == Path(folder), "another build was found"
    native.bind(ScriptedSession.addresses())
    vars(encoders)["_encode"] = native
    print(f"{rounds} rounds, {fuzz(rounds, seed):,} bytes, all equal")


if __name__ == "__main__":
    main()

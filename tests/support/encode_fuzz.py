"""Fuzz one build of the native encoder with random results in random dialects, and compare it with the pure one.

Encodes whole results, and results of a statement that arrive in pieces on a connection.

    python tests/support/encode_fuzz.py FOLDER ROUNDS SEED

FOLDER holds the extension `_encode`. tests/encode/test_memory_safety.py runs this with a build that checks every memory
access; any other build can be fuzzed too, which compares only the bytes. Also holds MadeResult, a PGresult without a
server.
"""

from __future__ import annotations

import ctypes
import importlib
import random
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import psycopg2

if __name__ == "__main__":  # run as a script: the project's folder is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from server.encode.encoders import LIBPQ_FUNCTIONS, kinds_for, make_encoder
from server.query.dialect import DELIMITERS, LINE_ENDS, QUOTE_STYLES, Dialect

Row = Sequence[bytes | None]

# OIDs of pg_type.dat: text, a number, binary data, a number that may hold commas.
TEXT, INT4, BYTEA, MONEY = 25, 23, 17, 790
PGRES_TUPLES_OK, PGRES_FATAL_ERROR, PGRES_TUPLES_CHUNK = 2, 7, 12

# Bytes of the encoder's first buffer. The directed rounds end exactly at its end. If this number is out of date, the
# tests in test_memory_safety.py no longer find its mistakes, and fail.
FIRST_CAPACITY = 4096

# libpq through psycopg2, as in server/postgres/libpq.py, with the types of the functions that are used here.
_libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
_libpq.PQmakeEmptyPGresult.restype = ctypes.c_void_p
_libpq.PQmakeEmptyPGresult.argtypes = [ctypes.c_void_p, ctypes.c_int]
_libpq.PQsetResultAttrs.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
_libpq.PQsetvalue.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_libpq.PQntuples.argtypes = [ctypes.c_void_p]
_libpq.PQclear.restype = None
_libpq.PQclear.argtypes = [ctypes.c_void_p]

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.restype = None
_libc.free.argtypes = [ctypes.c_void_p]


class _Attribute(ctypes.Structure):
    """PGresAttDesc (libpq-fe.h): libpq's description of a column."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("tableid", ctypes.c_uint),
        ("columnid", ctypes.c_int),
        ("format", ctypes.c_int),
        ("typid", ctypes.c_uint),
        ("typlen", ctypes.c_int),
        ("atttypmod", ctypes.c_int),
    ]


class MadeResult:
    """A batch whose PGresult libpq has built from these rows, without a server. Freed on leaving the block.

    types: an OID a column, text where none are given, as many as there are columns.
    """

    def __init__(self, rows: Sequence[Row], types: Sequence[int] | None = None) -> None:
        self._rows = rows
        types = [TEXT] * (len(rows[0]) if rows else 1) if types is None else types
        self.types: Sequence[int] = types
        pgresult: int | None = _libpq.PQmakeEmptyPGresult(None, PGRES_TUPLES_OK)
        assert pgresult, "libpq made no result"
        self.pgresult: int = pgresult
        if not types:
            # libpq counts rows by their fields, and there are none. The number of rows is the first member of its
            # struct; the assertion checks that.
            ctypes.c_int.from_address(self.pgresult).value = len(rows)
            assert _libpq.PQntuples(self.pgresult) == len(rows)
            return
        attributes = (_Attribute * len(types))(*[_Attribute(b"column", 0, 0, 0, oid, -1, -1) for oid in types])
        assert _libpq.PQsetResultAttrs(self.pgresult, len(types), attributes), "libpq took no columns"
        for number, row in enumerate(rows):
            assert len(row) == len(types)
            for column, value in enumerate(row):
                length = -1 if value is None else len(value)
                assert _libpq.PQsetvalue(self.pgresult, number, column, value, length), "libpq took no value"

    def rows(self) -> Sequence[Row]:
        return self._rows

    def clear(self) -> None:
        """Free the PGresult, as psycopg2 does at the next execute."""
        _libpq.PQclear(self.pgresult)
        self.pgresult = 0

    def __enter__(self) -> MadeResult:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pgresult:
            self.clear()


def _of_result(answer: Callable[[GuardedResult], int]) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda at: answer(GuardedResult.at(at)))


def _of_field(kind: Any, answer: Callable[[GuardedResult, int, int], int | None]) -> Any:
    function = ctypes.CFUNCTYPE(kind, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    return function(lambda at, row, column: answer(GuardedResult.at(at), row, column))


def _of_connection(answer: Callable[[int], int]) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(answer)


class GuardedResult:
    """Rows behind accessors of this module, each value in an allocation of exactly its length.

    libpq keeps small values side by side and ends each with a NUL, so that a read past the end of one finds
    memory that is allowed; here AddressSanitizer sees the first byte too many. Freed on leaving or by `clear`.
    """

    _made: ClassVar[dict[int, GuardedResult]] = {}

    def __init__(self, rows: Sequence[Row], types: Sequence[int], status: int = PGRES_TUPLES_OK) -> None:
        self._rows = rows
        self.types = types
        self.status = status
        self.cleared = 0
        self._values: dict[tuple[int, int], int] = {}
        self.pgresult = len(self._made) + 1  # an address that differs from all others and from 0
        self._made[self.pgresult] = self
        for number, row in enumerate(rows):
            for column, value in enumerate(row):
                if value:
                    self._values[number, column] = address = _libc.malloc(len(value))
                    ctypes.memmove(address, value, len(value))

    @classmethod
    def at(cls, pgresult: int) -> GuardedResult:
        return cls._made[pgresult]

    def rows(self) -> Sequence[Row]:
        return self._rows

    def clear(self) -> None:
        """Free the values. Their addresses are still returned, so that a later access is found."""
        self.cleared += 1
        if self.cleared == 1:
            for address in self._values.values():
                _libc.free(address)

    def __enter__(self) -> GuardedResult:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()
        self.forget()

    @classmethod
    def forget(cls) -> None:
        """From now on any access to the results made so far is a mistake."""
        cls._made.clear()

    # The functions that the encoder calls.
    FUNCTIONS: ClassVar[dict[str, Any]] = {
        "PQntuples": _of_result(lambda result: len(result._rows)),
        "PQnfields": _of_result(lambda result: len(result.types)),
        "PQresultStatus": _of_result(lambda result: result.status),
        "PQclear": ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda at: GuardedResult.at(at).clear()),
        "PQftype": ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int)(
            lambda at, column: GuardedResult.at(at).types[column]
        ),
        "PQgetvalue": _of_field(ctypes.c_void_p, lambda result, row, column: result._values.get((row, column))),
        "PQgetlength": _of_field(ctypes.c_int, lambda result, row, column: len(result._rows[row][column] or b"")),
        "PQgetisnull": _of_field(ctypes.c_int, lambda result, row, column: result._rows[row][column] is None),
    }


class MadeConnection:
    """A connection on which a statement's results arrive as they please; no server, but sockets that poll can watch.

    Each result comes after some reads of the socket. `lose` ends it early, as a server does that is gone.
    """

    pgconn = 1  # any address but 0

    def __init__(self, rng: random.Random, results: Sequence[GuardedResult]) -> None:
        self._rng = rng
        self._results: Iterator[GuardedResult] = iter(results)
        self._before_the_next = 0
        self.lost = False
        self.silent = False
        self._ours, self._theirs = socket.socketpair()
        self._wake, self._wake_up = socket.socketpair()
        self.wake = self._wake.fileno()
        self.functions = {
            "PQsocket": _of_connection(lambda _: self._ours.fileno()),
            "PQisBusy": _of_connection(lambda _: self._before_the_next > 0),
            "PQconsumeInput": _of_connection(lambda _: self._consume()),
            "PQflush": _of_connection(lambda _: self._rng.random() < 0.2),
            "PQsslInUse": _of_connection(lambda _: self._rng.random() < 0.2),
            "PQgetResult": ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: self._next()),
        }
        self._pause()

    def _pause(self) -> None:
        self._before_the_next = self._rng.choice([0, 0, 0, 1, 2])
        self.silent = self._before_the_next > 0 and self._rng.random() < 0.1
        if self._before_the_next and not self.silent:
            self._theirs.send(bytes(self._before_the_next))

    def speak(self) -> None:
        """Let everything that was held back arrive."""
        if self.silent:
            self._theirs.send(bytes(self._before_the_next))
            self.silent = False

    def _consume(self) -> bool:
        if self.lost:
            return False
        if not self.silent:
            self._before_the_next -= len(self._ours.recv(1))
        return True

    def _next(self) -> int | None:
        result = next(self._results, None)
        if result is None:
            return None
        self._pause()
        return result.pgresult

    def lose(self) -> None:
        """The server is gone, and no result comes any more."""
        self.lost = True
        self._before_the_next = 1
        self._theirs.close()

    def wake_up(self) -> None:
        self._wake_up.send(b"!")

    def sleep_again(self) -> None:
        self._wake.recv(1)

    def close(self) -> None:
        for one in (self._ours, self._theirs, self._wake, self._wake_up):
            one.close()


def addresses(functions: dict[str, Any] | None = None) -> dict[str, int | None]:
    """libpq's functions, as `_encode.bind` takes them, some of them replaced."""
    every = {name: _libpq[name] for name in LIBPQ_FUNCTIONS} | (functions or {})
    return {name: ctypes.cast(function, ctypes.c_void_p).value for name, function in every.items()}


# --- What to encode. Each maker gets the buffer's capacity at the start of the batch, and the file's writing. ---


@dataclass(frozen=True)
class Writing:
    """How a file is written. always: whether every text is in quotes."""

    dialect: Dialect
    format: str

    @property
    def always(self) -> bool:
        return self.format != "ndjson" and self.dialect.quote_style != "minimal"


Table = tuple[list[list[bytes | None]], list[int]]
Maker = Callable[[random.Random, int, Writing], Table]
FORMULAS = (b"=", b"+", b"-", b"@", b"\t", b"\r")
# Texts for NULL: empty, equal to other values, with multibyte characters, larger than a buffer.
NULLS = [
    *[b"", b"\\N", b"0", b"t", b"\\.", b"\\x", b"NULL", "∅".encode(), b"-", b"'=", b"'-1"],
    *[b"a" * 8, b"n" * 31, b"n" * 800, b"n" * 5000],
]
ALPHABETS = [
    b'",\r\n\\.',
    b'"',
    b'a",',
    b"abcdefgh ",
    b"abcdefgh " * 5 + b'"',
    b"=+-@\t\r'\"a",
    bytes(range(1, 256)),
    # Special bytes with the high bit set: a search by words must not find them, nor miss a special byte next to them.
    bytes(byte ^ 0x80 for byte in b'",\r\n;|\t') + b'"',
    bytes(byte ^ 0x01 for byte in b'",\r\n;|\t') + b",",
]
LONGEST = 8192
# Values are slices of these: a choice for every byte would take most of the time.
_pools = [bytes(random.Random(0).choices(alphabet, k=2 * LONGEST)) for alphabet in ALPHABETS]


def some_writing(rng: random.Random) -> Writing:
    shape = rng.random()
    if shape < 0.1:
        return Writing(Dialect(), "ndjson")
    if shape < 0.3:
        return Writing(Dialect(), "csv")
    guard = rng.random() < 0.5
    # What guards is an apostrophe, which then cannot be the quote; nor can it be where it stands in NULL's text.
    null = rng.choice(NULLS) if rng.random() < 0.6 else b""
    quote = b'"' if guard or b"'" in null else rng.choice([b'"', b"'"])
    dialect = Dialect(
        delimiter=rng.choice(list(DELIMITERS.values())),
        quote=quote,
        quote_style=rng.choice(QUOTE_STYLES),
        null=null,
        eol=rng.choice(list(LINE_ENDS.values())),
        guard=guard,
    )
    return Writing(dialect, "csv")


def some_bytes(rng: random.Random, length: int) -> bytes:
    start = rng.randrange(LONGEST)
    return rng.choice(_pools)[start : start + length]


def some_text(rng: random.Random, writing: Writing) -> bytes | None:
    shape = rng.random()
    if shape < 0.1:
        return None
    if shape < 0.13:
        return b"\\."
    null = writing.dialect.null
    if shape < 0.2:  # what stands for NULL, what would with an apostrophe, and what only begins or ends like it
        return rng.choice([null, null[1:], null[:-1], null + b"x", null[1:] + b"x", b"x" + null[1:], null[:-1] + b"x"])
    length = rng.randrange(25) if shape < 0.9 else int(LONGEST ** rng.random())
    value = some_bytes(rng, length)
    return rng.choice(FORMULAS) + value[1:] if shape < 0.3 else value


def some_value(rng: random.Random, oid: int, writing: Writing) -> bytes | None:
    """A value as PostgreSQL may write it for this type: only text holds what needs quotes, and money a comma."""
    if oid == TEXT:
        return some_text(rng, writing)
    if rng.random() < 0.1:
        return None
    if oid == BYTEA:
        return b"\\x" + some_bytes(rng, rng.randrange(20)).hex().encode()
    number = rng.choice([0, 1, rng.randint(-(2**31), 2**31)])
    return f"${number:,}.00".encode() if oid == MONEY else str(number).encode()


def small_table(rng: random.Random, capacity: int, writing: Writing) -> Table:
    types = rng.choices([TEXT, INT4, BYTEA, MONEY], [5, 2, 1, 1], k=rng.randint(1, 6))
    rows = [[some_value(rng, oid, writing) for oid in types] for _ in range(rng.randrange(20))]
    return rows, types


def fillers(rng: random.Random, bytes_written: int, longest: int, beside: int) -> list[bytes | None]:
    """Values without special bytes that fill this many bytes, each with the bytes next to it.

    longest: of the last ones. Before each, twice its length is free, or the buffer would grow too soon.
    """
    values: list[bytes | None] = []
    while bytes_written > beside:
        most = bytes_written // 4 if bytes_written > 300 else longest
        length = max(1, min(rng.randint(most // 2, most), bytes_written - beside))
        if 0 < bytes_written - beside - length <= beside:  # too little would be left for another
            length = bytes_written - beside
        values.append(b"x" * length)
        bytes_written -= length + beside
    return values


def to_the_end(rng: random.Random, capacity: int, writing: Writing) -> Table:
    """Rows after which the largest value meets a buffer that is just too small, just large enough, or a byte larger."""
    dialect = writing.dialect
    length = rng.choice([0, 1, 2, 3, 7, 8, 9, rng.randrange(10, 400)])
    others = [b"x" * length, dialect.delimiter * length, rng.choice(FORMULAS) + dialect.quote * length]
    worst = rng.choice([dialect.quote * length, dialect.quote * length, None, dialect.null, rng.choice(others)])
    line = make_encoder(dialect, writing.format, native=False).encode(_Rows([[worst]], [TEXT]))
    in_a_row = rng.random() < 0.6
    # The separator between the last filler and the value is written with the value.
    left = max(0, len(line) + in_a_row + rng.choice([-3, -2, -1, -1, -1, 0, 1]))
    longest = max(1, min(length, 60))
    quotes = 2 if writing.always else 0
    if in_a_row:
        row = [*fillers(rng, capacity - left + 1, longest, 1 + quotes), worst]
        return [row], [TEXT] * len(row)
    beside = len(dialect.eol) + quotes
    rows: list[list[bytes | None]] = [[value] for value in fillers(rng, capacity - left, longest, beside)]
    return [*rows, [worst]], [TEXT]


class _Rows:
    """A batch for the pure encoder alone."""

    pgresult = 0

    def __init__(self, rows: Sequence[Row], types: Sequence[int]) -> None:
        self._rows = rows
        self.types = types

    def rows(self) -> Sequence[Row]:
        return self._rows


def no_columns(rng: random.Random, capacity: int, writing: Writing) -> Table:
    count = rng.choice([0, 1, capacity + rng.randint(-2, 2), capacity // 2 + rng.randint(-2, 2), 2 * capacity])
    return [[] for _ in range(min(count, 20_000))], []


def worst_growth(rng: random.Random, capacity: int, writing: Writing) -> Table:
    """Values of nothing but quotes, from a few bytes to many times what the buffer holds, behind a formula's sign."""
    sign = rng.choice([b"", b"="])
    quote = writing.dialect.quote
    rows: list[list[bytes | None]] = [[sign + quote * int(2 ** rng.uniform(0, 15)) for _ in range(2)] for _ in range(8)]
    return rows, [TEXT, TEXT]


def many_nulls(rng: random.Random, capacity: int, writing: Writing) -> Table:
    columns = rng.randint(1, 12)
    return [[None] * columns for _ in range(rng.randrange(30))], [rng.choice([TEXT, INT4])] * columns


def many_rows(rng: random.Random, capacity: int, writing: Writing) -> Table:
    types = [TEXT, rng.choice([TEXT, INT4])]
    return [[some_value(rng, oid, writing) for oid in types] for _ in range(rng.randrange(400))], types


MAKERS: list[Maker] = [
    small_table,
    small_table,
    to_the_end,
    to_the_end,
    to_the_end,
    no_columns,
    worst_growth,
    many_nulls,
    many_rows,
]


def fuzz(native: Any, rounds: int, seed: int) -> int:
    """Rounds of one encoder and a few batches each; how many bytes were compared. Raises AssertionError."""
    rng = random.Random(seed)
    compared = 0
    for number in range(rounds):
        writing = some_writing(rng)
        dialect = writing.dialect
        pure = make_encoder(dialect, writing.format, native=False)
        maker = rng.choice(MAKERS)
        types: list[int] | None = None
        encoder: Any = None
        capacity = FIRST_CAPACITY
        for _ in range(rng.randint(1, 3)):
            rows, made_types = maker(rng, capacity, writing)
            if made_types != types:  # all batches of one encoder have the same columns: these need another
                rows, types = maker(rng, FIRST_CAPACITY, writing)
                kind_of = kinds_for(dialect, writing.format)
                encoder = native.Encoder(dialect.delimiter, dialect.quote, dialect.null, dialect.eol, kind_of)
            batch = GuardedResult(rows, types) if rng.random() < 0.5 else MadeResult(rows, types)
            with batch:
                native.bind(addresses(batch.FUNCTIONS if isinstance(batch, GuardedResult) else None))
                written = encoder.encode(batch.pgresult)
                expected = pure.encode(batch)
            if written != expected:
                raise AssertionError(f"round {number}, seed {seed}, {maker.__name__}: {writing} {rows!r:.2000}")
            capacity = len(written) + len(written) // 8 + FIRST_CAPACITY
            compared += len(written)
    return compared


# How a read ended; the same numbers in server/encode/_encode.pyx.
MORE, END, FAILED, LOST, TIMED_OUT, WOKEN = range(6)


def fuzz_reads(native: Any, rounds: int, seed: int) -> int:
    """Rounds of one statement each, read in pieces; how many bytes were compared. Raises AssertionError."""
    rng = random.Random(seed)
    compared = 0
    for number in range(rounds):
        writing = some_writing(rng)
        dialect = writing.dialect
        kind_of = kinds_for(dialect, writing.format)
        maker = rng.choice(MAKERS)
        rows, types = maker(rng, FIRST_CAPACITY, writing)
        step = rng.choice([1, 2, 8, 200])
        pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
        fails = rng.random() < 0.2
        results = [GuardedResult(piece, types, PGRES_TUPLES_CHUNK) for piece in pieces]
        results.append(GuardedResult([], [] if fails else types, PGRES_FATAL_ERROR if fails else PGRES_TUPLES_OK))
        connection = MadeConnection(rng, results)
        loses = rng.random() < 0.1
        native.bind(addresses(GuardedResult.FUNCTIONS | connection.functions))
        encoder = native.Encoder(dialect.delimiter, dialect.quote, dialect.null, dialect.eol, kind_of)
        written, counted, ended = b"", 0, MORE
        while ended in (MORE, TIMED_OUT, WOKEN):
            woken = rng.random() < 0.05
            if woken:
                connection.wake_up()
            lines, count, ended = encoder.read(connection.pgconn, connection.wake, rng.choice([1, 1000, 1 << 18]), 2)
            if woken:
                connection.sleep_again()
            if ended == TIMED_OUT:
                connection.speak()
            if loses and counted:
                connection.lose()
            if ended not in (FAILED, LOST):
                written, counted = written + lines, counted + count
        what = f"round {number}, seed {seed}, {maker.__name__}: {writing} {rows!r:.2000}"
        pure = make_encoder(dialect, writing.format, native=False)
        if ended == END:
            assert written == pure.encode(_Rows(rows, types)), what
            assert counted == len(rows), what
        else:
            assert (ended == FAILED and fails) or (ended == LOST and loses), what
            assert pure.encode(_Rows(rows[:counted], types)) == written, what
        # Each result is freed once, but the one with the error is left for `failure`.
        failure = encoder.failure()
        assert failure or ended != FAILED, what
        if failure:
            assert failure == results[-1].pgresult, what
            results[-1].clear()
        if ended != LOST:
            assert [result.cleared for result in results] == [1] * len(results), what
        GuardedResult.forget()
        connection.close()
        compared += len(written)
    return compared


def main() -> None:
    folder, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.path.insert(0, folder)
    native = importlib.import_module("_encode")
    assert Path(str(native.__file__)).parent == Path(folder), "another build was found"
    compared = fuzz(native, rounds, seed) + fuzz_reads(native, rounds, seed)
    print(f"{rounds} rounds, {compared:,} bytes, all equal")


if __name__ == "__main__":
    main()

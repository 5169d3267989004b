"""Random tables, dialects and backend streams, whole or damaged, and the pieces in which they arrive.

The messages are built by fake_backend.py, without any code of `server/postgres/`.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from server.query.dialect import DELIMITERS, LINE_ENDS, QUOTE_STYLES, Dialect
from tests.support.fake_backend import (
    BOUND,
    CLOSED,
    COMPLETE,
    EMPTY_QUERY,
    INT4,
    NO_DATA,
    PARSED,
    READY,
    SUSPENDED,
    TEXT,
    description,
    error,
    message,
    notice,
    notification,
    parameter_status,
    row,
    split,
)
from tests.support.scripted_openssl import Pause, Step

# OIDs of pg_type.dat: binary data, a number that may hold commas, one with more digits than a spreadsheet keeps.
BYTEA, MONEY, INT8 = 17, 790, 20
# Bytes of the native encoder's receive buffer: a larger row is encoded field by field.
BUFFER = 64 << 10
# Bytes of a value that a reader holds without being asked.
HELD = 1 << 20
# Units that a reader has sent and that are not answered, once a portal was suspended.
UNITS_AHEAD = 3

Row = Sequence[bytes | None]
Table = tuple[list[Row], list[int]]


@dataclass(frozen=True)
class Writing:
    """How a file is written."""

    dialect: Dialect
    format: str


FORMULAS = (b"=", b"+", b"-", b"@", b"\t", b"\r", b"\n", "＝".encode(), b"\xef\xbc", b";=", b";\xef\xbc")
# Texts for NULL: empty, equal to other values, with multibyte characters, larger than the first buffer of the encoder.
NULLS = [
    *[b"", b"\\N", b"0", b"t", b"\\.", b"\\x", b"NULL", "∅".encode(), b"-"],
    *[b"a" * 8, b"n" * 31, b"n" * 800, b"n" * 5000],
]
# Those that a guarded value might look like.
GUARDED_NULLS = [b"'=", b"'-1", b"'@", b"'+n"]
# Text that ends where a search must end: none, the beginning of a full-width sign, a byte less than a word or its half.
SHORT = [b"", b"\xef\xbc", b";\xef\xbc", b"1234567", b"abcdefg", b"abc"]
ALPHABETS = [
    b'",\r\n\\.',
    b'"',
    b'a",',
    b"abcdefgh ",
    b"abcdefgh " * 5 + b'"',
    b"=+-@\t\r'\"a",
    b'=+-@\t\n;,|"a\xef\xbc\x9d',
    b"0123456789/-. e",
    bytes(range(1, 256)),
    # Special bytes with the high bit set: a search by words must not find them, nor miss a special byte next to them.
    bytes(byte ^ 0x80 for byte in b'",\r\n;|\t') + b'"',
    bytes(byte ^ 0x01 for byte in b'",\r\n;|\t') + b",",
]
LONGEST = 8192
# Values are slices of these: a choice for every byte would take most of the time.
_pools = [bytes(random.Random(0).choices(alphabet, k=2 * LONGEST)) for alphabet in ALPHABETS]


# --- Dialects and tables. ---


def some_writing(rng: random.Random) -> Writing:
    shape = rng.random()
    if shape < 0.1:
        return Writing(Dialect(), "ndjson")
    if shape < 0.3:
        return Writing(Dialect(), "csv")
    guard = rng.random() < 0.5
    # What guards is an apostrophe, which then cannot be the quote; nor can it be where it stands in NULL's text.
    null = rng.choice([*NULLS, *GUARDED_NULLS, *(GUARDED_NULLS * guard)]) if rng.random() < 0.6 else b""
    quote = b'"' if guard or b"'" in null else rng.choice([b'"', b"'"])
    dialect = Dialect(
        delimiter=rng.choice(list(DELIMITERS.values())),
        quote=quote,
        quote_style=rng.choice([*QUOTE_STYLES, "minimal"]),
        null=null,
        eol=rng.choice(list(LINE_ENDS.values())),
        guard=guard,
        protect=rng.random() < 0.4,
    )
    return Writing(dialect, "csv")


def some_bytes(rng: random.Random, length: int) -> bytes:
    start = rng.randrange(LONGEST)
    return rng.choice(_pools)[start : start + length]


def some_text(rng: random.Random, null: bytes) -> bytes | None:
    shape = rng.random()
    if shape < 0.1:
        return None
    if shape < 0.13:
        return b"\\."
    if shape < 0.16:
        return b""
    if shape < 0.23:  # what stands for NULL, what would with an apostrophe, and what only begins or ends like it
        return rng.choice([null, null[1:], null[:-1], null + b"x", null[1:] + b"x", b"x" + null[1:], null[:-1] + b"x"])
    length = rng.randrange(25) if shape < 0.9 else int(LONGEST ** rng.random())
    value = some_bytes(rng, length)
    return rng.choice(FORMULAS) + value[1:] if shape < 0.33 else value


def some_value(rng: random.Random, oid: int, null: bytes) -> bytes | None:
    """Return a value as PostgreSQL may write it for this type: only text needs quotes, and money holds a comma."""
    if oid == TEXT:
        return some_text(rng, null)
    if rng.random() < 0.1:
        return None
    if oid == BYTEA:
        return b"\\x" + some_bytes(rng, rng.randrange(20)).hex().encode()
    most = 2**63 if oid == INT8 else 2**31
    number = rng.choice([0, 1, rng.randint(-most, most)])
    return f"${number:,}.00".encode() if oid == MONEY else str(number).encode()


def small_table(rng: random.Random, dialect: Dialect) -> Table:
    types = rng.choices([TEXT, INT4, INT8, BYTEA, MONEY], [5, 1, 1, 1, 1], k=rng.randint(1, 6))
    return [[some_value(rng, oid, dialect.null) for oid in types] for _ in range(rng.randrange(12))], types


def many_rows(rng: random.Random, dialect: Dialect) -> Table:
    types = [TEXT, rng.choice([TEXT, INT4])]
    return [[some_value(rng, oid, dialect.null) for oid in types] for _ in range(rng.randrange(200))], types


def no_columns(rng: random.Random, dialect: Dialect) -> Table:
    return [[] for _ in range(rng.choice([0, 1, 3, 1000]))], []


def most_columns(rng: random.Random, dialect: Dialect) -> Table:
    values = [b"7", None, some_value(rng, INT4, dialect.null), some_value(rng, INT4, dialect.null)]
    return [rng.choices(values, k=1600) for _ in range(rng.randrange(3))], [rng.choice([TEXT, INT4])] * 1600


def most_quotes(rng: random.Random, dialect: Dialect) -> Table:
    """Make values of nothing but quotes, from a few bytes to more than the receive buffer, some behind a sign."""
    sign = rng.choice([b"", b"="])
    rows: list[Row] = [[sign + dialect.quote * int(2 ** rng.uniform(0, 16.2)) for _ in range(2)] for _ in range(5)]
    return rows, [TEXT, TEXT]


def many_nulls(rng: random.Random, dialect: Dialect) -> Table:
    columns = rng.randint(1, 12)
    return [[None] * columns for _ in range(rng.randrange(30))], [rng.choice([TEXT, INT4])] * columns


def one_value(rng: random.Random, dialect: Dialect) -> Table:
    """Make rows as large as the receive buffer, but for a few bytes."""
    value = rng.choice([b"v", dialect.quote, b"\n"])
    # Its header, the number of its fields and the length of its field take 11 bytes of a message.
    return [[value * (BUFFER - 11 + rng.randint(-3, 3))] for _ in range(rng.randint(1, 3))], [TEXT]


def large_rows(rng: random.Random, dialect: Dialect) -> Table:
    types = rng.choices([TEXT, INT8, BYTEA], [4, 1, 1], k=rng.randint(1, 5))
    rows: list[Row] = []
    for _ in range(rng.randint(1, 3)):
        values = [some_value(rng, oid, dialect.null) for oid in types]
        for at in range(len(types)):
            if types[at] == TEXT and rng.random() < 0.2:
                values[at] = rng.choice(SHORT)
            elif types[at] == TEXT and rng.random() < 0.6:
                value = rng.choice([b"", some_bytes(rng, rng.randrange(1, 9)), dialect.quote, *FORMULAS[:3]])
                filler = rng.choice([dialect.quote, b"x", b"x", b"\n", some_bytes(rng, 5000)])
                values[at] = value + filler * (rng.randint(30_000, 100_000) // len(filler))
        rows.append(values)
    return rows, types


def held_rows(rng: random.Random, dialect: Dialect) -> Table:
    """Make values of more than a reader holds at once. Few need quotes, some only for their last bytes."""
    value = rng.choice([b"", *FORMULAS]) + b"x" * (HELD + rng.randint(-3, 70_000))
    return [[value + rng.choice([b"", b"", dialect.quote, b"\n", *FORMULAS]), rng.choice([None, b"y"])]], [TEXT, TEXT]


MAKERS: list[Callable[[random.Random, Dialect], Table]] = [
    *([small_table] * 8),
    *([many_rows] * 2),
    *([no_columns] * 2),
    *([most_columns] * 2),
    *([most_quotes] * 2),
    *([many_nulls] * 2),
    *([one_value] * 2),
    *([large_rows] * 6),
    held_rows,
]


# --- Streams: what a backend answers to the portals of one connection. ---


@dataclass(frozen=True)
class Stream:
    """The messages of a backend.

    starts: the arguments of `RowReader.start`, one for each statement. rows: those of each statement that ends, and the
    rows before an error. fails: whether it ends with an error. damaged: whether it is no longer as made.
    """

    types: list[int]
    messages: list[bytes]
    starts: list[tuple[bytes, int, bytes]]
    rows: list[list[Row]]
    fails: bool
    damaged: bool = False

    @property
    def data(self) -> bytes:
        return b"".join(self.messages)


def some_stream(rng: random.Random, dialect: Dialect) -> Stream:
    rows, types = rng.choice(MAKERS)(rng, dialect)
    opening = [PARSED, BOUND, description(types)]
    made = _in_batches if rng.random() < 0.35 else _statements
    stream = made(rng, opening, rows, types)
    return replace(stream, messages=list(_with_others_between(rng, stream.messages)))


def _statements(rng: random.Random, opening: list[bytes], rows: list[Row], types: list[int]) -> Stream:
    """Make one to three statements. The first with an error makes the later ones fail too."""
    count = rng.randint(1, 3)
    fails = rng.random() < 0.2
    failing = rng.randrange(count) if fails else count
    parts = _parts(rng, rows, count)
    messages: list[bytes] = []
    for number, part in enumerate(parts[:failing]):
        # Columns are described again where the text of the SELECT is another one.
        described = number == 0 or rng.random() < 0.2
        messages += [*(opening if described else [CLOSED, BOUND]), *[row(*values) for values in part], COMPLETE, READY]
    if fails:
        part = parts[failing]
        messages += [*opening, *[row(*values) for values in part], _failure(rng), READY]
        messages += [_failure(rng), READY] * (count - failing - 1)
    starts = [(b"statement %d;" % number, 1, b"") for number in range(count)]
    return Stream(types, messages, starts, parts[: failing + 1], fails)


def _in_batches(rng: random.Random, opening: list[bytes], rows: list[Row], types: list[int]) -> Stream:
    """Make one statement whose portal is suspended after each batch but the last, and the units ahead of it."""
    parts = _parts(rng, rows, rng.randint(1, 5))
    units = rng.randint(1, UNITS_AHEAD)
    fails = rng.random() < 0.2
    messages = list(opening)
    for part in parts[:-1]:
        messages += [*[row(*values) for values in part], SUSPENDED, READY]
    ending = _failure(rng) if fails else COMPLETE
    messages += [*[row(*values) for values in parts[-1]], ending, READY]
    # Each suspended portal fills up the units ahead, and its own was answered.
    messages += [ending, READY] * ((UNITS_AHEAD - 1 if len(parts) > 1 else units) - 1)
    return Stream(types, messages, [(b"open;", units, b"next;")], [rows], fails)


def _parts(rng: random.Random, rows: list[Row], count: int) -> list[list[Row]]:
    edges = [0, *sorted(rng.choices(range(len(rows) + 1), k=count - 1)), len(rows)]
    return [rows[start:end] for start, end in itertools.pairwise(edges)]


def _failure(rng: random.Random) -> bytes:
    text = "x" * rng.choice([3, 3, 3, 70_000, 300_000])
    return error(S="ERROR", V="ERROR", C="22012", M="division by zero", D=text)


def _with_others_between(rng: random.Random, messages: list[bytes]) -> list[bytes]:
    """Put messages between the others that mean nothing to the reader."""
    likely = rng.choice([0, 0, 0.05, 0.5])
    found = []
    for each in messages:
        if rng.random() < likely:
            text = "n" * rng.choice([1, 1, 1, 1, 10, 70_000])
            others = [notice(text), parameter_status(b"name", text.encode()), notification(text.encode())]
            found.append(rng.choice([*others, EMPTY_QUERY, NO_DATA, message(b"t", b"\0\0")]))
        found.append(each)
    return found


# --- Damage. ---

LENGTHS = [*range(9), -1, -2, 0x7FFFFFFF, 0x7FFFFFFE, -0x80000000, BUFFER - 1, BUFFER, BUFFER + 1]


def damaged(rng: random.Random, stream: Stream) -> Stream:
    """Return a stream in which a message was changed, taken away, repeated or added, or whose end is missing."""
    messages = list(stream.messages)
    rows = [at for at, each in enumerate(messages) if each[:1] == b"D"]
    at = rng.choice(rows) if rows and rng.random() < 0.6 else rng.randrange(len(messages))
    changed = messages[at]
    damage = rng.choice([*(_DAMAGES_OF_ROWS if changed[:1] == b"D" else []), *_DAMAGES])
    messages[at : at + 1] = damage(rng, changed)
    if rng.random() < 0.4:  # nothing comes after it
        del messages[at + 1 :]
    if rng.random() < 0.2:
        end = len(messages[-1]) if messages else 0
        messages[-1:] = [messages[-1][: rng.choice([end - 1, rng.randrange(end + 1), 5])]] if end else []
    return replace(stream, messages=messages, damaged=True)


def _with_other_length(rng: random.Random, changed: bytes) -> list[bytes]:
    true = len(changed) - 1
    length = rng.choice([*LENGTHS, 3, 5, true - 1, true + 1, true - 1, true + 1, true + 4])
    return [changed[:1] + struct.pack("!I", length & 0xFFFFFFFF) + changed[5:]]


def _with_other_type(rng: random.Random, changed: bytes) -> list[bytes]:
    return [bytes([rng.choice([*b"123ACDEINSTZnst", rng.randrange(256)])]) + changed[1:]]


def _with_other_byte(rng: random.Random, changed: bytes) -> list[bytes]:
    at = rng.randrange(min(len(changed), rng.choice([12, 1 << 30])))
    return [changed[:at] + bytes([changed[at] ^ 1 << rng.randrange(8)]) + changed[at + 1 :]]


def _with_other_size(rng: random.Random, changed: bytes) -> list[bytes]:
    """Make the body longer or shorter, with the length that it has then."""
    body = changed[5:]
    body = body[: -rng.randint(1, 9)] if rng.random() < 0.6 else body + bytes(rng.randint(1, 9))
    return [message(changed[:1], body if rng.random() < 0.8 else body[: rng.randrange(7)])]


def _cut_in_a_length(rng: random.Random, changed: bytes) -> list[bytes]:
    """Let a DataRow end within the number of its fields or within the length of one. Its own length is true."""
    at = rng.choice([5, *_field_lengths(changed)[-3:]])
    return [message(b"D", changed[5 : at + rng.choice([1, 1, 3, 3, 0, 2])])]


def _missing(rng: random.Random, changed: bytes) -> list[bytes]:
    return []


def _repeated(rng: random.Random, changed: bytes) -> list[bytes]:
    return [changed, changed]


def _with_another_before(rng: random.Random, changed: bytes) -> list[bytes]:
    others = [SUSPENDED, READY, COMPLETE, description([TEXT]), row(), row(b"a"), row(b"x" * BUFFER), some_bytes(rng, 9)]
    return [rng.choice(others), changed]


def _with_other_fields(rng: random.Random, changed: bytes) -> list[bytes]:
    """Change the number of fields, or the length of a field, of a DataRow."""
    body = bytearray(changed[5:])
    lengths = _field_lengths(changed)
    if not lengths or rng.random() < 0.15:
        count = rng.choice([0, 1, len(lengths) + 1, max(0, len(lengths) - 1), 0xFFFF])
        body[:2] = struct.pack("!H", count)
    else:
        at = rng.choice([lengths[-1], rng.choice(lengths)]) - 5
        (length,) = struct.unpack_from("!i", body, at)
        left = len(body) - at - 4
        others = [-2, 0] if length == -1 else [length + 1, length + 1, length - 1, -2, -1, 0]
        struct.pack_into("!i", body, at, rng.choice([*others, 0x7FFFFFFF, left, left + 1]))
    if rng.random() < 0.1:  # 2 GB, of which no more comes than this
        return [message(b"D", bytes(body), length=0x7FFFFFFF)]
    return [message(b"D", bytes(body))]


_DAMAGES: list[Callable[[random.Random, bytes], list[bytes]]] = [
    _with_other_length,
    _with_other_length,
    _with_other_type,
    _with_other_byte,
    _with_other_size,
    _with_other_size,
    _missing,
    _repeated,
    _with_another_before,
]
_DAMAGES_OF_ROWS = [*([_with_other_fields] * 4), *([_cut_in_a_length] * 2)]


# --- Pieces. ---


def _field_lengths(changed: bytes, most: int = 1 << 30) -> list[int]:
    """Return where the lengths of a DataRow's fields begin."""
    (count,) = struct.unpack_from("!H", changed.ljust(7, b"\0"), 5)
    at = 7
    found: list[int] = []
    while len(found) < min(count, most) and at + 4 <= len(changed):
        found.append(at)
        at += 4 + max(0, struct.unpack_from("!i", changed, at)[0])
    return found


def _edges(messages: Sequence[bytes]) -> list[int]:
    """Return places at which a message, or a part of it, begins or ends."""
    start = 0
    found: list[int] = []
    for each in messages:
        found += [start, start + 5, start + 7] if len(each) >= 7 else [start]
        if each[:1] == b"D":
            for at in _field_lengths(each, 8):
                found += [start + at, start + at + 4]
        start += len(each)
    return [*found, start]


def some_script(rng: random.Random, stream: Stream) -> list[Step]:
    """Cut the stream into pieces, with pauses between them."""
    data = stream.data
    length = len(data)
    style = rng.random()
    places: set[int] = set()
    if style < 0.2 and length < 1500:
        places = set(range(length))
    elif style < 0.4:
        places = set(itertools.accumulate(map(len, stream.messages)))
    elif style < 0.8:
        edges = rng.choices(_edges(stream.messages), k=rng.randint(1, 12))
        if rng.random() < 0.3:  # the last messages, most of which decide what happens
            edges += _edges(stream.messages)[-12:]
        places = {place + rng.choice([-2, -1, -1, 0, 0, 0, 1]) for place in edges}
    elif style < 0.95 and length:
        places = set(rng.choices(range(length), k=rng.randint(1, 5)))
    script: list[Step] = []
    pauses = rng.choice([[], [Pause.AGAIN], [Pause.AGAIN, Pause.WAKE]])
    for piece in split(data, sorted(place for place in places if 0 < place < length)):
        if pauses and rng.random() < 0.2:
            script.append(rng.choice(pauses))
        script.append(piece)
    if rng.random() < 0.1:  # the encoder waits for more rows then, some milliseconds
        script.insert(rng.randrange(len(script) + 1), Pause.QUIET)
    return script

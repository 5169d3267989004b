"""Both encoders against the PostgreSQL manual's rules for CSV and the dialect's own, over messages without a server.

The rules are written down here a second time, without any code of `server/encode/`. What a real server writes is tested
in tests/export/test_differential.py and test_dialects.py; how its messages are read, in tests/postgres/test_portal.py.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.encode import encoders as pure_encoder
from server.encode.encoders import choose_encoders, file_start
from server.postgres import reader as row_reader
from server.postgres.portal import PortalReader
from server.postgres.reader import END, LOST, MORE, ROOM, RowReader
from server.postgres.wire import Wire
from server.query.dialect import DELIMITERS, LINE_ENDS, QUOTE_STYLES, Dialect
from tests.support.engines import encoders
from tests.support.fake_backend import BOOL, COMPLETE, INT4, JSON, READY, TEXT, FakeBackend, description
from tests.support.fake_backend import row as data_row
from tests.support.optional import CI

Row = Sequence[bytes | None]

ROOT = Path(__file__).parents[2]
# Bytes that need quotes, and bytes that differ from them in one bit, which a search by words might confuse.
SPECIAL = b'",\r\n'
NEARLY_SPECIAL = sorted({byte ^ 1 << bit for byte in SPECIAL for bit in range(8)} - {0} - set(SPECIAL))
# OIDs of pg_type.dat: binary data, a number that may hold commas, numbers with more digits than a spreadsheet keeps.
BYTEA, MONEY, INT8, NUMERIC = 17, 790, 20, 1700
# Bytes of the native encoder's receive buffer: a larger row is encoded field by field as it arrives.
BUFFER = 64 << 10

DEFAULT = Dialect()
LINE_BREAKS_AS_SPACES = bytes.maketrans(b"\r\n", b"  ")

# Without a compiler there is no native encoder, and only the pure one is tested. CI must have it.
NATIVE = importlib.util.find_spec("server.encode._encode") is not None
needs_native = pytest.mark.skipif(not NATIVE and not CI, reason="the native encoder is not built here")


@needs_native
def test_the_native_encoder_is_among_those_compared() -> None:
    assert NATIVE


def numbers_in_the_native_encoder() -> dict[str, int]:
    """Every constant of an enum in `_encode.pyx`, by name."""
    source = (ROOT / "server" / "encode" / "_encode.pyx").read_text()
    found = re.findall(r"^    ([A-Z_]+) = (\d+)(?: << (\d+))?\b", source, re.MULTILINE)
    return {name: int(number) << int(shift or 0) for name, number, shift in found}


@pytest.mark.parametrize("module", [pure_encoder, row_reader], ids=["kinds of columns", "reads"])
def test_python_and_the_native_encoder_have_the_same_numbers(module: ModuleType) -> None:
    native = numbers_in_the_native_encoder()
    shared = {name: number for name, number in vars(module).items() if name in native}
    expected = {"PLAIN", "SCAN", "ALWAYS", "GUARD", "JSON", "PROTECT", "LONG"}
    if module is row_reader:
        expected = {"MORE", "END", "FAILED", "LOST", "TIMED_OUT", "WOKEN", "ROOM", "LINGER", "UNITS_AHEAD"}
        expected |= {"LARGE_BYTES", "HELD_BYTES"}
    assert shared == {name: native[name] for name in expected}


def test_both_encoders_know_the_same_names_in_dates() -> None:
    for name in (name.encode() for name in DATE_NAMES):
        assert assert_all_agree([[name + b" 5"]], dialect=Dialect(protect=True)) == b'"=""%b 5"""\n' % name
        other = name[:2] + b"q 5"
        assert assert_all_agree([[other]], dialect=Dialect(protect=True)) == other + b"\n"


# Types whose values are not text: numbers, dates and times, booleans, UUIDs (the rule for quote=strings).
NO_TEXT = {
    "boolean": 16,
    "bigint": 20,
    "smallint": 21,
    "integer": 23,
    "oid": 26,
    "real": 700,
    "double precision": 701,
    "money": 790,
    "date": 1082,
    "time": 1083,
    "timestamp": 1114,
    "timestamptz": 1184,
    "interval": 1186,
    "timetz": 1266,
    "numeric": 1700,
    "uuid": 2950,
}
# Types whose values are text: built-in, an array and user-defined.
SOME_TEXT = {
    "bytea": 17,
    '"char"': 18,
    "name": 19,
    "int2vector": 22,
    "text": 25,
    "tid": 27,
    "xid": 28,
    "json": 114,
    "point": 600,
    "xml": 142,
    "pg_lsn": 3220,
    "cidr": 650,
    "macaddr": 829,
    "inet": 869,
    "integer[]": 1007,
    "bpchar": 1042,
    "varchar": 1043,
    "bit": 1560,
    "jsonb": 3802,
    "int4range": 3904,
    "an enum": 16385,
    "the largest OID": 4294967295,
}


# Text that holds only numbers, in which a minus sign begins no formula.
ONLY_NUMBERS = {name: SOME_TEXT[name] for name in ("int2vector", "tid", "point", "integer[]", "int4range")}
SIGNS = tuple(sign.encode() for sign in "=+-@＝＋－＠")
LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") | frozenset(range(128, 256))
DATE_NAMES = [
    *["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "mrz", "mai", "okt", "dez"],
    *["fev", "avr", "jui", "aou", "ene", "abr", "ago", "dic", "gen", "mag", "giu", "lug", "set", "ott", "out", "mrt"],
    *["mei", "mon", "tue", "wed", "thu", "fri", "sat", "sun"],
]


@functools.lru_cache(1000)
def guarded_by_the_rules(text: bytes) -> bytes:
    """Put an apostrophe before text that begins like a formula, and before each formula after a separator in it."""
    output = bytearray()
    for place in range(len(text)):
        begins_cell = place == 0
        if place and text[place] in b"=+-@\xef":
            before = place - 1
            while before >= 0 and text[before] == ord('"'):
                before -= 1
            begins_cell = before >= 0 and text[before] in b",;|\t\r\n"
        if begins_cell and (text.startswith(SIGNS, place) or (place == 0 and text[0] in b"\t\r\n")):
            output += b"'"
        output.append(text[place])
    return bytes(output)


@functools.lru_cache(1000)
def changed_by_the_rules(text: bytes) -> bool:
    """Return whether a spreadsheet may take the text for a number, a date, a time or a truth value."""
    if text.lower() in (b"true", b"false"):
        return True
    if len(text) > 255 or not any(byte in b"0123456789" for byte in text):
        return False
    first_digit = min(text.find(digit) for digit in b"0123456789" if digit in text)
    place = 0
    while place < len(text):
        end = place
        while end < len(text) and text[end] in LETTERS:
            end += 1
        word = text[place:end].decode("latin-1").lower()
        if not word:
            if text[place] not in b"0123456789 .,:/+-()%'$":
                return False
            end += 1
        elif place > first_digit and word in ("e", "a", "am", "p", "pm", "t", "z"):
            pass
        elif word.isascii() and word[:3] not in DATE_NAMES:
            return False
        place = end
    return True


def for_spreadsheets_by_the_rules(value: bytes, oid: int | None, dialect: Dialect) -> bytes:
    """Apply guard and protection. oid: the type of the column; None for text."""
    if oid in (INT8, NUMERIC):
        is_long = re.fullmatch(rb"-?\d{16,}", value) and len(value) <= 255
        return b'="%b"' % value if dialect.protect and is_long else value
    if oid in NO_TEXT.values():
        return value
    guarded = guarded_by_the_rules(value) if dialect.guard and oid not in ONLY_NUMBERS.values() else value
    if dialect.protect and changed_by_the_rules(value) and guarded.removeprefix(b"'") == value.removeprefix(b"'"):
        return b'="%b"' % value
    return guarded


def written_by_the_rules(rows: Sequence[Row], types: Sequence[int] | None = None, dialect: Dialect = DEFAULT) -> bytes:
    """Apply the rules of the PostgreSQL manual (COPY, "CSV Format") and of the docstring of Dialect, byte by byte."""
    (quote,) = dialect.quote
    output = bytearray()
    for row in rows:
        for position, value in enumerate(row):
            is_text = types is None or types[position] not in NO_TEXT.values()
            if position > 0:
                output += dialect.delimiter
            # "Specifies the string that represents a null value."
            if value is None:
                output += dialect.null
                continue
            written = for_spreadsheets_by_the_rules(value, None if types is None else types[position], dialect)
            # "FORCE_QUOTE: Forces quoting to be used for all non-NULL values"; strings does so for text alone.
            quoted = dialect.quote_style == "all" or (dialect.quote_style == "strings" and is_text)
            # "a data value that matches the NULL string is quoted", and with the empty string as NULL "an empty
            # string data value is written with double quotes"; what ends up in the file is what counts.
            if written == dialect.null:
                quoted = True
            # "To avoid any misinterpretation, a \\. data value appearing as a lone entry on a line is
            # automatically quoted on output".
            if len(row) == 1 and written == b"\\.":
                quoted = True
            # "If the value contains the delimiter character, the QUOTE character, … a carriage return, or line feed
            # character, then the whole value is prefixed and suffixed by the QUOTE character"
            for byte in written:
                if byte in (dialect.delimiter[0], quote, 13, 10):
                    quoted = True
            if quoted:
                output.append(quote)
            for byte in written:
                # "and any occurrence within the value of a QUOTE character or the ESCAPE character is preceded by
                # the escape character", which is the quote itself by default.
                if byte == quote:
                    output.append(quote)
                output.append(byte)
            if quoted:
                output.append(quote)
        output += dialect.eol
    return bytes(output)


def encode(reader: RowReader, rows: Sequence[Row], types: Sequence[int] | None = None) -> bytes:
    """Let the reader read these rows, as a statement of its own. types: text where none are given."""
    types = [TEXT] * (len(rows[0]) if rows else 1) if types is None else types
    stream = b"".join([description(types), *[data_row(*values) for values in rows], COMPLETE, READY])
    reader.start(b"messages", 1, b"")
    lines, count, ended = [], 0, MORE
    with FakeBackend() as backend:
        if len(stream) < BUFFER:
            backend.send(stream)
        else:
            backend.play([stream])
        while ended in (MORE, ROOM):
            if ended == ROOM:
                reader.hold()
            some, more, ended = reader.read(backend.wire, backend.wake, 1 << 40, 20_000)
            lines.append(some)
            count += more
    assert (ended, count, reader.clean) == (END, len(rows), True)
    return b"".join(lines)


def readers(dialect: Dialect, format: str = "csv") -> list[RowReader]:
    """Return the native encoder, where it is built, and the one in Python."""
    return [encoders(native=native).reader(dialect, format) for native in ([True, False] if NATIVE else [False])]


def assert_all_agree(
    rows: Sequence[Row], types: Sequence[int] | None = None, dialect: Dialect = DEFAULT, format: str = "csv"
) -> bytes:
    """Assert that both encoders and the rules write the same bytes, and return them."""
    if format == "ndjson":
        expected = b"".join(value.translate(LINE_BREAKS_AS_SPACES) + b"\n" for (value,) in rows if value is not None)
    else:
        expected = written_by_the_rules(rows, types, dialect)
    for reader in readers(dialect, format):
        written = encode(reader, rows, types)
        # Compared outside the assertion: pytest would take minutes to show how megabytes differ.
        differs = written != expected
        assert not differs, f"{reader}, {dialect}: {written[:500]!r}, the rules: {expected[:500]!r}"
    return expected


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([[b"a"]], b"a\n"),
        ([[b"a", b"b"], [b"c", b"d"]], b"a,b\nc,d\n"),
        # NULL is empty, the empty string is quoted.
        ([[None]], b"\n"),
        ([[b""]], b'""\n'),
        ([[None, b""], [b"", None]], b',""\n"",\n'),
        ([[None, None, None]], b",,\n"),
        ([[None], [None], [None]], b"\n\n\n"),
        # Values are quoted only if needed, and quotes inside are doubled.
        ([[b"a,b"]], b'"a,b"\n'),
        ([[b'a"b']], b'"a""b"\n'),
        ([[b'"']], b'""""\n'),
        ([[b'""']], b'""""""\n'),
        ([[b"a\nb"]], b'"a\nb"\n'),
        ([[b"a\rb"]], b'"a\rb"\n'),
        ([[b"a\r\nb"]], b'"a\r\nb"\n'),
        ([[b"\n"]], b'"\n"\n'),
        ([[b" a "]], b" a \n"),
        ([[b"a;b|c\td'e"]], b"a;b|c\td'e\n"),
        ([[b"=1+1", b"-1"]], b"=1+1,-1\n"),
        ([[b"NULL", b"\\N"]], b"NULL,\\N\n"),
        # The end-of-data mark is quoted only if it is alone on its line.
        ([[b"\\."]], b'"\\."\n'),
        ([[b"\\.", b"\\."]], b"\\.,\\.\n"),
        ([[b"\\.", None]], b"\\.,\n"),
        ([[b"\\.."], [b"\\"], [b"."], [b"a\\."]], b"\\..\n\\\n.\na\\.\n"),
        # Bytes are not interpreted.
        (["größe 🦥 \u2028".encode().split(b" ")], "größe,🦥,\u2028\n".encode()),
        ([[b"\xff\xfe", b"\x80"]], b"\xff\xfe,\x80\n"),
        ([[b"\x01\x1b\x7f"]], b"\x01\x1b\x7f\n"),
        # No rows, no columns.
        ([], b""),
        ([[]], b"\n"),
        ([[], [], []], b"\n\n\n"),
    ],
)
def test_values_are_written_as_copy_writes_them(rows: Sequence[Row], lines: bytes) -> None:
    assert assert_all_agree(rows, types=[TEXT] * len(rows[0]) if rows else None) == lines


@pytest.mark.parametrize("columns", [0, 1, 2, 1600])
def test_no_rows_are_no_bytes(columns: int) -> None:
    assert assert_all_agree([], types=[TEXT] * columns) == b""


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("around", [b"a", b"\xff", b"\x80"])
def test_a_special_byte_is_found_at_every_place(special: int, around: bytes) -> None:
    # Up to three words and the overlapping last one: each length, with the byte at every place.
    rows = [
        [around * place + bytes([special]) + around * (length - place - 1)]
        for length in range(1, 26)
        for place in range(length)
    ]
    assert assert_all_agree(rows).startswith(b'"')


@pytest.mark.parametrize("byte", NEARLY_SPECIAL)
def test_a_byte_that_only_looks_special_needs_no_quotes(byte: int) -> None:
    rows = [
        [b"a" * place + bytes([byte]) + b"a" * (length - place - 1)]
        for length in range(1, 26)
        for place in range(length)
    ]
    assert b'"' not in assert_all_agree(rows)


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_byte_is_found_next_to_every_byte(special: int) -> None:
    # A borrow between the bytes of a word must neither hide a special byte nor invent one.
    neighbours = [bytes([byte]) for byte in range(1, 256)]
    rows = [[b"1234567" + byte + bytes([special]) + byte + b"7654321"] for byte in neighbours]
    rows += [[b"123" + byte * 2 + b"456"] for byte in neighbours]
    assert_all_agree(rows)


def test_plain_types_are_copied_as_they_are() -> None:
    rows: list[Row] = [[b"1", b"-2147483648", b"a,b"], [None, b"0", None], [b"7" * 25, None, b""]]
    assert assert_all_agree(rows, types=[INT4, INT4, TEXT]) == b'1,-2147483648,"a,b"\n,0,\n' + b"7" * 25 + b',,""\n'


@pytest.mark.parametrize("oid", [17, 1700, 2950, 18, 19, 25, 114, 0, 4294967295])
def test_any_type_may_be_null_or_empty(oid: int) -> None:
    assert assert_all_agree([[None, b""], [b"", None]], types=[oid, oid]) == b',""\n"",\n'


@pytest.mark.parametrize("delimiter", [b",", b";", b"|", b"\t"])
@pytest.mark.parametrize("quote", [b'"', b"'"])
def test_each_delimiter_and_quote_needs_quotes(delimiter: bytes, quote: bytes) -> None:
    dialect = Dialect(delimiter=delimiter, quote=quote)
    rows = [
        [b"12345678"[:place] + bytes([byte]) + b"12345678"[place:], bytes([byte])]
        for byte in b",;|\t\"'\r\n\\"
        for place in range(9)
    ]
    assert_all_agree(rows, dialect=dialect)


def test_the_widest_possible_relation() -> None:
    wide: Row = [b"x", None, b"", b"a,b"] * 400
    assert len(wide) == 1600
    assert_all_agree([wide] * 3)


@pytest.mark.parametrize(
    "value",
    [
        b"x" * 5_000_000,
        b'"' * 1_000_000,  # the largest growth: every byte is doubled
        b"x" * 999_999 + b",",
        b"," + b"x" * 999_999,
    ],
    ids=["5 MB", "1 MB of quotes", "the last byte is special", "the first byte is special"],
)
def test_a_large_value(value: bytes) -> None:
    assert_all_agree([[b"before"], [value], [b"after"]])


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 100, 2046, 4095, 4096, 4097])
def test_all_quotes_at_any_length(length: int) -> None:
    assert_all_agree([[b'"' * length, b'"' * length]] * 3)
    assert_all_agree([[b'"' * length]] * 3)


@pytest.mark.parametrize("filler", [b"x", b'"', b"\r\n", b"=,", ';"＝'.encode()])
@pytest.mark.parametrize("size", [*range(BUFFER - 20, BUFFER + 4), 3 * BUFFER])
def test_a_row_as_large_as_the_receive_buffer(size: int, filler: bytes) -> None:
    assert_all_agree([[b"before", filler * (size // len(filler))], [None, b"after"]], dialect=Dialect(guard=True))


def test_a_buffer_grows_many_times_after_a_tiny_statement() -> None:
    tiny: list[Row] = [[b"x", None, None]]
    large: list[Row] = [[b"%d" % number, b'"' * (number % 50), None] for number in range(20_000)]
    expected = written_by_the_rules(large)
    for reader in readers(DEFAULT):
        assert encode(reader, tiny) == b"x,,\n"
        grown = encode(reader, large) == expected
        assert grown
        assert encode(reader, tiny) == b"x,,\n"


def test_rows_without_columns_fill_more_than_a_buffer() -> None:
    assert assert_all_agree([[]] * 10_000, types=[]) == b"\n" * 10_000


VALUES = st.none() | st.one_of(
    st.binary(max_size=30),
    st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"\\.", b"a", b"12345678", b"\xff"])).map(b"".join),
    st.binary(min_size=1, max_size=3).map(lambda repeated: repeated * 700),
)
TABLES = st.integers(1, 6).flatmap(lambda columns: st.lists(st.lists(VALUES, min_size=columns, max_size=columns)))


@given(TABLES)
@example([[b"\\."]])
@example([[b"1234567,"], [b"12345678,"], [b"x" * 15 + b","]])
def test_any_table_is_written_the_same_by_both(rows: list[Row]) -> None:
    assert_all_agree(rows)


# --- Dialects. ---

# Texts for NULL: empty, equal to other values, the end-of-data mark, with multibyte characters.
NULLS = [
    *[b"", b"0", b"t", b"true", b"-1", b"\\N", b"\\.", b"NULL", b" ", b"\\x", "∅".encode(), "ø🦥".encode(), b"n" * 300],
    # Values that are guarded, and values that look guarded.
    *[b"=1+1", b"-", b"'-", b"'=1+1"],
]
FORMULAS = [
    *[b"=1+1", b"+1", b"-1", b"@SUM(A1)", b"\tx", b"\rx", b"\nx", b"=", b"+", b"-", b"@", b"\t", b"\r", b"\n"],
    *["＝1".encode(), "＋1".encode(), "－1".encode(), "＠SUM(A1)".encode(), "＝".encode()],
]
FORMULAS_WITHIN = [
    *[b"x;=1+1", b"x\t=1+1", b"x,-1", b"x|@a", b"x\n+1", b"x\r\n-1", b'x;"=1', b'x;""=1', b";=", b"\t=1", b"=1;=1;=1"],
    *["x;＝1".encode(), "12345678;＠".encode(), b"123456,=", b"1234567,=", b"12345678,=", b"123456789012345;-1"],
]
NOT_QUITE_FORMULAS = [
    *[
        b"",
        b" =1",
        b"'=1",
        b"a=1",
        b"1-1",
        b'"=1',
        b"<",
        b"?",
        b"\x08",
        b"x;1",
        b"x; =1",
        b"x;'=1",
        b'x"=1',
        b"x;",
        b";",
    ],
    *["！1".encode(), "x;！".encode(), b"\xef", b"\xef\xbc", b"x;\xef", b"x;\xef\xbc", b"\xef\xbd\x9d", b"x;\xefa\x9d"],
]
LIKE_NUMBERS = [b"007", b"1e5", b"12/1", b"TRUE", b"false", b"MARCH1", b"3 pm", b"1234567890123456"]
NOT_LIKE_NUMBERS = [b"0x7", b"a1", b"1b", b"Room 5", b"true 1", b"truer", b"may", b"1;2", b"1\n2", b"e5"]
TEXTS = [
    b"a",
    b"a,b",
    b"a;b",
    b"a|b",
    b"a\tb",
    b'say "hi"',
    b"two\nlines",
    b"cr\rlf\r\n",
    b"\\.",
    b"12345678" * 3 + b";",
]
NUMBERS = [b"0", b"1", b"-1", b"-2147483648", b"t", b"-1.5e-07", b"NaN", b"-Infinity", b"2024-02-29", b"n" * 300]
LONG = [b"9" * 15, b"9" * 16, b"-" + b"9" * 15, b"-" + b"9" * 16, b"9" * 16 + b".5", b"NaN", b"-1"]
MONIES = [b"$0.00", b"-$1,234.56", b"$1.000,50", b"-1"]


def awkward_rows(null: bytes) -> tuple[list[Row], list[int]]:
    """Rows with a column of each kind of type, with each value, NULL, and values that look like NULL."""
    like_null = [null, null + null or b"x", null[:-1] + b"x", b"x" + null[1:]]
    text = [None, *like_null, *FORMULAS, *FORMULAS_WITHIN[:3], *NOT_QUITE_FORMULAS[:9], *LIKE_NUMBERS[:3], *TEXTS]
    # Only values that these types may have: no delimiter, quote or line break.
    numbers = [None, null, *NUMBERS]
    money = [None, null, *MONIES]
    # Neither guarded nor protected: such a value always begins with a backslash.
    binary = [None, *([null] if null.startswith(b"\\") else []), b"\\x", b"\\x00ff2c220d0a"]
    rows: list[Row] = [
        [values[number % len(values)] for values in (numbers, text, money, binary, text[::-1], numbers, [null, *LONG])]
        for number in range(len(text))
    ]
    return rows, [INT4, TEXT, MONEY, BYTEA, JSON, BOOL, NUMERIC]


@pytest.mark.parametrize(("guard", "protect"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("eol", LINE_ENDS)
@pytest.mark.parametrize("quote_style", QUOTE_STYLES)
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_every_combination_of_a_dialect(delimiter: str, quote_style: str, eol: str, guard: bool, protect: bool) -> None:
    base = Dialect(DELIMITERS[delimiter], quote_style=quote_style, eol=LINE_ENDS[eol], guard=guard, protect=protect)
    for null in NULLS:
        dialect = replace(base, null=null)
        rows, types = awkward_rows(null)
        assert_all_agree(rows, types, dialect)
        for column, oid in enumerate(types):  # and each alone on its line
            assert_all_agree([[row[column]] for row in rows], [oid], dialect)
        # And all in one row that is larger than the receive buffer, after a number without end.
        values = [(value, oid) for row in rows for value, oid in zip(row, types, strict=True)]
        assert_large_row_agrees([value for value, _ in values], [oid for _, oid in values], dialect)


@pytest.mark.parametrize("quote_style", QUOTE_STYLES)
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_text_is_written_for_spreadsheets_in_every_dialect(delimiter: str, quote_style: str) -> None:
    texts = [*FORMULAS, *FORMULAS_WITHIN, *NOT_QUITE_FORMULAS, *LIKE_NUMBERS, *NOT_LIKE_NUMBERS]
    for guard, protect in itertools.product([False, True], repeat=2):
        dialect = Dialect(DELIMITERS[delimiter], quote_style=quote_style, guard=guard, protect=protect)
        assert_all_agree([[text, text[::-1]] for text in texts], dialect=dialect)
        assert_large_row_agrees(texts, [TEXT] * len(texts), dialect)


def assert_large_row_agrees(values: Row, types: Sequence[int], dialect: Dialect) -> None:
    """Assert that both encoders write the values as the rules say, in a row larger than the receive buffer."""
    expected = written_by_the_rules([[b"8", *values]], [NUMERIC, *types], dialect).replace(b"8", b"8" * BUFFER, 1)
    for reader in readers(dialect):
        differs = encode(reader, [[b"8" * BUFFER, *values]], [NUMERIC, *types]) != expected
        assert not differs, f"{reader}, {dialect}, {values}"


@pytest.mark.parametrize(
    ("options", "types", "rows", "lines"),
    [
        ({"quote_style": "all"}, [INT4, TEXT], [[b"1", b"a"], [None, b""]], b'"1","a"\n,""\n'),
        ({"quote_style": "all", "null": b"\\N"}, [INT4, TEXT], [[b"1", b"\\N"], [None, None]], b'"1","\\N"\n\\N,\\N\n'),
        ({"quote_style": "strings"}, [INT4, TEXT], [[b"-1", b"a"], [None, None], [b"1", b""]], b'-1,"a"\n,\n1,""\n'),
        ({"quote_style": "strings"}, [MONEY, MONEY], [[b"$1.00", b"-$1,000.00"]], b'$1.00,"-$1,000.00"\n'),
        ({"quote_style": "strings"}, [BYTEA, JSON], [[b"\\x", b"1"]], b'"\\x","1"\n'),
        # A value must not look like NULL, of any type.
        ({"null": b"0"}, [INT4, TEXT], [[b"0", b"0"], [None, None], [b"00", b"1"]], b'"0","0"\n0,0\n00,1\n'),
        ({"null": b"t"}, [16, 16], [[b"t", b"f"], [None, None]], b'"t",f\nt,t\n'),
        ({"null": b"\\x"}, [BYTEA, BYTEA], [[b"\\x", b"\\x00"], [None, None]], b'"\\x",\\x00\n\\x,\\x\n'),
        ({"null": b"true"}, [TEXT], [[b"true"], [None], [b"TRUE"], [b"true "]], b'"true"\ntrue\nTRUE\ntrue \n'),
        ({"null": b"\\N"}, [TEXT, TEXT], [[b"", b"\\N"], [None, b"\\n"]], b',"\\N"\n\\N,\\n\n'),
        ({"null": "∅".encode()}, [TEXT, TEXT], [["∅".encode(), None]], '"∅",∅\n'.encode()),
        ({"null": "∅".encode()}, [TEXT, TEXT], [[b"\xe2\x88", b"\xe2"]], b"\xe2\x88,\xe2\n"),
        ({"null": b"$1.00"}, [MONEY], [[b"$1.00"], [None]], b'"$1.00"\n$1.00\n'),
        # The empty string needs no quotes if NULL is another text.
        ({"null": b"NULL"}, [TEXT, TEXT], [[b"", None]], b",NULL\n"),
        ({"null": b"NULL"}, [TEXT], [[b""], [None]], b"\nNULL\n"),
        # A line break in a value is unchanged with every line end.
        ({"eol": b"\r\n"}, [TEXT, TEXT], [[b"a\nb", b"c\r\nd"], [None, b"e"]], b'"a\nb","c\r\nd"\r\n,e\r\n'),
        ({"eol": b"\r\n"}, [], [[], []], b"\r\n\r\n"),
        ({"delimiter": b";"}, [TEXT, TEXT], [[b"a,b", b"a;b"]], b'a,b;"a;b"\n'),
        ({"delimiter": b"\t"}, [TEXT, TEXT], [[b"a\tb", b"\t"]], b'"a\tb"\t"\t"\n'),
        # Only text that begins like a formula is guarded.
        ({"guard": True}, [TEXT, TEXT], [[b"=1", b"+1"], [b"-1", b"@a"]], b"'=1,'+1\n'-1,'@a\n"),
        ({"guard": True}, [TEXT, TEXT], [[b"\tx", b"\rx"]], b"'\tx,\"'\rx\"\n"),
        ({"guard": True}, [TEXT, TEXT], [[b"", None], [b"a=1", b" =1"]], b'"",\na=1, =1\n'),
        ({"guard": True}, [TEXT], [[b"=a,b"], [b'="a"']], b'"\'=a,b"\n"\'=""a"""\n'),
        ({"guard": True, "quote_style": "all"}, [INT4, TEXT], [[b"-1", b"-1"]], b'"-1","\'-1"\n'),
        ({"guard": True, "quote_style": "strings"}, [INT4, TEXT], [[b"-1", b"-1"]], b'-1,"\'-1"\n'),
        ({"guard": True, "delimiter": b"\t"}, [TEXT], [[b"\tx"]], b'"\'\tx"\n'),
        ({"guard": True}, [790, 701, 1186], [[b"-$1.00", b"-Infinity", b"-1 days"]], b"-$1.00,-Infinity,-1 days\n"),
        ({"guard": True}, [114, 1009, 16385], [[b"-1", b"{=1}", b"=1"]], b"'-1,{=1},'=1\n"),
        ({"guard": True}, [TEXT, TEXT], [["＝1".encode(), b"'=1"]], "'＝1,'=1\n".encode()),
        ({"guard": True}, [TEXT] * 3, [["＋1".encode(), "－1".encode(), "＠a".encode()]], "'＋1,'－1,'＠a\n".encode()),
        ({"guard": True}, [TEXT], [[b"\n=1+1"], [b"\nx"]], b'"\'\n\'=1+1"\n"\'\nx"\n'),
        # Nor may a formula begin after a separator in it, where a spreadsheet may split, whether quoted or not.
        ({"guard": True}, [TEXT, TEXT], [[b"x;=1+1", b"x\t=1+1"]], b"x;'=1+1,x\t'=1+1\n"),
        ({"guard": True}, [TEXT], [[b"a,-b"], [b"a|+b"], [b"a\n@b"]], b'"a,\'-b"\na|\'+b\n"a\n\'@b"\n'),
        ({"guard": True, "delimiter": b";"}, [TEXT], [[b"x;=1+1"], [b"x,=1"]], b"\"x;'=1+1\"\nx,'=1\n"),
        ({"guard": True}, [TEXT], [[b'x;"=1'], [b'x;""=1;']], b'"x;""\'=1"\n"x;""""\'=1;"\n'),
        ({"guard": True}, [TEXT, TEXT], [[b"a;b=c", b"a; -b"], [b"a - b", b"=a;=b"]], b"a;b=c,a; -b\na - b,'=a;'=b\n"),
        ({"guard": True}, [1007, 600, 3904], [[b"{1,-2}", b"(1,-2)", b"[1,-2)"]], b'"{1,-2}","(1,-2)","[1,-2)"\n'),
        # Text that a spreadsheet would change is a formula whose value is the text.
        ({"protect": True}, [TEXT, TEXT], [[b"007", b"Ada"]], b'"=""007""",Ada\n'),
        ({"protect": True}, [TEXT, INT4], [[b"1e5", b"007"]], b'"=""1e5""",007\n'),
        ({"protect": True, "delimiter": b"\t"}, [TEXT, TEXT], [[b"12/1", b""]], b'"=""12/1"""\t""\n'),
        (
            {"protect": True},
            [INT8, INT8],
            [[b"1234567890123456", b"123456789012345"]],
            b'"=""1234567890123456""",123456789012345\n',
        ),
        (
            {"protect": True},
            [NUMERIC] * 2,
            [[b"-1234567890123456", b"0.1234567890123456"]],
            b'"=""-1234567890123456""",0.1234567890123456\n',
        ),
        ({"protect": True}, [1560, 16385], [[b"0101", b"True"]], b'"=""0101""","=""True"""\n'),
        # What is guarded within is no number; what only begins like a formula may be one.
        ({"protect": True, "guard": True}, [TEXT, TEXT], [[b"-1", b"1,-2"]], b'"=""-1""","1,\'-2"\n'),
        ({"protect": True, "guard": True}, [TEXT, TEXT], [[b"-x", b"x;=1"]], b"'-x,x;'=1\n"),
        ({"protect": True, "null": b"0"}, [TEXT, TEXT], [[b"0", None]], b'"=""0""",0\n'),
    ],
)
def test_a_dialect_is_written_like_this(
    options: dict[str, Any], types: list[int], rows: list[Row], lines: bytes
) -> None:
    assert assert_all_agree(rows, types, Dialect(**options)) == lines


@pytest.mark.parametrize(
    ("null", "value", "field"),
    [
        # Quotes do not stop a formula: a spreadsheet removes them first. With its apostrophe it differs from NULL.
        (b"=1", b"=1", b"'=1"),
        (b"-", b"-", b"'-"),
        (b"@SUM(A1)", b"@SUM(A1)", b"'@SUM(A1)"),
        # A value that would look like NULL only with its apostrophe.
        (b"'-", b"-", b'"\'-"'),
        (b"'=1", b"=1", b'"\'=1"'),
    ],
)
def test_guarded_text_never_looks_like_null(null: bytes, value: bytes, field: bytes) -> None:
    dialect = Dialect(null=null, guard=True)
    assert assert_all_agree([[value, None, b"x"]], dialect=dialect) == field + b"," + null + b",x\n"
    assert file_start([value.decode(), "x"], dialect, "csv") == field + b",x\n"


@pytest.mark.parametrize(("type", "oid"), NO_TEXT.items())
def test_values_that_are_not_text_are_neither_quoted_nor_guarded(type: str, oid: int) -> None:
    dialect = Dialect(quote_style="strings", guard=True)
    assert assert_all_agree([[b"-1", None]], [oid, oid], dialect) == b"-1,\n", type


@pytest.mark.parametrize(("type", "oid"), SOME_TEXT.items())
def test_text_is_quoted(type: str, oid: int) -> None:
    assert assert_all_agree([[b"1", None]], [oid, oid], Dialect(quote_style="strings")) == b'"1",\n', type


@pytest.mark.parametrize("oid", [TEXT, NUMERIC])
def test_a_number_of_any_length_that_a_formula_can_hold_is_protected(oid: int) -> None:
    rows: list[Row] = [[b"9" * 255], [b"9" * 256], [b"-" + b"9" * 254]]
    lines = assert_all_agree(rows, [oid], Dialect(protect=True)).splitlines()
    assert [line.startswith(b'"=""') for line in lines] == [True, False, True]


GUARDED = {name: oid for name, oid in SOME_TEXT.items() if name != "bytea" and name not in ONLY_NUMBERS}


@pytest.mark.parametrize(("type", "oid"), GUARDED.items())
def test_text_is_guarded(type: str, oid: int) -> None:
    assert assert_all_agree([[b"=1", None]], [oid, oid], Dialect(guard=True)) == b"'=1,\n", type


@pytest.mark.parametrize(("type", "oid"), ONLY_NUMBERS.items())
def test_text_that_holds_only_numbers_is_not_guarded(type: str, oid: int) -> None:
    assert assert_all_agree([[b"1;-2", None]], [oid, oid], Dialect(guard=True)) == b"1;-2,\n", type


@pytest.mark.parametrize("place", range(26))
@pytest.mark.parametrize("delimiter", DELIMITERS.values())
def test_a_delimiter_is_found_at_every_place(delimiter: bytes, place: int) -> None:
    rows: list[Row] = [
        [b"a" * place + bytes([byte]) + b"a" * (length - place - 1)]
        for byte in b",;|\t"
        for length in range(place + 1, 26)
    ]
    assert_all_agree(rows, dialect=Dialect(delimiter=delimiter))


@st.composite
def dialects(draw: st.DrawFn) -> Dialect:
    """Any dialect. With the guard, which is an apostrophe, the quote is another character."""
    guard, protect = draw(st.booleans()), draw(st.booleans())
    quote = b'"' if guard else draw(st.sampled_from([b'"', b"'"]))
    delimiter = draw(st.sampled_from(sorted(DELIMITERS.values())))
    null = draw(st.sampled_from([*NULLS, *FORMULAS]) | st.binary(max_size=4))
    forbidden = delimiter + quote + b"\r\n\0"
    return Dialect(
        delimiter=delimiter,
        quote=quote,
        quote_style=draw(st.sampled_from(QUOTE_STYLES)),
        null=null.translate(None, delete=forbidden),
        eol=draw(st.sampled_from(sorted(LINE_ENDS.values()))),
        guard=guard,
        protect=protect,
    )


def tables_for(dialect: Dialect) -> st.SearchStrategy[tuple[list[int], list[list[Row]]]]:
    """(types, statements) of one to four columns. Numbers are as PostgreSQL writes them."""
    numbers = st.none() | st.integers().map(lambda number: b"%d" % number) | st.just(dialect.null)
    pieces = st.sampled_from([*b"=+-@;|,\t\n\"'1a "]).map(lambda byte: bytes([byte])) | st.sampled_from(FORMULAS)
    texts = (
        VALUES
        | st.lists(pieces, max_size=12).map(b"".join)
        | st.sampled_from([*LIKE_NUMBERS, *NOT_LIKE_NUMBERS])
        | st.sampled_from([dialect.null, dialect.null[1:], b"'" + dialect.null])
        | st.tuples(st.sampled_from(FORMULAS), VALUES).map(lambda parts: parts[0] + (parts[1] or b""))
    )
    values = {INT4: numbers, TEXT: texts, MONEY: numbers, JSON: texts, INT8: numbers | st.sampled_from(LONG)}

    def rows_of(types: list[int]) -> st.SearchStrategy[tuple[list[int], list[list[Row]]]]:
        row = st.tuples(*(values[oid] for oid in types))
        return st.tuples(st.just(types), st.lists(st.lists(row, max_size=6), max_size=3))

    return st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=4).flatmap(rows_of)


@given(st.data())
def test_any_table_in_any_dialect_is_written_by_the_rules(data: st.DataObject) -> None:
    dialect = data.draw(dialects())
    types, statements = data.draw(tables_for(dialect))
    both = readers(dialect)
    for rows in statements:
        expected = written_by_the_rules(rows, types, dialect)
        assert [encode(reader, rows, types) for reader in both] == [expected] * len(both)
    values = [(value, oid) for rows in statements for row in rows for value, oid in zip(row, types, strict=True)]
    assert_large_row_agrees([value for value, _ in values], [oid for _, oid in values], dialect)


# --- JSON lines. ---


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b'{"a":1}', b'{"a":1}\n'),
        (b"{}", b"{}\n"),
        # PostgreSQL returns a json column as it was entered, with the line breaks between its tokens.
        (b'{"a":{\n "b": [1,\r\n2]\r}}', b'{"a":{  "b": [1,  2] }}\n'),
        (b"\n{\n}\n", b" { } \n"),
        # Within a string a line break is an escape, which is unchanged.
        (b'{"a":"\\n\\r\\u000a"}', b'{"a":"\\n\\r\\u000a"}\n'),
        # Nothing of CSV applies: no quotes, no guard, no end-of-data mark.
        (b'"=1,2"', b'"=1,2"\n'),
        (b"-1", b"-1\n"),
        (b"\\.", b"\\.\n"),
        ('{"größe":"🦥\u2028"}'.encode(), '{"größe":"🦥\u2028"}\n'.encode()),
    ],
)
def test_a_json_value_is_one_line(value: bytes, line: bytes) -> None:
    for oid in (JSON, 3802, TEXT):
        assert assert_all_agree([[value]], [oid], format="ndjson") == line


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(st.lists(st.tuples(JSON_VALUES, st.sampled_from([None, 1, "\n", "\r\n\t"]), st.booleans()), max_size=4))
def test_any_json_stays_equal_and_on_its_line(documents: list[tuple[Any, Any, bool]]) -> None:
    rows: list[Row] = [
        [json.dumps(document, indent=indent, ensure_ascii=ascii).encode().replace(b"\0", b"")]
        for document, indent, ascii in documents
    ]
    lines = assert_all_agree(rows, [JSON], format="ndjson").split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == [document for document, _, _ in documents]


# --- One encoder, many statements. ---


@given(st.data())
def test_statements_follow_each_other_through_one_encoder(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 6))
    statements = data.draw(
        st.lists(st.lists(st.lists(VALUES, min_size=columns, max_size=columns), max_size=6), max_size=4)
    )
    dialect = Dialect(
        delimiter=data.draw(st.sampled_from([b",", b";", b"|", b"\t"])), quote=data.draw(st.sampled_from([b'"', b"'"]))
    )
    for reader in readers(dialect):
        for rows in statements:
            assert encode(reader, rows, [TEXT] * columns) == written_by_the_rules(rows, dialect=dialect)


@needs_native
def test_statements_of_one_native_encoder_have_the_same_columns() -> None:
    reader = encoders(native=True).reader(DEFAULT, "csv")
    assert encode(reader, [[b"a", b"b"]]) == b"a,b\n"
    with pytest.raises(ValueError, match="have the same columns"):
        encode(reader, [[b"a"]])
    assert not reader.clean
    with FakeBackend() as backend:
        assert reader.read(backend.wire, backend.wake, 1, 0) == (b"", 0, LOST)


def test_lines_are_unchanged_by_later_reads() -> None:
    rows: list[Row] = [[b"small", b'"' * 100_000], [None, b""]]
    for reader in readers(DEFAULT):
        kept = encode(reader, rows)
        encode(reader, [[b"y" * 100_000, b"z" * 100_000]] * 4)  # likely in memory that was freed
        assert kept == written_by_the_rules(rows)


# --- The bytes before the first row. ---


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["id", "name"], b"id,name\n"),
        (["my column", "größe"], "my column,größe\n".encode()),
        (['a"b', "c,d", "e\nf"], b'"a""b","c,d","e\nf"\n'),
        (["\\."], b'"\\."\n'),
        (["\\.", "\\."], b"\\.,\\.\n"),
        ([], b"\n"),
    ],
)
def test_the_header_follows_the_rules_for_values(names: list[str], line: bytes) -> None:
    assert file_start(names, DEFAULT, "csv") == line
    assert written_by_the_rules([[name.encode() for name in names]]) == line


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, b"id,=a,-1\n"),
        ({"delimiter": b";"}, b"id;=a;-1\n"),
        ({"eol": b"\r\n"}, b"id,=a,-1\r\n"),
        # Names are quoted only if needed: COPY's FORCE_QUOTE does not apply to them.
        ({"quote_style": "all"}, b"id,=a,-1\n"),
        ({"quote_style": "strings"}, b"id,=a,-1\n"),
        ({"null": b"id"}, b'"id",=a,-1\n'),
        ({"guard": True}, b"id,'=a,'-1\n"),
        ({"protect": True}, b'id,=a,"=""-1"""\n'),
        ({"bom": True}, b"\xef\xbb\xbfid,=a,-1\n"),
        ({"header": False}, b""),
        ({"header": False, "bom": True}, b"\xef\xbb\xbf"),
        ({"header": False, "guard": True, "eol": b"\r\n"}, b""),
        ({"bom": True, "eol": b"\r\n", "guard": True}, b"\xef\xbb\xbfid,'=a,'-1\r\n"),
    ],
)
def test_a_file_starts_as_its_dialect_says(options: dict[str, Any], start: bytes) -> None:
    assert file_start(["id", "=a", "-1"], Dialect(**options), "csv") == start


@pytest.mark.parametrize("options", [{}, {"bom": True}, {"eol": b"\r\n"}])
def test_json_lines_have_no_header_and_no_mark(options: dict[str, Any]) -> None:
    assert file_start(["id", "name"], Dialect(**options), "ndjson") == b""


# --- The choice of the encoder, and what it rejects. ---


@pytest.mark.parametrize("format", ["csv", "tsv", "ndjson"])
def test_the_settings_choose_the_encoder(format: str) -> None:
    pure = choose_encoders({}, PortalReader, pure_python=True)
    assert not pure.native
    assert isinstance(pure.reader(DEFAULT, format), PortalReader)
    chosen = choose_encoders({}, PortalReader, pure_python=False)
    assert chosen.native == NATIVE
    assert isinstance(chosen.reader(DEFAULT, format), PortalReader) == (not NATIVE)


def kind_of_nothing(description: bytes) -> bytes:
    raise AssertionError(f"nobody asks for the kinds of {description!r}")


@needs_native
@pytest.mark.parametrize("ssl", [-1, 1 << 64])
def test_an_invalid_address_is_rejected(ssl: int) -> None:
    from server.encode import _encode

    wire = Wire(-1, 0)
    wire.ssl = ssl
    with pytest.raises(OverflowError):
        _encode.Encoder(b",", b'"', b"", b"\n", kind_of_nothing).read(wire, -1, 1, 0)


@needs_native
@pytest.mark.parametrize(("delimiter", "quote"), [(b"", b'"'), (b"ab", b'"'), (b",", b""), (b",", b'""'), (b"", b"")])
def test_delimiter_and_quote_are_one_byte_each(delimiter: bytes, quote: bytes) -> None:
    from server.encode import _encode

    with pytest.raises(ValueError, match="delimiter and quote are one byte each"):
        _encode.Encoder(delimiter, quote, b"", b"\n", kind_of_nothing)


@needs_native
def test_the_native_encoder_reads_no_tls_without_the_functions_of_openssl() -> None:
    # In another process, since they are bound in this one. A call would crash it.
    program = """
from server.encode.encoders import choose_encoders
from server.postgres.portal import PortalReader
from server.postgres.wire import Wire
from server.query.dialect import Dialect
chosen = choose_encoders({}, PortalReader, pure_python=False)
try:
    chosen.reader(Dialect(), "csv").read(Wire(0, ssl=1), 0, 1, 0)
except ValueError as error:
    print(chosen.native, error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True the functions of OpenSSL are not bound\n", 0), done.stderr


def test_the_pure_encoder_is_used_without_the_extension() -> None:
    program = """
import sys
sys.modules["server.encode._encode"] = None  # makes the import fail, as if it was not built
from server.encode.encoders import choose_encoders
from server.postgres.portal import PortalReader
from server.postgres.tls import addresses
from server.query.dialect import Dialect
chosen = choose_encoders(addresses(), PortalReader, pure_python=False)
print(chosen.native, type(chosen.reader(Dialect(), "csv")).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False PortalReader\n", 0), done.stderr

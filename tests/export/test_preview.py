"""A preview shows what the file will hold: values, names and lines as the encoder writes them."""

from __future__ import annotations

import csv
import io

import pytest

from server.encode.encoders import PureEncoder, file_start
from server.encode.kinds import kinds_for
from server.export.preview import PREVIEW_CHARACTERS, ShownRows, row_count
from server.query.catalogue import Column, Relation
from server.query.plan import PREVIEW_ROWS, make_plan
from server.query.request import parse_export_request
from tests.support.fake_backend import row as data_row

INT, TEXT = 20, 25


def shown(address: str, names: dict[str, int], *rows: tuple[bytes | None, ...]) -> tuple[ShownRows, bytes]:
    """Return what the preview of this export keeps of these rows, and the file. names: with types."""
    target, _, query = address.partition("?")
    columns = tuple(Column(name, "text", True, True, False) for name in names)
    plan = make_plan(
        parse_export_request(target, query), Relation(1, "public", "t", "table", False, columns, None, None)
    )
    types = [114] if plan.format == "ndjson" else list(names.values())
    found, encoder = ShownRows(plan), PureEncoder(plan.dialect, kinds_for(plan.dialect, plan.format))
    found.describe(types)
    encoder.describe(types)
    messages = [data_row(*row)[5:] for row in rows]  # without type and length
    assert [found.line(message) for message in messages] == [b""] * len(rows)  # it writes no file
    return found, file_start(list(names), plan.dialect, plan.format) + b"".join(map(encoder.line, messages))


ROWS: list[tuple[bytes | None, ...]] = [
    (b"1", b"=1+1", b"a;b"),
    (b"-2", b"+49", b'say "x"'),
    (None, b"", None),
    (b"3", b"@x,y", "ü😀".encode()),
    (b"4", b"'quoted'", b"\\N"),
    (b"12345678901234567890", b"007", b"x;=1+1"),
]
NAMES = {"id": INT, "=name": TEXT, 'a"b': TEXT}


@pytest.mark.parametrize(
    ("address", "delimiter", "null"),
    [
        ("t.csv", ",", ""),
        ("t.csv?excel=true", ",", ""),
        ("t.csv?text=protect", ",", ""),
        ("t.csv?excel=true&text=protect&quote=all", ",", ""),
        ("t.csv?guard=formulas&delimiter=;", ";", ""),
        ("t.tsv?guard=formulas&null=\\N", "\t", "\\N"),
        ("t.csv?quote=all&header=false&guard=formulas", ",", ""),
        ("t.csv?quote=strings&null=NULL&delimiter=|", "|", "NULL"),
    ],
)
def test_a_reader_of_the_file_gets_what_the_preview_shows(address: str, delimiter: str, null: str) -> None:
    found, file = shown(address, NAMES, *ROWS)
    text = file.decode("utf-8-sig")
    read = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if "header=false" not in address:
        assert tuple(read.pop(0)) == found.names
    assert read == [[null if value is None else value for value in row] for row in found.rows]
    assert "".join(f"{line}\n" for line in found.lines) == text.replace("\r\n", "\n")


def test_a_guarded_formula_has_its_apostrophe() -> None:
    found, _ = shown("t.csv?excel=true", NAMES, *ROWS)
    assert found.names[1] == "'=name"
    assert [row[:2] for row in found.rows[:2]] == [["1", "'=1+1"], ["-2", "'+49"]]


def test_json_lines_are_shown_as_lines() -> None:
    line = b'{"id":1,"text":"a\\nb"}'
    found, file = shown("t.ndjson", {"id": INT, "text": TEXT}, (line,), (b'{"id":2,\n"text":null}',))
    assert found.lines == [line.decode(), '{"id":2, "text":null}']
    assert file.decode().splitlines() == found.lines


@pytest.mark.parametrize("address", ["t.csv", "t.csv?excel=true", "t.csv?quote=all", "t.ndjson"])
def test_long_values_and_long_rows_are_shortened(address: str) -> None:
    value = "ü".encode() * 100_000
    values = [value] if "ndjson" in address else [value] * 50
    found, _ = shown(address, {f"c{number}": TEXT for number in range(50)}, tuple(values))
    assert set(found.rows[0]) == {"ü" * PREVIEW_CHARACTERS + "…"}
    assert all(len(line) <= PREVIEW_CHARACTERS + 1 for line in found.lines)
    assert found.lines[-1].endswith("…")
    assert found.lengths == [len(value) * len(values) + len(values)]


def test_a_row_of_many_short_values_is_shortened() -> None:
    found, file = shown("t.csv?header=false", {f"c{number}": INT for number in range(1600)}, (b"1",) * 1600)
    assert len(found.rows[0]) == 1600
    assert found.lines == [file.decode()[:PREVIEW_CHARACTERS] + "…"]


@pytest.mark.parametrize(
    ("read", "limit", "count"),
    [
        (0, None, 0),
        (6, None, 6),
        (PREVIEW_ROWS - 1, None, PREVIEW_ROWS - 1),
        (PREVIEW_ROWS, None, None),
        (PREVIEW_ROWS, PREVIEW_ROWS, PREVIEW_ROWS),
        (PREVIEW_ROWS, PREVIEW_ROWS + 1, None),
        (3, 3, 3),
        (3, 1000, 3),
        (0, 0, 0),
    ],
)
def test_rows_that_are_all_there_are_counted(read: int, limit: int | None, count: int | None) -> None:
    assert row_count(read, limit) == count

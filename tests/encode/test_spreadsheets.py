"""What spreadsheets make of a file: no text becomes a formula at any separator, and protected text stays as it is.

A spreadsheet that splits at the delimiter of the file reads the quotes around values; one that splits at another
character takes no notice of them. Python's `csv` reads both like that. LibreOffice opens the files too.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.encode import kinds
from server.encode.encoders import PureEncoder, file_start
from server.encode.kinds import kinds_for
from server.query.dialect import DELIMITERS, LINE_ENDS, QUOTE_STYLES, Dialect
from server.query.spreadsheets import is_changed
from tests.support.fake_backend import INT4, TEXT
from tests.support.optional import skip_or_fail
from tests.support.postgres import Postgres

SIGNS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
SEPARATORS = (",", ";", "\t", "|")
INT8 = 20

Texts = Sequence[Sequence[str]]


def written(rows: Texts, dialect: Dialect, types: Sequence[int] | None = None) -> str:
    """Return the file of these rows, of which the first is the header. types: text where none are given."""
    names, *values = rows
    kind_of = kinds_for(dialect, "csv")
    lines = PureEncoder(dialect, kind_of).lines(
        [[value.encode() for value in row] for row in values],
        [kind_of(oid) for oid in types or [TEXT] * len(names)],
    )
    return (file_start(names, dialect, "csv") + lines).decode()


def cells(text: str, separator: str) -> Iterator[str]:
    """Return the cells of the file as a spreadsheet reads it that splits at this one character."""
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        yield from row


PIECES = st.sampled_from([*SIGNS, *SEPARATORS, "\n", "\r", '"', '""', "'", " ", "a", "1+1", "\x0b", "！"])
SOME_TEXT = st.lists(PIECES, max_size=7).map("".join)
TABLES = st.integers(1, 3).flatmap(
    lambda columns: st.lists(st.lists(SOME_TEXT, min_size=columns, max_size=columns), min_size=1, max_size=4)
)


@given(
    TABLES, st.sampled_from(sorted(DELIMITERS.values())), st.sampled_from(QUOTE_STYLES), st.sampled_from([*LINE_ENDS])
)
@example([["a", "b"], ["1", "x;=1+1"]], b",", "minimal", "lf")
@example([["a", "b"], ["1", "x\t=1+1"]], b",", "minimal", "lf")
@example([["a", "b"], ["1", 'x;"=1+1;']], b",", "minimal", "lf")
@example([["a", "b"], ["1", "x\n=1+1;"]], b",", "minimal", "lf")
@example([["a", "b"], ["1", "x,=1+1,"]], b";", "all", "crlf")
@example([["x;=a"], ["1"]], b",", "minimal", "lf")
def test_no_text_is_a_formula_at_any_separator(rows: Texts, delimiter: bytes, quotes: str, eol: str) -> None:
    dialect = Dialect(delimiter, quote_style=quotes, eol=LINE_ENDS[eol], guard=True)
    for separator in SEPARATORS:
        # The delimiter of the file may follow a separator at the end of a value, and tabs count as blanks.
        formulas = [
            cell for cell in cells(written(rows, dialect), separator) if cell.lstrip("\t\r\n").startswith(SIGNS)
        ]
        assert formulas == [], separator


@given(TABLES, st.sampled_from(sorted(DELIMITERS.values())))
def test_the_guard_adds_apostrophes_and_nothing_else(rows: Texts, delimiter: bytes) -> None:
    guarded = list(cells(written(rows, Dialect(delimiter, guard=True)), delimiter.decode()))
    given = [value for row in rows for value in row]
    assert [cell.replace("'", "") for cell in guarded] == [value.replace("'", "") for value in given]


@pytest.mark.parametrize(
    "text",
    [
        *[
            "007",
            "0",
            "12345",
            "-1",
            "+49 170",
            "1.5",
            "1,5",
            ".5",
            "1'000",
            "1 000",
            "1\u00a0000",
            "50%",
            "$5",
            "5 €",
            "€5",
        ],
        *["(5)", "1e5", "1E-5", "1.5e+3", "12/1", "1-2", "1.2.3", "2024-01-01", "2024-01-01T00:00:00Z", "3:45", "3 pm"],
        *["3:45PM", "1 a", "1 1/2", "MARCH1", "may-5", "5. März 2024", "SEPT2", "Thursday, March 5, 2020 3:00 PM"],
        *["5 марта", "令和6年1月1日", "1 déc.", " 7 ", "true", "False", "TRUE", "12345678901234567890", "10.0.0.1"],
    ],
)
def test_text_that_a_spreadsheet_may_change(text: str) -> None:
    assert is_changed(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "-", "Ada", "May", "truth", "true.", "1 true", "untrue", "a1", "line1", "Room 5", "12 Main Street"],
        *["ada5@example.com", "v1_2", "5;6", "1\n2", "1\t2", "#5", "1*2", "{1,2}", "[1,2)", '{"a": 1}', '"1"', "12ab"],
        *["123e4567-e89b-12d3-a456-426614174000", "e5", "pm 3", "0x1F", "https://example.com/1", "1" * 256],
    ],
)
def test_text_that_no_spreadsheet_changes(text: str) -> None:
    assert not is_changed(text.encode())


def test_types_that_hold_only_numbers_are_what_they_are_taken_for(postgres: Postgres) -> None:
    """The OIDs of shapes, ranges and arrays of numbers, times and the like, against the server's own catalogue."""
    known = "SELECT oid FROM pg_type WHERE oid < 16384 AND typtype <> 'p' AND "
    shapes = {oid for (oid,) in postgres.run(known + "typcategory = 'G'")}
    ranges = {oid for (oid,) in postgres.run(known + "typtype IN ('r', 'm')")}
    assert shapes | {oid for (oid,) in postgres.run(known + "typelem = ANY (%s) AND typlen = -1", (list(shapes),))} == (
        kinds._SHAPES
    )
    assert ranges == kinds._RANGES
    values = list(kinds._PLAIN_VALUES | kinds._OTHER_VALUES)
    arrays = {oid for (oid,) in postgres.run(known + "typelem = ANY (%s) AND typlen = -1", (values,))}
    others = {oid for (oid,) in postgres.run(known + "typname IN ('int2vector', 'oidvector', 'tid')")}
    assert arrays | others == kinds._ARRAYS_OF_VALUES | {22, 27, 30}


# --- LibreOffice. ---


@dataclass(frozen=True)
class Cell:
    """A cell of LibreOffice. text: what it shows. formula: None if it is none."""

    text: str
    formula: str | None


TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
PARAGRAPH = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}p"


def soffice() -> str:
    """Return the program; skip the test where there is none. CI must have it."""
    found = shutil.which("soffice") or shutil.which("libreoffice")
    if found is None:
        skip_or_fail("LibreOffice is not installed")
    return found


def opened(folder: Path, files: dict[str, str], separators: str) -> dict[str, list[Cell]]:
    """Open the files in LibreOffice, which splits at these characters and looks for dates. Return the cells of each."""
    program = soffice()
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text, newline="")
    codes = "/".join(str(ord(character)) for character in separators)
    # 34: the quote; UTF-8; from the first line. Without more, LibreOffice evaluates formulas and recognises dates.
    options = (f"--infilter=CSV:{codes},34,UTF8,1", "--convert-to", "fods", "--outdir", folder / "opened")
    profile = f"-env:UserInstallation={(folder / 'profile').as_uri()}"
    paths = [folder / f"{name}.csv" for name in files]
    done = subprocess.run([program, profile, "--headless", *options, *paths], capture_output=True, timeout=110)
    assert done.returncode == 0, done
    return {name: list(cells_of(folder / "opened" / f"{name}.fods")) for name in files}


def cells_of(document: Path) -> Iterator[Cell]:
    for cell in ElementTree.parse(document).iter(f"{TABLE}table-cell"):
        text = "\n".join("".join(paragraph.itertext()) for paragraph in cell.iter(PARAGRAPH))
        if text:
            yield Cell(text, cell.get(f"{TABLE}formula"))


ATTACKS = [
    *["=1+1", "\n=1+1", "\t=1+1", "\r=1+1", "x;=1+1", "x\t=1+1", "x,=1+1", "x|=1+1", "x\n=1+1", "x\r\n=1+1", "x;+A1;"],
    *['x;"=1+1;', "x\n=1+1;", "x\t=1+1\t", "-2+3", "@SUM(A1)", "＝1+1", "x;＝1+1", "=1+1;=1+1", 'x;=HYPERLINK("x")'],
]


@pytest.mark.slow
def test_libreoffice_finds_no_formula_in_guarded_text(tmp_path: Path) -> None:
    rows = [["id", "x;=1+1", "=1+1"], *[["1", attack, attack] for attack in ATTACKS]]
    files = {}
    for name, delimiter in DELIMITERS.items():
        dialect = Dialect(delimiter, guard=True)
        files[f"guarded {ord(name[0])}"] = written(rows, dialect)
        files[f"quoted {ord(name[0])}"] = written(rows, replace(dialect, quote_style="all"))
    unguarded = {"unguarded": written(rows, Dialect())}
    for number, separators in enumerate((",;\t", ";", "\t")):
        (folder := tmp_path / str(number)).mkdir()
        found = opened(folder, files | unguarded, separators)
        # The same text without the guard shows that LibreOffice would evaluate it.
        assert [cell for cell in found.pop("unguarded") if cell.formula], separators
        for name, shown in found.items():
            assert [cell for cell in shown if cell.formula] == [], (name, separators)
            assert len(shown) > len(ATTACKS)


CHANGED = [
    "007",
    "1e5",
    "12/1",
    "2024-01-01",
    "TRUE",
    "true",
    "50%",
    "$5",
    "3 pm",
    "1 1/2",
    "12345678901234567890",
    "-1",
]
UNCHANGED = ["Ada", "Room 5", "a1", "x_1", "May"]


@pytest.mark.slow
@pytest.mark.parametrize("guard", [False, True])
def test_libreoffice_shows_protected_text_as_it_is(tmp_path: Path, guard: bool) -> None:
    rows = [["text"], *[[text] for text in CHANGED + UNCHANGED]]
    number = "1234567890123456789"
    numbers = [["number", "small"], [number, "7"], [f"-{number}", "-5"]]
    protected = Dialect(protect=True, guard=guard)
    files = {
        "protected": written(rows, protected),
        "plain": written(rows, Dialect()),
        "numbers": written(numbers, protected, [INT8, INT4]),
        "formula": written([["text"], ["=1+1"]], protected),  # only the guard prevents that it is evaluated
    }
    found = opened(tmp_path, files, ",;\t")
    assert [cell.text for cell in found["protected"]] == ["text", *CHANGED, *UNCHANGED]
    assert [cell.formula for cell in found["protected"][1:]] == [f'of:="{text}"' for text in CHANGED] + [None] * 5
    # Without protection it changes them, but for those that look the same as numbers and dates.
    assert {"007", "1e5", "12/1", "true", "50%", "12345678901234567890"}.isdisjoint(
        cell.text for cell in found["plain"]
    )
    assert [cell.formula for cell in found["formula"]] == [None, None if guard else "of:=1+1"]
    assert [cell.text for cell in found["numbers"]] == ["number", "small", number, "7", f"-{number}", "-5"]

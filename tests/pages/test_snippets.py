"""The lines to copy: their text, and what each of them reads from a running server."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from server.pages.snippets import snippets
from server.query.catalogue import Column, Relation
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.visible import is_visible
from tests.support.live_server import LiveServer
from tests.support.optional import skip_or_fail
from tests.support.postgres import Postgres

# The columns of each relation that an address below names, with their types.
COLUMNS = {
    "copied": {"id": "integer", "t": "text", "n": "integer", "the code": "character varying(10)"},
    "numbers": {"id": "bigint", "half": "numeric(10,2)", "at": "timestamp with time zone", "ok": "boolean"},
    "wide": {f"c{number}": "text" for number in range(40)},
    "cut": {"id": "bigint", "filler": "text", "x": "bigint"},
}


def line(base: str, address: str, key: str) -> str:
    """Return the line for this program. address: of the export, below /export/."""
    target, _, query = address.partition("?")
    request = parse_export_request(target, query)
    name = request.relation.name
    columns = tuple(
        Column(column, type, nullable=True, readable=True, indexed=False) for column, type in COLUMNS[name].items()
    )
    plan = make_plan(request, Relation(1, "public", name, "table", False, columns, None, None))
    lines = {each.key: each.text for each in snippets(f"{base}/export/{address}", "out file.csv", plan)}
    return lines[key]


@pytest.mark.parametrize(
    ("address", "key", "text"),
    [
        ("copied.csv", "url", "http://x/export/copied.csv"),
        ("copied.csv", "curl", "curl --fail --globoff --output 'out file.csv' http://x/export/copied.csv"),
        (
            "numbers.csv",
            "python",
            (
                'import pandas; table = pandas.read_csv("http://x/export/numbers.csv", '
                'keep_default_na=False, na_values=[""])'
            ),
        ),
        (
            "copied.csv.gz?delimiter=;&null=%5CN",
            "python",
            (
                'import pandas; table = pandas.read_csv("http://x/export/copied.csv.gz?delimiter=;&null=%5CN", '
                'sep=";", dtype={"t": str, "the code": str}, keep_default_na=False, na_values=["\\\\N"], '
                'compression="gzip")'
            ),
        ),
        (
            "copied.csv?header=false",
            "python",
            (
                'import pandas; table = pandas.read_csv("http://x/export/copied.csv?header=false", '
                'header=None, names=["id", "t", "n", "the code"], dtype={"t": str, "the code": str}, '
                'keep_default_na=False, na_values=[""])'
            ),
        ),
        (
            "wide.csv",
            "python",
            (
                'import pandas; table = pandas.read_csv("http://x/export/wide.csv", '
                'dtype=str, keep_default_na=False, na_values=[""])'
            ),
        ),
        (
            "numbers.ndjson",
            "python",
            'import pandas; table = pandas.read_json("http://x/export/numbers.ndjson", lines=True, dtype=False)',
        ),
        (
            "copied.tsv?header=false",
            "polars",
            (
                "import polars, urllib.request; table = polars.read_csv(urllib.request.urlopen("
                '"http://x/export/copied.tsv?header=false").read(), infer_schema_length=None, separator="\\t", '
                'has_header=False, new_columns=["id", "t", "n", "the code"], '
                'schema_overrides={"t": polars.String, "the code": polars.String})'
            ),
        ),
        ("numbers.ndjson.gz", "r", 'table <- jsonlite::stream_in(gzcon(url("http://x/export/numbers.ndjson.gz")))'),
        (
            "numbers.csv.gz?null=NA",
            "r",
            (
                'table <- read.csv(gzcon(url("http://x/export/numbers.csv.gz?null=NA"), text = TRUE), '
                'encoding = "UTF-8", na.strings = "NA", check.names = FALSE)'
            ),
        ),
        (
            "numbers.csv.gz?null='",
            "duckdb",
            (
                "FROM read_csv('http://x/export/numbers.csv.gz?null=''', header = true, delim = ',', "
                "quote = '\"', escape = '\"', nullstr = '''', allow_quoted_nulls = false, sample_size = -1, "
                "compression = 'gzip');"
            ),
        ),
    ],
)
def test_a_line_to_copy(address: str, key: str, text: str) -> None:
    assert line("http://x", address, key) == text


# --- What the lines read ---

# An id, a text, a number and a code of each row. The texts are those that some programs take for missing values, and
# all that a CSV reader may get wrong. The codes look like numbers.
Row = tuple[int, str | None, int | None, str | None]
TEXTS: list[tuple[int, str | None, int | None]] = [
    (1, "NA", 1),
    (2, "null", None),
    (3, "None", 3),
    (4, "N/A", 4),
    (5, "nan", 5),
    (6, "", 6),
    (7, None, 7),
    (8, 'a "quoted", text; with | all\tdelimiters', 8),
    (9, "two\nlines", 9),
    (10, "Größe €, 李小龙 😀", 10),
    (11, "  blanks  ", 11),
    (12, "#no comment", 12),
    (13, "\\N", 13),
    (14, "back\\slash'", 14),
]
ROWS: list[Row] = [(id, text, number, None if text is None else f"{id:03}") for id, text, number in TEXTS]
ADDRESSES = [
    "copied.csv",
    "copied.csv.gz",
    "copied.tsv",
    "copied.tsv.gz",
    "copied.csv?delimiter=;&header=false",
    "copied.csv.gz?delimiter=tab&eol=crlf",
    "copied.csv?null=-&quote=strings",
    "copied.csv?quote=all&bom=true",
    "copied.csv.gz?bom=true",
    "copied.tsv?header=false&eol=crlf&bom=true",
    "copied.csv?excel=true&select=id,t,n,the%20code,w:t",
    "copied.ndjson",
    "copied.ndjson.gz",
]


@pytest.fixture
def copied(postgres: Postgres) -> None:
    postgres.run('CREATE TABLE copied (id int, t text, n int, "the code" varchar(10))')
    for row in ROWS:
        postgres.run("INSERT INTO copied VALUES (%s, %s, %s, %s)", row)


def expected(address: str, *, keeps_empty: bool) -> list[Row]:
    """Return the rows of the file. keeps_empty: the program tells the empty string from NULL in any file."""
    distinct = keeps_empty or "null=" in address or ".ndjson" in address
    return [(id, None if text == "" and not distinct else text, number, code) for id, text, number, code in ROWS]


NAMES = ["id", "t", "n", "the code"]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("address", ADDRESSES)
def test_curl_writes_the_export(live: LiveServer, postgres: Postgres, tmp_path: Path, address: str) -> None:
    command = shlex.split(line(live.url, address, "curl"))
    subprocess.run([*command, "--silent"], cwd=tmp_path, check=True)
    content = (tmp_path / "out file.csv").read_bytes()
    if address == "copied.csv":
        assert content == postgres.copy("SELECT * FROM copied")
    assert content


def run_python(text: str) -> Any:
    """Run a line of Python and return the table that it makes."""
    names: dict[str, Any] = {}
    exec(text, names)
    return names["table"]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("address", ADDRESSES)
def test_pandas_reads_what_the_database_holds(live: LiveServer, address: str) -> None:
    table = run_python(line(live.url, address, "python"))
    rows = [
        tuple(None if isinstance(value, float) and math.isnan(value) else value for value in row)
        for row in table.itertuples(index=False)
    ]
    assert [row[:4] for row in rows] == expected(address, keeps_empty=False)
    assert list(table.columns)[:4] == NAMES


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("address", ADDRESSES)
def test_polars_reads_what_the_database_holds(live: LiveServer, address: str) -> None:
    table = run_python(line(live.url, address, "polars"))
    assert [row[:4] for row in table.rows()] == expected(address, keeps_empty=True)
    assert table.columns[:4] == NAMES


@pytest.fixture(scope="module")
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with its extension for HTTP, which it would otherwise download."""
    package = importlib.util.find_spec("duckdb_extension_httpfs")
    assert package is not None
    assert package.origin is not None
    with duckdb.connect() as connection:
        connection.load_extension(str(next(Path(package.origin).parent.glob("extensions/*/httpfs.duckdb_extension"))))
        yield connection


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("address", ADDRESSES)
def test_duckdb_reads_what_the_database_holds(live: LiveServer, duck: duckdb.DuckDBPyConnection, address: str) -> None:
    found = duck.execute(line(live.url, address, "duckdb"))
    assert found.description is not None
    assert [name for name, *_ in found.description][:4] == NAMES
    assert [row[:4] for row in found.fetchall()] == expected(address, keeps_empty=True)


# Marks that reverse the text after them, and a character that is shown as nothing.
UNSEEN = ["copied.csv?null=a%E2%80%AEb%F3%A0%81%81&id=eq.7", "copied.csv?select=id,%22x%E2%80%AE%E2%80%8B%22:t&id=eq.7"]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("address", UNSEEN)
def test_a_line_shows_all_that_it_says(live: LiveServer, duck: duckdb.DuckDBPyConnection, address: str) -> None:
    lines = {key: line(live.url, address, key) for key in ("url", "curl", "python", "polars", "r", "duckdb")}
    assert [key for key, text in lines.items() if not is_visible(text)] == []
    (row,) = run_python(lines["python"]).itertuples(index=False)
    assert math.isnan(row[1])
    assert run_python(lines["polars"]).rows()[0][1] is None
    assert duck.execute(lines["duckdb"]).fetchall()[0][1] is None
    assert run_r([lines["r"], "cat(is.na(table[1, 2]))"]) == "TRUE"


WIDE = [f"{number:03}" for number in range(40)]


@pytest.fixture
def wide(postgres: Postgres) -> str:
    """Create a relation of many text columns. Return the address of its export."""
    postgres.run(f"CREATE TABLE wide ({', '.join(f'{name} {type}' for name, type in COLUMNS['wide'].items())})")
    postgres.run(f"INSERT INTO wide VALUES ({', '.join(['%s'] * 40)})", WIDE)
    return "wide.csv"


def test_many_columns_of_text_stay_text(live: LiveServer, duck: duckdb.DuckDBPyConnection, wide: str) -> None:
    (row,) = run_python(line(live.url, wide, "python")).itertuples(index=False)
    assert list(row) == WIDE
    assert run_python(line(live.url, wide, "polars")).rows() == [tuple(WIDE)]
    assert duck.execute(line(live.url, wide, "duckdb")).fetchall() == [tuple(WIDE)]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    "address", ["copied.csv?select=t,t,n:id&id=eq.4", "copied.csv?select=t,t,n:id&id=eq.4&header=false"]
)
def test_two_columns_may_have_one_name(live: LiveServer, duck: duckdb.DuckDBPyConnection, address: str) -> None:
    """Then all columns are read as text, since the name stands for neither."""
    (row,) = run_python(line(live.url, address, "python")).itertuples(index=False)
    assert list(row) == ["N/A", "N/A", "4"]
    assert run_python(line(live.url, address, "polars")).rows() == [("N/A", "N/A", "4")]
    assert duck.execute(line(live.url, address, "duckdb")).fetchall() == [("N/A", "N/A", "4")]


@pytest.mark.usefixtures("copied")
def test_parts_of_json_and_casts_keep_their_types(live: LiveServer) -> None:
    table = run_python(line(live.url, "copied.csv?select=id::text,n:%22the%20code%22::int&id=eq.4", "python"))
    assert table.values.tolist() == [["4", 4]]


def test_many_columns_of_text_stay_text_in_r(live: LiveServer, wide: str) -> None:
    assert run_r([line(live.url, wide, "r"), "cat(unlist(table))"]) == " ".join(WIDE)


def run_r(lines: list[str]) -> str:
    """Run these lines in one process and return its output. Without R, skip the test, or fail it if CI=true."""
    path = shutil.which("Rscript")
    if path is None:
        skip_or_fail("R is not installed: apt-get install r-base-core")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    text = "\n".join(lines)
    done = subprocess.run([path, "--vanilla", "-"], input=text, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("package", ["utils", "jsonlite"])
def test_r_reads_what_the_database_holds(live: LiveServer, package: str) -> None:
    """All addresses in one process of R, which writes each table as CSV of its own. package: that the lines need."""
    addresses = [address for address in ADDRESSES if (".ndjson" in address) == (package == "jsonlite")]
    write = 'cat("<begin>\\n"); write.csv(table[1:4], row.names = FALSE, na = "<missing>"); cat("<end>\\n")'
    lines = [part for address in addresses for part in (line(live.url, address, "r"), write)]
    written = run_r([f'if (nzchar(system.file(package = "{package}"))) {{', *lines, '} else cat("<none>")'])
    if "<none>" in written:
        skip_or_fail(f"R has no package {package}: apt-get install r-cran-{package}")
    tables = re.findall("<begin>\n(.*?)<end>\n", written, re.DOTALL)
    assert len(tables) == len(addresses)
    for address, text in zip(addresses, tables, strict=True):
        names, *rows = csv.reader(io.StringIO(text, newline=""))
        assert names == NAMES, address
        read = [[None if value == "<missing>" else value for value in row] for row in rows]
        assert read == [
            [str(id), text, None if number is None else str(number), code]
            for id, text, number, code in expected(address, keeps_empty=False)
        ], address


# --- A stream that breaks ---


@pytest.fixture
def cut(postgres: Postgres) -> str:
    """Create a view that fails after some megabytes. Return the address of its export."""
    postgres.run("CREATE VIEW cut AS SELECT id, repeat('x', 500) AS filler, 1 / (id - 19000) AS x FROM users")
    return "cut.csv.gz"


@pytest.mark.parametrize("key", ["python", "polars"])
def test_a_stream_that_breaks_is_an_error_in_python(live: LiveServer, cut: str, key: str) -> None:
    with pytest.raises(OSError):
        run_python(line(live.url, cut, key))


def test_a_stream_that_breaks_is_an_error_in_duckdb(
    live: LiveServer, duck: duckdb.DuckDBPyConnection, cut: str
) -> None:
    with pytest.raises(duckdb.IOException):
        duck.execute(line(live.url, cut, "duckdb"))


def test_a_stream_that_breaks_is_an_error_in_r(live: LiveServer, cut: str) -> None:
    read = f"tryCatch({{ {line(live.url, cut, 'r')} }}, error = function(error) cat('refused'))"
    assert run_r([read]) == "refused"

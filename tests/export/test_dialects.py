"""Dialects over HTTP against a real PostgreSQL: the bytes of COPY with the same options, and round trips through
every reader that can read them.

Both encoders against the rules, in all combinations, are the business of test_encode.py.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient
from multidict import CIMultiDictProxy
from yarl import URL

from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import ask

BOM = b"\xef\xbb\xbf"
Values = list[list[str | None]]

AWKWARD = '''
CREATE TABLE awkward (
    id integer PRIMARY KEY, note text, "a;b,c|d" varchar(40), "t" text, "say ""hi""" text, price numeric(10, 2),
    flag boolean, cost money, doc json, tags text[], at timestamptz, raw bytea
);
'''
# Every row has the value by itself and inside longer text.
AWKWARD_TEXTS = [
    "", " ", ",", ";", "|", "\t", '"', '""', "\n", "\r", "\r\n", "\\.", "\\N", "\\\\", "NULL", "null", "0", "1", "t",
    "∅", "a,b", "a;b", "a|b", "a\tb", 'say "hi"', "two\nlines", "three\r\nlines\r\n", "cr\r", "=1+1", "+1", "-1", "@x",
    "'", "größe 🦥", "\u202eright to left", "\ufeff", "  around  ", "ends with a quote\"", "x" * 300, "\x01\x1b\x7f",
]  # fmt: skip


@pytest.fixture(scope="module")
def awkward(database_url: str) -> Iterator[Postgres]:
    """A table of awkward values in columns with awkward names."""
    postgres = Postgres(database_url)
    postgres.run("DROP TABLE IF EXISTS awkward")
    postgres.run(AWKWARD)
    for number, text in enumerate(AWKWARD_TEXTS):
        postgres.run(
            """INSERT INTO awkward VALUES (%(n)s, %(text)s, %(short)s, %(text)s, 'a' || %(text)s || 'b', -%(n)s / 4.0,
            %(n)s %% 2 = 0, -%(n)s * 1000, json_build_object('a', %(text)s::text), ARRAY[%(text)s::text, NULL],
            timestamptz '2024-02-29 12:00+00' + %(n)s * interval '1 hour', convert_to(%(text)s, 'UTF8'))""",
            {"n": number, "text": text, "short": text[:40]},
        )
    postgres.run("INSERT INTO awkward (id) VALUES (-1), (-2)")
    postgres.run("INSERT INTO awkward (id, note, price) VALUES (0 - 3, '', 0)")
    yield postgres
    postgres.run("DROP TABLE awkward")
    postgres.connection.close()


async def download(client: TestClient[Any, Any], file: str, query: str = "") -> tuple[bytes, CIMultiDictProxy[str]]:
    """The file without compression, and its headers. Percent-encodes the values of the query."""
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    encoded = "&".join(f"{name}={quote(value, safe='')}" for name, _, value in pairs)
    url = URL(f"/export/{file}?{encoded}", encoded=True)
    async with client.get(url, headers={"Accept-Encoding": "identity"}) as response:
        body: bytes = await response.read()
        assert response.status == 200, body
        return body, response.headers


async def file_of(client: TestClient[Any, Any], file: str, query: str = "") -> bytes:
    body, _ = await download(client, file, query)
    return body


async def refused(client: TestClient[Any, Any], file: str, query: str) -> dict[str, Any]:
    """The problem document of the response."""
    async with client.get(URL(f"/export/{file}?{query}", encoded=True)) as response:
        assert response.status == 400, await response.read()
        problem: dict[str, Any] = await response.json()
        return problem


# --- The bytes of COPY. ---


@pytest.mark.parametrize("relation", ["users", "orders", "awkward"])
@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", "HEADER"),
        ("quote=all", "HEADER, FORCE_QUOTE *"),
        ("delimiter=;", "HEADER, DELIMITER ';'"),
        ("delimiter=|", "HEADER, DELIMITER '|'"),
        ("delimiter=tab", "HEADER, DELIMITER E'\\t'"),
        ("null=\\N", "HEADER, NULL '\\N'"),
        ("null=NULL", "HEADER, NULL 'NULL'"),
        ("null=0", "HEADER, NULL '0'"),
        ("null=t", "HEADER, NULL 't'"),  # true is written like this, and a column has this name
        ("null=∅", "HEADER, NULL '∅'"),
        ("null= ", "HEADER, NULL ' '"),
        ("null=\\.", "HEADER, NULL '\\.'"),
        ("header=false", "HEADER false"),
        ("header=true&quote=minimal&delimiter=,&null=&eol=lf&bom=false&excel=false", "HEADER"),
        ("delimiter=;&quote=all&null=\\N", "HEADER, DELIMITER ';', FORCE_QUOTE *, NULL '\\N'"),
        ("delimiter=|&quote=all&null=0&header=false", "HEADER false, DELIMITER '|', FORCE_QUOTE *, NULL '0'"),
    ],
)
async def test_csv_is_what_copy_writes_with_the_same_options(
    client: TestClient[Any, Any], awkward: Postgres, relation: str, query: str, options: str
) -> None:
    expected = awkward.copy(f"SELECT * FROM {relation}", options)
    assert (await file_of(client, f"{relation}.csv", query)) == expected
    assert expected.count(b"\n") > 40


@pytest.mark.parametrize("relation", ["users", "awkward"])
@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", "HEADER"),
        ("quote=all", "HEADER, FORCE_QUOTE *"),
        ("null=\\N", "HEADER, NULL '\\N'"),
        ("null=\\N&header=false&quote=all", "HEADER false, NULL '\\N', FORCE_QUOTE *"),
    ],
)
async def test_tsv_is_what_copy_writes_with_a_tab(
    client: TestClient[Any, Any], awkward: Postgres, relation: str, query: str, options: str
) -> None:
    body, headers = await download(client, f"{relation}.tsv", query)
    assert body == awkward.copy(f"SELECT * FROM {relation}", f"{options}, DELIMITER E'\\t'")
    assert headers["Content-Type"] == "text/tab-separated-values; charset=utf-8"


@pytest.mark.parametrize("query", ["", "quote=all", "quote=strings", "null=\\N&quote=all", "delimiter=;&eol=lf"])
async def test_one_column_and_one_column_of_nulls(client: TestClient[Any, Any], awkward: Postgres, query: str) -> None:
    options = {
        "": "HEADER",
        "quote=all": "HEADER, FORCE_QUOTE *",
        "quote=strings": "HEADER, FORCE_QUOTE *",
        "null=\\N&quote=all": "HEADER, NULL '\\N', FORCE_QUOTE *",
        "delimiter=;&eol=lf": "HEADER, DELIMITER ';'",
    }[query]
    one = await file_of(client, "awkward.csv", f"select=note&{query}")
    assert one == awkward.copy("SELECT note FROM awkward", options)
    nulls = await file_of(client, "awkward.csv", f"select=note&id=in.(-1,-2)&{query}")
    assert nulls == awkward.copy("SELECT note FROM awkward WHERE id IN (-1, -2)", options)


# --- Round trips. ---


def as_text(postgres: Postgres, query: str) -> tuple[list[str], Values]:
    """(names, rows) with every value as PostgreSQL's text output, without CSV."""
    with postgres.connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM ({query}) AS nothing LIMIT 0")
        assert cursor.description is not None
        oids = tuple(column.type_code for column in cursor.description)
        raw = psycopg2.extensions.new_type(oids, "RAW", lambda value, _: value)
        psycopg2.extensions.register_type(raw, cursor)
        cursor.execute(query)
        return [column.name for column in cursor.description], [list(row) for row in cursor.fetchall()]


def parse_strictly(text: str, delimiter: str, eol: str) -> list[list[tuple[str, bool]]]:
    """Parse by RFC 4180, one character at a time: each field and whether it was quoted.

    Raises ValueError for what the RFC has no rule for: a quote in a field without quotes, text after a closing quote,
    a line break that is not `eol` outside quotes, a last line without its end.
    """
    lines: list[list[tuple[str, bool]]] = []
    line: list[tuple[str, bool]] = []
    position = 0
    while position < len(text):
        quoted = text[position] == '"'
        if quoted:
            parts: list[str] = []
            position += 1
            while True:
                end = text.index('"', position)  # raises ValueError if the field is not closed
                parts.append(text[position:end])
                position = end + 1
                if not text.startswith('"', position):
                    break
                parts.append('"')
                position += 1
            value = "".join(parts)
        else:
            end = position
            while end < len(text) and text[end] not in (delimiter, "\r", "\n"):
                end += 1
            value, position = text[position:end], end
            if '"' in value:
                raise ValueError(f"a quote in a field without quotes: {value!r}")
        line.append((value, quoted))
        if text.startswith(delimiter, position):
            position += 1
            if position == len(text):
                raise ValueError("the last line has no end")
            if text.startswith(eol, position):  # a last field without a character
                line.append(("", False))
            else:
                continue
        if not text.startswith(eol, position):
            raise ValueError(f"neither a delimiter nor a line's end: {text[position : position + 20]!r}")
        position += len(eol)
        lines.append(line)
        line = []
    return lines


@pytest.mark.parametrize("broken", ['a"b\n', '"a"b\n', '"a\n', "a\r\n", "a\nb", "a,b", "a,"])
def test_the_strict_parser_is_strict(broken: str) -> None:
    with pytest.raises(ValueError):
        parse_strictly(broken, ",", "\n")


def test_the_strict_parser_reads_the_examples_of_the_rfc() -> None:
    parsed = parse_strictly('aaa,"b\r\nbb",""\r\n"a""",,\r\n\r\n', ",", "\r\n")
    assert parsed == [
        [("aaa", False), ("b\r\nbb", True), ("", True)],
        [('a"', True), ("", False), ("", False)],
        [("", False)],
    ]


READABLE = [*itertools.product([",", ";", "|", "tab"], ["minimal", "strings", "all"], ["", "\\N", "0"], ["lf", "crlf"])]


@pytest.mark.parametrize(("delimiter", "quotes", "null", "eol"), READABLE)
async def test_what_is_written_reads_back_as_it_was(
    client: TestClient[Any, Any], awkward: Postgres, delimiter: str, quotes: str, null: str, eol: str
) -> None:
    query = f"delimiter={delimiter}&quote={quotes}&null={null}&eol={eol}"
    body = await file_of(client, "awkward.csv", query)
    text = body.decode()
    names, values = as_text(awkward, "SELECT * FROM awkward")
    mark = "\t" if delimiter == "tab" else delimiter

    # A reader that distinguishes NULL from other text by the quotes.
    parsed = parse_strictly(text, mark, {"lf": "\n", "crlf": "\r\n"}[eol])
    assert [name for name, _ in parsed[0]] == names
    assert [[None if field == (null, False) else field[0] for field in line] for line in parsed[1:]] == values

    # Python's csv, which reads NULL as text.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    read = list(reader)
    assert read == [names, *[[null if value is None else value for value in row] for row in values]]

    # PostgreSQL itself.
    assert_copy_reads(awkward, body, f"HEADER, DELIMITER E'{mark}', NULL '{null}'")


def assert_copy_reads(postgres: Postgres, body: bytes, options: str, expected: str = "SELECT * FROM awkward") -> None:
    """COPY FROM reads the same rows from it."""
    postgres.run("CREATE TEMP TABLE read_back (LIKE awkward)")
    try:
        with postgres.connection.cursor() as cursor:
            cursor.copy_expert(f"COPY read_back FROM STDIN (FORMAT csv, {options})", io.BytesIO(body))
        # Compared as text, since json has no equality. A record's text distinguishes NULL from the empty string.
        here, there = f"SELECT w::text FROM ({expected}) AS w", "SELECT r::text FROM read_back AS r"
        assert postgres.run(f"({here}) EXCEPT ALL ({there})") == []
        assert postgres.run(f"({there}) EXCEPT ALL ({here})") == []
        assert postgres.run("SELECT count(*) > 40 FROM read_back") == [(True,)]
    finally:
        postgres.run("DROP TABLE read_back")


@pytest.mark.parametrize(
    ("file", "query", "options"),
    [
        ("awkward.csv", "header=false", "HEADER false"),
        ("awkward.csv", "bom=true", "HEADER"),  # the byte order mark is in the line that COPY skips
        ("awkward.csv", "bom=true&eol=crlf&quote=strings", "HEADER"),
        ("awkward.csv", "null=∅", "HEADER, NULL '∅'"),
        ("awkward.csv", "header=false&eol=crlf&delimiter=;&quote=all", "HEADER false, DELIMITER ';'"),
        ("awkward.tsv", "", "HEADER, DELIMITER E'\\t'"),
        ("awkward.tsv", "quote=strings&null=NULL&eol=crlf", "HEADER, DELIMITER E'\\t', NULL 'NULL'"),
    ],
)
async def test_copy_reads_back_what_it_can_read(
    client: TestClient[Any, Any], awkward: Postgres, file: str, query: str, options: str
) -> None:
    assert_copy_reads(awkward, await file_of(client, file, query), options)


async def test_copy_reads_back_the_sample_users(client: TestClient[Any, Any], postgres: Postgres) -> None:
    body = await file_of(client, "users.csv", "quote=strings&delimiter=|&null=\\N&eol=crlf")
    postgres.run("CREATE TABLE users_again (LIKE users)")
    with postgres.connection.cursor() as cursor:
        cursor.copy_expert(
            "COPY users_again FROM STDIN (FORMAT csv, HEADER MATCH, DELIMITER '|', NULL '\\N')", io.BytesIO(body)
        )
    assert postgres.run("TABLE users EXCEPT ALL TABLE users_again") == []
    assert postgres.run("TABLE users_again EXCEPT ALL TABLE users") == []


# --- quote=strings, type by type. ---

# Type → (a literal, whether its value is text and therefore quoted).
QUOTED: dict[str, tuple[str, bool]] = {
    "smallint": ("-1", False),
    "integer": ("-1", False),
    "bigint": ("-1", False),
    "oid": ("1", False),
    "real": ("-Infinity", False),
    "double precision": ("-1e-7", False),
    "numeric": ("-1.5", False),
    "numeric(10, 2)": ("-1.5", False),
    "money": ("-0.5", False),
    "boolean": ("true", False),
    "date": ("2024-02-29", False),
    "time": ("12:34", False),
    "timetz": ("12:34+02", False),
    "timestamp": ("0044-03-15 00:00 BC", False),
    "timestamptz": ("-infinity", False),
    "interval": ("-1 day 01:00", False),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", False),
    "quoting.whole": ("-1", False),
    "quoting.whole_of_whole": ("-1", False),
    "quoting.day": ("2024-02-29", False),
    "text": ("-1", True),
    "varchar": ("=1", True),
    "varchar(5)": ("1", True),
    "char(3)": ("@", True),
    "name": ("+1", True),
    '"char"': ("-", True),
    "bytea": ("\\x2d", True),
    "json": ("-1", True),
    "jsonb": ("true", True),
    "jsonpath": ("$", True),
    "inet": ("10.0.0.1", True),
    "cidr": ("10.0.0.0/8", True),
    "macaddr": ("08:00:2b:01:02:03", True),
    "bit(3)": ("101", True),
    "varbit": ("101", True),
    "point": ("(1,2)", True),
    "tsvector": ("'a':1", True),
    "tsquery": ("'a'", True),
    "int4range": ("[1,2)", True),
    "int4multirange": ("{}", True),
    "daterange": ("empty", True),
    "integer[]": ("{1}", True),
    "boolean[]": ("{}", True),
    "money[]": ("{1}", True),
    "text[]": ("{a}", True),
    "quoting.whole[]": ("{1}", True),
    "int2vector": ("1", True),
    "regclass": ("users", True),
    "pg_lsn": ("0/0", True),
    "tid": ("(0,1)", True),
    "xid": ("1", True),
    "quoting.mood": ("=sad", True),
    "quoting.label": ("-1", True),
    "quoting.pair": ("(1,a)", True),
}


@pytest.fixture(scope="module")
def quoted_types(database_url: str) -> Iterator[Postgres]:
    """A table with a column of every type of QUOTED: a row of values, a row of NULLs."""
    postgres = Postgres(database_url)
    postgres.run(
        """
        DROP SCHEMA IF EXISTS quoting CASCADE;
        CREATE SCHEMA quoting;
        CREATE DOMAIN quoting.whole AS integer;
        CREATE DOMAIN quoting.whole_of_whole AS quoting.whole CHECK (VALUE < 100);
        CREATE DOMAIN quoting.day AS date;
        CREATE DOMAIN quoting.label AS text;
        CREATE TYPE quoting.mood AS ENUM ('=sad', 'ok');
        CREATE TYPE quoting.pair AS (number integer, word text);
        """
    )
    columns = ", ".join(f"c{number} {type}" for number, type in enumerate(QUOTED))
    postgres.run(f"DROP TABLE IF EXISTS quoted; CREATE TABLE quoted ({columns})")
    values = ", ".join(f"%s::{type}" for type in QUOTED)
    postgres.run(f"INSERT INTO quoted VALUES ({values})", [literal for literal, _ in QUOTED.values()])
    postgres.run("INSERT INTO quoted DEFAULT VALUES")
    yield postgres
    postgres.run("DROP TABLE quoted; DROP SCHEMA quoting CASCADE")
    postgres.connection.close()


# No value here holds a semicolon, which would need quotes.
@pytest.mark.parametrize("delimiter", [";", "tab"])
async def test_text_is_in_quotes_and_nothing_else(
    client: TestClient[Any, Any], quoted_types: Postgres, delimiter: str
) -> None:
    body = await file_of(client, "quoted.csv", f"quote=strings&header=false&delimiter={delimiter}&null=-")
    values, nulls = parse_strictly(body.decode(), "\t" if delimiter == "tab" else delimiter, "\n")
    found = {type: quoted for type, (_, quoted) in zip(QUOTED, values, strict=True)}
    # The value of "char" equals the text for NULL, so it is quoted in any case.
    assert found == {type: text for type, (_, text) in QUOTED.items()}
    assert set(nulls) == {("-", False)}
    _, (written, _) = as_text(quoted_types, "SELECT * FROM quoted")
    assert [value for value, _ in values] == written


async def test_a_number_is_quoted_only_if_it_needs_it(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE TABLE prices (a money, b money, c text); INSERT INTO prices VALUES (1, -1234.5, 1)")
    assert await file_of(client, "prices.csv", "quote=strings") == b'a,b,c\n$1.00,"-$1,234.50","1"\n'


async def test_text_is_guarded_and_no_number_is(client: TestClient[Any, Any], quoted_types: Postgres) -> None:
    body = await file_of(client, "quoted.csv", "guard=formulas&header=false&delimiter=;")
    guarded = dict(zip(QUOTED, [value for value, _ in parse_strictly(body.decode(), ";", "\n")[0]], strict=True))
    _, (written, _) = as_text(quoted_types, "SELECT * FROM quoted")
    plain = dict(zip(QUOTED, written, strict=True))
    formulas = {type for type, value in plain.items() if value is not None and value[0] in "=+-@"}
    texts = {type for type, (_, text) in QUOTED.items() if text}
    assert {type for type in QUOTED if guarded[type] != plain[type]} == formulas & texts
    assert all(guarded[type] == f"'{plain[type]}" for type in formulas & texts)
    # Neither half may be empty by mistake.
    assert formulas & texts == {"text", "varchar", "char(3)", "name", '"char"', "json", "quoting.mood", "quoting.label"}
    assert {"integer", "real", "numeric", "money", "interval", "quoting.whole", "timestamptz"} <= formulas


@pytest.mark.parametrize(
    ("query", "file"),
    [
        ("guard=formulas", "'=a,'-b,'+c,'@d,\"'\te\n\",ok\n'=1,-1,'+1,'@1,'\tx,\n"),
        ("guard=formulas&quote=all", '\'=a,\'-b,\'+c,\'@d,"\'\te\n",ok\n"\'=1","-1","\'+1","\'@1","\'\tx",\n'),
        ("guard=formulas&quote=strings", '\'=a,\'-b,\'+c,\'@d,"\'\te\n",ok\n"\'=1",-1,"\'+1","\'@1","\'\tx",\n'),
        ("guard=formulas&header=false", "'=1,-1,'+1,'@1,'\tx,\n"),
        ("guard=formulas&delimiter=tab", "'=a\t'-b\t'+c\t'@d\t\"'\te\n\"\tok\n'=1\t-1\t'+1\t'@1\t\"'\tx\"\t\n"),
        ("select=-id:-b,=id:-b&guard=formulas", "'-id,'=id\n-1,-1\n"),
        ("select=x;=1:-b,＝1:-b,\na:-b&guard=formulas", "x;'=1,'＝1,\"'\na\"\n-1,-1,-1\n"),
        ("", '=a,-b,+c,@d,"\te\n",ok\n=1,-1,+1,@1,\tx,\n'),
    ],
)
async def test_header_and_cells_are_guarded(
    client: TestClient[Any, Any], postgres: Postgres, query: str, file: str
) -> None:
    postgres.run('CREATE TABLE formulas ("=a" text, "-b" int, "+c" char(2), "@d" varchar, "\te\n" text, ok text)')
    postgres.run("INSERT INTO formulas VALUES ('=1', -1, '+1', '@1', '\tx', NULL)")
    assert (await file_of(client, "formulas.csv", query)).decode() == file


@pytest.mark.parametrize("native", [True, False])
async def test_formulas_are_guarded_wherever_a_spreadsheet_may_split(
    start_live: Callable[..., LiveServer], postgres: Postgres, native: bool
) -> None:
    """Also in values larger than the receive buffer, which arrive in pieces."""
    postgres.run("CREATE TABLE split (id int, note text, numbers int[])")
    for number, text in enumerate(["x;=1+1", "x\t=1+1", "\n=1", "＝1", "－1", "a,-b", "a; -b", ";" * 100_000 + "=1"]):
        postgres.run("INSERT INTO split VALUES (%s, %s, '{1,-2}')", (-number, text))
    server = start_live(SLUICE_PURE_PYTHON=str(int(not native)))
    body = ask(server, "/export/split.csv?guard=formulas&order=id.desc&header=false").body.decode()
    read = list(csv.reader(io.StringIO(body, newline="")))
    notes = ["x;'=1+1", "x\t'=1+1", "'\n'=1", "'＝1", "'－1", "a,'-b", "a; -b", ";" * 100_000 + "'=1"]
    assert read == [[str(-number), note, "{1,-2}"] for number, note in enumerate(notes)]


async def test_text_that_a_spreadsheet_would_change_is_protected(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run(
        'CREATE TABLE codes (id bigint, code text, fixed char(5), exact numeric, day date, word text, "12/1" int)'
    )
    postgres.run("INSERT INTO codes VALUES (1234567890123456789, '007', '1e5', 1.5, '2024-02-29', 'Ada', 7)")
    postgres.run("INSERT INTO codes VALUES (7, '=1+1', NULL, 12345678901234567890, NULL, 'true', -1)")
    body = await file_of(client, "codes.csv", "text=protect&order=id")
    assert list(csv.reader(io.StringIO(body.decode()))) == [
        ["id", "code", "fixed", "exact", "day", "word", '="12/1"'],
        ["7", "=1+1", "", '="12345678901234567890"', "", '="true"', "-1"],
        ['="1234567890123456789"', '="007"', '="1e5  "', "1.5", "2024-02-29", "Ada", "7"],
    ]
    both = await file_of(client, "codes.csv", "text=protect&excel=true&order=id")
    assert both == BOM + body.replace(b"=1+1", b"'=1+1").replace(b"\n", b"\r\n")
    plain = await file_of(client, "codes.csv", "order=id")
    assert plain == postgres.copy("SELECT * FROM codes ORDER BY id", "HEADER")


# --- excel, bom, eol. ---


async def test_excel_is_a_mark_line_ends_and_guarded_text(client: TestClient[Any, Any], awkward: Postgres) -> None:
    body = await file_of(client, "awkward.csv", "excel=true")
    assert body == await file_of(client, "awkward.csv", "bom=true&eol=crlf&guard=formulas")
    assert body == await file_of(client, "awkward.csv", "excel=true&bom=true&eol=crlf&guard=formulas")
    assert body.startswith(BOM + b'id,note,"a;b,c|d",t,')
    read = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    names, values = as_text(awkward, "SELECT * FROM awkward")
    assert read[0] == names

    def guarded(name: str, value: str | None) -> str:
        """The other columns hold numbers and money, or text with another first character."""
        formula = name in ("note", "a;b,c|d", "t") and (value or "").startswith(tuple("=+-@\t\r\n"))
        return ("'" if formula else "") + (value or "")

    assert read[1:] == [[guarded(name, value) for name, value in zip(names, row, strict=True)] for row in values]
    # Lines end in CRLF. Line breaks within values are unchanged.
    assert len(parse_strictly(body.decode("utf-8-sig"), ",", "\r\n")) == len(values) + 1
    assert b'"two\nlines"' in body


@pytest.mark.parametrize("query", ["excel=true&quote=strings&delimiter=;&null=NULL", "excel=true&header=false"])
async def test_excel_goes_with_other_options(client: TestClient[Any, Any], awkward: Postgres, query: str) -> None:
    spelled_out = query.replace("excel=true", "bom=true&eol=crlf&guard=formulas")
    assert await file_of(client, "awkward.csv", query) == await file_of(client, "awkward.csv", spelled_out)


@pytest.mark.parametrize("file", ["users.csv", "users.tsv"])
@pytest.mark.parametrize("query", ["bom=true", "bom=true&header=false", "excel=true", "excel=true&header=false"])
async def test_the_byte_order_mark_is_written_once_at_the_start(
    client: TestClient[Any, Any], file: str, query: str
) -> None:
    marked = await file_of(client, file, query)
    without = query.replace("bom=true", "bom=false").replace("excel=true", "eol=crlf&guard=formulas")
    assert marked == BOM + await file_of(client, file, without)
    assert marked.count(BOM) == 1
    assert marked.count(b"\n") > 10_000  # many batches


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("", b"a,b\n"),
        ("header=false", b""),
        ("bom=true", BOM + b"a,b\n"),
        ("bom=true&header=false", BOM),
        ("excel=true", BOM + b"a,b\r\n"),
        ("eol=crlf", b"a,b\r\n"),
        ("quote=all&delimiter=;", b"a;b\n"),
        ("null=a", b'"a",b\n'),
    ],
)
async def test_a_relation_without_rows(
    client: TestClient[Any, Any], postgres: Postgres, query: str, body: bytes
) -> None:
    postgres.run("CREATE TABLE nothing_in_it (a int, b text)")
    assert await file_of(client, "nothing_in_it.csv", query) == body


@pytest.mark.parametrize(("eol", "end"), [("lf", b"\n"), ("crlf", b"\r\n")])
async def test_rows_without_columns_are_line_ends(
    client: TestClient[Any, Any], postgres: Postgres, eol: str, end: bytes
) -> None:
    postgres.run("CREATE TABLE no_columns (); INSERT INTO no_columns SELECT FROM generate_series(1, 5000)")
    assert await file_of(client, "no_columns.csv", f"eol={eol}") == end * 5001
    assert await file_of(client, "no_columns.csv", f"eol={eol}&header=false&null=\\N") == end * 5000


# --- Time zones. ---

ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Etc/GMT+12", "Pacific/Apia"]


@pytest.fixture(scope="module")
def times(database_url: str) -> Iterator[Postgres]:
    """Timestamps around changes of the clock, and times without a zone or with their own."""
    postgres = Postgres(database_url)
    postgres.run(
        """
        DROP TABLE IF EXISTS times;
        CREATE TABLE times AS SELECT at, at AT TIME ZONE 'UTC' AS plain, (at AT TIME ZONE 'UTC')::date AS day,
            timetz '12:00+05:30' AS own_zone, time '12:00' AS clock, tstzrange(at, NULL) AS span, ARRAY[at] AS several
        FROM generate_series(timestamptz '2024-03-30 12:00+00', '2024-04-01 12:00+00', '6 hours') AS at
        UNION ALL SELECT '1883-01-01 12:00+00', NULL, NULL, NULL, NULL, NULL, NULL
        UNION ALL SELECT 'infinity', 'infinity', 'infinity', '00:00-15:59', NULL, '[,)', '{}'
        """
    )
    yield postgres
    postgres.run("DROP TABLE times")
    postgres.connection.close()


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("format", ["csv", "ndjson"])
async def test_timestamps_are_written_in_the_zone(
    client: TestClient[Any, Any], times: Postgres, zone: str, format: str
) -> None:
    before = await file_of(client, f"times.{format}")
    query = "SELECT * FROM times" if format == "csv" else "SELECT row_to_json(t) FROM times AS t"
    times.run(f"SET TimeZone = '{zone}'")
    try:
        _, values = as_text(times, query)
    finally:
        times.run("RESET TimeZone")
    text = (await file_of(client, f"times.{format}", f"timezone={zone}")).decode()
    if format == "csv":
        lines = parse_strictly(text, ",", "\n")[1:]
        assert [[None if field == ("", False) else field[0] for field in line] for line in lines] == values
    else:
        assert text.splitlines() == [line for (line,) in values]
    # The next request gets its own zone, on any connection of the pool.
    assert [await file_of(client, f"times.{format}") for _ in range(3)] == [before] * 3


async def test_a_zone_changes_only_timestamps_with_time_zone(client: TestClient[Any, Any], times: Postgres) -> None:
    columns = "plain,day,own_zone,clock"
    files = {zone: await file_of(client, "times.csv", f"select={columns}&timezone={zone}") for zone in ZONES}
    assert set(files.values()) == {times.copy(f"SELECT {columns} FROM times")}
    moments = [await file_of(client, "times.csv", f"select=at,span,several&timezone={zone}") for zone in ZONES]
    assert len(set(moments)) == len(ZONES)


async def test_a_filter_reads_its_timestamp_in_the_zone(client: TestClient[Any, Any], times: Postgres) -> None:
    body = await file_of(client, "times.csv", "select=at&at=eq.2024-03-30 14:00&timezone=Africa/Johannesburg")
    assert body == b"at\n2024-03-30 14:00:00+02\n"


# --- Headers. ---


@pytest.mark.parametrize(
    ("file", "query", "type"),
    [
        ("users.csv", "", "text/csv; charset=utf-8; header=present"),
        ("users.csv", "header=true", "text/csv; charset=utf-8; header=present"),
        ("users.csv", "header=false", "text/csv; charset=utf-8; header=absent"),
        ("users.csv", "excel=true&delimiter=;", "text/csv; charset=utf-8; header=present"),
        ("users.csv", "bom=true&header=false", "text/csv; charset=utf-8; header=absent"),
        ("users.tsv", "header=false", "text/tab-separated-values; charset=utf-8"),
        ("users.ndjson", "", "application/x-ndjson; charset=utf-8"),
    ],
)
async def test_the_type_says_whether_there_is_a_header(
    client: TestClient[Any, Any], file: str, query: str, type: str
) -> None:
    _, headers = await download(client, file, f"{query}&limit=1")
    assert headers["Content-Type"] == type
    async with client.head(f"/export/{file}?{query}&limit=1") as response:
        assert response.headers["Content-Type"] == type


@pytest.mark.parametrize(
    ("file", "query", "filename"),
    [
        ("users.csv", "", "users.csv"),
        ("public.users.csv", "", "users.csv"),
        ("users.tsv", "", "users.tsv"),
        ("users.ndjson", "", "users.ndjson"),
        ("users.csv.gz", "", "users.csv.gz"),
        ("users.csv", "filename=report", "report.csv"),
        ("users.tsv.gz", "filename=report", "report.tsv.gz"),
        ("users.csv", "filename=report 2024", "report 2024.csv"),
        ("users.csv", "filename=report.2024", "report.2024.csv"),
        # A suffix in the name is not added a second time.
        ("users.csv", "filename=report.csv", "report.csv"),
        ("users.csv.gz", "filename=report.csv.gz", "report.csv.gz"),
        ("users.csv.gz", "filename=report.csv", "report.csv.gz"),
        ("users.ndjson", "filename=report.ndjson", "report.ndjson"),
        # No character that a file system or a header rejects.
        ("users.csv", "filename=../../etc/passwd", "_.._etc_passwd.csv"),
        ("users.csv", "filename=C:\\x", "C__x.csv"),
        ("users.csv", 'filename=a"; filename="evil.exe', "a_; filename=_evil.exe.csv"),
        ("users.csv", "filename=a\r\nSet-Cookie: b=c", "a__Set-Cookie_ b=c.csv"),
        ("users.csv", "filename=...", "export.csv"),
        ("users.csv", "filename=größe 🦥", "größe 🦥.csv"),
        ("users.csv", "filename=100%", "100%.csv"),
        ("users.csv", "filename=" + "é" * 300, "é" * 100 + ".csv"),
    ],
)
async def test_the_file_has_a_safe_name_with_one_suffix(
    client: TestClient[Any, Any], file: str, query: str, filename: str
) -> None:
    _, headers = await download(client, file, f"{query}&limit=1")
    header = headers["Content-Disposition"]
    match = re.fullmatch(r"attachment; filename=\"([^\"\\%\x80-\uffff]*)\"(?:; filename\*=UTF-8''([!-~]+))?", header)
    assert match is not None, header
    plain, extended = match.groups()
    assert (plain if extended is None else unquote(extended, errors="strict")) == filename
    assert (extended is None) == (filename.isascii() and "%" not in filename)
    assert "Set-Cookie" not in headers


# --- Contradictory parameters and limits. ---


@pytest.mark.parametrize(
    ("file", "query", "code", "named"),
    [
        ("users.csv", "null=a,b", "contradiction", '"null" holds the delimiter'),
        ("users.csv", "delimiter=;&null=a;b", "contradiction", '"null" holds the delimiter'),
        ("users.csv", "null=;&delimiter=;", "contradiction", '"null" holds the delimiter'),
        ("users.csv", "delimiter=tab&null=%09", "contradiction", '"null" holds the delimiter'),
        ("users.tsv", "null=%09", "contradiction", '"null" holds the delimiter'),
        ("users.csv", "null=%22", "contradiction", '"null" holds a quote'),
        ("users.csv", "null=a%0Ab", "contradiction", '"null" holds a line break'),
        ("users.csv", "null=%0D", "contradiction", '"null" holds a line break'),
        ("users.csv", "excel=true&bom=false", "contradiction", '"excel=true" and "bom=false"'),
        ("users.csv", "excel=true&eol=lf", "contradiction", '"excel=true" and "eol=lf"'),
        ("users.tsv", "delimiter=tab", "contradiction", "The delimiter of tsv is the tab."),
        ("users.ndjson", "header=false", "contradiction", '"header"'),
        ("users.ndjson.gz", "excel=true", "contradiction", '"excel"'),
        ("users.ndjson", "text=protect", "contradiction", '"text"'),
        ("users.csv", "guard=formulas&null=%EF%BC%9D", "contradiction", '"null"'),
        ("users.csv", "excel=true&null=a;-b", "contradiction", '"null"'),
        ("users.csv", "delimiter=,,", "invalid_option", '"delimiter"'),
        ("users.csv", "quote=none", "invalid_option", '"quote"'),
        ("users.csv", "guard=true", "invalid_option", '"guard"'),
        ("users.csv", "eol=cr", "invalid_option", '"eol"'),
    ],
)
async def test_a_contradiction_is_refused_by_name(
    client: TestClient[Any, Any], file: str, query: str, code: str, named: str
) -> None:
    problem = await refused(client, file, query)
    assert problem["code"] == code
    assert named in problem["detail"]


@pytest.mark.parametrize("query", ["null=;", "null=|", "null=%09", "delimiter=;&null=,", "delimiter=tab&null=;,|"])
async def test_the_text_for_null_may_hold_delimiters_that_are_not_used(
    client: TestClient[Any, Any], awkward: Postgres, query: str
) -> None:
    async with client.get(URL(f"/export/awkward.csv?{query}", encoded=True)) as response:
        text = await response.text()
    null = unquote(query.rpartition("=")[2])
    mark = ";" if "delimiter=;" in query else "\t" if "delimiter=tab" in query else ","
    _, values = as_text(awkward, "SELECT * FROM awkward")
    read = parse_strictly(text, mark, "\n")[1:]
    assert [[None if field == (null, False) else field[0] for field in line] for line in read] == values


async def test_the_text_for_null_has_a_length_limit(client: TestClient[Any, Any], postgres: Postgres) -> None:
    """A batch of thousands of NULLs of a hundred kilobytes each would be built in memory at once."""
    postgres.run("CREATE TABLE nulls (a int)")
    problem = await refused(client, "nulls.csv", "null=" + "n" * 100_000)
    assert '"null"' in problem["detail"]

"""Every export has the bytes that the server's own COPY writes, for all types, relations and names.

Every relation is exported four ways (with the native and with the pure-Python encoder, through session, plan and scan;
over HTTP, plain and compressed) and compared with `COPY (SELECT …) TO STDOUT (FORMAT csv, HEADER)` on a
plain connection; in the other dialects that COPY can write, natively and in pure Python.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.sql
import pytest
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from yarl import URL

from server.encode.encoders import choose_encoders
from server.errors import RelationNotFound
from server.export.pipeline import open_export
from server.postgres.database import Database
from server.postgres.portal import PortalReader
from server.postgres.tls import addresses
from server.query.catalogue import RelationName
from server.query.dialect import Dialect
from server.query.fields import Field
from server.query.request import ExportRequest, export_path, parse_export_request
from server.query.selection import SelectedColumn
from server.settings import Settings
from tests.support.engines import make_engine, open_database
from tests.support.optional import CI
from tests.support.postgres import Postgres

# Whether the native encoder can be used. It cannot on a machine without a compiler; CI has one.
NATIVE = choose_encoders(addresses(), PortalReader, pure_python=False).native
ENCODERS = {"native": True, "pure": False} if NATIVE else {"pure": False}

# Dialects that COPY can write, and its options for them.
DIALECTS: dict[str, tuple[Dialect, str]] = {
    "all in quotes": (Dialect(quote_style="all"), "HEADER, FORCE_QUOTE *"),
    "semicolons": (Dialect(delimiter=b";"), "HEADER, DELIMITER ';'"),
    "pipes, \\N for NULL": (Dialect(delimiter=b"|", null=b"\\N"), "HEADER, DELIMITER '|', NULL '\\N'"),
    "tabs, no header": (Dialect(delimiter=b"\t", header=False), "HEADER false, DELIMITER E'\\t'"),
    # The text for NULL is also a number, the name of a column and its value.
    "0 for NULL": (Dialect(null=b"0"), "HEADER, NULL '0'"),
    "t for NULL": (Dialect(null=b"t"), "HEADER, NULL 't'"),
    "v for NULL, all in quotes": (Dialect(null=b"v", quote_style="all"), "HEADER, NULL 'v', FORCE_QUOTE *"),
    "several bytes for NULL": (Dialect(null="ø∅".encode()), "HEADER, NULL 'ø∅'"),
}

# --- Values of every type, as PostgreSQL reads them. ---

TYPES: dict[str, list[str]] = {
    "aclitem": ["=r/postgres", "postgres=arwd/postgres", '"postgres"=r*/postgres'],
    "bit": ["0", "1"],
    "bit(9)": ["101010101", "000000000"],
    "bool": ["true", "false"],
    "box": ["((0,0),(1,1))", "((-1.5,2),(3,-4e10))"],
    "bpchar": ["", " ", "a,b", 'x"y  ', "\\."],
    "char(3)": ["", "a", "é,", '"""', "\\."],
    "bytea": ["", "\\x00ff2c220d0a", "plain", "\\\\", "\\x" + "22" * 50],
    '"char"': ["", "a", ",", '"', "\n", "\\", "é"],
    "cid": ["0", "4294967295"],
    "cidr": ["10.0.0.0/8", "2001:db8::/32", "192.168.1.1/32"],
    "circle": ["<(0,0),1>", "<(-1.5,2e-10),0>"],
    "date": ["2024-02-29", "0001-01-01 BC", "infinity", "-infinity", "5874897-12-31", "4713-01-01 BC"],
    "datemultirange": ["{}", "{[2024-01-01,2024-02-01),[2024-03-01,)}"],
    "daterange": ["empty", "(,)", "[2024-01-01,2024-02-01)", "[2024-01-01,infinity]"],
    "float4": ["0", "-0", "NaN", "Infinity", "-Infinity", "1.1", "3.4e38", "1e-45", "16777217"],
    "float8": ["0", "-0", "NaN", "Infinity", "-Infinity", "0.1", "1.7976931348623157e308", "5e-324", "1e15"],
    "inet": ["127.0.0.1", "10.1.2.3/8", "::1", "::ffff:1.2.3.4/96"],
    "int2": ["0", "-32768", "32767"],
    "int2vector": ["", "1", "1 2 3"],
    "int4": ["0", "-2147483648", "2147483647"],
    "int4multirange": ["{}", "{[1,3),[5,7)}", "{(,)}"],
    "int4range": ["empty", "[1,10)", "(,5]", "[1,]"],
    "int8": ["0", "-9223372036854775808", "9223372036854775807"],
    "int8multirange": ["{}", "{[1,3),[5,7)}"],
    "int8range": ["empty", "[1,10)"],
    "interval": ["0", "1 year 2 months 3 days 04:05:06.789", "-1 day +02:00", "infinity", "-00:00:00.000001"],
    "json": ["null", '""', '{"a": "b,c\\n",  "a": [1, 2]}', '"\\u00e9 é"', "[1,\n2]"],
    "jsonb": ["null", '""', '{"b": 1, "a": "x,\\"y\\""}', "[1.10, 2e5, true]"],
    "jsonpath": ["$", '$."a,b"[*] ? (@ > 1)', 'strict $.a == "x\\ny"'],
    "line": ["{1,-1,0}", "[(0,0),(1,1)]"],
    "lseg": ["[(0,0),(1,1)]"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "money": ["0", "-1234567.89", "92233720368547758.07", "0.01"],
    "name": ["users", "", 'a"b,c', "x" * 63],
    "numeric": ["0", "-0.000", "NaN", "Infinity", "-Infinity", "1e-30", "12345678901234567890.123456789", "1e131071"],
    "numeric(10,2)": ["0", "-99999999.99", "1.005"],
    "nummultirange": ["{}", "{[1.5,2.5),(3,4]}"],
    "numrange": ["empty", "[1.10,2.20)", "(-Infinity,Infinity)"],
    "oid": ["0", "4294967295"],
    "oidvector": ["", "1 2 4294967295"],
    "path": ["((0,0),(1,1),(2,0))", "[(0,0),(1.5,-1e-7)]"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15"],
    "point": ["(0,0)", "(-0,NaN)", "(1e300,Infinity)"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "refcursor": ["", "my,cursor"],
    "regclass": ["pg_class", "0", "4294967295", "information_schema.tables"],
    "regcollation": ['"C"', '"POSIX"'],
    "regconfig": ["english"],
    "regdictionary": ["simple"],
    "regnamespace": ["public", "pg_catalog"],
    "regoper": ["||/", "0"],
    "regoperator": ["+(integer,integer)", "-(none,bigint)"],
    "regproc": ["now", "0"],
    "regprocedure": ["abs(numeric)", "substring(text,integer,integer)"],
    "regrole": ["postgres", "-"],
    "regtype": ["integer", "timestamp with time zone", '"char"', "text[]"],
    "text": ["", " ", "a", ",", '"', "\n", "\r", "\r\n", "\\.", "\\N", "NULL", "größe 🦥", "\u202ea", "=1", "\t;'"],
    "tid": ["(0,1)", "(4294967295,65535)"],
    "time": ["00:00:00", "23:59:59.999999", "24:00:00"],
    "time(0)": ["12:34:56.7"],
    "timestamp": ["2024-02-29 12:34:56.789", "infinity", "-infinity", "0044-03-15 00:00:00 BC", "294276-12-31 00:00"],
    "timestamptz": ["2024-02-29 12:34:56+02", "infinity", "0044-03-15 00:00+00 BC", "1883-11-18 12:00-07:56"],
    "timetz": ["00:00:00+00", "23:59:59.999999-15:59:59", "24:00:00+05:30"],
    "tsmultirange": ["{}", "{[2024-01-01,2024-01-02),[2024-01-03,infinity)}"],
    "tsquery": ["fat & !rat", "'a,b' <-> 'c''d':*AB", ""],
    "tsrange": ["empty", '["2024-01-01 00:00:00",)'],
    "tstzmultirange": ["{}", "{[2024-01-01+00,2024-01-02+00)}"],
    "tstzrange": ["empty", "[2024-01-01 00:00+00,infinity]"],
    "tsvector": ["", "'a,b':1A 'c''d' \"e", "fat:2,4 cat:3B"],
    "txid_snapshot": ["10:20:10,14,15"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "varbit": ["", "1", "10101010101"],
    "varchar": ["", "a,b", "\\."],
    "varchar(3)": ["", "é\n\"", "\\."],
    "xid": ["0", "4294967295"],
    "xid8": ["0", "18446744073709551615"],
}  # fmt: skip

# User-defined types, made by the fixture `kinds`. The built-in ranges and arrays are covered above and below.
OWN_TYPES: dict[str, list[str]] = {
    "kinds.mood": ["sad", "so, so", 'the "best"', "\\."],
    "kinds.percentage": ["0", "99.5"],
    "kinds.label": ["", 'a,"b"'],
    "kinds.point_of_sale": ['("a,b",1,)', '(,,)', '("",-2,"{1,2}")', '("say ""hi"" \\\\",0,"{}")'],
    "kinds.texts": ["empty", '["a,b","c""d")', "[,z]"],
}  # fmt: skip

# Types whose input functions refuse every value (PostgreSQL's sources, "cannot accept a value of type"), so that no
# user's table holds any. Those that the system catalogue fills are exported through a view further below.
WITHOUT_INPUT = {
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}
# Read only by servers built with libxml, in a test of its own.
ONLY_WITH_LIBXML = {"xml"}


class Exports:
    """One relation as a file, by every path that there is."""

    def __init__(self, postgres: Postgres, database: Database, client: TestClient[Any, Any]) -> None:
        self._postgres = postgres
        self._database = database
        self._client = client

    async def over_http(self, name: str, select: Sequence[str] | None = None, *, gzip: bool = False) -> bytes:
        url = URL(export_path(None, name, "csv"), encoded=True)
        if select is not None:
            names = ['"' + column.replace("\\", "\\\\").replace('"', '""') + '"' for column in select]
            url = url.with_query(select=",".join(names))
        coding = "gzip" if gzip else "identity"
        async with self._client.get(url, headers={"Accept-Encoding": coding}) as response:
            body: bytes = await response.read()  # decompressed by the client
            assert response.status == 200, body
            assert response.headers.get("Content-Encoding", "identity") == coding
            return body

    async def assert_as_copy(
        self,
        name: str,
        query: str | None = None,
        *,
        select: Sequence[str] | None = None,
        dialects: Iterable[str] = (),
    ) -> bytes:
        """Assert that all paths give what COPY gives for the query (default: the whole relation), and return it.

        dialects: those of DIALECTS that are compared besides the default one.
        """
        if query is None:
            columns = "*" if select is None else ", ".join(map(quoted, select))
            query = f"SELECT {columns} FROM public.{quoted(name)}"
        expected = self._postgres.copy(query)
        for encoder, native in ENCODERS.items():
            assert_same(encoder, await through(self._database, name, native=native, select=select), expected)
        assert_same("HTTP", await self.over_http(name, select), expected)
        assert_same("HTTP, compressed", await self.over_http(name, select, gzip=True), expected)
        for description in dialects:
            dialect, options = DIALECTS[description]
            in_dialect = self._postgres.copy(query, options)
            for encoder, native in ENCODERS.items():
                written = await through(self._database, name, native=native, select=select, dialect=dialect)
                assert_same(f"{encoder}, {description}", written, in_dialect)
        return expected


async def through(
    database: Database, name: str, *, native: bool, select: Sequence[str] | None = None, dialect: Dialect | None = None
) -> bytes:
    """The file, opened as every route opens it, with the chosen encoder."""
    wanted = RelationName(name)
    columns = None if select is None else tuple(SelectedColumn(Field(column)) for column in select)
    request = ExportRequest(wanted, "csv", select=columns, dialect=dialect or Dialect())
    engine = make_engine(database, native=native)
    async with open_export(engine, request) as export, contextlib.aclosing(export.chunks()) as chunks:
        return b"".join([chunk.data async for chunk in chunks])


def assert_same(way: str, written: bytes, expected: bytes) -> None:
    """Assert equality. Report where large values differ instead of showing them."""
    if written == expected:
        return
    place = next(
        (place for place, (one, other) in enumerate(zip(written, expected, strict=False)) if one != other),
        min(len(written), len(expected)),
    )
    near = slice(max(0, place - 60), place + 60)
    pytest.fail(f"{way} differs from COPY at byte {place}: {written[near]!r}, COPY: {expected[near]!r}")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture
def exports(postgres: Postgres, database: Database, client: TestClient[Any, Any]) -> Exports:
    return Exports(postgres, database, client)


@pytest.fixture(scope="module")
def kinds(database_url: str) -> Iterator[None]:
    """A schema with user-defined types: enum, domains, composite, range."""
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(
            """
            DROP SCHEMA IF EXISTS kinds CASCADE;
            CREATE SCHEMA kinds;
            CREATE TYPE kinds.mood AS ENUM ('sad', 'so, so', 'the "best"', '\\.');
            CREATE DOMAIN kinds.percentage AS numeric CHECK (VALUE BETWEEN 0 AND 100);
            CREATE DOMAIN kinds.label AS text NOT NULL;
            CREATE TYPE kinds.point_of_sale AS (name text, number integer, tags integer[]);
            CREATE TYPE kinds.texts AS RANGE (subtype = text);
            """
        )
        yield
        cursor.execute("DROP SCHEMA kinds CASCADE")
    connection.close()


# --- Types. ---


@pytest.mark.skipif(not NATIVE and not CI, reason="the native encoder is not built here")
def test_the_native_encoder_is_among_those_compared() -> None:
    assert NATIVE


def test_every_built_in_type_has_values(postgres: Postgres) -> None:
    listed = postgres.run(
        "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') "
        # Without arrays, which are made of the others, and without the row types of system views.
        "AND NOT EXISTS (SELECT FROM pg_type AS element WHERE element.typarray = pg_type.oid)"
    )
    with_values = {name.split("(")[0].strip('"') for name in TYPES}
    assert {name for (name,) in listed} == with_values | WITHOUT_INPUT | ONLY_WITH_LIBXML


def array_of(type: str) -> str:
    return f"{type}[]"


async def assert_type_as_copy(exports: Exports, postgres: Postgres, type: str, literals: Sequence[str]) -> None:
    """A table of these values: alone, next to others, NULL, and in arrays of one and two dimensions."""
    nullable = type != "kinds.label"
    postgres.run(f"CREATE TABLE typed (number serial, v {type}, several {array_of(type)})")
    for literal in literals:
        postgres.run(f"INSERT INTO typed (v) VALUES (%s::{type})", (literal,))
    elements = ", ".join([f"%s::{type}"] * len(literals))
    first = literals[0]
    postgres.run(f"INSERT INTO typed (v, several) VALUES (%s::{type}, ARRAY[{elements}])", (first, *literals))
    postgres.run(f"INSERT INTO typed (v, several) VALUES (%s::{type}, ARRAY[ARRAY[{elements}]])", (first, *literals))
    postgres.run(f"INSERT INTO typed (v, several) VALUES (%s::{type}, '{{}}')", (first,))
    if nullable:
        postgres.run(f"INSERT INTO typed (several) VALUES (ARRAY[NULL, %s::{type}])", (first,))
        postgres.run("INSERT INTO typed DEFAULT VALUES")
    await exports.assert_as_copy("typed")
    await exports.assert_as_copy("typed", select=["v"])


@pytest.mark.parametrize("type", TYPES)
async def test_built_in_types_are_written_as_copy_writes_them(exports: Exports, postgres: Postgres, type: str) -> None:
    literals = TYPES[type]
    if type == "interval" and postgres.connection.server_version < 170000:
        literals = [literal for literal in literals if literal != "infinity"]
    await assert_type_as_copy(exports, postgres, type, literals)


@pytest.mark.parametrize("type", OWN_TYPES)
@pytest.mark.usefixtures("kinds")
async def test_user_defined_types_are_written_as_copy_writes_them(
    exports: Exports, postgres: Postgres, type: str
) -> None:
    await assert_type_as_copy(exports, postgres, type, OWN_TYPES[type])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.usefixtures("kinds")
async def test_every_type_is_written_as_copy_writes_it_in_every_dialect(
    exports: Exports, postgres: Postgres, dialect: str
) -> None:
    """One table has a column for each type, NULL after the last value of a type."""
    types = {**TYPES, **{type: literals for type, literals in OWN_TYPES.items() if type != "kinds.label"}}
    if postgres.connection.server_version < 170000:
        types["interval"] = [literal for literal in types["interval"] if literal != "infinity"]
    postgres.run(
        "CREATE TABLE all_types (v int, "
        + ", ".join(f"{quoted(type)} {type}, {quoted(f'several {type}')} {array_of(type)}" for type in types)
        + ")"
    )
    most = max(map(len, types.values()))
    rows: list[list[str | None]] = [
        [literals[number] if number < len(literals) else None for literals in types.values()] for number in range(most)
    ]
    rows.append([None] * len(types))
    for row in rows:
        fields = ", ".join(f"%s::{type}, ARRAY[%s]::{array_of(type)}" for type in types)
        postgres.run(f"INSERT INTO all_types VALUES (0, {fields})", [value for value in row for _ in range(2)])
    await exports.assert_as_copy("all_types", dialects=[dialect])


async def test_xml_is_written_as_copy_writes_it(exports: Exports, postgres: Postgres) -> None:
    try:
        postgres.run("SELECT '<a/>'::xml")
    except psycopg2.errors.FeatureNotSupported:
        pytest.skip("this PostgreSQL was built without libxml")
    await assert_type_as_copy(exports, postgres, "xml", ["<a/>", '<a b="c,d">\n</a>', "text, only", ""])


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("pg_rewrite", "ev_class, ev_action"),  # pg_node_tree
        ("pg_statistic_ext_data", "stxdndistinct, stxddependencies, stxdmcv"),
        ("pg_proc", "proname, proargtypes, prosrc, proacl"),  # oidvector, aclitem[], text over many lines
    ],
)
async def test_types_that_only_the_catalogue_fills(
    exports: Exports, postgres: Postgres, source: str, columns: str
) -> None:
    postgres.run(
        "CREATE TABLE measured (a integer, b integer);"
        "INSERT INTO measured SELECT n % 3, n % 6 FROM generate_series(1, 100) AS n;"
        "CREATE STATISTICS measured_both (ndistinct, dependencies, mcv) ON a, b FROM measured;"
        "ANALYZE measured"
    )
    postgres.run(f"CREATE VIEW of_the_catalogue AS SELECT {columns} FROM pg_catalog.{source}")
    assert len(await exports.assert_as_copy("of_the_catalogue")) > 50


# --- Arbitrary values, by hypothesis. ---

# Text that PostgreSQL accepts, with many characters that CSV treats specially.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40) | st.text(
    "ab ,\"\n\r\\.;'é🦥", max_size=40
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def whole(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


GENERATED: dict[str, st.SearchStrategy[str]] = {
    "text": TEXT,
    "varchar": TEXT,
    "bpchar": TEXT,
    "char(50)": TEXT,
    "name": TEXT.map(lambda text: text[:15]),
    '"char"': st.sampled_from([chr(code) for code in range(1, 128)] + ["é", "🦥", ""]),
    "bytea": st.binary(max_size=40).map(lambda value: "\\x" + value.hex()),
    "int2": whole(16),
    "int4": whole(32),
    "int8": whole(64),
    "float4": st.floats(width=32).map(str),
    "float8": st.floats().map(str),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False).map(str),
    "date": st.dates().map(str),
    "timestamp": st.datetimes().map(str),
    "timestamptz": st.datetimes(timezones=st.just(datetime.UTC)).map(str),
    "interval": st.timedeltas(datetime.timedelta(-10**6), datetime.timedelta(10**6)).map(
        lambda delta: f"{delta.days} days {delta.seconds} seconds {delta.microseconds} microseconds"
    ),
    "uuid": st.uuids().map(str),
    "json": JSON.map(json.dumps).filter(lambda text: "\\u0000" not in text),
    "jsonb": st.lists(TEXT, max_size=3).map(json.dumps),
    "inet": st.ip_addresses().map(str),
    "bool": st.booleans().map(str),
    "varbit": st.text("01", max_size=20),
    "int4range": st.tuples(st.integers(-1000, 0), st.integers(1, 1000)).map(lambda pair: f"[{pair[0]},{pair[1]}]"),
    **{type: st.sampled_from(literals) for type, literals in TYPES.items() if type in ("tsquery", "path", "money")},
}  # fmt: skip
# Names of columns. PostgreSQL truncates them to 63 bytes, and they must differ.
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from('",\n\\.:'),
    min_size=1,
    max_size=15,
)


@st.composite
def tables(draw: st.DrawFn, types: st.SearchStrategy[str]) -> tuple[list[tuple[str, str]], list[list[str | None]]]:
    """(columns, each a name and a type; rows)."""
    columns = draw(st.lists(st.tuples(NAMES, types), min_size=1, max_size=6, unique_by=lambda column: column[0]))
    row = st.tuples(*(st.none() | GENERATED[type] for _, type in columns))
    return columns, [list(values) for values in draw(st.lists(row, max_size=12))]


Table = tuple[list[tuple[str, str]], list[list[str | None]]]


async def assert_table_as_copy(exports: Exports, postgres: Postgres, table: Table, dialect: str) -> None:
    columns, rows = table
    described = ", ".join(f"{quoted(name)} {type}" for name, type in columns)
    postgres.run("DROP TABLE IF EXISTS anything")
    postgres.run(f"CREATE TABLE anything ({described})")
    if rows:
        one = "(" + ", ".join(f"%s::{type}" for _, type in columns) + ")"
        values = [value for row in rows for value in row]
        postgres.run(f"INSERT INTO anything VALUES {', '.join([one] * len(rows))}", values)
    await exports.assert_as_copy("anything", dialects=[dialect])
    await exports.assert_as_copy("anything", select=[columns[-1][0]], dialects=[dialect])


@hypothesis_settings(max_examples=40)
@given(table=tables(st.just("text")), dialect=st.sampled_from(sorted(DIALECTS)))
async def test_any_text_is_written_as_copy_writes_it(
    exports: Exports, postgres: Postgres, table: Table, dialect: str
) -> None:
    await assert_table_as_copy(exports, postgres, table, dialect)


@hypothesis_settings(max_examples=40)
@given(table=tables(st.sampled_from(sorted(GENERATED))), dialect=st.sampled_from(sorted(DIALECTS)))
async def test_any_values_are_written_as_copy_writes_them(
    exports: Exports, postgres: Postgres, table: Table, dialect: str
) -> None:
    await assert_table_as_copy(exports, postgres, table, dialect)


# --- Kinds and shapes of relations. ---

RELATIONS: dict[str, str] = {
    "a table": "CREATE TABLE {0} (a int, b text); INSERT INTO {0} VALUES (1, 'x'), (2, NULL), (3, '')",
    "an unlogged table": "CREATE UNLOGGED TABLE {0} AS SELECT n, n::text AS t FROM generate_series(1, 100) AS n",
    "zero rows": "CREATE TABLE {0} (a int, b text)",
    "zero columns": "CREATE TABLE {0} ()",
    "zero columns, many rows": "CREATE TABLE {0} (); INSERT INTO {0} SELECT FROM generate_series(1, 20000)",
    "one column": "CREATE TABLE {0} (a text); INSERT INTO {0} VALUES ('x'), (NULL), (''), ('\\.'), (',')",
    "one column of NULLs": "CREATE TABLE {0} (a int); INSERT INTO {0} SELECT NULL FROM generate_series(1, 5000)",
    "two columns with end-of-data marks": "CREATE TABLE {0} AS SELECT '\\.'::text AS a, '\\.'::text AS \"\\.\"",
    "a column called as the end-of-data mark": 'CREATE TABLE {0} ("\\." int); INSERT INTO {0} VALUES (1)',
    "1600 columns": "DO $$ BEGIN EXECUTE 'CREATE TABLE {0} (' || (SELECT string_agg('c' || n || ' int2', ',') "
    "FROM generate_series(1, 1600) AS n) || ')'; END $$; INSERT INTO {0} DEFAULT VALUES; "
    "INSERT INTO {0} (c1, c7, c1600) SELECT n, 7, -n FROM generate_series(1, 50) AS n",
    "many rows": "CREATE TABLE {0} AS SELECT n, 'row, ' || n AS b, CASE WHEN n % 7 > 0 THEN n * 1.5 END AS c "
    "FROM generate_series(1, 30000) AS n",
    "dropped columns": "CREATE TABLE {0} (a int, gone text, b text, also_gone int); INSERT INTO {0} VALUES "
    "(1, 'x', 'y', 2); ALTER TABLE {0} DROP gone, DROP also_gone; INSERT INTO {0} VALUES (3, 'z')",
    "all columns dropped": "CREATE TABLE {0} (a int); INSERT INTO {0} VALUES (1), (2); ALTER TABLE {0} DROP a",
    "an added column with a default": "CREATE TABLE {0} (a int); INSERT INTO {0} VALUES (1), (2); "
    "ALTER TABLE {0} ADD b text DEFAULT 'x, y'",
    "a generated column": "CREATE TABLE {0} (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, "
    "id int GENERATED ALWAYS AS IDENTITY); INSERT INTO {0} (a) VALUES (1), (NULL), (3)",
    "a view": "CREATE VIEW {0} AS SELECT n, repeat('\"', n) AS q FROM generate_series(0, 20) AS n ORDER BY n DESC",
    "a view without rows": "CREATE VIEW {0} AS SELECT 1 AS a WHERE false",
    "a view on the sample data": "CREATE VIEW {0} AS SELECT * FROM users ORDER BY email DESC, id",
    "a materialized view": "CREATE MATERIALIZED VIEW {0} AS SELECT id, name FROM users WHERE id % 10 = 0",
    "a partitioned table": "CREATE TABLE {0} (id int, at date, note text) PARTITION BY RANGE (at);"
    "CREATE TABLE {0}_1 PARTITION OF {0} FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
    # A partition with another order of columns, and one that is itself partitioned.
    "CREATE TABLE {0}_2 (note text, gone int, at date, id int); ALTER TABLE {0}_2 DROP gone;"
    "ALTER TABLE {0} ATTACH PARTITION {0}_2 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');"
    "CREATE TABLE {0}_3 PARTITION OF {0} DEFAULT PARTITION BY LIST (note);"
    "CREATE TABLE {0}_3_1 PARTITION OF {0}_3 DEFAULT;"
    "INSERT INTO {0} SELECT n, date '2023-12-20' + n, 'n' || n FROM generate_series(1, 120) AS n",
    "a partitioned table without partitions": "CREATE TABLE {0} (id int) PARTITION BY HASH (id)",
    "an inheritance parent": "CREATE TABLE {0} (a int, b text); CREATE TABLE {0}_child (c int) INHERITS ({0});"
    "INSERT INTO {0} VALUES (1, 'parent'); INSERT INTO {0}_child VALUES (2, 'child', 3)",
    "a table with much that is dead": "CREATE TABLE {0} AS SELECT n FROM generate_series(1, 2000) AS n;"
    "DELETE FROM {0} WHERE n % 3 = 0; UPDATE {0} SET n = -n WHERE n % 5 = 0; INSERT INTO {0} VALUES (0)",
}


@pytest.mark.parametrize("kind", RELATIONS)
async def test_every_kind_of_relation_is_written_as_copy_writes_it(
    exports: Exports, postgres: Postgres, kind: str
) -> None:
    postgres.run(RELATIONS[kind].format("relation_under_test"))
    await exports.assert_as_copy("relation_under_test", dialects=["all in quotes", "pipes, \\N for NULL"])


async def test_a_virtual_generated_column(exports: Exports, postgres: Postgres) -> None:
    if postgres.connection.server_version < 180000:
        pytest.skip("virtual generated columns are new in PostgreSQL 18")
    postgres.run("CREATE TABLE computed (a int, twice int GENERATED ALWAYS AS (a * 2) VIRTUAL)")
    postgres.run("INSERT INTO computed VALUES (1), (NULL), (3)")
    assert await exports.assert_as_copy("computed") == b"a,twice\n1,2\n,\n3,6\n"


async def test_a_foreign_table(exports: Exports, postgres: Postgres, database_url: str) -> None:
    if not postgres.run("SELECT name FROM pg_available_extensions WHERE name = 'postgres_fdw'"):
        pytest.skip("this PostgreSQL comes without postgres_fdw")
    parts = psycopg2.extensions.parse_dsn(database_url)
    server = ", ".join(f"{name} '{parts[name]}'" for name in ("host", "port", "dbname") if name in parts)
    login = ", ".join(f"{name} '{parts[name]}'" for name in ("user", "password") if name in parts)
    postgres.run("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    try:
        postgres.run(f"CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({server})")
        postgres.run(f"CREATE USER MAPPING FOR CURRENT_USER SERVER itself OPTIONS ({login})")
        postgres.run("CREATE FOREIGN TABLE elsewhere (id bigint, name text) SERVER itself OPTIONS (table_name 'users')")
        await exports.assert_as_copy("elsewhere")
    finally:
        postgres.run("DROP EXTENSION postgres_fdw CASCADE")


@pytest.mark.parametrize("name", ["users", "orders", "revenue_by_country"])
async def test_the_sample_data(exports: Exports, name: str) -> None:
    assert (await exports.assert_as_copy(name)).count(b"\n") > 10


@pytest.mark.parametrize(
    "value",
    [
        "repeat('x', 1000000)",
        "repeat('\"', 1000000)",
        "repeat('a,b' || chr(10), 300000)",
        "decode(repeat('00ff', 500000), 'hex')",
        "to_jsonb(repeat('é', 500000))",
        "array_fill(repeat('x', 1000), ARRAY[1000])",
    ],
)
async def test_values_of_a_megabyte(exports: Exports, postgres: Postgres, value: str) -> None:
    postgres.run(f"CREATE TABLE large AS SELECT n, {value} AS v FROM generate_series(1, 3) AS n")
    assert len(await exports.assert_as_copy("large")) > 2_500_000


async def test_a_value_of_twenty_megabytes_among_small_ones(exports: Exports, postgres: Postgres) -> None:
    postgres.run(
        "CREATE TABLE large AS SELECT n, CASE n WHEN 150 THEN repeat('x', 20000000) ELSE 'small, ' || n END AS v "
        "FROM generate_series(1, 300) AS n"
    )
    assert len(await exports.assert_as_copy("large")) > 20_000_000


# --- Names. ---

ODD_NAMES = [
    "Users",
    "select",
    "my table",
    "my.table",
    "..",
    "../../etc/passwd",
    "a/b",
    "a%2Fb",
    "a+b",
    "a?b#c&d=e",
    'a"b',
    '"',
    'a."b".c',
    "a\\b.c\\",
    "'; DROP TABLE users; --",
    '"; DROP TABLE users; --',
    "%(name)s %s %",
    "{0}",
    "\\.",
    "a\r\nSet-Cookie: b=c",
    "\t",
    "größe",
    "表",
    "🦥",
    "e\u0301",
    "\u202egpj.exe",
    "x" * 63,
    "é" * 31,
    "csv",
    "*",
    " ",
    ",",
    ":",
]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names_of_relations_and_columns(exports: Exports, postgres: Postgres, name: str) -> None:
    # psycopg2 does not interpret % if there are no values to bind.
    postgres.run(f"CREATE TABLE {quoted(name)} AS SELECT 1 AS {quoted(name)}, 2 AS other")
    await exports.assert_as_copy(name)
    await exports.assert_as_copy(name, select=[name])
    assert postgres.run("SELECT count(*) > 0 FROM users") == [(True,)]


async def test_a_name_longer_than_postgresql_keeps_is_not_found(
    exports: Exports, postgres: Postgres, database: Database, client: TestClient[Any, Any]
) -> None:
    # PostgreSQL truncates identifiers to 63 bytes. A request for a longer name does not mean the truncated one.
    postgres.run(f"CREATE TABLE {'x' * 63} (a int)")
    await exports.assert_as_copy("x" * 63)
    with pytest.raises(RelationNotFound):
        await through(database, "x" * 64, native=NATIVE)
    response = await client.get("/export/" + "x" * 2000 + ".csv")
    assert response.status == 404


# --- Settings of the server and the role. ---

HOSTILE_SETTINGS = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "client_encoding": "LATIN1",
    "synchronize_seqscans": "on",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
    "cursor_tuple_fraction": "0.01",
}


@pytest.fixture
def other_role(postgres: Postgres, settings: Settings) -> Iterator[Settings]:
    """Settings that log in as the role `sluice_hostile`, which may read everything."""
    password = "of a test"
    postgres.run("DROP ROLE IF EXISTS sluice_hostile")
    postgres.run(f"CREATE ROLE sluice_hostile LOGIN PASSWORD '{password}'")
    try:
        postgres.run("GRANT pg_read_all_data TO sluice_hostile")
        dsn = psycopg2.extensions.make_dsn(settings.dsn, user="sluice_hostile", password=password)
        yield replace(settings, database_url=dsn)
    finally:
        postgres.run("DROP OWNED BY sluice_hostile; DROP ROLE sluice_hostile")


def make_sensitive_table(postgres: Postgres) -> None:
    """A table with a value of each built-in type, alone and in an array, and with text outside LATIN1."""
    postgres.run(
        "CREATE TABLE sensitive AS SELECT "
        + ", ".join(
            f"%s::{type} AS {quoted(type)}, ARRAY[%s::{type}] AS {quoted(f'several {type}')}" for type in TYPES
        ),
        [literals[-1] for literals in TYPES.values() for _ in range(2)],
    )
    postgres.run("INSERT INTO sensitive (text, bytea, float8) VALUES ('表 🦥 \\ ''', '\\xff5c27', 0.1 + 0.2)")


@pytest.mark.parametrize("changed", [*HOSTILE_SETTINGS, "all of them"])
async def test_settings_of_the_role_change_no_byte(postgres: Postgres, other_role: Settings, changed: str) -> None:
    make_sensitive_table(postgres)
    expected = postgres.copy("SELECT * FROM sensitive")
    for name, value in HOSTILE_SETTINGS.items():
        if changed in (name, "all of them"):
            postgres.run(f"ALTER ROLE sluice_hostile SET {name} = '{value}'")
    async with open_database(other_role) as database:
        for encoder, native in ENCODERS.items():
            assert_same(encoder, await through(database, "sensitive", native=native), expected)


async def test_a_role_that_wants_generic_plans_gets_the_order_of_the_table(
    postgres: Postgres, other_role: Settings
) -> None:
    # A generic plan knows no values. It reads by the index, in another order than EXPLAIN has said.
    postgres.run("CREATE TABLE backwards AS SELECT n AS id FROM generate_series(30000, 1, -1) AS n")
    postgres.run("CREATE INDEX ON backwards (id); ANALYZE backwards")
    postgres.run("ALTER ROLE sluice_hostile SET plan_cache_mode = 'force_generic_plan'")
    request = parse_export_request("backwards.csv", "id=gte.5&id=lte.29000")
    async with open_database(other_role) as database:
        engine = make_engine(database, native=NATIVE)
        async with open_export(engine, request) as export, contextlib.aclosing(export.chunks()) as chunks:
            written = b"".join([chunk.data async for chunk in chunks])
    assert_same("the export", written, postgres.copy("SELECT * FROM backwards WHERE id BETWEEN 5 AND 29000"))


async def test_options_in_the_dsn_change_no_byte(postgres: Postgres, settings: Settings) -> None:
    make_sensitive_table(postgres)
    options = "-c datestyle=German -c bytea_output=escape -c intervalstyle=iso_8601 -c extra_float_digits=-5"
    dsn = psycopg2.extensions.make_dsn(settings.dsn, options=options, client_encoding="LATIN1")
    expected = postgres.copy("SELECT * FROM sensitive")
    async with open_database(replace(settings, database_url=dsn)) as database:
        for encoder, native in ENCODERS.items():
            assert_same(encoder, await through(database, "sensitive", native=native), expected)


async def test_an_export_does_not_join_a_scan_in_progress(
    exports: Exports, postgres: Postgres, other_role: Settings
) -> None:
    """A sequential scan of a large table may start where another one is. An export starts at the first block."""
    blocks = postgres.run("SELECT setting::int / 4 + 100 FROM pg_settings WHERE name = 'shared_buffers'")[0][0]
    # One row a block: the values are neither compressed nor stored in TOAST.
    postgres.run(
        "CREATE TABLE synchronized (n int, filler text); ALTER TABLE synchronized ALTER filler SET STORAGE PLAIN"
    )
    postgres.run(f"INSERT INTO synchronized SELECT n, repeat('x', 7000) FROM generate_series(1, {blocks}) AS n")
    other = postgres.connect()
    try:
        with other.cursor() as cursor:
            cursor.execute(
                "SET synchronize_seqscans = on; BEGIN; DECLARE halfway CURSOR FOR SELECT n FROM synchronized"
            )
            cursor.execute(f"FETCH {blocks // 2} FROM halfway")
            joined = postgres.run("SET synchronize_seqscans = on; SELECT n FROM synchronized LIMIT 1")
            assert joined != [(1,)], "this server's scans do not join each other: nothing is tested"
            postgres.run("ALTER ROLE sluice_hostile SET synchronize_seqscans = on")
            async with open_database(other_role) as database:
                written = await through(database, "synchronized", native=NATIVE, select=["n"])
    finally:
        other.close()
        postgres.run("RESET synchronize_seqscans")
    assert_same("the scan", written, postgres.copy("SELECT n FROM synchronized"))


async def test_a_database_in_another_encoding_is_exported_as_utf8(postgres: Postgres, settings: Settings) -> None:
    provider = "LOCALE_PROVIDER libc" if postgres.connection.server_version >= 150000 else ""
    postgres.run("DROP DATABASE IF EXISTS sluice_latin1")
    postgres.run(f"CREATE DATABASE sluice_latin1 TEMPLATE template0 ENCODING 'LATIN1' {provider} LOCALE 'C'")
    try:
        dsn = psycopg2.extensions.make_dsn(settings.dsn, dbname="sluice_latin1", client_encoding="UTF8")
        latin1 = Postgres(dsn)
        try:
            latin1.run('CREATE TABLE "größe" AS SELECT \'é, ÿ\'::text AS "Länge"')
            expected = latin1.copy('SELECT * FROM "größe"')
        finally:
            latin1.connection.close()
        assert expected == 'Länge\n"é, ÿ"\n'.encode()
        async with open_database(replace(settings, database_url=dsn)) as database:
            for encoder, native in ENCODERS.items():
                assert_same(encoder, await through(database, "größe", native=native), expected)
    finally:
        postgres.run("DROP DATABASE sluice_latin1 WITH (FORCE)")

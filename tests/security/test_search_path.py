"""Names in SQL of Sluice: nobody can make it call a function of theirs by planting one in the search path.

Decoys (`tests/support/decoys.py`) stand in a schema that comes before pg_catalog, or that is searched as well as it.
What filters find is compared with plain SQL in a session without decoys, over columns of many types, also of types
whose operators are in a schema outside the path.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg2
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server import events
from server.app import MAX_REQUEST_LINE, create_app
from server.events import Event
from server.postgres import messages
from server.postgres.events import ServerErrorReported
from server.process import sample_data
from server.query.catalogue import RelationName
from server.query.filters import COMPARISONS, FULL_TEXT, QUANTIFIED
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.query.sql import select_statement
from server.settings import Settings
from tests.support.decoys import SCHEMA, SQLSTATE, names_in_server, plant
from tests.support.engines import open_database
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.sql_names import unqualified

# What the search path has before the schema of the relations.
PATHS = {"decoys are searched": f"{SCHEMA}, public", "decoys come first": f"{SCHEMA}, pg_catalog, public"}

# The parts of types as extensions make them, in a schema of their own.
TYPE = """
CREATE TYPE exts.{name};
CREATE FUNCTION exts.{name}_in(cstring) RETURNS exts.{name} LANGUAGE internal IMMUTABLE STRICT AS '{like}in';
CREATE FUNCTION exts.{name}_out(exts.{name}) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS '{like}out';
CREATE TYPE exts.{name} (INPUT = exts.{name}_in, OUTPUT = exts.{name}_out, LIKE = {like}, DELIMITER = '{delimiter}');
"""
OPERATOR = """
CREATE FUNCTION exts.{type}_{name}(exts.{type}, exts.{type}) RETURNS boolean IMMUTABLE
SET enable_seqscan = on -- so that it is not inlined, as a function in C is not
RETURN pg_catalog.{function}($1::{like}) OPERATOR(pg_catalog.{usual}) pg_catalog.{function}($2::{like});
CREATE OPERATOR exts.{symbol} (FUNCTION = exts.{type}_{name}, LEFTARG = exts.{type}, RIGHTARG = exts.{type});
"""
CLASS = """
CREATE FUNCTION exts.{type}_cmp(exts.{type}, exts.{type}) RETURNS integer IMMUTABLE
RETURN pg_catalog.{compare}(pg_catalog.{function}($1::{like}), pg_catalog.{function}($2::{like}));
CREATE OPERATOR CLASS exts.{type}_ops DEFAULT FOR TYPE exts.{type} USING btree AS
    OPERATOR 1 exts.{lt}, OPERATOR 2 exts.{le}, OPERATOR 3 exts.=, OPERATOR 4 exts.{ge}, OPERATOR 5 exts.{gt},
    FUNCTION 1 exts.{type}_cmp(exts.{type}, exts.{type});
"""
SYMBOLS = {"lt": "<", "le": "<=", "eq": "=", "ge": ">=", "gt": ">", "ne": "<>"}
ODD = {"lt": "#<#", "le": "#<=#", "eq": "=", "ge": "#>=#", "gt": "#>#"}


def extension() -> str:
    """Return the SQL that makes the types.

    isbn has the operators of a number; folded those of text without regard to case, with a conversion to text; label
    has only that conversion; odd has other symbols, no <>, and arrays with colons.
    """
    parts = ["CREATE SCHEMA exts"]
    for name, like in (("isbn", "int8"), ("odd", "int8"), ("folded", "text"), ("label", "text")):
        parts.append(TYPE.format(name=name, like=like, delimiter=":" if name == "odd" else ","))
        parts.append(f"CREATE CAST (exts.{name} AS {like}) WITHOUT FUNCTION" + " AS IMPLICIT" * (like == "text"))
    for type, like, function, compare in (
        ("isbn", "int8", "int8", "btint8cmp"),
        ("odd", "int8", "int8", "btint8cmp"),
        ("folded", "text", "lower", "bttextcmp"),
    ):
        symbols = ODD if type == "odd" else SYMBOLS
        values = {"type": type, "like": like, "function": function}
        for name, symbol in symbols.items():
            parts.append(OPERATOR.format(**values, name=name, symbol=symbol, usual=SYMBOLS[name]))
        parts.append(CLASS.format(**values, **symbols, compare=compare))
    for name, symbol in (("like", "~~"), ("ilike", "~~*"), ("match", "~"), ("imatch", "~*")):
        parts.append(
            OPERATOR.format(type="folded", name=name, symbol=symbol, usual=symbol, like="text", function="lower")
        )
    return ";\n".join(part.strip().removesuffix(";") for part in parts)


RELATIONS = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a integer, b text);
CREATE DOMAIN number AS integer CHECK (VALUE > 0);
CREATE DOMAIN code AS varchar(8);
CREATE DOMAIN book AS exts.isbn;
CREATE DOMAIN rare_book AS book;
CREATE DOMAIN couple AS pair;
CREATE TYPE isbns AS RANGE (subtype = exts.isbn);
CREATE TABLE kinds (id integer PRIMARY KEY, {columns});
INSERT INTO kinds VALUES {rows}, (9{nulls});
CREATE TABLE odds (id integer PRIMARY KEY, v_odd exts.odd);
INSERT INTO odds VALUES (1, '1'), (2, '2'), (3, '3'), (4, '-4'), (9, NULL);
CREATE TABLE parts (id integer, name varchar(20)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE VIEW seen AS SELECT id, v_text FROM kinds;
CREATE MATERIALIZED VIEW empty AS SELECT id FROM kinds WITH NO DATA;
CREATE VIEW failing AS SELECT id / (id - id) AS half FROM kinds;
CREATE TABLE large AS SELECT n AS id, repeat('x', 1900) AS filler FROM generate_series(1, 6000) AS n;
ANALYZE large;
"""
# The columns of `kinds`: the type, and the values of the rows, in order.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "v_text": ("text", ("a", "B", "b%", "Ab")),
    "v_varchar": ("varchar(10)", ("a", "B", "b%", "Ab")),
    "v_char": ("char(4)", ("a", "B", "b%", "Ab")),
    "v_name": ("name", ("a", "B", "b%", "Ab")),
    "v_code": ("code", ("a", "B", "b%", "Ab")),
    "v_small": ("smallint", ("1", "2", "3", "-4")),
    "v_int": ("integer", ("1", "2", "3", "-4")),
    "v_big": ("bigint", ("1", "2", "3", "-4")),
    "v_oid": ("oid", ("1", "2", "3", "4")),
    "v_number": ("number", ("1", "2", "3", "4")),
    "v_real": ("real", ("1.5", "2", "NaN", "-4")),
    "v_double": ("double precision", ("1.5", "2", "NaN", "-4")),
    "v_numeric": ("numeric", ("1.5", "2.00", "NaN", "-4")),
    "v_bool": ("boolean", ("t", "f", "t", "f")),
    "v_date": ("date", ("2024-01-01", "2024-01-02", "infinity", "1999-12-31")),
    "v_stamp": ("timestamptz", ("2024-01-01", "2024-01-02", "infinity", "1999-12-31")),
    "v_interval": ("interval", ("1 day", "24:00:00", "1 mon", "-1 day")),
    "v_uuid": ("uuid", tuple(f"0000000{n}-0000-0000-0000-000000000000" for n in "12a4")),
    "v_bytea": ("bytea", (r"\x61", r"\x62", r"\x6225", r"\x4162")),
    "v_json": ("json", ('{"a": 1}', "[1]", "1", "null")),
    "v_jsonb": ("jsonb", ('{"a": 1}', "[1]", "1", "null")),
    "v_inet": ("inet", ("10.0.0.1", "10.0.0.0/8", "::1", "10.0.0.2")),
    "v_bits": ("bit varying(4)", ("1", "10", "", "0")),
    "v_vector": ("tsvector", ("a b", "'b':2", "c", "a")),
    "v_box": ("box", ("(1,1),(0,0)", "(2,2),(1,1)", "(3,3),(2,2)", "(1,1),(0,0)")),
    "v_point": ("point", ("(1,1)", "(0,0)", "(2,2)", "(1,1)")),
    "v_texts": ("text[]", ("{a,b}", "{B}", "{}", '{a,NULL,"b%"}')),
    "v_varchars": ("varchar[]", ("{a,b}", "{B}", "{}", '{a,NULL,"b%"}')),
    "v_ints": ("integer[]", ("{1,2}", "{3}", "{}", "{{1,2},{3,4}}")),
    "v_oids": ("oidvector", ("1 2", "3", "", "1 2 3")),
    "v_range": ("int4range", ("[1,5)", "[5,9)", "empty", "(,1)")),
    "v_ranges": ("int4multirange", ("{[1,5)}", "{[5,9)}", "{}", "{[1,2),[5,6)}")),
    "v_mood": ("mood", ("sad", "ok", "happy", "ok")),
    "v_moods": ("mood[]", ("{sad}", "{ok,happy}", "{}", "{ok}")),
    "v_pair": ("pair", ("(1,a)", "(2,B)", "(,)", '(1,"b c")')),
    "v_pairs": ("pair[]", ('{"(1,a)"}', '{"(2,B)"}', "{}", '{"(1,a)","(2,B)"}')),
    "v_couple": ("couple", ("(1,a)", "(2,B)", "(,)", '(1,"b c")')),
    "v_isbn": ("exts.isbn", ("1", "2", "3", "-4")),
    "v_isbns": ("exts.isbn[]", ("{1,2}", "{2}", "{}", "{3}")),
    "v_isbn_range": ("isbns", ("[1,5)", "[5,9)", "empty", "(,1)")),
    "v_book": ("book", ("1", "2", "3", "-4")),
    "v_rare": ("rare_book", ("1", "2", "3", "-4")),
    "v_folded": ("exts.folded", ("a", "B", "b%", "Ab")),
    "v_foldeds": ("exts.folded[]", ("{a,b}", "{B}", "{}", "{A}")),
    "v_label": ("exts.label", ("a", "B", "b%", "Ab")),
}
# How plain SQL writes what the operators of a query string mean: {0} is the column, {1} the value, {2} another value,
# {3} an array of both. Each is in quotes.
PLAIN = {
    **{name: "{0} " + symbol + " {1}" for name, symbol in COMPARISONS.items()},
    "like": "{0} LIKE {1}",
    "ilike": "{0} ILIKE {1}",
    "isdistinct": "{0} IS DISTINCT FROM {1}",
    "in": "{0} IN ({1}, {2})",
    **{
        f"{name}({quantifier})": f"{{0}} {COMPARISONS[name]} {quantifier} ({{3}})"
        for name in QUANTIFIED
        for quantifier in ("any", "all")
    },
    **{name: "to_tsvector({0}) @@ " + function + "({1})" for name, function in FULL_TEXT.items()},
}


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def in_quotes(text: str) -> str:
    """Return the value as an item of a list in a query string or in PostgreSQL's text form of an array has it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True)
class Case:
    """A filter on a column of `kinds`. plain: the same condition in plain SQL."""

    column: str
    operator: str
    value: str
    plain: str

    @property
    def query(self) -> str:
        return f"select=id&order=id&{self.column}={quote(self.operator)}.{quote(self.value)}"


def cases() -> Iterator[Case]:
    for column, (type, values) in KINDS.items():
        first, second = values[0], values[1]
        array = f"{{{in_quotes(first)},{in_quotes(second)}}}"
        for operator, plain in PLAIN.items():
            value = array if "(" in operator else first
            if operator == "in":
                value = f"({in_quotes(first)},{in_quotes(second)})"
            # PostgreSQL takes a text for a row only if it is told of which type.
            cast = f"::{type}" if type in ("pair", "couple") else ""
            written = quoted(first) + cast, quoted(second) + cast, quoted(array) + (cast and "::pair[]")
            text = plain if column != "v_vector" else plain.replace("to_tsvector({0})", "{0}")
            yield Case(column, operator, value, text.format(column, *written))


CASES = list(cases())


@dataclass(frozen=True)
class Decoyed:
    """A database with decoys. expected: the ids that each case finds in plain SQL, None if PostgreSQL rejects it."""

    dsn: str
    expected: dict[Case, list[int] | None]


def at(dsn: str, path: str | None = None, *, database: str = "") -> str:
    """Return the DSN with another search path, or of another database."""
    parts = urlsplit(dsn)
    query = parts.query
    if path is not None:
        query = "&".join(filter(None, (query, f"options={quote(f'-csearch_path={path}'.replace(' ', ''))}")))
    return urlunsplit(parts._replace(path=f"/{database}" if database else parts.path, query=query))


def fill(postgres: Postgres) -> None:
    columns = ", ".join(f"{name} {type}" for name, (type, _) in KINDS.items())
    rows = ", ".join(
        f"({n + 1}, {', '.join(quoted(values[n]) for _, values in KINDS.values())})" for n in range(len(PATHS) + 2)
    )
    postgres.run(extension())
    postgres.run(RELATIONS.format(columns=columns, rows=rows, nulls=", NULL" * len(KINDS)))
    postgres.run(";".join(f"CREATE INDEX ON kinds ({column})" for column in INDEXED))


def expected_ids(postgres: Postgres) -> dict[Case, list[int] | None]:
    postgres.run("SET search_path = public, exts")
    found: dict[Case, list[int] | None] = {}
    for case in CASES:
        try:
            rows = postgres.run(f"SELECT id FROM kinds WHERE {case.plain} ORDER BY id")
            found[case] = [id for (id,) in rows]
        except psycopg2.Error:
            found[case] = None
    return found


def set_trap(postgres: Postgres, role: str, names: set[str] | None) -> int:
    """Plant as a role that may only create objects in SCHEMA, and in the schema of the extension."""
    postgres.run(
        f"CREATE SCHEMA {SCHEMA}; GRANT USAGE, CREATE ON SCHEMA {SCHEMA}, exts TO {role};"
        f"GRANT USAGE ON SCHEMA {SCHEMA}, exts TO public; SET search_path = ''; SET ROLE {role}"
    )
    types = [
        name
        for (name,) in postgres.run(
            "SELECT DISTINCT format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = 'public.kinds'::regclass AND attnum > 0"
        )
    ]
    planted = plant(postgres, types, names)
    # The attacker may create objects in the schema of the extension too.
    for left, right in (("public.book", "public.book"), ("public.book", "text"), ("exts.isbn", "text")):
        postgres.run(
            f"CREATE FUNCTION exts.planted({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'in exts' USING ERRCODE = '{SQLSTATE}'; END $$"
        )
        for symbol in ("=", "<>", "<", ">"):
            postgres.run(
                f"CREATE OPERATOR exts.{symbol} (FUNCTION = exts.planted, LEFTARG = {left}, RIGHTARG = {right})"
            )
    return planted


@contextmanager
def decoyed_database(database_url: str, names: set[str] | None) -> Iterator[Decoyed]:
    server = Postgres(database_url)
    # Also the name of the role that plants.
    name = f"sluice_decoys_{os.getpid()}_{'all' if names is None else 'named'}"
    server.run(f"DROP DATABASE IF EXISTS {name}")
    server.run(f"CREATE DATABASE {name}")
    server.run(f"DROP ROLE IF EXISTS {name}; CREATE ROLE {name}")
    dsn = at(database_url, database=name)
    postgres = Postgres(dsn)
    try:
        fill(postgres)
        expected = expected_ids(postgres)
        assert set_trap(postgres, name, names) > 1000
        yield Decoyed(dsn, expected)
    finally:
        postgres.connection.close()
        server.run(f"DROP DATABASE {name} WITH (FORCE)")
        server.run(f"DROP ROLE {name}")
        server.connection.close()


@pytest.fixture(scope="module")
def decoyed(database_url: str) -> Iterator[Decoyed]:
    """Plant the decoys for what the server's SQL may name."""
    with decoyed_database(database_url, names_in_server()) as made:
        yield made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the decoys that have been called."""
    found: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, ServerErrorReported) and event.sqlstate == SQLSTATE:
            found.append(event.message)

    monkeypatch.setattr(events, "_observers", [observe])
    return found


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_filters_find_the_rows_of_plain_sql_and_call_no_decoy(
    decoyed: Decoyed, path: str, called: list[str]
) -> None:
    settings = Settings(database_url=at(decoyed.dsn, path))
    found = {}
    async with open_database(settings) as database, database.session() as session:
        relation = await session.relation(RelationName("kinds"), filtered=KINDS)
        for case, ids in decoyed.expected.items():
            if ids is not None:  # an error would end the transaction
                statement = select_statement(make_plan(parse_export_request("kinds.csv", case.query), relation))
                found[case] = [row["id"] for row in await session.query(statement.text, statement.values)]
    assert called == []
    assert found == {case: ids for case, ids in decoyed.expected.items() if ids is not None}
    assert len(found) > 300


async def test_an_operator_of_a_type_is_found_whatever_its_symbol(
    decoyed: Decoyed, called: list[str], tmp_path: Path
) -> None:
    """Also where the type has no <>, and where its arrays are written with another delimiter."""
    conditions = {
        "eq.2": [2],
        "neq.2": [1, 3, 4],
        "not.neq.2": [2],
        "gt.1": [2, 3],
        "lte.1": [1, 4],
        "isdistinct.2": [1, 3, 4, 9],
        "in.(2,3)": [2, 3],
        "eq(any).{2:3}": [2, 3],
        "lt(all).{2:3}": [1, 4],
    }
    async with client_of(decoyed, PATHS["decoys are searched"], tmp_path) as client:
        for condition, ids in conditions.items():
            response = await client.get(f"/export/odds.csv?select=id&order=id&v_odd={condition}")
            assert await response.text() == "id\n" + "".join(f"{id}\n" for id in ids), condition
    assert called == []


INDEXED = ("v_varchar", "v_code", "v_int", "v_mood", "v_texts", "v_range", "v_isbn", "v_book", "v_rare", "v_folded")


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_filters_use_the_indexes_of_the_column(decoyed: Decoyed, path: str, called: list[str]) -> None:
    settings = Settings(database_url=at(decoyed.dsn, path))
    async with open_database(settings) as database, database.session() as session:
        relation = await session.relation(RelationName("kinds"), filtered=INDEXED)
        await session.query("SET LOCAL enable_seqscan = off")
        for case in CASES:
            if case.column in INDEXED and case.operator in ("eq", "gt", "in", "eq(any)") and decoyed.expected[case]:
                query = case.query.replace("&order=id", "")
                statement = select_statement(make_plan(parse_export_request("kinds.csv", query), relation))
                plan = await session.query(f"EXPLAIN {statement.text}", statement.values)
                assert any("Index Cond" in row["QUERY PLAN"] for row in plan), (case, plan)
    assert called == []


# What a client may ask for, in addition to filters.
TARGETS = [
    "/health/live",
    "/health/ready",
    "/",
    "/?q=v_int+id&sort=size.desc",
    "/relations",
    "/relations/kinds",
    "/relations/public.parts",
    "/relations/kinds/preview?v_isbn=eq.2",
    "/relations/nothing",
    "/relations/kinds?explain&v_isbn=eq.2&v_varchar=in.(a,b)",
    "/relations/large?explain",
    "/relations/parts?explain&name=eq.a",
    "/table/kinds",
    "/table/kinds?v_text=eq.a&v_stamp=gt.2024-01-01&order=v_mood.desc",
    "/table/nothing",
    "/table/failing",
    "/export/kinds.csv",
    "/export/kinds.tsv.gz?order=id&limit=2&offset=1",
    f"/export/kinds.ndjson?select={','.join(name for name in KINDS)}",
    "/export/kinds.ndjson?select=a:v_jsonb->a->>0,b:v_texts->0,c:v_pair->>a,d:v_json->a&order=v_jsonb->a",
    "/export/kinds.csv?select=v_int::text,v_isbn::text,v_numeric::float8,v_varchar::varchar&order=v_folded.desc,id",
    "/export/kinds.csv?order=v_text,v_varchar,v_char,v_name,v_mood,v_pair,v_isbn,v_rare,v_range,v_texts,id",
    "/export/kinds.csv?timezone=Asia/Tokyo&select=v_stamp&id=gt.1",
    "/export/kinds.csv?or=(v_text.eq.a,not.and(v_int.gt.1,v_isbn.lt.3))&id=not.is.null",
    "/export/kinds.csv?v_text=fts(simple).a&id=lt.9",
    "/export/large.csv",
    "/export/large.csv?select=id&id=gt.10&parallel=3",
    "/export/parts.csv?id=gte.0",
    "/export/seen.csv?v_text=like.a*",
    # Errors, whose causes are looked for.
    "/export/nothing.csv",
    "/export/kinds.csv?v_int=eq.x",
    "/export/kinds.csv?v_isbn=eq.x",
    "/export/kinds.csv?v_isbn=like.x",
    "/export/kinds.csv?v_json=eq.1",
    "/export/kinds.csv?v_text=match.(",
    "/export/kinds.csv?v_text=match(any).{a,(}",
    "/export/kinds.csv?order=v_json",
    "/export/kinds.csv?select=v_text::int4",
    "/export/kinds.csv?timezone=No/Where",
    "/export/empty.csv",
    "/export/failing.csv?half=eq.1",
    "/relations/failing/preview",
]


@asynccontextmanager
async def client_of(decoyed: Decoyed, path: str, storage: Path) -> AsyncIterator[TestClient[Any, Any]]:
    settings = Settings(database_url=at(decoyed.dsn, path), shutdown_timeout=5, export_storage_path=storage)
    server = TestServer(create_app(settings))
    await server.start_server(max_line_size=MAX_REQUEST_LINE)
    async with TestClient(server) as client:
        yield client


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the SQL that has been sent."""
    found: set[str] = set()
    parse = messages.parse

    def record(sql: str, name: str = "", types: Sequence[int] = ()) -> bytes:
        found.add(sql)
        return parse(sql, name, types)

    monkeypatch.setattr(messages, "parse", record)
    return found


async def answer(client: TestClient[Any, Any], target: str) -> tuple[int, bytes]:
    """Return the status and the body, without what is of this request alone."""
    response = await client.get(URL(target, encoded=True))
    body = await response.read()
    if response.content_type == "text/html":
        body = b""
    if response.content_type == "application/problem+json":
        body = json.dumps({**json.loads(body), "requestId": None}).encode()
    return response.status, body


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_no_request_calls_a_decoy(
    decoyed: Decoyed, path: str, called: list[str], sent: set[str], tmp_path: Path
) -> None:
    async with client_of(decoyed, "public", tmp_path) as client:
        expected = {target: await answer(client, target) for target in TARGETS}
    assert not [target for target, (_, body) in expected.items() if b'"internal"' in body]
    sent.clear()
    async with client_of(decoyed, path, tmp_path) as client:
        found = {target: await answer(client, target) for target in TARGETS}
        response = await client.post("/export/kinds.csv?v_isbn=gt.1&order=id")
        assert response.status == 202
        status = await finished(client, response.headers["Location"])
        download = await client.get(status["downloadUrl"])
        assert (await download.text()).count("\n") >= 3
    assert called == []
    assert found == expected
    assert {sql: unqualified(sql) for sql in sent if unqualified(sql)} == {}
    # Every kind of it: from the list, a parallel export, a cause that was looked for.
    for part in ("strpos", "source.ctid", "pg_rewrite"):
        assert any(part in sql for sql in sent), part


async def finished(client: TestClient[Any, Any], location: str) -> dict[str, Any]:
    """Wait until the saved export is complete, and return its status."""
    async with asyncio.timeout(30):
        while True:
            status: dict[str, Any] = await (await client.get(location)).json()
            if status["status"] not in ("pending", "processing"):
                assert status["status"] == "completed", status
                return status
            await asyncio.sleep(0.02)


async def test_cancelling_calls_no_decoy(decoyed: Decoyed, called: list[str]) -> None:
    postgres = Postgres(decoyed.dsn)
    running = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND query LIKE '%pg_sleep(3600)'"

    async def sleep() -> None:
        async with database.session() as session:
            await session.query("SELECT pg_catalog.pg_sleep(3600)")

    async with open_database(Settings(database_url=at(decoyed.dsn, PATHS["decoys come first"]))) as database:
        task = asyncio.create_task(sleep())
        await eventually("it sleeps", lambda: postgres.run(running + " AND state = 'active'"))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually("the statement is cancelled", lambda: not postgres.run(running))
    postgres.connection.close()
    assert called == []


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_no_filter_calls_a_decoy_of_anything_in_the_catalogue(
    database_url: str, path: str, called: list[str], sent: set[str], tmp_path: Path
) -> None:
    """Also filters that PostgreSQL rejects, whose cause is looked for."""
    with decoyed_database(database_url, None) as decoyed:
        async with client_of(decoyed, path, tmp_path) as client:
            for case, ids in decoyed.expected.items():
                status, body = await answer(client, f"/export/kinds.csv?{case.query}")
                assert called == [], case
                assert status == (400 if ids is None else 200), (case, body)
                if ids is not None:
                    assert body.decode() == "id\n" + "".join(f"{id}\n" for id in ids), case
    assert {sql: unqualified(sql) for sql in sent if unqualified(sql)} == {}


def test_the_embedded_database_is_asked_without_the_search_path() -> None:
    """It runs as a superuser, before sample data is loaded."""
    assert unqualified(sample_data._COUNT_RELATIONS) == []

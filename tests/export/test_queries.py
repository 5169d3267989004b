"""Requests against hand-written SQL: the same rows in the same order.

Every operator, type and combination is one line of a table: the query string, and the SQL that a person would
have written for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.http.keys import ENGINE
from server.query.catalogue import RelationName
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.query.sql import select_statement
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.postgres import Postgres

TABLE = '''
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN code AS varchar(8);
CREATE TABLE things (
    id integer PRIMARY KEY, big bigint, small smallint, price numeric(10, 2), ratio double precision, r4 real,
    name text, label varchar(10), kind char(3), flag boolean, born date, at timestamptz, ts timestamp, t time,
    gap interval, ref uuid, data jsonb, raw json, tags text[], nums integer[], span int4range, days daterange,
    host inet, feel mood, pos positive, cod code, blob bytea, "order" text, "has.dot" text, "Ünïcode" text,
    "say ""hi""" text, "per%cent" text
);
INSERT INTO things
SELECT
    n, n * 10000000000, n % 100, n * 1.25, n / 3.0, n / 7.0,
    CASE WHEN n % 10 = 0 THEN NULL WHEN n % 10 = 1 THEN '' ELSE 'name ' || n END,
    'l' || n % 7, (ARRAY['a', 'bb', 'ccc'])[1 + n % 3], CASE n % 3 WHEN 0 THEN true WHEN 1 THEN false END,
    date '2024-01-01' + n, timestamptz '2024-01-01 12:00:00+00' + n * interval '1 hour',
    timestamp '2024-01-01 12:00:00' + n * interval '1 hour', time '00:00' + n * interval '1 minute',
    n * interval '1 hour', ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid,
    jsonb_build_object('n', n, 'even', n % 2 = 0), json_build_object('n', n),
    ARRAY['t' || n % 5, 'a,b', 'q"q'], ARRAY[n, n + 1], int4range(n, n + 10),
    daterange(date '2024-01-01', date '2024-01-01' + n),
    ('10.0.0.' || n % 256)::inet, (ARRAY['sad', 'ok', 'happy'])[1 + n % 3]::mood, n, 'c' || n % 4,
    decode(lpad(to_hex(n), 4, '0'), 'hex'), 'o' || n % 3, 'd' || n % 3, 'ü' || n % 3, 'h' || n % 3, '100%' || n % 3
FROM generate_series(1, 200) AS n;
INSERT INTO things (id, name) VALUES
    (1001, 'a,b'), (1002, 'say "hi"'), (1003, 'back\\slash'), (1004, '100%'), (1005, 'under_score'),
    (1006, '(brackets)'),
    (1007, 'ünï 🚀'), (1008, 'it''s'), (1009, E'line\\nbreak'), (1010, 'a*b'), (1011, '{braces}'), (1012, 'a.b'),
    (1013, 'null'), (1014, 'a&b=c'), (1015, 'plus+sign'), (1016, '--comment'), (1017, '; DROP TABLE things'),
    (1018, '%(v0)s'), (1019, '$1');
'''

# (query string, SQL after FROM things)
COMPARED: list[tuple[str, str]] = [
    ("id=eq.7", "WHERE id = 7"),
    ("id=neq.7", "WHERE id <> 7"),
    ("id=gt.195", "WHERE id > 195"),
    ("id=gte.195", "WHERE id >= 195"),
    ("id=lt.5", "WHERE id < 5"),
    ("id=lte.5", "WHERE id <= 5"),
    ("id=not.eq.7", "WHERE NOT id = 7"),
    ("id=not.gt.7", "WHERE NOT id > 7"),
    ("id=eq.-7", "WHERE id = -7"),
    ("id=eq. 7 ", "WHERE id = 7"),
    ("big=eq.70000000000", "WHERE big = 70000000000"),
    ("big=gt.1990000000000", "WHERE big > 1990000000000"),
    ("small=lt.3", "WHERE small < 3"),
    ("price=eq.8.75", "WHERE price = 8.75"),
    ("price=lte.2.50", "WHERE price <= 2.50"),
    ("price=eq.1e2", "WHERE price = 100"),
    ("ratio=gt.66", "WHERE ratio > 66"),
    ("ratio=eq.NaN", "WHERE ratio = 'NaN'"),
    ("ratio=lt.Infinity", "WHERE ratio < 'Infinity'"),
    ("r4=lt.0.5", "WHERE r4 < 0.5"),
    ("name=eq.", "WHERE name = ''"),
    ("name=neq.", "WHERE name <> ''"),
    ("name=eq.name 12", "WHERE name = 'name 12'"),
    ("name=eq.name+12", "WHERE name = 'name 12'"),
    ("name=eq.a,b", "WHERE name = 'a,b'"),
    ('name=eq.say "hi"', "WHERE name = 'say \"hi\"'"),
    ("name=eq.back\\slash", "WHERE name = E'back\\\\slash'"),
    ("name=eq.it's", "WHERE name = 'it''s'"),
    ("name=eq.(brackets)", "WHERE name = '(brackets)'"),
    ("name=eq.ünï 🚀", "WHERE name = 'ünï 🚀'"),
    ("name=eq.line\nbreak", "WHERE name = E'line\\nbreak'"),
    ("name=eq.a.b", "WHERE name = 'a.b'"),
    ("name=eq.null", "WHERE name = 'null'"),
    ("name=eq.a&b=c", "WHERE name = 'a&b=c'"),
    ("name=eq.plus%2Bsign", "WHERE name = 'plus+sign'"),
    ("name=eq.--comment", "WHERE name = '--comment'"),
    ("name=eq.; DROP TABLE things", "WHERE name = '; DROP TABLE things'"),
    ("name=eq.%(v0)s", "WHERE name = '%(v0)s'"),
    ("name=eq.$1", "WHERE name = '$1'"),
    ("name=eq.100%", "WHERE name = '100%'"),
    ("name=gt.name 5", "WHERE name > 'name 5'"),
    ("name=like.name 1*", "WHERE name LIKE 'name 1%'"),
    ("name=like.*2", "WHERE name LIKE '%2'"),
    ("name=like.*e*9*", "WHERE name LIKE '%e%9%'"),
    ("name=like.NAME*", "WHERE name LIKE 'NAME%'"),
    ("name=ilike.NAME 1*", "WHERE name ILIKE 'NAME 1%'"),
    ("name=not.like.name*", "WHERE NOT name LIKE 'name%'"),
    ("name=not.ilike.NAME*", "WHERE NOT name ILIKE 'NAME%'"),
    ("name=like.name _", "WHERE name LIKE 'name _'"),
    ("name=like.under\\_score", "WHERE name LIKE 'under\\_score'"),
    ("name=like.", "WHERE name LIKE ''"),
    ("name=match.^name [12]$", "WHERE name ~ '^name [12]$'"),
    ("name=match.^name (12|13)$", "WHERE name ~ '^name (12|13)$'"),
    ("name=imatch.^NAME 1", "WHERE name ~* '^NAME 1'"),
    ("name=not.match.name", "WHERE NOT name ~ 'name'"),
    ("name=not.imatch.NAME", "WHERE NOT name ~* 'NAME'"),
    ("label=eq.l3", "WHERE label = 'l3'"),
    ("label=eq.longer than ten characters", "WHERE label = 'longer than ten characters'"),
    ("label=like.l*", "WHERE label LIKE 'l%'"),
    ("kind=eq.a", "WHERE kind = 'a'"),
    ("kind=eq.bb ", "WHERE kind = 'bb '"),
    ("kind=eq.abcdef", "WHERE kind = 'abcdef'"),
    ("kind=like.a*", "WHERE kind LIKE 'a%'"),
    ("kind=in.(a,ccc)", "WHERE kind IN ('a', 'ccc')"),
    ("flag=eq.true", "WHERE flag = true"),
    ("flag=eq.f", "WHERE flag = false"),
    ("flag=is.true", "WHERE flag IS TRUE"),
    ("flag=is.false", "WHERE flag IS FALSE"),
    ("flag=is.unknown", "WHERE flag IS UNKNOWN"),
    ("flag=is.null", "WHERE flag IS NULL"),
    ("flag=not.is.true", "WHERE flag IS NOT TRUE"),
    ("flag=not.is.null", "WHERE flag IS NOT NULL"),
    ("flag=is.NULL", "WHERE flag IS NULL"),
    ("name=is.null", "WHERE name IS NULL"),
    ("name=not.is.null", "WHERE name IS NOT NULL"),
    ("born=eq.2024-01-08", "WHERE born = '2024-01-08'"),
    ("born=gte.2024-07-01", "WHERE born >= '2024-07-01'"),
    ("born=lt.January 5, 2024", "WHERE born < '2024-01-05'"),
    ("at=lt.2024-01-01T15:00:00Z", "WHERE at < '2024-01-01 15:00:00+00'"),
    ("at=lt.2024-01-01T17:00:00%2B02:00", "WHERE at < '2024-01-01 15:00:00+00'"),
    ("at=gte.2024-01-09 00:00:00-05", "WHERE at >= '2024-01-09 05:00:00+00'"),
    ("ts=eq.2024-01-01 19:00:00", "WHERE ts = '2024-01-01 19:00:00'"),
    ("t=lt.00:05", "WHERE t < '00:05'"),
    ("gap=gt.8 days", "WHERE gap > '8 days'"),
    ("gap=eq.P1D", "WHERE gap = '1 day'"),
    ("ref=eq.00000000-0000-0000-0000-000000000007", "WHERE ref = '00000000-0000-0000-0000-000000000007'"),
    (
        "ref=in.(00000000-0000-0000-0000-000000000007,00000000-0000-0000-0000-000000000009)",
        "WHERE ref IN ('00000000-0000-0000-0000-000000000007', '00000000-0000-0000-0000-000000000009')",
    ),
    ("host=eq.10.0.0.7", "WHERE host = '10.0.0.7'"),
    ("host=gt.10.0.0.190", "WHERE host > '10.0.0.190'"),
    ("feel=eq.happy", "WHERE feel = 'happy'"),
    ("feel=gt.sad", "WHERE feel > 'sad'"),
    ("feel=in.(sad,ok)", "WHERE feel IN ('sad', 'ok')"),
    ("pos=lt.4", "WHERE pos < 4"),
    ("pos=eq.-1", "WHERE pos = -1"),
    ("cod=eq.c3", "WHERE cod = 'c3'"),
    ("cod=like.c*", "WHERE cod LIKE 'c%'"),
    ("blob=eq.\\x0007", "WHERE blob = '\\x0007'"),
    ('data=eq.{"n": 7, "even": false}', 'WHERE data = \'{"n": 7, "even": false}\''),
    ('data=cs.{"even": true}', "WHERE data @> '{\"even\": true}'"),
    ('data=cd.{"n": 7, "even": false, "x": 1}', 'WHERE data <@ \'{"n": 7, "even": false, "x": 1}\''),
    ('data=not.cs.{"even": true}', "WHERE NOT data @> '{\"even\": true}'"),
    ("raw=is.null", "WHERE raw IS NULL"),
    ("tags=cs.{t3}", "WHERE tags @> '{t3}'"),
    ('tags=cs.{t3,"a,b"}', "WHERE tags @> '{t3,\"a,b\"}'"),
    ('tags=cd.{t3,"a,b","q\\"q"}', "WHERE tags <@ ARRAY['t3', 'a,b', 'q\"q']"),
    ("tags=ov.{t3,t4}", "WHERE tags && '{t3,t4}'"),
    ("tags=not.ov.{t3,t4}", "WHERE NOT tags && '{t3,t4}'"),
    ("nums=cs.{7}", "WHERE nums @> '{7}'"),
    ("nums=eq.{7,8}", "WHERE nums = '{7,8}'"),
    ("nums=ov.{7,100}", "WHERE nums && '{7,100}'"),
    ("span=cs.[5,7)", "WHERE span @> '[5,7)'::int4range"),
    ("span=cd.[0,20]", "WHERE span <@ '[0,20]'::int4range"),
    ("span=ov.[5,7]", "WHERE span && '[5,7]'::int4range"),
    ("span=eq.[7,17)", "WHERE span = '[7,17)'"),
    ("days=ov.[2024-06-01,)", "WHERE days && '[2024-06-01,)'::daterange"),
    ("id=in.(1,2,3)", "WHERE id IN (1, 2, 3)"),
    ("id=in.(7)", "WHERE id IN (7)"),
    ("id=in.()", "WHERE false"),
    ("id=not.in.()", "WHERE true"),
    ("id=not.in.(1,2,3)", "WHERE id NOT IN (1, 2, 3)"),
    ('name=in.("a,b","say \\"hi\\"",a.b)', "WHERE name IN ('a,b', 'say \"hi\"', 'a.b')"),
    ('name=in.("","name 12")', "WHERE name IN ('', 'name 12')"),
    ('name=in.("(brackets)","{braces}")', "WHERE name IN ('(brackets)', '{braces}')"),
    ('name=in.({braces},"back\\\\slash")', "WHERE name IN ('{braces}', E'back\\\\slash')"),
    ('name=in.("it\'s","\\"")', "WHERE name IN ('it''s', '\"')"),
    ("price=in.(1.25,2.5)", "WHERE price IN (1.25, 2.5)"),
    ("id=gt.10&id=lt.20", "WHERE id > 10 AND id < 20"),
    ("id=gt.10&id=lt.20&flag=is.true", "WHERE id > 10 AND id < 20 AND flag"),
    ("id=gte.10&name=like.*5&flag=not.is.null", "WHERE id >= 10 AND name LIKE '%5' AND flag IS NOT NULL"),
    ("or=(id.eq.1,id.eq.2)", "WHERE id = 1 OR id = 2"),
    ("or=(id.eq.1,name.is.null)", "WHERE id = 1 OR name IS NULL"),
    ("or=(id.eq.1)", "WHERE id = 1"),
    ("and=(id.gt.5,id.lt.8)", "WHERE id > 5 AND id < 8"),
    ("not.or=(id.lt.195,id.gt.200)", "WHERE NOT (id < 195 OR id > 200)"),
    ("not.and=(id.gt.5,id.lt.1000)", "WHERE NOT (id > 5 AND id < 1000)"),
    ("or=(id.lt.3,and(id.gt.10,id.lt.13))", "WHERE id < 3 OR (id > 10 AND id < 13)"),
    ("or=(id.lt.3,not.and(id.gt.10,id.lt.1013))", "WHERE id < 3 OR NOT (id > 10 AND id < 1013)"),
    ("and=(or(id.eq.1,id.eq.2),or(id.eq.2,id.eq.3))", "WHERE (id = 1 OR id = 2) AND (id = 2 OR id = 3)"),
    (
        "or=(and(id.gt.1,or(id.lt.3,and(id.gt.5,or(id.lt.7,and(id.gt.9,id.lt.11))))),id.eq.0)",
        "WHERE (id > 1 AND (id < 3 OR (id > 5 AND (id < 7 OR (id > 9 AND id < 11))))) OR id = 0",
    ),
    ("or=(id.in.(1,2),id.in.(3,4))", "WHERE id IN (1, 2) OR id IN (3, 4)"),
    ('or=(name.in.("a,b",a.b),id.eq.4)', "WHERE name IN ('a,b', 'a.b') OR id = 4"),
    ('or=(name.eq."a,b",name.eq."(brackets)")', "WHERE name IN ('a,b', '(brackets)')"),
    ("or=(name.eq.a.b,id.eq.4)", "WHERE name = 'a.b' OR id = 4"),
    ("or=(name.not.like.name*,id.eq.4)", "WHERE NOT name LIKE 'name%' OR id = 4"),
    ("or=(flag.not.is.null,id.eq.1)", "WHERE flag IS NOT NULL OR id = 1"),
    ("or=(tags.cs.{t3},nums.cs.{7,8})", "WHERE tags @> '{t3}' OR nums @> '{7,8}'"),
    ('or=(tags.cs.{t3,"a,b"},id.eq.1001)', "WHERE tags @> '{t3,\"a,b\"}' OR id = 1001"),
    ('or=(span.cs."[5,7)",id.eq.1)', "WHERE span @> '[5,7)'::int4range OR id = 1"),
    ('or=(data.cs.{"even":true},id.eq.1)', "WHERE data @> '{\"even\":true}' OR id = 1"),
    ("or=(name.eq.,id.eq.4)", "WHERE name = '' OR id = 4"),
    ('or=(name.eq."",id.eq.4)', "WHERE name = '' OR id = 4"),
    ("or=(id.eq.1,id.eq.2)&and=(id.gt.1,id.lt.9)", "WHERE (id = 1 OR id = 2) AND id > 1 AND id < 9"),
    ("or=(id.eq.1,id.eq.2)&or=(id.eq.2,id.eq.3)", "WHERE id = 2"),
    ('"order"=eq.o1', "WHERE \"order\" = 'o1'"),
    ('"has.dot"=eq.d2', "WHERE \"has.dot\" = 'd2'"),
    ("has.dot=eq.d2", "WHERE \"has.dot\" = 'd2'"),
    ('or=("has.dot".eq.d2,"order".eq.o1)', "WHERE \"has.dot\" = 'd2' OR \"order\" = 'o1'"),
    ("Ünïcode=eq.ü1", "WHERE \"Ünïcode\" = 'ü1'"),
    ('"say \\"hi\\""=eq.h1', 'WHERE "say ""hi""" = \'h1\''),
    ('say "hi"=eq.h1', 'WHERE "say ""hi""" = \'h1\''),
    ("per%cent=eq.100%1", "WHERE \"per%cent\" = '100%1'"),
    ("per%cent=like.100\\%*", "WHERE \"per%cent\" LIKE '100\\%%'"),
]

# (query string, SQL after FROM things), compared in order.
ORDERED: list[tuple[str, str]] = [
    ("order=id", "ORDER BY id"),
    ("order=id.asc", "ORDER BY id ASC"),
    ("order=id.desc", "ORDER BY id DESC"),
    ("order=name,id", "ORDER BY name, id"),
    ("order=name.nullsfirst,id", "ORDER BY name NULLS FIRST, id"),
    ("order=name.desc,id", "ORDER BY name DESC, id"),
    ("order=name.desc.nullslast,id.desc", "ORDER BY name DESC NULLS LAST, id DESC"),
    ("order=flag.asc.nullsfirst,kind.desc,id", "ORDER BY flag NULLS FIRST, kind DESC, id"),
    ('order="has.dot".desc,"order",id', 'ORDER BY "has.dot" DESC, "order", id'),
    ("order=per%cent.desc,id", 'ORDER BY "per%cent" DESC, id'),
    ("order=feel.desc,id", "ORDER BY feel DESC, id"),
    ("order=data,id", "ORDER BY data, id"),
    ("order=id&limit=5", "ORDER BY id LIMIT 5"),
    ("order=id&limit=5&offset=3", "ORDER BY id LIMIT 5 OFFSET 3"),
    ("order=id&offset=210", "ORDER BY id OFFSET 210"),
    ("order=id&limit=0", "ORDER BY id LIMIT 0"),
    ("order=id&offset=100000", "ORDER BY id OFFSET 100000"),
    ("order=id&limit=9223372036854775807", "ORDER BY id"),
    ("id=gt.50&order=price.desc&limit=3", "WHERE id > 50 ORDER BY price DESC LIMIT 3"),
    ("or=(id.lt.3,id.gt.1010)&order=id.desc", "WHERE id < 3 OR id > 1010 ORDER BY id DESC"),
]


@pytest.fixture(scope="module")
def things(database_url: str) -> Iterator[Postgres]:
    """A table with a column of each type that filters are tested with, and with awkward values."""
    postgres = Postgres(database_url)
    postgres.run(TABLE)
    yield postgres
    postgres.run("DROP TABLE things; DROP TYPE mood; DROP DOMAIN positive; DROP DOMAIN code")
    postgres.connection.close()


def encoded(query: str) -> str:
    """The query string as a browser sends it: names and values percent-encoded, unless they already are."""
    pairs = []
    for pair in query.replace("a&b=c", "a%26b%3Dc").split("&"):
        name, equals, value = pair.partition("=")
        safe = "%+" if "%2" in value else "+"
        pairs.append(quote(name, safe="") + equals + quote(value, safe=safe))
    return "&".join(pairs)


async def fetch(client: TestClient[Any, Any], query: str, path: str = "/export/things.csv") -> bytes:

    async with client.get(URL(f"{path}?{encoded(query)}", encoded=True)) as response:
        body: bytes = await response.read()
        assert response.status == 200, body
        return body


def test_there_are_enough_queries() -> None:
    assert len(COMPARED) + len(ORDERED) >= 150


@pytest.mark.parametrize(("query", "sql"), COMPARED, ids=[query for query, _ in COMPARED])
async def test_the_same_rows(client: TestClient[Any, Any], things: Postgres, query: str, sql: str) -> None:
    assert await fetch(client, f"{query}&order=id") == things.copy(f"SELECT * FROM things {sql} ORDER BY id")


@pytest.mark.parametrize(("query", "sql"), ORDERED, ids=[query for query, _ in ORDERED])
async def test_the_same_rows_in_order(client: TestClient[Any, Any], things: Postgres, query: str, sql: str) -> None:
    assert await fetch(client, query) == things.copy(f"SELECT * FROM things {sql}")


async def test_selected_and_renamed_columns(client: TestClient[Any, Any], things: Postgres) -> None:
    body = await fetch(client, 'select=id,"the, name":name,"has.dot",x:per%cent&order=id&limit=9')
    expected = 'SELECT id, name AS "the, name", "has.dot", "per%%cent" AS x FROM things ORDER BY id LIMIT 9'
    assert body == things.copy(expected.replace("%%", "%"))


@pytest.mark.parametrize(
    ("query", "sql"),
    [
        ("id=eq.77", "SELECT * FROM things WHERE id = 77"),
        ("id=in.(5,6)", "SELECT * FROM things WHERE id IN (5, 6)"),
    ],
)
async def test_a_filter_on_an_indexed_column_uses_the_index(things: Postgres, query: str, sql: str) -> None:

    things.run("ANALYZE things")
    async with open_database(Settings(database_url=things.dsn)) as database, database.session() as session:
        relation = await session.relation(RelationName("things"))
        statement = select_statement(make_plan(parse_export_request("things.csv", query), relation))
        await session.query("SET LOCAL enable_seqscan = off")
        plan = await session.query(f"EXPLAIN {statement.text}", statement.values)
    text = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "things_pkey" in text
    assert "Index Cond: (id = " in text


async def test_the_text_for_null_cannot_defeat_the_guard(client: TestClient[Any, Any], things: Postgres) -> None:
    async with client.get("/export/things.csv", params={"guard": "formulas", "null": "=1+1"}) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "contradiction"


async def test_a_preview_of_huge_values_stays_small(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run("CREATE VIEW huge AS SELECT n, repeat('ü', 5000000) AS x FROM generate_series(1, 20) AS n")
    async with client.get("/relations/huge/preview") as response:
        document = await response.json()
    assert len(document["rows"]) == 20
    assert {row[1] for row in document["rows"]} == {"ü" * 1000 + "…"}


async def test_head_needs_no_export_slot(settings: Settings, things: Postgres) -> None:
    app = create_app(replace(settings, max_concurrent_exports=1))
    async with TestClient(TestServer(app)) as client, app[ENGINE].database.session():
        async with client.get("/export/things.csv") as response:
            assert response.status == 503
        async with client.head("/export/things.csv") as response:
            assert response.status == 200

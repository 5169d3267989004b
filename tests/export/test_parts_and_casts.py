"""Parts of JSON and casts against hand-written SQL: the rows, the names and the errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient
from yarl import URL

from server.query.catalogue import RelationName
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.query.sql import select_statement
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.postgres import Postgres

TABLE = """
CREATE TYPE spot AS (lat numeric, lng numeric);
CREATE DOMAIN document AS jsonb;
CREATE DOMAIN as_written AS json;
CREATE TABLE docs (
    id integer PRIMARY KEY, data jsonb, raw json, dom document, rawdom as_written, tags text[], at spot,
    price numeric(10, 2), made timestamptz, name text, flag boolean, "a->b" jsonb
);
INSERT INTO docs
SELECT
    n,
    jsonb_build_object(
        'n', n, 'text', 'v' || n % 7, 'even', n % 2 = 0, 'nothing', NULL, '', 'empty', '0', 'zero', 'it''s', n,
        'a', json_build_object('b', json_build_array(n, json_build_object('c', 'deep, ' || n), NULL, 'l"ast')),
        'when', '2024-02-' || 1 + n % 28
    ),
    json_build_object('n', n, 'list', json_build_array('x', n), 'spaces', '[1,   2]'::json),
    jsonb_build_object('n', n), '{"a":  1, "a": {"b":   2}}',
    ARRAY['t' || n % 5, 'q"q', NULL], ROW(n / 4.0, -n)::spot, n * 1.25,
    timestamptz '2024-01-01 12:00:00+00' + n * interval '1 hour', n::text, n % 3 = 0,
    jsonb_build_object('x', n)
FROM generate_series(1, 60) AS n;
INSERT INTO docs (id, data, raw) VALUES (101, '[10, [20, {"c": "in a list"}]]', '[1]'), (102, '"text"', '7'),
    (103, NULL, NULL), (104, '{}', '{}');
"""

# What select= names, and the SQL that a person would write for it.
SELECTED: list[tuple[str, str]] = [
    ("data->n", "data->'n' AS n"),
    ("data->>n", "data->>'n' AS n"),
    ("data->a->b->1->>c", "data->'a'->'b'->1->>'c' AS c"),
    ("data->a->b->-1", "data->'a'->'b'->-1 AS b"),
    ("data->a->b->>3,id", "data->'a'->'b'->>3 AS b, id"),
    ("data->1->1->c", "data->1->1->'c' AS c"),
    ("data->0", "data->0 AS data"),
    ('data->"0"', "data->'0' AS \"0\""),
    ('x:data->>""', "data->>'' AS x"),
    ("data->>it's", "data->>'it''s' AS \"it's\""),
    ("data->nothing,data->>nothing", "data->'nothing' AS nothing, data->>'nothing' AS nothing"),
    ("data->none->none->>none", "NULL AS none"),
    ("x:data->>n,y:raw->n", "data->>'n' AS x, raw->'n' AS y"),
    ("raw->list->1,raw->spaces", "raw->'list'->1 AS list, raw->'spaces' AS spaces"),
    ("dom->n", "dom->'n' AS n"),
    ("rawdom->a,rawdom->a->>b", "rawdom->'a' AS a, rawdom->'a'->>'b' AS b"),
    (
        "tags->0,tags->>1,tags->2,tags->>9",
        "to_jsonb(tags)->0 AS tags, tags[2] AS tags, to_jsonb(tags)->2 AS tags, NULL AS tags",
    ),
    ("at->lat,at->>lng", "(at).lat AS lat, (at).lng AS lng"),
    ('"a->b"->x', "\"a->b\"->'x' AS x"),
    ("id::text,price::int,x:price::float8", "id, price::int AS price, price::float8 AS x"),
    ("name::numeric,name::int2,flag::int", "name::numeric AS name, name::int2 AS name, flag::int AS flag"),
    ("made::date,made::timestamp,made::time", "made::date AS made, made::timestamp AS made, made::time AS made"),
    ("data->>n::bigint,data->n::numeric", "(data->>'n')::bigint AS n, (data->'n')::numeric AS n"),
    ("data->>when::date", "(data->>'when')::date AS when"),
    ("data->even::bool,raw::jsonb", "(data->'even')::bool AS even, raw::jsonb AS raw"),
    ("*,data->>n", "*, data->>'n' AS n"),
    ("id , * , who:name", "id, *, name AS who"),
]
# (query string, SQL after FROM docs)
FILTERED: list[tuple[str, str]] = [
    ("data->>text=eq.v3", "WHERE data->>'text' = 'v3'"),
    ("data->>text=in.(v3,v4)", "WHERE data->>'text' IN ('v3', 'v4')"),
    ("data->>none=in.()", "WHERE false"),
    ("data->n=gt.55", "WHERE data->'n' > '55'"),
    ("data->>n=gt.55", "WHERE data->>'n' > '55'"),
    ("data->n=eq.7", "WHERE data->'n' = '7'"),
    ("data->a->b->1->>c=eq.deep, 9", "WHERE data->'a'->'b'->1->>'c' = 'deep, 9'"),
    ('data->a=cs.{"b":[9]}', "WHERE data->'a' @> '{\"b\":[9]}'"),
    ("data->>text=like.*3", "WHERE data->>'text' LIKE '%3'"),
    ("data->>text=not.match.[0-5]", "WHERE NOT data->>'text' ~ '[0-5]'"),
    ("data->n=is.null", "WHERE data->'n' IS NULL"),
    ("data->>nothing=not.is.null", "WHERE data->>'nothing' IS NOT NULL"),
    ("raw->>n=eq.8", "WHERE raw->>'n' = '8'"),
    ("raw->list->>1=eq.8", "WHERE raw->'list'->>1 = '8'"),
    ("tags->>0=eq.t4", "WHERE tags[1] = 't4'"),
    ("at->>lat=eq.2.5000000000000000", "WHERE (at).lat = 2.5"),
    ("at->lat=gte.14", "WHERE (at).lat >= 14"),
    ('"a->b"->x=eq.4', "WHERE id = 4"),
    ("or=(data->>n.eq.7,data->a->b->0.eq.8,raw->list->>1.in.(1,2))", "WHERE id IN (7, 8, 1, 2)"),
    ("and=( data -> n .gt.5,not.or( data->n.lt.50,id.gt.55))", "WHERE id BETWEEN 50 AND 55"),
    ('or=(data->>"it\'s".eq.3,data->"0"->>none.not.is.null)', "WHERE id = 3"),
]
ORDERED: list[tuple[str, str]] = [
    ("order=data->n.desc,id", "ORDER BY data->'n' DESC, id"),
    ("order=data->>text.desc.nullslast,id.desc", "ORDER BY data->>'text' DESC NULLS LAST, id DESC"),
    ("order=raw->list->>1.nullsfirst , id", "ORDER BY raw->'list'->>1 NULLS FIRST, id"),
    ("order=at->lng&limit=5", "ORDER BY (at).lng LIMIT 5"),
    ("order=tags->>0,id", "ORDER BY tags[1], id"),
    (
        "data->n=gt.20&order=data->even.desc,data->n&limit=9&offset=2",
        "WHERE data->'n' > '20' ORDER BY data->'even' DESC, data->'n' LIMIT 9 OFFSET 2",
    ),
]


@pytest.fixture(scope="module")
def docs(database_url: str) -> Iterator[Postgres]:
    """A table of JSON of both types, with lists and composite values."""
    postgres = Postgres(database_url)
    postgres.run(TABLE)
    yield postgres
    postgres.run("DROP TABLE docs; DROP TYPE spot; DROP DOMAIN document, as_written")
    postgres.connection.close()


def encoded(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&"))
    return "&".join(quote(name, safe="") + equals + quote(value, safe="") for name, equals, value in pairs)


async def fetch(client: TestClient[Any, Any], query: str, suffix: str = "csv", status: int = 200) -> bytes:
    async with client.get(URL(f"/export/docs.{suffix}?{encoded(query)}", encoded=True)) as response:
        body: bytes = await response.read()
        assert response.status == status, body
        return body


@pytest.mark.parametrize(("select", "sql"), SELECTED, ids=[select for select, _ in SELECTED])
async def test_the_selected_values(client: TestClient[Any, Any], docs: Postgres, select: str, sql: str) -> None:
    assert await fetch(client, f"select={select}&order=id") == docs.copy(f"SELECT {sql} FROM docs ORDER BY docs.id")


@pytest.mark.parametrize(
    "select", ["id,data->a->b,data->>text,x:raw->list", "n:data->n::int,tags->>0,price::text,made::date"]
)
async def test_the_lines_of_ndjson(client: TestClient[Any, Any], docs: Postgres, select: str) -> None:
    sql = {
        "id": "id, data->'a'->'b' AS b, data->>'text' AS text, raw->'list' AS x",
        "n:": "(data->'n')::int AS n, tags[1] AS tags, price::text, made::date",
    }[select[:2]]
    expected = docs.run(
        f"SELECT row_to_json(line)::text FROM (SELECT {sql} FROM docs WHERE id < 100 ORDER BY id) AS line"
    )
    body = await fetch(client, f"select={select}&id=lt.100&order=id", "ndjson")
    assert body.decode().splitlines() == [line for (line,) in expected]


@pytest.mark.parametrize(("query", "sql"), FILTERED, ids=[query for query, _ in FILTERED])
async def test_the_filtered_rows(client: TestClient[Any, Any], docs: Postgres, query: str, sql: str) -> None:
    assert await fetch(client, f"{query}&order=id") == docs.copy(f"SELECT * FROM docs {sql} ORDER BY id")


@pytest.mark.parametrize(("query", "sql"), ORDERED, ids=[query for query, _ in ORDERED])
async def test_the_order_of_the_rows(client: TestClient[Any, Any], docs: Postgres, query: str, sql: str) -> None:
    assert await fetch(client, query) == docs.copy(f"SELECT * FROM docs {sql}")


async def test_the_preview_has_the_types_of_the_values(client: TestClient[Any, Any], docs: Postgres) -> None:
    path = f"/relations/docs/preview?{encoded('select=data->n,x:raw->>n,tags->0,id::text&limit=1')}"
    async with client.get(URL(path, encoded=True)) as response:
        document = await response.json()
    assert document["columns"] == [
        {"name": "n", "type": "jsonb"},
        {"name": "x", "type": "text"},
        {"name": "tags", "type": "jsonb"},
        {"name": "id", "type": "text"},
    ]
    assert document["rows"] == [["1", "1", '"t1"', "1"]]


@pytest.mark.parametrize(
    ("query", "code", "named"),
    [
        ("raw->n=gt.1", "operator_not_supported", '"raw->n" (json)'),
        ("data->n=like.1", "operator_not_supported", '"data->n" (jsonb)'),
        ("or=(id.eq.1,data->>n.cs.1)", "operator_not_supported", '"data->>n" (text)'),
        ("data->n=eq.not json", "invalid_value", '"data->n" (jsonb)'),
        ("data->>n=match.(", "invalid_value", '"data->>n" (text)'),
        ("data->even=is.true", "operator_not_supported", '"data->even" (jsonb)'),
        ("order=raw->n", "operator_not_supported", '"raw->n" (json) cannot be sorted by.'),
        ("select=flag::date", "operator_not_supported", '"flag" (boolean) cannot be cast to date.'),
        ("select=id,x:tags->0::uuid", "operator_not_supported", '"tags->0" (jsonb) cannot be cast to uuid.'),
        ("select=name->a", "not_json", 'The column "name" (text) holds no JSON'),
    ],
)
async def test_an_error_names_the_field(
    client: TestClient[Any, Any], docs: Postgres, query: str, code: str, named: str
) -> None:
    problem = json.loads(await fetch(client, query, status=400))
    assert problem["code"] == code
    assert named in problem["detail"]


async def test_a_value_that_does_not_fit_a_cast_is_not_shown(client: TestClient[Any, Any], docs: Postgres) -> None:
    for select, named in (
        ("id,data->>text::int", '"data->>text::int4"'),
        ("data->>text::date,name,id::text", '"data->>text::date"'),
        ("x:price::int2,name::uuid", '"price::int2" or "name::uuid"'),
        ("data->n::bool", '"data->n::bool"'),
        ("x:data->n::bool,y:data->n::bool", '"data->n::bool"'),
        (
            ",".join(f"id::{cast}" for cast in ("int4", "int8", "numeric", "float4", "float8")) + ",name::uuid",
            '"id::int4" or "id::int8" or "id::numeric" or "id::float4" or "id::float8" or another',
        ),
    ):
        problem = json.loads(await fetch(client, f"select={select}", status=400))
        assert problem["code"] == "invalid_value"
        assert problem["detail"] == f"A row has a value that cannot be cast: {named}."


async def test_a_filter_on_a_part_uses_an_index_on_it(docs: Postgres) -> None:
    docs.run("CREATE INDEX docs_text ON docs ((data->>'text')); ANALYZE docs")
    settings = Settings(database_url=docs.dsn)
    async with open_database(settings) as database, database.session() as session:
        relation = await session.relation(RelationName("docs"))
        statement = select_statement(make_plan(parse_export_request("docs.csv", "data->>text=eq.v3"), relation))
        await session.query("SET LOCAL enable_seqscan = off")
        plan = await session.query(f"EXPLAIN {statement.text}", statement.values)
    assert "docs_text" in "".join(row["QUERY PLAN"] for row in plan)


async def test_no_function_or_operator_of_another_schema_is_called(
    client: TestClient[Any, Any], docs: Postgres
) -> None:
    """An exact match in another schema of the search path would be better than one for any type."""
    docs.run(
        """
        CREATE FUNCTION public.to_jsonb(text[]) RETURNS jsonb LANGUAGE sql AS $$ SELECT '["planted"]'::jsonb $$;
        CREATE FUNCTION public.planted(document, text) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$;
        CREATE OPERATOR public.->> (LEFTARG = document, RIGHTARG = text, FUNCTION = public.planted);
        CREATE DOMAIN public.int4 AS text;
        """
    )
    try:
        body = await fetch(client, "select=tags->>0,dom->>n,id::int4&id=eq.6&dom->>n=eq.6")
    finally:
        docs.run(
            "DROP FUNCTION public.to_jsonb(text[]); DROP OPERATOR public.->> (document, text);"
            "DROP FUNCTION public.planted(document, text); DROP DOMAIN public.int4"
        )
    assert body == b"tags,n,id\nt1,6,6\n"

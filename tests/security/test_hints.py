"""Names, types and labels of what the role may not read: no hint, list, search or page tells them.

Everything hidden has a word in its name: columns, relations, a schema, a type, its labels and comments.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.settings import Settings
from tests.support.postgres import Postgres

Client = TestClient[Any, Any]

WORD = "hushed"
RELATIONS = """
CREATE SCHEMA hinting;
CREATE SCHEMA hushed_schema;
SET search_path = hinting;
CREATE ROLE hinting_reader LOGIN PASSWORD 'hinting';
GRANT USAGE ON SCHEMA hinting TO hinting_reader;
CREATE TYPE hushed_type AS ENUM ('hushed_label', 'hushed_other');
CREATE TABLE cols (id int, name text, hushed_type hushed_type, hushed_data jsonb, hushed_date date);
COMMENT ON COLUMN cols.hushed_data IS 'hushed comment';
CREATE INDEX ON cols (hushed_date);
INSERT INTO cols SELECT n, 'n' || n FROM generate_series(1, 30) AS n;
CREATE VIEW over_cols WITH (security_invoker) AS SELECT * FROM cols;
CREATE TABLE cols_hushed (id int);
COMMENT ON TABLE cols_hushed IS 'hushed comment';
CREATE VIEW hushed_view AS SELECT * FROM cols;
CREATE TABLE hushed_schema.cols (id int);
CREATE TABLE hushed_schema.cols2 (id int);
GRANT SELECT (id, name) ON cols, over_cols TO hinting_reader;
GRANT SELECT ON hushed_schema.cols, hushed_schema.cols2 TO hinting_reader;
"""
# Query strings that make Sluice or PostgreSQL name columns.
QUERIES = [
    *("", "nope=eq.1", "select=nope", "select=*", "select=id,*", "order=nope", "or=(nope.eq.1,id.eq.1)"),
    *("hushe=eq.1", "select=hushe", "select=id->a", "id=eq.x", "select=id,id", "select=id::date", "ID=eq.1"),
    *("select=id&order=name->x", "select=id,name(x)", "name=fts(nope).x", "select=id,name&name=like.x\\"),
]
# The same, naming a column that the role may not read.
NAMING = [
    *("select={}", "select=id&{}=eq.x", "select=id&{}=eq.1", "select=id&order={}", "select={}::int", "select=x:{}"),
    *("select={}->a", "select=id&{}->>a=eq.1", "select=id&order={}->a", "select=id&or=({}.gt.1,id.eq.1)"),
    *("select=id&{}=gt.2024-01-01+02:00", "select=id&{}=in.(a,b)", "select=id&{}=cs.x", "select=id&{}=fts.x"),
]
PATHS = [
    *("/export/{}.csv", "/export/{}.ndjson", "/relations/{}/preview", "/relations/{}?explain&", "/table/{}"),
    *("/shape/{}", "/shape/{}?do=download&"),
]
# Names that are like hidden ones, or have a hidden one beside them.
MISSPELT = [
    *("cols_hushe", "hushed_vie", "hinting.cols_hushe", "hushed_schem.cols", "hushed_schema.cols", "colx", "cols2"),
]
LISTS = ["/", "/?sort=size", "/?schema=hushed", "/relations", "/exports", "/saved", "/relations/cols", "/table/cols"]


@pytest.fixture(scope="module")
def hinting(database_url: str) -> Iterator[Postgres]:
    """Create the relations, and the role that may read some of them."""
    postgres = Postgres(database_url)
    postgres.run(RELATIONS)
    yield postgres
    postgres.run("DROP SCHEMA hinting, hushed_schema CASCADE; DROP OWNED BY hinting_reader; DROP ROLE hinting_reader")
    postgres.connection.close()


@pytest.fixture
async def client(settings: Settings, hinting: Postgres) -> AsyncIterator[Client]:
    """Yield a client of a server that may export both schemas, and whose role has USAGE on one."""
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="hinting_reader", password="hinting")
    app = create_app(replace(settings, database_url=dsn, export_schemas=("hinting", "hushed_schema")))
    async with TestClient(TestServer(app)) as opened:
        yield opened


async def text_of(client: Client, path: str, method: str = "GET", **options: Any) -> str:
    """Return status, headers and body as one text."""
    live = method == "GET" and path.startswith("/shape") and "do=" not in path
    options |= {"headers": {"X-Sluice-Live": "all"} if live else {}, "allow_redirects": False}
    async with client.request(method, URL(path, encoded=True), **options) as response:
        return f"{response.status} {response.headers} {await response.text()}"


def joined(path: str, query: str) -> str:
    return f"{path}{'' if path.endswith('&') else '?'}{query}"


@pytest.mark.parametrize("path", PATHS)
async def test_hints_name_only_readable_columns(client: Client, path: str) -> None:
    for relation in ("cols", "over_cols"):
        for query in QUERIES:
            answered = await text_of(client, joined(path.format(relation), query))
            assert WORD not in answered, query


async def test_the_hint_for_an_unknown_column_names_the_readable_ones(client: Client) -> None:
    async with client.get("/export/cols.csv?nope=eq.1") as response:
        problem = await response.json()
    assert (response.status, problem["hint"]) == (400, 'Its columns are "id", "name".')
    async with client.get("/export/cols.csv") as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (403, "columns_not_readable")
    assert problem["detail"] == "The database role may not read all columns of the relation."
    assert problem["hint"] == "Select only the others: select=id,name"


@pytest.mark.parametrize("column", ["hushed_type", "hushed_data", "hushed_date"])
async def test_a_name_that_a_client_knows_tells_it_no_more(client: Client, column: str) -> None:
    """Nothing tells the type, the labels or the index of such a column from those of any other."""
    for path in PATHS:
        for query in NAMING:
            mine = await text_of(client, joined(path.format("cols"), query.format(column)))
            other = await text_of(client, joined(path.format("cols"), query.format("hushed_data")))
            assert comparable(mine, column) == comparable(other, "hushed_data"), (path, query)
            assert WORD not in comparable(mine, column), (path, query)


def comparable(answered: str, column: str) -> str:
    """Return the text without the name of the column, its length and the id of the request."""
    text = re.sub(rf"{column}|hushed_<wbr>{column.removeprefix('hushed_')}", "…", answered)
    return re.sub(r"[0-9a-f]{32}|Content-Length': '\d+'|Date': '[^']+'|127\.0\.0\.1:\d+", "…", text)


@pytest.mark.parametrize("name", MISSPELT)
async def test_hints_name_only_readable_relations(client: Client, name: str) -> None:
    for path in ("/export/{}.csv", "/relations/{}", "/relations/{}/preview", "/relations/{}?explain", "/table/{}"):
        answered = await text_of(client, path.format(name))
        assert answered.startswith("404"), path
        assert "cols_hushed" not in answered
        assert "hushed_view" not in answered
        if "hushed_schema" not in name:
            assert "hushed_schema" not in answered


@pytest.mark.parametrize("path", LISTS)
async def test_lists_name_only_what_the_role_may_read(client: Client, path: str) -> None:
    answered = await text_of(client, path)
    assert WORD not in answered.replace('value="hushed"', "").replace("<option selected>hushed", "")
    assert "cols" in answered or path in ("/exports", "/saved", "/?schema=hushed")


async def test_the_search_finds_only_what_the_role_may_read(client: Client) -> None:
    """A word that is in hidden names finds as much as one that is nowhere."""
    for word in (WORD, "hushed_da", "hushed_type", "hushed comment", "hushed_label", "hushed_schema"):
        found = await text_of(client, f"/?q={word.replace(' ', '+')}")
        nothing = await text_of(client, f"/?q={'z' * len(word)}")
        assert comparable(found.replace(word, "…"), "…") == comparable(nothing.replace("z" * len(word), "…"), "…"), word
    assert "over_cols" in await text_of(client, "/?q=name")


async def test_what_is_saved_is_refused_in_the_same_words(client: Client) -> None:
    for query in QUERIES:
        assert WORD not in await text_of(client, f"/export/cols.csv?{query}", "POST"), query
        fields = {"c": "nope", "a": "", "t": "0", "f0.column": "nope", "f0.op": "eq", "f0.value": "1", "more": query}
        assert WORD not in await text_of(client, "/shape/cols", "POST", data=fields), query
    for name in MISSPELT:
        answered = await text_of(client, f"/export/{name}.csv", "POST")
        assert answered.startswith("404")
        assert "cols_hushed" not in answered
    async with client.head("/export/cols.csv") as response:
        assert response.status == 403
        assert WORD not in str(response.headers)

"""Estimates, sizes and strategies as an oracle about rows that the role may not see.

Two databases differ only in rows that are hidden from the role: none in one, many in the other. Every answer of every
endpoint is the same byte for byte, except for ids, times and speeds.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.postgres.withheld import WITHHELD
from server.settings import Settings
from tests.support.postgres import Postgres

Client = TestClient[Any, Any]
Document = dict[str, Any]

# What is in both databases: 30 rows that the role may see of each relation, and a few tables that it may read whole. A
# table of 1,100 wide rows has more than 8 MB, from which on PostgreSQL and Sluice plan otherwise.
COMMON = """
CREATE TABLE rows AS
    SELECT n AS id, 'oracle_reader' AS owner, 'secret ' || n % 3 AS secret, '' AS filler
    FROM generate_series(1, 30) AS n;
CREATE TABLE hidden AS
    SELECT n AS id, 'nobody' AS owner, CASE n % 2 WHEN 0 THEN 'merger' ELSE 'x' || n END AS secret,
        repeat('x', 700) AS filler
    FROM generate_series(31, 1500) AS n;
CREATE TABLE policed (LIKE rows) WITH (fillfactor = 10);
CREATE INDEX ON policed (secret);
ALTER TABLE policed ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON policed USING (owner = current_user);
CREATE TABLE parted (LIKE rows) PARTITION BY LIST (owner);
CREATE TABLE parted_rest PARTITION OF parted DEFAULT WITH (fillfactor = 10);
ALTER TABLE parted ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON parted USING (owner = current_user);
CREATE TABLE deals (LIKE rows) WITH (fillfactor = 10);
CREATE INDEX ON deals (secret);
CREATE SCHEMA closed;
CREATE TABLE closed.deals (LIKE rows) WITH (fillfactor = 10);
CREATE SCHEMA open;
CREATE TABLE open.granted (LIKE rows) WITH (fillfactor = 10);

CREATE VIEW own_deals AS SELECT * FROM deals WHERE owner = current_user;
CREATE VIEW nested AS SELECT id, secret FROM own_deals WHERE id > 0;
CREATE MATERIALIZED VIEW stored AS SELECT * FROM deals;
CREATE VIEW own_stored AS SELECT * FROM stored WHERE owner = current_user;
CREATE VIEW of_closed AS SELECT * FROM closed.deals WHERE owner = current_user;
CREATE VIEW barred WITH (security_barrier = on) AS SELECT * FROM open.granted WHERE owner = current_user;
CREATE VIEW over_barred AS SELECT id, secret FROM barred;
CREATE VIEW invoking WITH (security_invoker) AS SELECT id, secret FROM policed;
CREATE VIEW owning AS SELECT id, secret FROM policed WHERE owner = current_user;
CREATE VIEW of_parts AS SELECT id, secret FROM parted_rest WHERE owner = current_user;
CREATE FUNCTION policed_rows() RETURNS SETOF policed LANGUAGE sql STABLE AS 'SELECT * FROM public.policed';
CREATE VIEW inlining AS SELECT id, secret FROM policed_rows();
CREATE FUNCTION most() RETURNS int LANGUAGE sql IMMUTABLE SECURITY DEFINER AS 'SELECT max(id) FROM public.deals';
CREATE VIEW folding AS SELECT id, secret FROM rows WHERE id < 100 + most();
CREATE TABLE narrow (id int, secret text, paper text) WITH (fillfactor = 10);
ALTER TABLE narrow ALTER paper SET STORAGE EXTERNAL;

CREATE TABLE plain AS SELECT * FROM hidden;
CREATE VIEW over_plain AS SELECT id, secret FROM plain WHERE id > 40;
CREATE TABLE pieces (LIKE rows) PARTITION BY RANGE (id);
CREATE TABLE pieces_1 PARTITION OF pieces FOR VALUES FROM (0) TO (700);
CREATE TABLE pieces_2 PARTITION OF pieces FOR VALUES FROM (700) TO (1501);
INSERT INTO pieces SELECT * FROM hidden;
CREATE VIEW over_pieces AS SELECT id, secret FROM pieces;
CREATE TABLE parent (LIKE rows);
CREATE TABLE child () INHERITS (parent);
INSERT INTO child SELECT * FROM hidden;

INSERT INTO policed SELECT * FROM rows;
INSERT INTO parted SELECT * FROM rows;
INSERT INTO deals SELECT * FROM rows;
INSERT INTO closed.deals SELECT * FROM rows;
INSERT INTO open.granted SELECT * FROM rows;
INSERT INTO narrow SELECT id, secret, '' FROM rows;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO oracle_reader;
GRANT SELECT ON closed.deals, open.granted TO oracle_reader;
GRANT USAGE ON SCHEMA open TO oracle_reader;
REVOKE SELECT ON hidden, deals, stored, parted_rest, pieces_1, pieces_2, child, narrow FROM oracle_reader;
GRANT SELECT (id, secret) ON narrow TO oracle_reader;
"""
HIDDEN = """
INSERT INTO policed SELECT * FROM hidden;
INSERT INTO parted SELECT * FROM hidden;
INSERT INTO deals SELECT * FROM hidden;
INSERT INTO closed.deals SELECT * FROM hidden;
INSERT INTO open.granted SELECT * FROM hidden;
UPDATE narrow SET paper = repeat('x', 300000);
"""
# The relations of which rows are hidden, and those that the role may read whole.
HIDING = [
    *("policed", "parted", "own_deals", "nested", "own_stored", "of_closed", "barred", "over_barred", "invoking"),
    *("owning", "of_parts", "inlining", "folding"),
]
WHOLE = ["plain", "over_plain", "pieces", "over_pieces", "parent"]
QUERIES = [
    *("", "secret=eq.merger", "order=secret", "id=eq.7", "secret=eq.nothing", "secret=like.m*", "id=gt.5", "limit=3"),
    *("select=id&secret=not.eq.x1", "or=(secret.eq.merger,id.lt.3)", "parallel=1", "secret=eq.merger&limit=1000"),
]
BAD_QUERIES = ["id=eq.x", "nope=eq.1", "secret->a=eq.1", "select=nope", "select=id::date", "order=nope"]


@pytest.fixture(scope="module")
def databases(database_url: str) -> Iterator[dict[str, Postgres]]:
    """Create two databases that differ in the hidden rows, and the role."""
    postgres = Postgres(database_url)
    dsn = Settings(database_url=database_url).dsn
    postgres.run("CREATE ROLE oracle_reader LOGIN PASSWORD 'oracle'")
    opened = {}
    for name in ("without", "with"):
        postgres.run(f"CREATE DATABASE oracle_{name}")
        opened[name] = Postgres(psycopg2.extensions.make_dsn(dsn, dbname=f"oracle_{name}"))
        opened[name].run(COMMON + (HIDDEN if name == "with" else ""))
        opened[name].run("REFRESH MATERIALIZED VIEW stored")
        opened[name].run("VACUUM ANALYZE")  # so that no autovacuum changes a size during the tests
    yield opened
    for name, each in opened.items():
        each.connection.close()
        postgres.run(f"DROP DATABASE oracle_{name} WITH (FORCE)")
    postgres.run("DROP ROLE oracle_reader")
    postgres.connection.close()


@asynccontextmanager
async def serving(settings: Settings, name: str, user: str = "oracle_reader") -> AsyncIterator[Client]:
    """Open a client of a server on one of the databases. Each has a folder of its own."""
    login = {"user": user, "password": "oracle"} if user else {}
    dsn = psycopg2.extensions.make_dsn(settings.dsn, dbname=f"oracle_{name}", **login)
    storage = settings.export_storage_path / name
    app = create_app(replace(settings, database_url=dsn, export_storage_path=storage, parallel_readers=3))
    async with TestClient(TestServer(app)) as opened:
        yield opened


# What differs between any two answers: ids, times, speeds and the port.
_DIFFERENT = re.compile(
    r"[0-9a-f]{32}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z| UTC)?|(?<=127\.0\.0\.1:)\d+"
    r"|(?<=\"rate\": )[\d.]+|(?<=/exports/)[\w-]{22}|(?<=exportId\": \")[\w-]{22}|(?<=[\"-])[\w-]{22}(?=\")"
    r"|(?<=/saved/)[\w-]{22}"
)
# Headers that are compared with the body, or that are times.
_OWN = ("Content-Length", "Date", "Last-Modified")
Answer = tuple[int, dict[str, str], str]


async def answer(client: Client, path: str, method: str = "GET") -> Answer:
    """Return the status, the headers and the body, without what differs between any two answers."""
    headers = {"X-Sluice-Live": "all"} if path.startswith("/shape/") and "do=" not in path else {}
    async with client.request(method, URL(path, encoded=True), headers=headers, allow_redirects=False) as response:
        body = (await response.read()).decode(errors="replace")
        kept = {name: value for name, value in response.headers.items() if name not in _OWN}
        return response.status, {name: _DIFFERENT.sub("…", kept[name]) for name in kept}, _DIFFERENT.sub("…", body)


def requests(relation: str, queries: list[str]) -> list[tuple[str, str]]:
    """Return path and method of each request about this relation."""
    form = f"/shape/{relation}?format=csv&f0.column=secret&f0.op=eq&f0.value=merger"
    found = [(f"/relations/{relation}", "GET"), (form, "GET"), (f"{form}&do=download", "GET")]
    found += [(f"/relations/{relation}?explain&{query}", "GET") for query in queries]
    for query in queries[:2] if len(queries) == 4 else queries:
        found += [
            (f"/relations/{relation}/preview?{query}", "GET"),
            (f"/export/{relation}.csv?{query}", "GET"),
            (f"/export/{relation}.csv?{query}", "HEAD"),
            (f"/table/{relation}?{query}", "GET"),
        ]
    return found


async def assert_same_answers(settings: Settings, relation: str, queries: list[str]) -> None:
    async with serving(settings, "without") as one, serving(settings, "with") as other:
        for path, method in requests(relation, queries):
            assert await answer(one, path, method) == await answer(other, path, method), path


@pytest.mark.parametrize("relation", [*HIDING, "narrow"])
async def test_hidden_rows_change_no_answer(settings: Settings, databases: dict[str, Postgres], relation: str) -> None:
    await assert_same_answers(settings, relation, QUERIES[:4])


@pytest.mark.slow
@pytest.mark.parametrize("relation", [*HIDING, "narrow"])
async def test_hidden_rows_change_no_answer_to_any_query(
    settings: Settings, databases: dict[str, Postgres], relation: str
) -> None:
    await assert_same_answers(settings, relation, [*QUERIES, *BAD_QUERIES])


async def saved(client: Client) -> list[Answer]:
    """Return what saved exports say when they are accepted, and when they have ended."""
    accepted: list[Document] = []
    for relation in [*HIDING, "narrow"]:
        async with client.post(f"/export/{relation}.csv?select=id,secret&secret=neq.merger") as response:
            assert response.status == 202
            accepted.append(await response.json())
        total = accepted[-1]["progress"]["totalRows"]
        assert total is None or relation == "narrow", relation
    found: list[Answer] = [(202, {}, _DIFFERENT.sub("…", str({**each, "exportId": None}))) for each in accepted]
    for each in accepted:
        path = f"/exports/{each['exportId']}"
        await answer(client, f"{path}/events")  # ends with the export
        ended = [await answer(client, way) for way in (f"{path}/events", path, f"{path}/download")]
        assert all('"status": "completed"' in one[2] or one[2].startswith("id,secret\n") for one in ended)
        found += ended
    return [*found, await answer(client, "/saved"), await answer(client, "/exports")]


async def test_hidden_rows_change_no_saved_export(settings: Settings, databases: dict[str, Postgres]) -> None:
    async with serving(settings, "without") as one, serving(settings, "with") as other:
        for mine, others in zip(await saved(one), await saved(other), strict=True):
            assert mine == others


async def test_hidden_rows_change_no_list(settings: Settings, databases: dict[str, Postgres]) -> None:
    async with serving(settings, "without") as one, serving(settings, "with") as other:
        for path in ("/relations", "/", "/?sort=rows", "/?sort=size.desc", "/?q=deal", "/?q=secret"):
            mine = await answer(one, path)
            assert mine == await answer(other, path), path
            assert "own_deals" in mine[2]


# --- What is told. ---


async def explained(client: Client, relation: str, query: str = "") -> Document:
    async with client.get(f"/relations/{relation}?explain&{query}") as response:
        assert response.status == 200, await response.text()
        document: Document = await response.json()
        return document


async def described(client: Client, relation: str) -> Document:
    async with client.get(f"/relations/{relation}") as response:
        document: Document = await response.json()
        return document


async def test_an_explanation_says_why_it_says_little(settings: Settings, databases: dict[str, Postgres]) -> None:
    async with serving(settings, "with") as client:
        for relation in HIDING:
            document = await explained(client, relation)
            assert (document["estimatedRows"], document["scan"], document["readers"]) == (None, "cursor", 1), relation
            own = {"policed": "row-level security", "parted": "row-level security"}
            assert document["reason"] == own.get(relation, "a view"), relation
        assert (await explained(client, "policed", "limit=3"))["reason"] == "limit or offset"
        narrow = await explained(client, "narrow", "select=id")
        # The role may count the rows.
        assert 25 <= narrow["estimatedRows"] <= 35
        assert narrow["reason"] == "a partition or column that the role may not read by itself"


async def test_what_the_role_may_read_whole_is_told(settings: Settings, databases: dict[str, Postgres]) -> None:
    async with serving(settings, "with") as client:
        for relation in WHOLE:
            assert (await explained(client, relation))["estimatedRows"] >= 1460, relation
            assert 700 <= (await explained(client, relation, "secret=eq.merger"))["estimatedRows"] <= 800, relation
            async with client.get(f"/table/{relation}") as response:
                assert re.search(r"about <strong>1,4\d0</strong> rows", await response.text()), relation
        for relation in ("plain", "pieces", "parent"):
            document = await described(client, relation)
            assert document["estimatedRows"] >= 1470
            assert document["bytes"] > 1 << 20
        async with client.post("/export/over_plain.csv?secret=eq.merger") as response:
            assert 700 <= (await response.json())["progress"]["totalRows"] <= 800
        narrow = await described(client, "narrow")
        assert (narrow["estimatedRows"], narrow["bytes"]) == (30, None)
        assert [column["name"] for column in narrow["columns"]] == ["id", "secret"]


async def test_a_role_that_no_policy_concerns_is_told_all(settings: Settings, databases: dict[str, Postgres]) -> None:
    async with serving(settings, "with", user="") as client:
        for relation in ("policed", "parted", "own_deals", "invoking", "of_parts", "own_stored"):
            assert isinstance((await explained(client, relation))["estimatedRows"], int), relation
        assert (await described(client, "policed"))["estimatedRows"] == 1500
        # A barrier says that rows are to be hidden, whoever asks.
        assert (await explained(client, "barred"))["estimatedRows"] is None


async def test_a_policy_is_seen_at_once(settings: Settings, databases: dict[str, Postgres]) -> None:
    run = databases["with"].run
    async with serving(settings, "with") as client:
        assert (await explained(client, "over_plain"))["estimatedRows"] > 0
        run("ALTER TABLE plain ENABLE ROW LEVEL SECURITY")
        try:
            assert (await explained(client, "over_plain"))["estimatedRows"] is None
            assert (await described(client, "plain"))["estimatedRows"] is None
        finally:
            run("ALTER TABLE plain DISABLE ROW LEVEL SECURITY")


def test_the_rows_of_a_foreign_table_are_not_known(databases: dict[str, Postgres]) -> None:
    """Its estimates may rest on rows that another server hides from the role."""
    connection = databases["with"].connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "BEGIN; CREATE FOREIGN DATA WRAPPER none; CREATE SERVER none FOREIGN DATA WRAPPER none; "
                "CREATE FOREIGN TABLE far (id int) SERVER none; CREATE VIEW near AS SELECT * FROM far"
            )
            cursor.execute(WITHHELD.replace("$1", "'near'::regclass"))
            assert cursor.fetchone() == ("rows that the role may not see",)
    finally:
        connection.close()

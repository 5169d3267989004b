"""Relations that fail by themselves, on a real server: a status of 5xx that says so, a page that says so before the
download, and a warning in the log without any value of a row.

One module of relations, each with one fault. What each SQLSTATE becomes is tested in test_relation_faults.py of export.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer

from server.app import create_app
from server.events import Event
from server.http.events import ExportStreamed, RequestFailed
from server.postgres.events import ServerErrorReported
from server.saved.events import ExportGivenUp
from server.settings import Settings
from tests.support.live_server import eventually
from tests.support.postgres import Postgres

Client = TestClient[Any, Any]
Document = dict[str, Any]

# A value of a row that PostgreSQL quotes in its messages.
SECRET = "secret-of-a-row"

RELATIONS = f"""
CREATE SCHEMA faulty;
SET search_path = faulty;
CREATE ROLE faulty_reader LOGIN PASSWORD 'faulty';
GRANT USAGE ON SCHEMA faulty TO faulty_reader;

CREATE VIEW early AS SELECT i, 1 / (i - 1) AS q FROM generate_series(1, 10) AS i;
CREATE VIEW late AS SELECT i, 1 / (i - 4000) AS q, repeat('x', 100) AS filler FROM generate_series(1, 5000) AS i;
CREATE VIEW planned AS SELECT i, 1 / 0 AS q FROM generate_series(1, 10) AS i;
CREATE TABLE texts AS SELECT '{SECRET}' AS t;
CREATE VIEW cast_of_text AS SELECT t::int AS q, 1 AS i FROM texts;
CREATE VIEW of_text AS SELECT t, 1 AS i FROM texts;
CREATE VIEW slow AS SELECT t, i, pg_sleep(CASE i WHEN 2 THEN 60 ELSE 0 END)::text AS q
    FROM texts, generate_series(1, 2) AS i;
CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0);
CREATE VIEW constrained AS SELECT i::even AS q, i FROM generate_series(1, 3) AS i;
CREATE VIEW several AS SELECT (SELECT n FROM generate_series(0, i) AS n) AS q, i FROM generate_series(1, 3) AS i;

CREATE FUNCTION deeper(i int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN faulty.deeper(i + 1); END';
CREATE VIEW deep AS SELECT deeper(i) AS q, i FROM generate_series(1, 3) AS i;
CREATE FUNCTION gone() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM faulty.gone); END';
CREATE VIEW on_a_missing_table AS SELECT gone() AS q, 1 AS i;
SET check_function_bodies = off;
CREATE FUNCTION gone_in_sql() RETURNS int LANGUAGE sql AS 'SELECT count(*)::int FROM faulty.gone';
CREATE VIEW on_a_missing_table_in_sql AS SELECT gone_in_sql() AS q, 1 AS i;
CREATE FUNCTION gone_rows() RETURNS SETOF int LANGUAGE sql STABLE AS 'SELECT n FROM faulty.gone';
CREATE VIEW on_a_missing_table_in_rows AS SELECT n AS q, 1 AS i FROM gone_rows() AS n;
RESET check_function_bodies;
CREATE FUNCTION gone_column() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT u FROM faulty.texts); END';
CREATE VIEW on_a_missing_column AS SELECT gone_column() AS q, 1 AS i;
CREATE FUNCTION calls_gone() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN faulty.no_such_function(); END';
CREATE VIEW on_a_missing_function AS SELECT calls_gone() AS q, 1 AS i;
CREATE FUNCTION dropped() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW on_a_dropped_function AS SELECT dropped() AS q, 1 AS i;
WITH gone AS (DELETE FROM pg_proc WHERE oid = 'dropped'::regproc RETURNING oid)
    DELETE FROM pg_depend USING gone
    WHERE (classid = 'pg_proc'::regclass AND objid = gone.oid)
        OR (refclassid = 'pg_proc'::regclass AND refobjid = gone.oid);
CREATE FUNCTION raises(state text) RETURNS int LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION '{SECRET}' USING ERRCODE = state; END$$;
CREATE VIEW raising AS SELECT raises('P0001') AS q, 1 AS i;
CREATE VIEW raising_a_state_of_its_own AS SELECT raises('PT404') AS q, 1 AS i;
CREATE VIEW without_privilege AS SELECT raises('42501') AS q, 1 AS i;
CREATE VIEW as_if_cut AS SELECT raises('57P01') AS q, 1 AS i;
CREATE VIEW as_if_lost AS SELECT raises('08006') AS q, 1 AS i;
CREATE VIEW as_if_unprepared AS SELECT raises('26000') AS q, 1 AS i;
CREATE TABLE unreadable AS SELECT 1 AS n;
CREATE FUNCTION reads_unreadable() RETURNS int LANGUAGE plpgsql AS
    'BEGIN RETURN (SELECT n FROM faulty.unreadable); END';
CREATE VIEW reading_unreadable AS SELECT reads_unreadable() AS q, 1 AS i;
CREATE VIEW invoker WITH (security_invoker) AS SELECT n AS q, 1 AS i FROM unreadable;
CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS
    'BEGIN DELETE FROM faulty.texts; RETURN 1; END';
CREATE VIEW writing AS SELECT writes() AS q, 1 AS i;

CREATE TABLE own_policy AS SELECT 1 AS q, 1 AS i;
ALTER TABLE own_policy ENABLE ROW LEVEL SECURITY;
CREATE POLICY endless ON own_policy USING (EXISTS (SELECT FROM faulty.own_policy));
CREATE TABLE casting_policy AS SELECT '{SECRET}' AS t, '7' AS q, 1 AS i;
ALTER TABLE casting_policy ENABLE ROW LEVEL SECURITY;
CREATE POLICY casts ON casting_policy USING (t::int > 0);
CREATE TABLE large AS
    SELECT CASE i WHEN 1 THEN '{SECRET}' ELSE i::text END AS q, i FROM generate_series(1, 100000) AS i;
CREATE TABLE uncastable AS SELECT 'NaN'::numeric AS nan, '99999999999 years' AS interval, repeat('[', 100000) AS deep,
    '2020-01-01 00:00+99' AS zone;
CREATE VIEW rule_a AS SELECT 1 AS q, 1 AS i;
CREATE VIEW rule_b AS SELECT * FROM rule_a;
CREATE OR REPLACE VIEW rule_a AS SELECT * FROM rule_b;
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS q, 1 AS i WITH NO DATA;
CREATE VIEW over_unfilled AS SELECT * FROM unfilled;
CREATE FUNCTION not_ready() RETURNS int LANGUAGE sql AS $$SELECT lastval()::int$$;
CREATE VIEW in_a_wrong_state AS SELECT not_ready() AS q, 1 AS i;

CREATE TYPE couple AS (a int, b json);
CREATE TABLE awkward AS SELECT 1 AS i, ARRAY[json '{{}}'] AS documents, ROW (1, json '{{}}')::couple AS pair;
GRANT SELECT ON ALL TABLES IN SCHEMA faulty TO faulty_reader;
REVOKE SELECT ON unreadable FROM faulty_reader;
"""


@pytest.fixture(scope="module")
def faulty(database_url: str) -> Iterator[Postgres]:
    """Create the relations, and the role that reads them."""
    postgres = Postgres(database_url)
    postgres.run(RELATIONS)
    yield postgres
    postgres.run("DROP SCHEMA faulty CASCADE; DROP OWNED BY faulty_reader; DROP ROLE faulty_reader")
    postgres.connection.close()


@pytest.fixture
async def client(settings: Settings, faulty: Postgres) -> AsyncIterator[Client]:
    """Yield a client of a server that connects as `faulty_reader`."""
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="faulty_reader", password="faulty")
    server = TestServer(create_app(replace(settings, database_url=dsn, export_schemas=("faulty",))))
    async with TestClient(server) as opened:
        yield opened


@pytest.fixture
def emitted(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events of the test, once the server has started."""
    seen: list[Event] = []
    monkeypatch.setattr("server.events._observers", [seen.append])
    return seen


def find(emitted: list[Event], kind: type[Event]) -> list[Event]:
    return [event for event in emitted if isinstance(event, kind)]


async def problem_of(client: Client, path: str, *, method: str = "GET") -> tuple[int, Document]:
    async with client.request(method, path) as response:
        assert response.content_type == "application/problem+json", await response.read()
        document: Document = await response.json()
        assert SECRET not in json.dumps(document)
        return response.status, document


# For each relation what its sentence says.
FAULTS = {
    "early": "divides by zero (SQLSTATE class 22)",
    "planned": "divides by zero (SQLSTATE class 22)",
    "cast_of_text": "does not fit the type that it is converted to (SQLSTATE class 22)",
    "constrained": "violates a constraint (SQLSTATE class 23)",
    "several": "a subquery in it returns more than one row (SQLSTATE class 21)",
    "deep": "calls itself without end (SQLSTATE class 54)",
    "on_a_missing_table": "uses a relation that does not exist (SQLSTATE class 42)",
    "on_a_missing_table_in_sql": "uses a relation that does not exist (SQLSTATE class 42)",
    "on_a_missing_table_in_rows": "uses a relation that does not exist (SQLSTATE class 42)",
    "on_a_missing_column": "uses a column that does not exist (SQLSTATE class 42)",
    "on_a_missing_function": "a function or an operator that does not exist (SQLSTATE class 42)",
    "on_a_dropped_function": "uses something that was removed (SQLSTATE class XX)",
    "raising": "a function in it raises an error (SQLSTATE class P0)",
    "raising_a_state_of_its_own": "a function in it raises an error.",
    "without_privilege": "that it uses lacks a privilege (SQLSTATE class 42)",
    "reading_unreadable": "that it uses lacks a privilege (SQLSTATE class 42)",
    "as_if_unprepared": "a function in it raises an error (SQLSTATE class 26)",
    "writing": "writes to the database, and an export may only read (SQLSTATE class 25)",
    "own_policy": "policies or rules refers to itself without end (SQLSTATE class 42)",
    "rule_a": "policies or rules refers to itself without end (SQLSTATE class 42)",
    "in_a_wrong_state": "not in the state that this requires (SQLSTATE class 55)",
}
QUERIES = ["", "?q=not.is.null", "?order=q", "?select=q", "?q=neq.7&order=q.desc", "?or=(q.gt.0,i.eq.1)&timezone=UTC"]


@pytest.mark.parametrize("relation", FAULTS)
async def test_a_fault_of_the_relation_is_not_blamed_on_the_request(client: Client, relation: str) -> None:
    for query in QUERIES:
        status, problem = await problem_of(client, f"/export/{relation}.csv{query}")
        assert (status, problem["code"]) == (500, "relation_failed"), query
        assert problem["detail"].startswith("The relation itself fails: "), query
        assert FAULTS[relation] in problem["detail"], query
        assert "owner" in problem["hint"]


@pytest.mark.parametrize("path", ["/export/early.ndjson", "/export/early.tsv.gz", "/relations/early/preview"])
async def test_every_way_to_read_the_relation_gives_the_same_error(client: Client, path: str) -> None:
    status, problem = await problem_of(client, f"{path}?q=not.is.null")
    assert (status, problem["code"]) == (500, "relation_failed")
    assert "divides by zero" in problem["detail"]


@pytest.mark.parametrize(
    ("relation", "subject"),
    [("unfilled", "The materialized view is"), ("over_unfilled", "A materialized view that the relation reads is")],
)
async def test_a_materialized_view_without_data_is_named_everywhere(
    client: Client, relation: str, subject: str
) -> None:
    for method, path in (
        *(("GET", f"/export/{relation}.csv{query}") for query in QUERIES),
        ("GET", f"/relations/{relation}/preview"),
        ("POST", f"/export/{relation}.csv"),
    ):
        status, problem = await problem_of(client, path, method=method)
        assert (status, problem["code"]) == (500, "relation_not_populated"), path
        assert problem["detail"].startswith(f"{subject} not populated: "), path
        assert "REFRESH MATERIALIZED VIEW" in problem["hint"]


@pytest.mark.parametrize("relation", ["as_if_cut", "as_if_lost"])
async def test_a_foreign_server_that_is_away_is_told_from_our_database(client: Client, relation: str) -> None:
    async with client.get(f"/export/{relation}.csv") as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        problem = await response.json()
    assert problem["code"] == "foreign_server_unavailable"


async def test_a_view_that_needs_a_privilege_of_its_reader_is_forbidden(client: Client) -> None:
    for value in ("1", "abc"):
        status, problem = await problem_of(client, f"/export/invoker.csv?q=eq.{value}")
        assert (status, problem["code"]) == (403, "forbidden")
    status, problem = await problem_of(client, "/export/unreadable.csv")
    assert (status, problem["code"]) == (404, "relation_not_found")


async def test_bytes_that_are_no_text_are_the_fault_of_the_relation(settings: Settings, database_url: str) -> None:
    """The encoding SQL_ASCII accepts any bytes, and PostgreSQL refuses to send them."""
    postgres = Postgres(database_url)
    postgres.run("CREATE DATABASE faulty_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    dsn = psycopg2.extensions.make_dsn(settings.dsn, dbname="faulty_ascii")
    try:
        inside = Postgres(dsn)
        inside.run("CREATE TABLE bytes AS SELECT E'\\xe9t\\xe9' AS q, 1 AS i")
        inside.connection.close()
        server = TestServer(create_app(replace(settings, database_url=dsn)))
        async with TestClient(server) as client:
            for query in ("", "?q=not.is.null", "?order=q", "?i=eq.1"):
                status, problem = await problem_of(client, f"/export/bytes.csv{query}")
                assert (status, problem["code"]) == (500, "relation_failed")
                assert "bytes that are not valid" in problem["detail"]
    finally:
        postgres.run("DROP DATABASE faulty_ascii WITH (FORCE)")
        postgres.connection.close()


# --- What the request does cause. ---


@pytest.mark.parametrize("relation", ["early", "cast_of_text", "on_a_missing_table", "raising", "reading_unreadable"])
@pytest.mark.parametrize("query", ["q=eq.abc", "i=gt.0&q=in.(1,abc)&order=q"])
async def test_a_bad_value_is_named_on_a_relation_that_fails(client: Client, relation: str, query: str) -> None:
    status, problem = await problem_of(client, f"/export/{relation}.csv?{query}")
    assert (status, problem["code"]) == (400, "invalid_value")
    assert '"q" (integer)' in problem["detail"]


@pytest.mark.parametrize(
    ("relation", "words"),
    [("unfilled", "not populated"), ("over_unfilled", "not populated"), ("own_policy", "refers to itself without end")],
)
@pytest.mark.parametrize("path", ["/export/{}.csv?q=eq.abc", "/relations/{}/preview?i=gt.0&q=in.(1,abc)"])
async def test_a_bad_value_does_not_hide_why_nothing_can_be_read(
    client: Client, relation: str, words: str, path: str
) -> None:
    """PostgreSQL reads the value first. Its error would be taken for that of a value in the relation."""
    status, problem = await problem_of(client, path.format(relation))
    assert status == 500
    assert words in problem["detail"]


@pytest.mark.parametrize(
    ("query", "operator", "subject"),
    [
        ("i=gt.0&documents=eq.{1}", "eq", '"documents" (json[])'),
        ("documents=in.({},{1})", "in", '"documents" (json[])'),
        ("documents=not.cs.{1}", "cs", '"documents" (json[])'),
        ("pair=eq.(1,{})", "eq", '"pair" (faulty.couple)'),
    ],
)
async def test_an_operator_that_fails_only_on_values_is_named(
    client: Client, query: str, operator: str, subject: str
) -> None:
    status, problem = await problem_of(client, f"/export/awkward.csv?{query}")
    assert (status, problem["code"]) == (400, "operator_not_supported"), problem
    assert f'"{operator}"' in problem["detail"]
    assert subject in problem["detail"]


async def test_a_value_that_only_the_probe_rejects_is_not_blamed(client: Client) -> None:
    """The operator takes an array, which no value of the column is."""
    status, problem = await problem_of(client, "/export/on_a_missing_function.csv?q=eq(any).{1,2}")
    assert (status, problem["code"]) == (500, "relation_failed")


async def test_a_condition_that_takes_too_long_on_no_row_is_named(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL works for a minute before it calls such a regular expression too complex, for any relation.

    It is refused before, as are all others that are known to take long.
    """
    monkeypatch.setattr("server.query.pattern_limits.LARGEST_EXPRESSION", 1_000_000)
    monkeypatch.setattr("server.query.tally.LARGEST_EXPRESSIONS", 1_000_000)
    monkeypatch.setattr("server.export.diagnose.CONDITION_SECONDS", 0.1)
    status, problem = await problem_of(client, "/export/of_text.csv?t=match.((a?){0,30}){0,30}&i=eq.abc")
    assert (status, problem["code"]) == (400, "too_complex"), problem
    assert '"t" (text)' in problem["detail"]


@pytest.mark.parametrize("relation", ["texts", "of_text"])
async def test_a_cast_of_the_request_is_its_own_fault(client: Client, relation: str) -> None:
    status, problem = await problem_of(client, f"/export/{relation}.csv?select=t,x:t::int")
    assert (status, problem["code"]) == (400, "invalid_value")
    assert "cannot be cast" in problem["detail"]


@pytest.mark.parametrize("cast", ["nan::int", "interval::interval", "deep::jsonb", "zone::timestamptz"])
async def test_a_value_of_any_kind_that_a_cast_does_not_accept_is_its_fault(client: Client, cast: str) -> None:
    status, problem = await problem_of(client, f"/export/uncastable.csv?select={cast}")
    assert (status, problem["code"]) == (400, "invalid_value")
    assert "cannot be cast" in problem["detail"]


@pytest.mark.parametrize(
    "relation", ["early", "cast_of_text", "planned", "on_a_missing_table", "raising", "casting_policy"]
)
async def test_a_cast_of_the_request_is_not_blamed_for_a_relation_that_fails(client: Client, relation: str) -> None:
    status, problem = await problem_of(client, f"/export/{relation}.csv?select=x:q::int2")
    assert (status, problem["code"]) == (500, "relation_failed")


async def test_a_view_that_is_slow_to_read_without_the_casts_is_not_cleared(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell in the time that a control connection may take."""
    monkeypatch.setattr("server.export.diagnose.COUNT_SECONDS", 0.1)
    status, problem = await problem_of(client, "/export/slow.csv?select=x:t::int,q")
    assert (status, problem["code"]) == (500, "relation_failed")


async def test_a_cast_of_a_table_is_its_own_fault_however_large_the_table_is(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.export.diagnose.COUNT_SECONDS", 0.001)
    status, problem = await problem_of(client, "/export/large.csv?select=x:q::int,i")
    assert (status, problem["code"]) == (400, "invalid_value")


# --- The page. ---


@pytest.mark.parametrize(
    ("relation", "sentence"),
    [
        ("early", "an expression in it divides by zero"),
        ("unfilled", "The materialized view is not populated"),
        ("own_policy", "one of its policies or rules refers to itself"),
    ],
)
async def test_the_page_says_so_before_the_download(
    client: Client, emitted: list[Event], relation: str, sentence: str
) -> None:
    async with client.get(f"/table/{relation}", headers={"Accept": "text/html"}) as response:
        assert response.status == 200
        page = await response.text()
    assert sentence in page
    assert not re.search(r'id="download"(?![^>]*disabled)', page)  # there is none, or it cannot be used
    (failed,) = find(emitted, RequestFailed)
    assert (failed.severity, failed.fields()["relation"]) == (logging.WARNING, f"faulty.{relation}")


# --- The log. ---


def assert_holds_no_value(emitted: list[Event]) -> None:
    """Assert that only an event of level DEBUG holds what PostgreSQL said."""
    said = [event for event in emitted if SECRET in str(event.fields())]
    assert said
    assert {(type(event), event.severity) for event in said} == {(ServerErrorReported, logging.DEBUG)}


async def test_a_failed_export_is_a_warning_with_sqlstate_relation_and_sentence(
    client: Client, emitted: list[Event]
) -> None:
    _, problem = await problem_of(client, "/export/cast_of_text.csv?i=eq.1")
    (streamed,) = find(emitted, ExportStreamed)
    assert streamed.severity == logging.WARNING
    fields = streamed.fields()
    assert (fields["outcome"], fields["status"], fields["code"]) == ("rejected", 500, "relation_failed")
    assert (fields["relation"], fields["sqlstate"], fields["reason"]) == ("cast_of_text", "22P02", problem["detail"])
    assert_holds_no_value(emitted)
    assert not find(emitted, RequestFailed)


@pytest.mark.parametrize("path", ["/relations/cast_of_text/preview", "/relations/own_policy?explain"])
async def test_other_requests_are_logged_likewise(client: Client, emitted: list[Event], path: str) -> None:
    status, problem = await problem_of(client, path)
    (failed,) = find(emitted, RequestFailed)
    assert failed.severity == logging.WARNING
    fields = failed.fields()
    assert (fields["status"], fields["path"], fields["reason"]) == (status, path.partition("?")[0], problem["detail"])
    assert str(fields["relation"]) in path
    assert f"SQLSTATE class {str(fields['sqlstate'])[:2]})" in problem["detail"]
    assert len(str(fields["sqlstate"])) == 5


@pytest.mark.parametrize("path", ["/export/nothing.csv", "/export/early.csv?q=eq.abc", "/relations/nothing"])
async def test_a_fault_of_the_request_is_no_warning(client: Client, emitted: list[Event], path: str) -> None:
    status, _ = await problem_of(client, path)
    assert status < 500
    assert not [event for event in emitted if event.severity > logging.INFO]


async def test_an_export_that_is_cut_is_a_warning_with_sqlstate_and_sentence(
    client: Client, emitted: list[Event]
) -> None:
    async with client.get("/export/late.csv") as response:
        assert response.status == 200
        with pytest.raises(Exception, match=r"payload|closed|reset"):
            await response.read()
    await eventually("the download has ended", lambda: find(emitted, ExportStreamed))
    cut = find(emitted, ExportStreamed)
    assert cut[0].severity == logging.WARNING
    fields = cut[0].fields()
    assert (fields["outcome"], fields["code"], fields["sqlstate"]) == ("failed", "relation_failed", "22012")
    assert "divides by zero" in str(fields["reason"])


async def test_a_saved_export_that_fails_is_a_warning_with_sqlstate_and_sentence(
    client: Client, emitted: list[Event]
) -> None:
    async with client.post("/export/cast_of_text.csv") as response:
        assert response.status == 202
        location = response.headers["Location"]
    await eventually("the export has failed", lambda: find(emitted, ExportGivenUp))
    given_up = find(emitted, ExportGivenUp)
    assert given_up[0].severity == logging.WARNING
    fields = given_up[0].fields()
    assert (fields["relation"], fields["code"], fields["sqlstate"]) == ("cast_of_text", "relation_failed", "22P02")
    assert_holds_no_value(emitted)
    async with client.get(location) as response:
        status = await response.json()
    assert status["error"]["detail"].startswith(fields["reason"])
    assert SECRET not in json.dumps(status)

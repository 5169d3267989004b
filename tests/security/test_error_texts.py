"""Values of rows that a view or a policy hides, in the texts of errors: none reaches a client, a manifest or the log.

Each relation makes PostgreSQL quote such a value in its message, detail, hint, context, notice or SQLSTATE. What the
role may learn in spite of that is in docs/architecture.md, "What a role may not read".
"""

from __future__ import annotations

import json
import logging
import traceback
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import create_app
from server.events import Event
from server.postgres.events import ServerErrorReported
from server.settings import Settings
from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres

Client = TestClient[Any, Any]

# The value of a hidden row. Its beginning would be a SQLSTATE.
SECRET = "ZQ7X9-of-a-hidden-row"

RELATIONS = f"""
CREATE SCHEMA hiding;
SET search_path = hiding;
CREATE ROLE hiding_reader LOGIN PASSWORD 'hiding';
GRANT USAGE ON SCHEMA hiding TO hiding_reader;
-- The hidden row comes first: PostgreSQL meets it before a byte is sent.
CREATE TABLE staff AS SELECT 51 AS id, 9 AS level, '{SECRET}' AS salary;
INSERT INTO staff SELECT n, 1, 1000 * n FROM generate_series(1, 50) AS n;

-- PostgreSQL evaluates the condition of the request before the one of the view, which costs more.
CREATE FUNCTION own_level() RETURNS int LANGUAGE plpgsql STABLE COST 1000000 AS 'BEGIN RETURN 1; END';
CREATE VIEW casting AS SELECT id, salary::int AS q FROM staff WHERE level <= own_level();
-- A barrier protects from the functions of a request, not from those of the view itself.
CREATE VIEW barred WITH (security_barrier) AS SELECT id, salary::int AS q FROM staff WHERE level <= own_level();
CREATE VIEW casting_json AS SELECT id, ('{{"a": ' || salary || '}}')::jsonb -> 'a' AS q
    FROM staff WHERE level <= own_level();
CREATE VIEW dividing AS SELECT id, 100 / (51 - id) AS q FROM staff WHERE level <= own_level();

CREATE FUNCTION raises(text, text) RETURNS int LANGUAGE plpgsql STABLE COST 1 AS $$
BEGIN
    RAISE NOTICE 'notice %', $1;
    RAISE WARNING 'warning %', $1 USING DETAIL = $1;
    PERFORM set_config('client_min_messages', 'debug1', true);
    RAISE NOTICE 'notice %', $1;
    IF $1 ~ '^[0-9]+$' THEN RETURN $1::int; END IF;
    RAISE EXCEPTION '%', $1 USING DETAIL = $1, HINT = $1, ERRCODE = $2,
        COLUMN = $1, CONSTRAINT = $1, TABLE = $1, SCHEMA = $1, DATATYPE = $1;
END $$;
CREATE VIEW raising AS SELECT id, raises(salary, 'P0001') AS q FROM staff WHERE level <= own_level();
CREATE VIEW raising_its_value AS SELECT id, raises(salary, left(salary, 5)) AS q
    FROM staff WHERE level <= own_level();
CREATE VIEW raising_a_bad_value AS SELECT id, raises(salary, '22P02') AS q FROM staff WHERE level <= own_level();
CREATE VIEW raising_too_complex AS SELECT id, raises(salary, '54001') AS q FROM staff WHERE level <= own_level();
CREATE VIEW as_if_not_found AS SELECT id, raises(salary, '42P01') AS q FROM staff WHERE level <= own_level();
CREATE VIEW as_if_forbidden AS SELECT id, raises(salary, '42501') AS q FROM staff WHERE level <= own_level();
CREATE VIEW as_if_gone AS SELECT id, raises(salary, '57P01') AS q FROM staff WHERE level <= own_level();

-- A function that is called immutable, and which the planner therefore runs.
CREATE FUNCTION folded() RETURNS text LANGUAGE sql IMMUTABLE SECURITY DEFINER AS
    'SELECT salary FROM hiding.staff WHERE id = 51';
CREATE VIEW folding AS SELECT id, folded()::int AS q FROM staff WHERE level = 1;
-- The same, which fails only while the statement of the request or of a condition of it is planned.
CREATE FUNCTION folded_at_times() RETURNS int LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER AS $$
BEGIN
    IF current_query() ~ '^SELECT source[.][^()]* FROM [(][^()]*[)] AS source LIMIT 0$' THEN RETURN 1; END IF;
    RETURN (SELECT salary::int FROM hiding.staff WHERE id = 51);
END $$;
CREATE VIEW folding_at_times AS SELECT id, folded_at_times() AS q FROM staff WHERE level = 1;

-- A function that keeps Sluice from finding out in time which part of a request is the cause.
CREATE FUNCTION slow_at_times() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF current_query() ~ '^SELECT 1 WHERE ' THEN PERFORM pg_sleep(60); END IF;
    RETURN 1;
END $$;
CREATE VIEW raising_slowly AS SELECT id, raises(salary, left(salary, 5)) AS q
    FROM staff WHERE level <= own_level() AND slow_at_times() = 1;

-- A domain and a type that look at rows when a value of the request is read.
CREATE FUNCTION checks(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE SECURITY DEFINER AS
    'BEGIN RETURN $1 < (SELECT max(salary)::int FROM hiding.staff); END';
CREATE DOMAIN checked AS int CHECK (checks(VALUE));
CREATE TYPE pair AS (a checked, b text);
CREATE VIEW checking AS SELECT id, NULL::pair AS q FROM staff WHERE level = 1;
CREATE VIEW checking_arrays AS SELECT id, NULL::checked[] AS q FROM staff WHERE level = 1;
CREATE VIEW checking_pairs AS SELECT id, NULL::pair[] AS q FROM staff WHERE level = 1;

-- A type whose operators are run on the planner's statistics, which hold values of all rows.
CREATE TYPE tagged AS (tag text);
CREATE FUNCTION less(tagged, tagged) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 1 AS $$
BEGIN
    IF ($1).tag ~ '^ZQ' OR ($2).tag ~ '^ZQ' THEN RAISE EXCEPTION '% %', $1, $2 USING ERRCODE = '22023'; END IF;
    RETURN ($1).tag < ($2).tag;
END $$;
CREATE OPERATOR < (LEFTARG = tagged, RIGHTARG = tagged, FUNCTION = less, RESTRICT = scalarltsel);
CREATE TABLE tags AS SELECT id, level, ROW (salary)::tagged AS q FROM staff;
ANALYZE tags;
CREATE VIEW estimating AS SELECT id, q FROM tags WHERE level = 1;

CREATE TABLE policed AS SELECT id, level, salary FROM staff;
ALTER TABLE policed ENABLE ROW LEVEL SECURITY;
CREATE POLICY levels ON policed USING (level = 1 OR salary::int < 0);
CREATE VIEW over_policed WITH (security_invoker) AS SELECT id, 1 AS q FROM policed;
GRANT SELECT ON ALL TABLES IN SCHEMA hiding TO hiding_reader;
REVOKE SELECT ON staff, tags FROM hiding_reader;
"""

# For each relation the query strings with which PostgreSQL meets the hidden value.
MEETS_IT = {
    "casting": ["q=gt.5", "q=not.is.null", "q=in.(1,2)", "or=(q.eq.7,id.eq.1)"],
    "barred": ["q=gt.5", "q=in.(1,2)"],
    "casting_json": ["q=not.is.null", "q->>b=eq.x"],
    "raising": ["q=gt.5"],
    "raising_its_value": ["q=gt.5"],
    "raising_a_bad_value": ["q=gt.5", "select=q::text&q=gt.5"],
    "raising_too_complex": ["q=gt.5"],
    "as_if_not_found": ["q=gt.5"],
    "as_if_forbidden": ["q=gt.5"],
    "as_if_gone": ["q=gt.5"],
    "folding": ["", "q=gt.5"],
    "folding_at_times": ["q=gt.5", "q=in.(1,2)", "select=q::text"],
    "checking_arrays": ["q=eq.{1}", "q=cs.{1}"],
    "checking_pairs": ["q=eq.{%22(1,x)%22}", "q=cs.{%22(1,x)%22}"],
    "policed": ["", "id=gt.50"],
    "over_policed": ["q=eq.1"],
}
# Whether these meet it depends on the operator that PostgreSQL or Sluice chooses.
PERHAPS = {"checking": ["q=eq.(1,x)", "q=in.(%22(1,x)%22)"], "estimating": ["q=lt.(x)", "q=gt.(x)"]}
PATHS = ["/export/{}.csv", "/export/{}.ndjson.gz", "/relations/{}/preview", "/relations/{}", "/table/{}", "/shape/{}"]


@pytest.fixture(scope="module")
def hiding(database_url: str) -> Iterator[Postgres]:
    """Create the relations, and the role that reads them."""
    postgres = Postgres(database_url)
    postgres.run(RELATIONS)
    yield postgres
    postgres.run("DROP SCHEMA hiding CASCADE; DROP OWNED BY hiding_reader; DROP ROLE hiding_reader")
    postgres.connection.close()


def as_reader(settings: Settings) -> Settings:
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="hiding_reader", password="hiding")
    return replace(settings, database_url=dsn, export_schemas=("hiding",))


@pytest.fixture
async def client(settings: Settings, hiding: Postgres) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(as_reader(settings)))) as opened:
        yield opened


@pytest.fixture
def emitted(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events of the test, once the server has started."""
    seen: list[Event] = []
    monkeypatch.setattr("server.events._observers", [seen.append])
    return seen


async def answers(client: Client, relation: str, query: str) -> list[tuple[str, int, str]]:
    """Return what each endpoint answers about this relation, with its status."""
    found = []
    for path in PATHS:
        explained = "explain&" if path == "/relations/{}" else ""
        url = URL(f"{path.format(relation)}?{explained}{query}", encoded=True)
        headers = {"X-Sluice-Live": "all"} if path.startswith("/shape") else {}
        async with client.get(url, headers=headers) as response:
            found.append((str(url), response.status, f"{response.headers} {await response.text(errors='replace')}"))
    return found


def logged(event: Event) -> str:
    """Return all that the log shows of an event."""
    error = "" if event.error is None else "".join(traceback.format_exception(event.error))
    return f"{event.name} {event.fields()} {error}"


def assert_says_nothing(found: list[tuple[str, int, str]], emitted: list[Event]) -> None:
    """Assert that no answer has the value or a half of it, and no event that the default log shows has the value."""
    halves = (SECRET[:5], SECRET[5:])
    assert [each for each in found if any(half in each[2] for half in halves)] == []
    shown = [event for event in emitted if event.severity > logging.DEBUG]
    assert [event for event in shown if SECRET in logged(event)] == []


@pytest.mark.parametrize("relation", [*MEETS_IT, *PERHAPS])
async def test_no_answer_and_no_log_has_the_value(client: Client, emitted: list[Event], relation: str) -> None:
    for query in (MEETS_IT | PERHAPS)[relation]:
        emitted.clear()
        found = await answers(client, relation, query)
        assert_says_nothing(found, emitted)
        if relation in MEETS_IT:  # the attack does reach the value
            assert any(SECRET[:5] in logged(event) for event in emitted), query
            assert found[0][1] >= 400, query


async def test_an_error_whose_cause_is_not_found_in_time_has_no_value(
    client: Client, emitted: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.export.diagnose.DIAGNOSIS_SECONDS", 0.3)
    async with client.get("/export/raising_slowly.csv?q=gt.5") as response:
        answered = "/export/raising_slowly.csv", response.status, await response.text()
    assert_says_nothing([answered], emitted)
    assert (answered[1], json.loads(answered[2])["detail"]) == (500, "PostgreSQL stopped the query.")
    assert any(SECRET[:5] in logged(event) for event in emitted)


async def test_no_saved_export_has_the_value(client: Client, emitted: list[Event], settings: Settings) -> None:
    addresses, found = [], []
    # The error of the one that is left out looks like that of a foreign server, so it would be tried again for long.
    for relation in MEETS_IT.keys() - {"as_if_gone"}:
        async with client.post(URL(f"/export/{relation}.csv?{MEETS_IT[relation][0]}", encoded=True)) as response:
            found.append((f"POST {relation}", response.status, await response.text()))
            if response.status == 202:
                addresses.append(response.headers["Location"])
    assert len(addresses) > len(found) / 2
    # The events end when the export has ended.
    ways = [way for address in addresses for way in (f"{address}/events", address, f"{address}/download")]
    for path in [*ways, "/exports", "/saved"]:
        async with client.get(path) as response:
            found.append((path, response.status, f"{response.headers} {await response.text()}"))
    assert_says_nothing(found, emitted)
    texts = [path.read_text(errors="replace") for path in settings.export_storage_path.rglob("*") if path.is_file()]
    assert sum('"error_code": "relation_failed"' in text for text in texts) == len(addresses)
    assert [text for text in texts if SECRET in text] == []


async def test_an_error_of_a_hidden_row_says_what_kind_it_is(client: Client) -> None:
    """That there is such a row is PostgreSQL's to hide: the view has no barrier."""
    async with client.get("/export/dividing.csv?q=gt.5") as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (500, "relation_failed")
    assert problem["detail"] == "The relation itself fails: an expression in it divides by zero (SQLSTATE class 22)."


async def test_a_value_of_the_client_is_still_quoted_to_it(client: Client) -> None:
    """Its message comes from a statement that names no relation."""
    for relation in ("casting", "raising_a_bad_value", "folding_at_times"):
        async with client.get(f"/export/{relation}.csv?q=eq.abc") as response:
            problem = await response.json()
        assert (response.status, problem["code"]) == (400, "invalid_value")
        assert 'PostgreSQL rejected a value: invalid input syntax for type integer: "abc".' in problem["detail"]


async def test_a_value_that_a_domain_checks_is_refused_without_the_message(client: Client) -> None:
    for relation, value in (("checking_pairs", "{%22(abc,x)%22}"), ("checking_arrays", "{abc}")):
        async with client.get(URL(f"/export/{relation}.csv?q=eq.{value}", encoded=True)) as response:
            problem = await response.json()
        assert (response.status, problem["code"]) == (400, "invalid_value")
        assert problem["detail"].endswith("is not valid. PostgreSQL does not understand its value.")


async def test_postgresqls_texts_are_in_the_log_at_debug(client: Client, emitted: list[Event]) -> None:
    async with client.get("/export/raising.csv?q=gt.5") as response:
        assert response.status == 500
    reported = [event for event in emitted if isinstance(event, ServerErrorReported)]
    assert reported
    fields = reported[0].fields()
    assert reported[0].severity == logging.DEBUG
    assert [fields[name] for name in ("sqlstate", "message", "detail", "hint")] == ["P0001", *[SECRET] * 3]
    assert "PL/pgSQL function hiding.raises(text,text)" in str(fields["where"])


@pytest.mark.slow
def test_the_default_log_of_a_server_has_no_value(
    settings: Settings, hiding: Postgres, start_live: Callable[..., LiveServer]
) -> None:
    server = start_live(DATABASE_URL=as_reader(settings).dsn, EXPORT_SCHEMAS="hiding")
    for relation, queries in MEETS_IT.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/export/{relation}.csv?{queries[0]}")
        document = refused.value.read().decode()
        assert SECRET not in document
        if refused.value.code >= 500:
            server.wait_for_log(json.loads(document)["requestId"])
    assert not [line for line in server.log if SECRET in line]

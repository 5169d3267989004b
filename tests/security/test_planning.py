"""Queries that PostgreSQL plans for long: the answer comes in time, names the cause, and nobody else waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient, TestServer

from server.app import MAX_REQUEST_LINE, create_app
from server.postgres.database import PLANNING_CONNECTIONS, PREVIEW_CONNECTIONS
from server.settings import Settings
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.waiting import at_work

Client = TestClient[Any, Any]

# PostgreSQL needs many times PLAN_TIMEOUT to compile it. Larger ones need longer to end after they were cancelled.
SLOW = "match." + quote("((a?){0,30}){0,30}")
# Seconds for an answer. It takes half of them on a machine that does nothing else.
SOON = 8.0


@pytest.fixture(autouse=True)
def accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let such expressions reach PostgreSQL: this is about the limits behind those of their size."""
    monkeypatch.setattr("server.query.pattern_limits.LARGEST_EXPRESSION", 1_000_000_000)
    monkeypatch.setattr("server.query.tally.LARGEST_EXPRESSIONS", 1_000_000_000)


@contextlib.asynccontextmanager
async def served(settings: Settings, **changes: Any) -> AsyncIterator[Client]:
    quick: dict[str, Any] = {"plan_timeout": 0.5, **changes}
    server = TestServer(create_app(replace(settings, **quick)))
    await server.start_server(max_line_size=MAX_REQUEST_LINE)
    async with TestClient(server) as client:
        yield client


async def problem_of(client: Client, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    started = time.monotonic()
    async with client.request(method, path) as response:
        problem: dict[str, Any] = await response.json()
    assert time.monotonic() - started < SOON
    return response.status, problem


@pytest.fixture
def slowly_planned(postgres: Postgres) -> Iterator[Postgres]:
    """A view whose function, which says that it is immutable, keeps the planner for a minute."""
    postgres.run(
        "CREATE FUNCTION keep_planning(int) RETURNS int LANGUAGE plpgsql IMMUTABLE "
        "AS $$ BEGIN PERFORM pg_sleep(60); RETURN 1; END $$"
    )
    postgres.run("CREATE VIEW slowly_planned AS SELECT n FROM generate_series(1, 5) AS n WHERE n = keep_planning(1)")
    yield postgres
    postgres.run("DROP FUNCTION keep_planning CASCADE")


# --- the answer --------------------------------------------------------------------------------------------------

REQUESTS = {
    "export": ("GET", "/export/users.csv?{}"),
    "explanation": ("GET", "/relations/users?explain&{}"),
    "preview": ("GET", "/relations/users/preview?{}"),
    "saved export": ("POST", "/export/users.csv?{}"),
}


@pytest.mark.parametrize(
    ("method", "path"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (name != "export")) for name, each in REQUESTS.items()],
    ids=REQUESTS,
)
async def test_a_regular_expression_that_takes_long_to_compile_is_named(
    settings: Settings, postgres: Postgres, method: str, path: str
) -> None:
    async with served(settings, plan_timeout=0.2) as client:
        status, problem = await problem_of(client, path.format(f"id=gt.0&name={SLOW}&country_code=eq.US"), method)
        assert (status, problem["code"]) == (400, "too_complex"), problem
        assert '"name" (text)' in problem["detail"]
        await eventually("PostgreSQL has stopped", lambda: not at_work(postgres))


@pytest.mark.slow
async def test_it_is_named_within_a_group_too(settings: Settings) -> None:
    async with served(settings, plan_timeout=0.2) as client:
        group = f"or=(id.eq.1,name.not.i{SLOW.replace('match.', 'match.%22')}%22)"
        status, problem = await problem_of(client, f"/relations/users?explain&{group}")
        assert (status, problem["code"]) == (400, "too_complex"), problem


@pytest.mark.slow
async def test_conditions_that_only_together_take_long_are_blamed_together(settings: Settings) -> None:
    async with served(settings, plan_timeout=0.2) as client:
        some = "&".join("name=match." + quote(f"((a?){{0,12}}){{0,12}}{n}") for n in range(200))
        status, problem = await problem_of(client, f"/relations/users?explain&{some}")
        assert (status, problem["code"]) == (400, "too_complex"), problem
        assert "relation alone does not" in problem["detail"]


@pytest.mark.slow
async def test_a_relation_that_takes_long_to_plan_is_no_fault_of_the_request(
    settings: Settings, slowly_planned: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.postgres.planning.RELATION_SECONDS", 0.3)
    monkeypatch.setattr("server.export.diagnose.DIAGNOSIS_SECONDS", 0.5)
    async with served(settings, plan_timeout=0.2) as client:
        for path, limit in (("/export/slowly_planned.csv", "0.3"), ("/export/slowly_planned.csv?n=gt.1", "0.2")):
            status, problem = await problem_of(client, path)
            assert (status, problem["code"]) == (503, "plan_timeout"), problem
            assert f"{limit} seconds to plan" in problem["detail"]
            assert "PLAN_TIMEOUT" in problem["hint"]
        async with client.get("/table/slowly_planned") as response:
            assert response.status == 200
        await eventually("PostgreSQL has stopped", lambda: not at_work(slowly_planned))


@pytest.mark.slow
async def test_without_the_limit_and_without_conditions_planning_may_take_long(
    settings: Settings, postgres: Postgres
) -> None:
    postgres.run(
        "CREATE FUNCTION plan_a_moment() RETURNS int LANGUAGE plpgsql IMMUTABLE "
        "AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN 1; END $$"
    )
    postgres.run("CREATE VIEW a_moment AS SELECT n FROM generate_series(1, 5) AS n WHERE n = plan_a_moment()")
    try:
        for limit, query, expected in ((0.1, "?n=gt.0", 503), (0.0, "?n=gt.0", 200), (0.1, "", 200)):
            path = f"/export/a_moment.csv{query}"
            async with served(settings, plan_timeout=limit) as client, client.get(path) as response:
                assert response.status == expected
    finally:
        postgres.run("DROP FUNCTION plan_a_moment CASCADE")


async def test_a_wait_for_a_lock_is_not_planning(settings: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE locked AS SELECT 1 AS one")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND now() - xact_start > interval '0.5 s'"
    with contextlib.closing(postgres.connect()) as holder:
        holder.autocommit = False
        holder.cursor().execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        async with served(settings, plan_timeout=0.1, lock_timeout=60.0) as client:
            getting = asyncio.ensure_future(client.get("/export/locked.csv"))
            await eventually("it waits for longer than planning may take", lambda: postgres.run(waiting))
            holder.commit()
            async with await getting as response:
                assert (response.status, await response.read()) == (200, b"one\n1\n")


async def test_many_conditions_of_which_the_last_is_wrong_are_answered_soon(settings: Settings) -> None:
    slow = "&".join("name=match." + quote(f"(?=((a?){{0,40}}){{0,40}}){n}") for n in range(999))
    async with served(settings, plan_timeout=1.5) as client:
        status, problem = await problem_of(client, f"/export/users.csv?{slow}&id=eq.abc")
        assert 400 <= status < 500, problem


async def test_the_one_wrong_condition_of_many_is_named(settings: Settings) -> None:
    right = "&".join(f"id=neq.{n}" for n in range(900))
    async with served(settings, plan_timeout=5.0) as client:
        status, problem = await problem_of(client, f"/relations/users?explain&{right}&signup_date=eq.never")
        assert (status, problem["code"]) == (400, "invalid_value"), problem
        assert '"signup_date"' in problem["detail"]


# --- the others ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_queries_that_are_planned_for_long_delay_no_other_work(
    settings: Settings, slowly_planned: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have every connection for planning and for previews."""
    monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 60.0)
    async with served(settings, plan_timeout=0.0) as client:
        slow = [f"/relations/users?explain&name={SLOW}"] * PLANNING_CONNECTIONS
        slow += ["/relations/slowly_planned/preview"] * PREVIEW_CONNECTIONS
        attacks = [asyncio.ensure_future(client.get(path)) for path in slow]
        working = f"{len(slow)} of them"
        await eventually(working, lambda: len(at_work(slowly_planned)) == len(slow))
        for path in (
            "/health/ready",
            "/",
            "/relations",
            "/relations/users",
            "/table/users",
            "/export/users.csv?limit=1",
        ):
            async with client.get(path) as response:
                assert response.status == 200, (path, await response.text())
        assert len(at_work(slowly_planned)) >= len(slow)  # still
        for attack in attacks:
            attack.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
        await eventually("PostgreSQL has stopped", lambda: not at_work(slowly_planned))


async def test_a_preview_needs_no_export_slot_and_takes_none(settings: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW sleepy AS SELECT pg_sleep(60)::text AS x")
    async with served(settings, max_concurrent_exports=1) as client:
        exporting = asyncio.ensure_future(client.get("/export/sleepy.csv"))
        await eventually("it sleeps", lambda: len(at_work(postgres)) == 1)
        for path in ("/relations/users/preview", "/table/users"):
            async with client.get(path) as response:
                assert response.status == 200
                assert "export slots" not in await response.text()
        exporting.cancel()
        await eventually("PostgreSQL has stopped", lambda: not at_work(postgres))
        previews = [asyncio.ensure_future(client.get("/relations/sleepy/preview")) for _ in range(PREVIEW_CONNECTIONS)]
        await eventually("all previews are in use", lambda: len(at_work(postgres)) == PREVIEW_CONNECTIONS)
        async with client.get("/export/users.csv?limit=1") as response:
            assert response.status == 200
        # Clients that type on: their previews end in the database too, which frees the connections.
        for preview in previews:
            preview.cancel()
        async with client.get("/relations/users/preview") as response:
            assert response.status == 200
        await eventually("PostgreSQL has stopped", lambda: not at_work(postgres))


@pytest.mark.slow
async def test_a_preview_that_gets_no_connection_says_so(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.run("CREATE VIEW sleepy AS SELECT pg_sleep(60)::text AS x")
    async with served(settings) as client:
        others = [asyncio.ensure_future(client.get("/relations/sleepy/preview")) for _ in range(PREVIEW_CONNECTIONS)]
        await eventually("all previews are in use", lambda: len(at_work(postgres)) == PREVIEW_CONNECTIONS)
        monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 1.0)
        status, problem = await problem_of(client, "/relations/users/preview")
        assert (status, problem["code"]) == (503, "busy")
        assert "previews" in problem["detail"]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


# --- health --------------------------------------------------------------------------------------------------------


async def test_health_checks_share_one_connection_of_their_own(settings: Settings, postgres: Postgres) -> None:
    health = "SELECT DISTINCT pid FROM pg_stat_activity WHERE application_name = 'sluice'"
    before = {pid for (pid,) in postgres.run(health)}
    async with served(settings) as client:
        (pid,) = {pid for (pid,) in postgres.run(health)} - before

        async def ready() -> int:
            async with client.get("/health/ready") as response:
                return response.status

        assert await asyncio.gather(*[ready() for _ in range(50)]) == [200] * 50
        async with client.get("/export/users.csv?limit=1") as response:
            assert response.status == 200
        (other,) = {pid for (pid,) in postgres.run(health)} - before - {pid}
        postgres.run("SELECT pg_terminate_backend(%s, 1000)", (pid,))
        assert await ready() == 200  # on a new one
        assert len({pid for (pid,) in postgres.run(health)} - before - {pid, other}) == 1


async def test_a_database_that_does_not_answer_is_not_ready(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = "SELECT pid FROM pg_stat_activity WHERE application_name = 'sluice'"
    before = {pid for (pid,) in postgres.run(pids)}
    async with served(settings) as client:
        (pid,) = {pid for (pid,) in postgres.run(pids)} - before
        monkeypatch.setattr("server.postgres.database.HEALTH_TIMEOUT", 0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            status, problem = await problem_of(client, "/health/ready")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (status, problem["code"]) == (503, "database_unavailable")
        monkeypatch.undo()
        async with client.get("/health/ready") as response:
            assert response.status == 200


# --- switched off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [*REQUESTS.values(), ("HEAD", "/export/users.csv?{}")])
@pytest.mark.parametrize(
    "query", ["name=match.x", "name=not.imatch(any).{x}", "or=(id.eq.1,and(id.gt.2,name.match.x))"]
)
async def test_regular_expressions_can_be_switched_off(settings: Settings, method: str, path: str, query: str) -> None:
    async with served(settings, regular_expressions=False) as client:
        async with client.request(method, path.format(query)) as response:
            assert response.status == 400
            if method != "HEAD":
                problem = await response.json()
                assert problem["code"] == "operator_switched_off"
                assert "match" in problem["detail"]
                assert "REGULAR_EXPRESSIONS" in problem["hint"]
        async with client.get("/relations/users/preview?name=ilike.a*") as response:
            assert response.status == 200


async def test_the_page_offers_no_regular_expressions_that_are_switched_off(settings: Settings) -> None:
    async with served(settings) as client, client.get("/table/users?name=eq.x") as response:
        assert "matches regular expression" in await response.text()
    async with served(settings, regular_expressions=False) as client:
        async with client.get("/table/users?name=eq.x") as response:
            assert "matches regular expression" not in await response.text()
        async with client.get("/table/users?name=match.x") as response:
            page = await response.text()
        assert "does not take regular expressions" in page
        assert page.count("matches regular expression") == 1  # what the filter is

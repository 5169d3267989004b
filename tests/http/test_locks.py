"""A relation that another session has locked: the answer after LOCK_TIMEOUT, and what does not wait at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer

from server.app import create_app
from server.postgres.database import PLANNING_CONNECTIONS
from server.saved import retries
from server.settings import Settings
from tests.support.live_server import eventually
from tests.support.postgres import Postgres

# Much longer than an answer that waits for nothing takes.
LONG = 20.0
# Parts of the address of each request that reads rows or plans a query.
EXPORT, PREVIEW, EXPLAIN = "/export/{}.csv", "/relations/{}/preview", "/relations/{}?explain"


@contextlib.asynccontextmanager
async def serving(settings: Settings, **changes: Any) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(create_app(replace(settings, **changes)))) as client:
        yield client


def with_role(settings: Settings, lock_timeout: str) -> Settings:
    """Settings of a role with this lock_timeout."""
    options = f"-c lock_timeout={lock_timeout}"
    return replace(settings, database_url=psycopg2.extensions.make_dsn(settings.dsn, options=options))


@pytest.fixture
def busy(postgres: Postgres) -> Iterator[psycopg2.extensions.connection]:
    """Create some relations on a table that the transaction of this connection holds a lock on."""
    postgres.run("CREATE TABLE busy (n int) PARTITION BY LIST (n); CREATE TABLE free (n int)")
    postgres.run(
        "CREATE TABLE busy_1 PARTITION OF busy DEFAULT; INSERT INTO busy VALUES (1); INSERT INTO free VALUES (2)"
    )
    postgres.run("CREATE VIEW over_busy AS SELECT n FROM free UNION ALL SELECT n FROM busy")
    with contextlib.closing(postgres.connect()) as holder:
        holder.autocommit = False
        holder.cursor().execute("LOCK TABLE busy_1 IN ACCESS EXCLUSIVE MODE")
        yield holder


async def assert_locked(client: TestClient[Any, Any], path: str) -> None:
    started = time.monotonic()
    async with client.get(path) as response:
        problem = await response.json()
        assert (response.status, problem["code"]) == (503, "relation_locked"), problem
        assert "locked by another session" in problem["detail"]
        assert int(response.headers["Retry-After"]) > 0
    assert time.monotonic() - started < LONG


# --- the answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["busy", "busy_1", "over_busy"])
@pytest.mark.parametrize("path", [EXPORT, PREVIEW, EXPLAIN])
async def test_a_locked_relation_is_named_as_such_after_the_lock_timeout(
    settings: Settings, busy: psycopg2.extensions.connection, path: str, relation: str
) -> None:
    async with serving(settings, lock_timeout=0.1) as client:
        await assert_locked(client, path.format(relation))


@pytest.mark.parametrize("lock_timeout", [0.0, 600.0])
@pytest.mark.parametrize("path", [EXPORT, PREVIEW, EXPLAIN])
async def test_a_lock_timeout_of_the_role_gives_the_same_answer(
    settings: Settings, busy: psycopg2.extensions.connection, path: str, lock_timeout: float
) -> None:
    async with serving(with_role(settings, "100ms"), lock_timeout=lock_timeout) as client:
        await assert_locked(client, path.format("busy"))


async def test_without_a_lock_timeout_the_answer_names_the_lock_too(
    settings: Settings, busy: psycopg2.extensions.connection
) -> None:
    async with serving(settings, lock_timeout=0.0, statement_timeout=0.3) as client:
        await assert_locked(client, EXPORT.format("busy"))


async def test_a_preview_names_the_lock_within_its_own_limit(
    settings: Settings, busy: psycopg2.extensions.connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.export.preview.PREVIEW_TIMEOUT", 1.0)
    async with serving(settings, lock_timeout=60.0) as client:
        await assert_locked(client, PREVIEW.format("busy"))


async def test_the_page_of_a_locked_relation_says_so(settings: Settings, busy: psycopg2.extensions.connection) -> None:
    async with serving(settings, lock_timeout=0.1) as client, client.get("/table/busy") as response:
        assert response.status == 200
        assert "locked by another session" in await response.text()


async def test_descriptions_headers_and_lists_do_not_wait(
    settings: Settings, busy: psycopg2.extensions.connection
) -> None:
    async with serving(settings, lock_timeout=0.0) as client:
        for method, path in [("HEAD", "/export/busy.csv"), ("GET", "/relations/busy"), ("GET", "/relations")]:
            async with client.request(method, path) as response:
                assert response.status == 200, path


async def test_an_export_that_gets_its_lock_in_time_is_whole(
    settings: Settings, busy: psycopg2.extensions.connection, postgres: Postgres
) -> None:
    async with serving(settings, lock_timeout=60.0) as client:

        async def export() -> tuple[int, bytes]:
            async with client.get("/export/over_busy.csv") as response:
                return response.status, await response.read()

        exporting = asyncio.create_task(export())
        waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event_type = 'Lock'"
        await eventually("the export waits", lambda: postgres.run(waiting))
        busy.commit()
        assert await exporting == (200, b"n\n2\n1\n")


async def test_explanations_that_wait_for_a_lock_delay_no_other_work(
    settings: Settings, busy: psycopg2.extensions.connection, postgres: Postgres
) -> None:
    """They have all connections for planning."""
    async with serving(settings, lock_timeout=0.0) as client:
        path = EXPLAIN.format("busy")
        explaining = [asyncio.create_task(assert_locked(client, path)) for _ in range(PLANNING_CONNECTIONS)]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event_type = 'Lock'"
        await eventually("they wait", lambda: postgres.run(waiting) == [(PLANNING_CONNECTIONS,)])
        for path in ("/health/ready", "/relations", "/relations/free", "/table/free", "/export/free.csv"):
            async with client.get(path) as response:
                assert response.status == 200, path
        assert postgres.run(waiting) == [(PLANNING_CONNECTIONS,)]  # still
        await asyncio.gather(*explaining)


# --- others are not blocked by an export that waits -----------------------------------------------------------------


async def test_an_export_that_gives_up_holds_no_lock(
    settings: Settings, busy: psycopg2.extensions.connection, postgres: Postgres
) -> None:
    """It has the lock of `free` while it waits for that of `busy_1`."""
    async with serving(settings, lock_timeout=0.1) as client:
        await assert_locked(client, EXPORT.format("over_busy"))
        postgres.run("SET lock_timeout = '10s'; ALTER TABLE free ADD COLUMN more int; RESET lock_timeout")
        held = "SELECT 1 FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE application_name = 'sluice'"
        assert postgres.run(held) == []


# --- saved exports --------------------------------------------------------------------------------------------------


async def test_a_saved_export_waits_until_its_relation_is_free(
    settings: Settings, busy: psycopg2.extensions.connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "LOCKED_SECONDS", 0.1)
    async with serving(settings, lock_timeout=0.1, max_running_exports=1) as client:
        async with client.post("/export/busy.csv") as response:
            assert response.status == 202
            locked = response.headers["Location"]
        async with client.post("/export/free.csv") as response:
            free = response.headers["Location"]

        async def ended(path: str) -> dict[str, Any]:
            """Wait until the export has ended: then its events end. Return the last one."""
            async with client.get(f"{path}/events") as events:
                document: dict[str, Any] = json.loads((await events.read()).split(b"data: ")[-1])
                return document

        assert (await ended(free))["status"] == "completed"  # another export is not held up
        async with client.get(locked) as response:
            assert (await response.json())["status"] == "pending"
        busy.commit()
        document = await ended(locked)
        assert (document["status"], document["rows"], document["attempts"]) == ("completed", 1, 1)

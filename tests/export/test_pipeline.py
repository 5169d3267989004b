"""`open_export`: the order of its stages, its errors, and what closing and cancelling it leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from server.errors import (
    ConnectionLost,
    ExportError,
    InvalidRequest,
    QueryFailed,
    RelationFailed,
    RelationNotFound,
    ServerBusy,
)
from server.export import pipeline
from server.export.engine import Engine
from server.export.pipeline import RETRY_DELAYS, describe, open_export, plan_headers, with_retries
from server.postgres.database import PLANNING_CONNECTIONS, Database
from server.postgres.session import Session
from server.query.catalogue import RelationName
from server.query.request import ExportRequest, parse_export_request
from server.settings import Settings
from tests.support.engines import make_engine, open_database
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.waiting import at_work

GZIP = 31

# The rows before the slow one fill more than the 8 kB that PostgreSQL keeps before it sends.
SLOW = (
    "SELECT n, repeat('x', 3000) AS x, CASE WHEN n = 9 THEN pg_sleep(60)::text END AS y "
    "FROM generate_series(1, 30) AS n"
)


def request(target: str, query: str = "") -> ExportRequest:
    return parse_export_request(target, query)


@pytest.fixture(params=[True, False], ids=["native", "pure"])
def engine(request: pytest.FixtureRequest, database: Database) -> Engine:
    """An engine with each of the encoders."""
    return make_engine(database, native=request.param)


# --- stages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the session's methods in the order of their calls."""
    made: list[str] = []

    def watch(name: str) -> None:
        real: Callable[..., Any] = getattr(Session, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            made.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(Session, name, watched)

    for name in ("relation", "explain", "query", "rows", "export_snapshot"):
        watch(name)
    return made


async def test_the_query_is_explained_once_before_its_rows_are_read(
    engine: Engine, postgres: Postgres, calls: list[str]
) -> None:
    async with open_export(engine, request("users.csv")) as export:
        assert calls == ["relation", "query"]
        explained = await export.explained()
        assert await export.explained() is explained
        strategy = await export.strategy()
        assert await export.strategy() is strategy
        assert strategy.estimated_rows == explained.rows
        async with contextlib.aclosing(export.chunks()) as chunks:
            body = b"".join([chunk.data async for chunk in chunks])
    assert body == postgres.copy("SELECT * FROM users")
    assert [call for call in calls if call != "query"] == ["relation", "explain", "rows"]


async def test_chunks_need_no_call_before_them(engine: Engine, postgres: Postgres, calls: list[str]) -> None:
    async with (
        open_export(engine, request("users.csv", "id=lt.10")) as export,
        contextlib.aclosing(export.chunks()) as chunks,
    ):
        assert calls == ["relation", "query"]
        body = b"".join([chunk.data async for chunk in chunks])
    assert body == postgres.copy("SELECT * FROM users WHERE id < 10")
    assert calls.count("explain") == 1


async def test_the_snapshot_has_the_time_of_its_transaction(engine: Engine, postgres: Postgres) -> None:
    ((before,),) = postgres.run("SELECT clock_timestamp()")
    async with open_export(engine, request("users.csv")) as export:
        ((after,),) = postgres.run("SELECT clock_timestamp()")
        assert export.snapshot_at is not None
        assert before < export.snapshot_at < after


# --- chunks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["slow.csv", "slow.csv.gz"])
@pytest.mark.parametrize("compressed", [False, True])
async def test_the_first_chunk_comes_while_the_second_is_made(
    engine: Engine, postgres: Postgres, target: str, compressed: bool
) -> None:
    postgres.run(f"CREATE VIEW slow AS {SLOW}")
    async with (
        open_export(engine, request(target)) as export,
        contextlib.aclosing(export.chunks(compressed=compressed)) as chunks,
    ):
        async with asyncio.timeout(30):  # the second one takes longer
            data = (await anext(chunks)).data
        if compressed or target.endswith(".gz"):
            data = zlib.decompressobj(GZIP).decompress(data)
        assert data.startswith(b"n,x,y\n1,xxx")
        await eventually(
            "the slow row is being made",
            lambda: postgres.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
        )


@pytest.mark.parametrize(
    ("target", "compressed"), [("users.csv", True), ("users.csv.gz", False), ("users.csv.gz", True)]
)
async def test_a_file_is_compressed_once(engine: Engine, postgres: Postgres, target: str, compressed: bool) -> None:
    async with (
        open_export(engine, request(target)) as export,
        contextlib.aclosing(export.chunks(compressed=compressed)) as chunks,
    ):
        every = [chunk async for chunk in chunks]
    member = zlib.decompressobj(GZIP)
    assert member.decompress(b"".join(chunk.data for chunk in every)) == postgres.copy("SELECT * FROM users")
    assert member.eof
    assert sum(chunk.rows for chunk in every) == postgres.run("SELECT count(*) FROM users")[0][0]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_closing_the_chunks_leaves_no_task_and_no_statement(
    engine: Engine, postgres: Postgres, compressed: bool, taken: int
) -> None:
    postgres.run("CREATE VIEW long AS SELECT n, repeat('x', 1000) AS x FROM generate_series(1, 2000000) AS n")
    tasks = asyncio.all_tasks()
    async with open_export(engine, request("long.csv")) as export:
        chunks = export.chunks(compressed=compressed)
        for _ in range(taken):
            await anext(chunks)
        await chunks.aclose()
        assert asyncio.all_tasks() == tasks
    await eventually("PostgreSQL has stopped", lambda: not at_work(postgres))


@pytest.mark.parametrize("compressed", [False, True])
async def test_cancelling_in_the_middle_leaves_no_task_and_no_statement(
    engine: Engine, postgres: Postgres, compressed: bool
) -> None:
    postgres.run(f"CREATE VIEW slow AS {SLOW}")
    tasks = asyncio.all_tasks()
    received = asyncio.Event()

    async def download() -> None:
        async with (
            open_export(engine, request("slow.csv")) as export,
            contextlib.aclosing(export.chunks(compressed=compressed)) as chunks,
        ):
            async for _ in chunks:
                received.set()

    downloading = asyncio.create_task(download())
    await received.wait()
    await eventually(
        "the slow row is being made",
        lambda: postgres.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
    )
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading
    # The database may still be telling PostgreSQL to stop.
    assert asyncio.all_tasks() - engine.database._background == tasks
    await eventually("PostgreSQL has stopped", lambda: not at_work(postgres))


# --- connections -------------------------------------------------------------------------------------------------


async def test_a_control_connection_needs_no_export_slot(settings: Settings) -> None:
    async with open_database(replace(settings, max_concurrent_exports=1)) as database:
        engine = make_engine(database)
        async with open_export(engine, request("users.csv")):
            with pytest.raises(ServerBusy):
                await open_export(engine, request("users.csv")).__aenter__()
            async with open_export(engine, request("users.csv"), control=True) as export:
                assert (await export.strategy()).estimated_rows > 0
        async with open_export(engine, request("users.csv")):
            pass


# --- errors ------------------------------------------------------------------------------------------------------


async def explain(engine: Engine, target: str, query: str, *, control: bool) -> None:
    async with open_export(engine, request(target, query), control=control) as export:
        await export.explained()


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize(
    ("target", "query", "expected", "code", "named"),
    [
        ("nowhere.csv", "", RelationNotFound, "relation_not_found", "nowhere"),
        ("users.csv", "id=eq.abc", InvalidRequest, "invalid_value", '"id" (bigint)'),
        ("users.csv", "id=gt.0&id=match.x", InvalidRequest, "operator_not_supported", '"match" cannot be used on "id"'),
        ("users.csv", "name=match.(", InvalidRequest, "invalid_value", '"name"'),
        ("shapes.csv", "order=p", InvalidRequest, "operator_not_supported", '"p" (point) cannot be sorted by'),
    ],
)
async def test_an_error_names_what_caused_it(
    engine: Engine,
    postgres: Postgres,
    target: str,
    query: str,
    expected: type[ExportError],
    code: str,
    named: str,
    control: bool,
) -> None:
    postgres.run("CREATE TABLE shapes (p point)")

    async def attempt() -> None:
        async with (
            open_export(engine, request(target, query), control=control) as export,
            contextlib.aclosing(export.chunks()) as chunks,
        ):
            await anext(chunks)

    with pytest.raises(expected) as caught:
        await attempt()
    assert caught.value.code == code
    assert named in caught.value.detail


async def test_a_time_zone_that_postgresql_does_not_know_is_the_fault_of_the_request(engine: Engine) -> None:
    """Sluice has a list of its own, which may be newer than that of the database."""
    wanted = replace(request("users.csv", "id=eq.1"), timezone="Mars/Moon")

    async def attempt() -> None:
        async with open_export(engine, wanted) as export:
            await export.explained()

    with pytest.raises(InvalidRequest, match='"Mars/Moon"'):
        await attempt()


async def test_the_cause_is_looked_for_after_the_transaction_is_closed(settings: Settings, postgres: Postgres) -> None:
    # All connections for planning but one are in use, so that the failed one has to be free by then.
    async with open_database(settings) as database, contextlib.AsyncExitStack() as others:
        for _ in range(PLANNING_CONNECTIONS - 1):
            await others.enter_async_context(database.planning_session())
        with pytest.raises(InvalidRequest, match='"id"'):
            await explain(make_engine(database), "users.csv", "id=eq.abc", control=True)


async def test_nobody_is_blamed_while_the_cause_cannot_be_looked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.export.diagnose.DIAGNOSIS_SECONDS", 0.05)
    async with open_database(settings) as database, contextlib.AsyncExitStack() as others:
        for _ in range(PLANNING_CONNECTIONS):
            await others.enter_async_context(database.planning_session())
        with pytest.raises(ServerBusy):
            await explain(make_engine(database), "users.csv", "id=eq.abc", control=False)


async def test_an_error_of_the_relation_itself_blames_no_filter(engine: Engine, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW failing AS SELECT 1 / (n - 1) AS x, n FROM generate_series(1, 3) AS n")

    async def attempt() -> None:
        async with (
            open_export(engine, request("failing.csv", "n=gt.0")) as export,
            contextlib.aclosing(export.chunks()) as chunks,
        ):
            await anext(chunks)

    with pytest.raises(RelationFailed) as caught:
        await attempt()
    assert "filter" not in caught.value.detail


# --- without rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "query"),
    [
        ("users.csv", ""),
        ("public.users.csv.gz", "select=id,who:name&id=gt.5&order=id&limit=3&delimiter=%3B&parallel=1"),
    ],
)
async def test_the_plan_for_headers_is_the_plan_of_the_export(engine: Engine, target: str, query: str) -> None:
    wanted = request(target, query)
    async with open_export(engine, wanted, control=True) as export:
        assert await plan_headers(engine, wanted) == export.plan
    described = await describe(engine, wanted.relation)
    # An export looks up no statistics.
    assert described.estimated_rows is not None
    assert replace(described, estimated_rows=None, bytes=None) == export.plan.relation


async def test_a_description_needs_no_export_slot_and_waits_for_no_lock(settings: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE locked (n int, large text)")  # with a TOAST table, whose size needs a lock
    with contextlib.closing(postgres.connect()) as other, other.cursor() as cursor:
        other.autocommit = False
        cursor.execute("LOCK TABLE locked")
        async with open_database(replace(settings, max_concurrent_exports=1)) as database, database.session():
            engine = make_engine(database)
            relation = await describe(engine, RelationName("locked"))
            assert [column.name for column in relation.columns] == ["n", "large"]
            assert (await plan_headers(engine, request("locked.csv"))).relation == relation


@pytest.mark.parametrize(
    ("target", "query", "expected", "named"),
    [("nowhere.csv", "", RelationNotFound, "nowhere"), ("users.csv", "select=nothing", InvalidRequest, '"nothing"')],
)
async def test_a_plan_for_headers_fails_as_the_export_does(
    engine: Engine, target: str, query: str, expected: type[ExportError], named: str
) -> None:
    with pytest.raises(expected, match=named):
        await plan_headers(engine, request(target, query))
    with pytest.raises(expected, match=named):
        async with open_export(engine, request(target, query)):
            pass


# --- retries -----------------------------------------------------------------------------------------------------


def failing(errors: list[ExportError]) -> Callable[[], Awaitable[str]]:
    """An attempt that raises these errors, one at each call, and then succeeds."""

    async def attempt() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return attempt


@pytest.mark.parametrize("failures", range(len(RETRY_DELAYS) + 1))
async def test_transient_errors_are_retried(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    monkeypatch.setattr(pipeline, "RETRY_DELAYS", (0.0,) * len(RETRY_DELAYS))
    assert await with_retries(failing([ConnectionLost("lost") for _ in range(failures)])) == "done"


async def test_transient_errors_are_not_retried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RETRY_DELAYS", (0.0,) * len(RETRY_DELAYS))
    errors: list[ExportError] = [ConnectionLost(str(number)) for number in range(len(RETRY_DELAYS) + 2)]
    with pytest.raises(ConnectionLost, match=str(len(RETRY_DELAYS))):
        await with_retries(failing(errors))
    assert len(errors) == 1


async def test_other_errors_are_not_retried() -> None:
    errors: list[ExportError] = [QueryFailed("it broke"), QueryFailed("again")]
    with pytest.raises(QueryFailed, match="it broke"):
        await with_retries(failing(errors))
    assert len(errors) == 1

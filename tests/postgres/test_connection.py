"""A connection after it was taken over from libpq: a real PostgreSQL, and a scripted one for what no real one sends."""

from __future__ import annotations

import asyncio
import contextlib
import select
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from aiohttp.test_utils import TestClient

from server import errors
from server.events import Event
from server.export.pipeline import with_retries
from server.postgres.connection import Connection
from server.postgres.connections import Connections, check_dsn
from server.postgres.database import Database
from server.postgres.events import DatabaseUnreachable
from server.postgres.queries import Query
from server.settings import Settings, SettingsError
from tests.support.engines import open_connections, open_database
from tests.support.fake_backend import BOUND, PARSED, error, message, notice, notification, parameter_status, row, split
from tests.support.fake_server import (
    COMPLETE,
    IDLE,
    Conversation,
    FakeServer,
    Result,
    answers,
    description,
    opening,
    text,
)
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.waiting import sleeping_backends

# Seconds. More than a test machine under load needs.
SOON = 30
ONE = Query("SELECT '1' AS one")
TEXT = 25
ASYNCHRONOUS = {
    "notice": notice("careful"),
    "parameter": parameter_status(b"TimeZone", b"UTC"),
    "notification": notification(b"hello"),
}


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    async with asyncio.timeout(SOON), open_connections(dsn) as connections:
        yield await connections.acquire()


def one(sql: str) -> Result:
    return text(one="1")


async def serve(conversation: Conversation) -> None:
    await conversation.serve(one)


def readable(connection: Connection) -> bool:
    return bool(select.select([connection.wire.descriptor], [], [], 0)[0])


def closed_by_the_server(connection: Connection) -> bool:
    poll = select.poll()
    poll.register(connection.wire.descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))


async def assert_lost(connection: Connection) -> None:
    """Run a query that has to end with ConnectionLost, and check that the connection is closed."""
    with pytest.raises(errors.ConnectionLost):
        await connection.run([ONE])
    assert connection.closed
    with pytest.raises(errors.ConnectionLost):
        await connection.run([ONE])


# --- which servers are used -------------------------------------------------------------------------------------


async def test_a_server_older_than_14_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: list[Event] = []
    monkeypatch.setattr("server.events._observers", [emitted.append])
    async with FakeServer(Conversation.end, version="13.22") as server, open_connections(server.dsn) as connections:
        with pytest.raises(errors.DatabaseUnavailable, match="older than PostgreSQL 14") as caught:
            await connections.acquire()
    assert caught.value.hint == "Ask the operator to upgrade PostgreSQL to 14 or later."
    (event,) = emitted
    assert isinstance(event, DatabaseUnreachable)
    assert "older than PostgreSQL 14" in event.reason


async def test_a_server_of_version_14_is_used() -> None:
    async with FakeServer(serve, version="14.0") as server, connected(server.dsn) as connection:
        assert await connection.run([ONE]) == [[{"one": "1"}]]


@pytest.mark.parametrize("wanted", ["", "&gssencmode=prefer", "&gssencmode=disable"])
async def test_encryption_by_gss_is_off(wanted: str) -> None:
    async with FakeServer(serve) as server, connected(server.dsn + wanted) as connection:
        assert connection.raw.info.dsn_parameters["gssencmode"] == "disable"


def test_encryption_by_gss_cannot_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    for accepted in ("postgresql://db.example/shop", "postgresql://db.example/shop?gssencmode=prefer"):
        check_dsn(accepted)
    with pytest.raises(SettingsError, match="replace gssencmode=require"):
        check_dsn("postgresql://db.example/shop?gssencmode=require")
    monkeypatch.setenv("PGGSSENCMODE", "require")
    with pytest.raises(SettingsError, match="replace gssencmode=require"):
        check_dsn("postgresql://db.example/shop")
    check_dsn("postgresql://db.example/shop?gssencmode=disable")


# --- prepared statements ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pid", "prepares"), [(4711, True), (4712, False)], ids=["its own", "a pooler's"])
async def test_statements_are_prepared_only_if_the_process_belongs_to_the_connection(
    settings: Settings, pid: int, prepares: bool
) -> None:
    parsed: list[str] = []

    async def script(conversation: Conversation) -> None:
        conversation.parsed = parsed
        await conversation.serve(result)

    def result(sql: str) -> Result:
        if "AS from_sql" in sql:  # whether SQL has made them
            return text(from_sql="{" + ",".join("f" for name in parsed if name) + "}")
        return text(one="1") if "AS one" in sql else opening(sql, pid)

    async with FakeServer(script) as server, open_database(replace(settings, database_url=server.dsn)) as database:
        for _ in range(4):
            async with database.session() as session:
                assert await session.query("SELECT '1' AS one", prepare=True) == [{"one": "1"}]
                await session.query("SELECT '2' AS one")
        assert server.connections == 1
    named = [name for name in parsed if name]
    # Each of the two texts once, from the second session on: the first one finds out whose process it is.
    assert len(named) == len({*named}) == (2 if prepares else 0)


async def test_a_real_server_keeps_each_statement_prepared_once(database: Database) -> None:
    prepared = []
    for _ in range(5):
        async with database.session() as session:
            await session.query("SELECT 1 AS one", prepare=True)
            prepared += await session.query("SELECT string_agg(name, ' ' ORDER BY name) FROM pg_prepared_statements")
    # The first session finds out whose process it is.
    assert [row["string_agg"] for row in prepared] == [None, *["sluice_0 sluice_1"] * 4]


FORGET = "CREATE FUNCTION forget() RETURNS text LANGUAGE plpgsql AS $$ BEGIN DEALLOCATE ALL; RETURN 'done'; END $$"


@pytest.mark.parametrize("forget", ["DEALLOCATE ALL", "DISCARD ALL"])
async def test_a_connection_whose_statements_were_dropped_is_replaced(database: Database, forget: str) -> None:
    async def ask() -> list[dict[str, Any]]:
        async with database.session() as session:
            return await session.query("SELECT 1 AS one", prepare=True)

    for _ in range(2):
        await ask()
    async with database.session() as session:
        connection = session.connection
        assert await connection.run([Query(forget)]) == [[]]
    with pytest.raises(errors.ConnectionLost):
        await ask()
    assert connection.closed
    assert await ask() == [{"one": 1}]


async def test_a_request_after_the_statements_were_dropped_is_answered(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run(FORGET)
    try:
        postgres.run(
            "CREATE VIEW forgetful AS SELECT forget() AS x; CREATE TABLE ten AS SELECT generate_series(1, 10) n"
        )
        right = postgres.copy("SELECT * FROM ten")
        for _ in range(3):
            for file, expected in (("ten", right), ("forgetful", b"x\ndone\n"), ("ten", right)):
                async with client.get(f"/export/{file}.csv") as response:
                    assert (response.status, await response.read()) == (200, expected)
            async with client.get("/relations/ten/preview") as response:
                assert response.status == 200
    finally:
        postgres.run("DROP FUNCTION forget() CASCADE")


async def test_a_transaction_that_fails_before_it_has_answered_is_rolled_back(database: Database) -> None:
    for _ in range(3):
        with pytest.raises(errors.ExportError):
            async with database.reader_session("00000000-00000000-1") as session:
                await session.open()
        async with database.session() as session:
            assert await session.query("SELECT 1 AS one") == [{"one": 1}]


# --- idle connections -------------------------------------------------------------------------------------------


async def test_an_idle_connection_that_the_server_has_closed_is_replaced(database_url: str, postgres: Postgres) -> None:
    async with open_connections(database_url) as connections:
        first = await connections.acquire()
        ((found,),) = await first.run([Query("SELECT pg_backend_pid() AS pid")])
        connections.release(first, reusable=True)
        postgres.run("SELECT pg_terminate_backend(%s, 10000)", (found["pid"],))
        second = await connections.acquire()
        assert (first.closed, second is first) == (True, False)
        assert await second.run([ONE]) == [[{"one": "1"}]]


async def test_an_idle_connection_that_was_notified_is_used_again(database_url: str, postgres: Postgres) -> None:
    async with open_connections(database_url) as connections:
        first = await connections.acquire()
        await first.run([Query("LISTEN channel")])
        connections.release(first, reusable=True)
        postgres.run("NOTIFY channel, 'hello'")
        await eventually("it is notified", lambda: readable(first))
        assert await connections.acquire() is first
        assert not readable(first)
        assert first.clean
        assert await first.run([ONE]) == [[{"one": "1"}]]


class Meanwhile:
    """A script that sends something when the connection is idle: after `send` was set."""

    def __init__(self, data: bytes, *, ends: bool = False) -> None:
        self._data = data
        self._ends = ends
        self.send = asyncio.Event()

    async def __call__(self, conversation: Conversation) -> None:
        await conversation.send(answers(await conversation.pipeline(), one) + IDLE)
        await self.send.wait()
        await conversation.send(self._data)
        if not self._ends:
            await conversation.serve(one)


@contextlib.asynccontextmanager
async def idle_meanwhile(script: Meanwhile) -> AsyncIterator[tuple[Connections, Connection]]:
    """Connections with an idle one that has received what the script sends."""
    async with FakeServer(script) as server, open_connections(server.dsn) as connections:
        first = await connections.acquire()
        await first.run([ONE])
        connections.release(first, reusable=True)
        assert not readable(first)
        script.send.set()
        await eventually("it has arrived", lambda: closed_by_the_server(first) if script._ends else readable(first))
        yield connections, first


@pytest.mark.parametrize(
    "data", [*ASYNCHRONOUS.values(), b"".join(ASYNCHRONOUS.values()) * 1000], ids=[*ASYNCHRONOUS, "many"]
)
async def test_what_belongs_to_no_statement_is_dropped_while_a_connection_is_idle(data: bytes) -> None:
    async with idle_meanwhile(Meanwhile(data)) as (connections, first):
        assert await connections.acquire() is first
        assert first.clean
        assert await first.run([ONE, ONE]) == [[{"one": "1"}]] * 2


UNUSABLE = {
    "an answer": IDLE,
    "a row": row(b"1"),
    "an error": error(S="FATAL", C="57P05", M="terminating connection due to idle-session timeout"),
    "half a message": notice("careful")[:-1],
    "half a header": b"N\0\0",
    "nonsense": b"\0" * 100,
    "a notice and half of one": notice("careful") + notice("careful")[:7],
}


@pytest.mark.parametrize("data", UNUSABLE.values(), ids=UNUSABLE)
async def test_an_idle_connection_that_has_received_something_else_is_not_used(data: bytes) -> None:
    async with idle_meanwhile(Meanwhile(data)) as (connections, first):
        second = await connections.acquire()
        assert (first.closed, second is first) == (True, False)
        assert await second.run([ONE]) == [[{"one": "1"}]]


@pytest.mark.parametrize("last", ["", *ASYNCHRONOUS])
async def test_an_idle_connection_that_ends_after_a_message_is_not_used(last: str) -> None:
    async with idle_meanwhile(Meanwhile(ASYNCHRONOUS.get(last, b""), ends=True)) as (connections, first):
        second = await connections.acquire()
        assert (first.closed, second is first) == (True, False)


# --- what libpq has read ----------------------------------------------------------------------------------------

# The rest of some of these begins with the type of a message.
UNASKED = {
    "a notice": notice("WARNING: 1C2D3T ESSENTIAL DATA"),
    "a parameter": parameter_status(b"search_path", b"CATALOG, DATA, TEXT, S"),
    "an empty parameter": parameter_status(b"SETTINGS", b""),
    "a parameter that ends like a type": parameter_status(b"zone", b"N"),
}


@pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
async def test_the_beginning_of_a_message_that_libpq_has_read_costs_the_connection(unasked: bytes) -> None:
    for place in range(len(unasked) + 1):

        async def script(conversation: Conversation, rest: bytes = unasked[place:]) -> None:
            await conversation.send(rest + answers(await conversation.pipeline(), one) + IDLE)
            await conversation.end()

        async with FakeServer(script, greeting=unasked[:place]) as server, connected(server.dsn) as connection:
            async with asyncio.timeout(5):  # it must not wait for a message that never ends
                if place in (0, len(unasked)):
                    assert await connection.run([ONE]) == [[{"one": "1"}]]
                else:
                    await assert_lost(connection)


async def test_a_request_on_such_a_connection_is_repeated_on_another_one(settings: Settings) -> None:
    begun = notice("something")

    async def script(conversation: Conversation) -> None:
        def result(sql: str) -> Result:
            return text(one="1") if "AS one" in sql else opening(sql)

        if server.connections == 1:
            await conversation.send(begun[20:] + answers(await conversation.pipeline(), result) + IDLE)
            await conversation.end()
        else:
            await conversation.serve(result)

    async def ask() -> list[dict[str, Any]]:
        async with database.session() as session:
            return await session.query("SELECT '1' AS one")

    async with (
        FakeServer(script, greeting=begun[:20]) as server,
        open_database(replace(settings, database_url=server.dsn)) as database,
    ):
        assert await with_retries(ask) == [{"one": "1"}]
        assert server.connections == 2


# --- queries ----------------------------------------------------------------------------------------------------


async def test_an_answer_that_comes_byte_by_byte_is_put_together() -> None:
    async def script(conversation: Conversation) -> None:
        data = answers(await conversation.pipeline(), one)
        between = b"".join(ASYNCHRONOUS.values())
        for byte in split(between + data + between + IDLE, range(1, 10_000)):
            await conversation.send(byte)
            await asyncio.sleep(0)

    async with FakeServer(script) as server, connected(server.dsn) as connection:
        assert await connection.run([ONE, ONE, ONE]) == [[{"one": "1"}]] * 3
        assert connection.clean


def test_many_large_queries_and_answers_in_one_pipeline_do_not_block_each_other(database_url: str) -> None:
    # The answers are more than all sockets hold, before the last query is sent.
    async def scenario() -> None:
        async with connected(database_url) as connection:
            large = [chr(ord("a") + n % 26) * 100_000 for n in range(100)]
            queries = [Query("SELECT $1 AS same, repeat($1, 2) AS double", (value,)) for value in large]
            found = await connection.run(queries)
            assert found == [[{"same": value, "double": value * 2}] for value in large]
            assert connection.clean

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(scenario())


@pytest.mark.parametrize("place", [0, 5, 12, 40])
async def test_a_connection_whose_query_was_cancelled_is_not_used_again(settings: Settings, place: int) -> None:
    halfway = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        if server.connections > 1:
            await conversation.serve(lambda sql: text(one="2") if "AS one" in sql else opening(sql))
        await conversation.send(answers(await conversation.pipeline(), opening) + IDLE)
        data = answers(await conversation.pipeline(), one) + IDLE
        await conversation.send(data[:place])
        halfway.set()
        await conversation.end()

    async def ask() -> list[dict[str, Any]]:
        async with database.session() as session:
            await session.open()
            try:
                return await session.query("SELECT '1' AS one")
            finally:
                left.append(session.connection)

    left: list[Connection] = []
    async with (
        FakeServer(script) as server,
        open_database(replace(settings, database_url=server.dsn)) as database,
        asyncio.timeout(SOON),
    ):
        asking = asyncio.create_task(ask())
        await halfway.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert left[0].closed
        assert await ask() == [{"one": "2"}]


async def test_a_connection_that_owes_an_answer_takes_no_other_query(database_url: str) -> None:
    async with connected(database_url) as connection:
        first = asyncio.create_task(connection.run([Query("SELECT pg_sleep(0.2)::text || 'first' AS one")]))
        await eventually("it is sent", lambda: connection.unanswered)
        with pytest.raises(errors.ConnectionLost):
            await connection.run([ONE])
        assert await first == [[{"one": "first"}]]
        assert await connection.run([ONE]) == [[{"one": "1"}]]
        second = asyncio.create_task(connection.run([Query("SELECT pg_sleep(0.2)::text || 'second' AS one")]))
        await eventually("it is sent", lambda: connection.unanswered)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not connection.clean
        with pytest.raises(errors.ConnectionLost):
            await connection.run([ONE])


async def test_a_query_on_a_connection_that_is_closed_meanwhile_ends(database_url: str, postgres: Postgres) -> None:
    async with connected(database_url) as connection:
        pid = (await connection.run([Query("SELECT pg_backend_pid() AS pid")]))[0][0]["pid"]
        asking = asyncio.create_task(connection.run([Query("SELECT pg_sleep(60)")]))
        await eventually("it runs", lambda: pid in sleeping_backends(postgres))
        connection.close()
        with pytest.raises(errors.ConnectionLost):
            await asking
        assert connection.unanswered == 1  # so the statement is to be cancelled over another connection
    postgres.run("SELECT pg_terminate_backend(%s, 10000)", (pid,))


DESCRIBED = PARSED + BOUND + description({"one": TEXT})
NONSENSE = {
    "no result": IDLE,
    "only a part of the result": DESCRIBED + row(b"1") + IDLE,
    "another result": DESCRIBED + row(b"1") + COMPLETE + COMPLETE + IDLE,
    "a row without columns": PARSED + BOUND + row(b"1") + COMPLETE + IDLE,
    "a row with more values": DESCRIBED + row(b"1", b"2") + COMPLETE + IDLE,
    "columns that are cut off": PARSED + BOUND + message(b"T", struct.pack("!H", 1) + b"one") + IDLE,
    "an unknown type": DESCRIBED + message(b"?", b"body") + IDLE,
    "an answer of another length": PARSED + message(b"2", b"body") + IDLE,
    "a length of 2 GB": DESCRIBED + message(b"D", b"\0\1", length=1 << 31) + IDLE,
    "a length of 3": DESCRIBED + message(b"D", length=3) + IDLE,
    "the protocol of another server": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_a_lost_connection(data: bytes) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.pipeline()
        await conversation.send(data)
        await conversation.end()  # so only the data can end the query

    async with FakeServer(script) as server, connected(server.dsn) as connection:
        await assert_lost(connection)


async def test_a_connection_that_ends_within_an_answer_is_lost() -> None:
    data = answers([(kind, "") for kind in (b"P", b"B", b"D", b"E")], one) + IDLE
    for place in range(len(data)):

        async def script(conversation: Conversation, end: int = place) -> None:
            await conversation.pipeline()
            await conversation.send(data[:end])

        async with FakeServer(script) as server, connected(server.dsn) as connection:
            await assert_lost(connection)


async def test_what_the_server_says_before_it_ends_the_connection_is_known() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.pipeline()
        await conversation.send(error(S="FATAL", C="53200", M="out of memory"))

    async with FakeServer(script) as server, connected(server.dsn) as connection:
        with pytest.raises(errors.DatabaseUnavailable, match="lacks the resources"):
            await connection.run([ONE])
        assert connection.closed

"""Connections that are opened by name or address, taken over from libpq, and closed at shutdown: a real PostgreSQL."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import inspect
import re
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiopg
import psycopg2.extensions
import pytest
import uvloop

import server.postgres
from server import errors
from server.events import Event
from server.postgres.connection import Connection
from server.postgres.connections import Connections
from server.postgres.database import Database
from server.postgres.events import ConnectionsLeftOpen, DatabaseUnreachable, StatementNotCancelled
from server.postgres.queries import Query
from server.postgres.reader import MORE, WOKEN, Bytes, RowReader
from server.postgres.rows import Select
from server.postgres.session import Session
from server.query.dialect import Dialect
from server.settings import Settings
from server.threads import NAME_THREADS
from tests.support.engines import encoders, make_threads, open_connections, open_database
from tests.support.live_server import eventually, wait_until
from tests.support.postgres import Postgres
from tests.support.rows import HoldsNothing

SLEEP = Select("SELECT pg_sleep(3600)::text")
MANY = Select("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
# Seconds. More than a test machine under load needs, far less than the sleep above.
SOON = 30


def backends(postgres: Postgres, pids: list[int]) -> list[str]:
    """Return the states of those of these backends that still exist."""
    rows = postgres.run("SELECT state FROM pg_stat_activity WHERE pid = ANY(%s)", (pids,))
    return [state for (state,) in rows]


@pytest.fixture(autouse=True)
def _no_statement_left(postgres: Postgres) -> Iterator[None]:
    """Wait after each test until its statements have ended. The server notices a closed connection within a second."""
    yield
    running = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND state = 'active'"
    wait_until("no statement is left", lambda: not postgres.run(running))


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events that the test emits."""
    seen: list[Event] = []
    monkeypatch.setattr("server.events._observers", [seen.append])
    return seen


# --- the private parts of aiopg ---------------------------------------------------------------------------------


async def test_a_connection_that_was_taken_over_is_not_watched(database_url: str) -> None:
    # Fails if aiopg renames what Connection uses, or watches the descriptor in another way.
    loop = asyncio.get_running_loop()
    async with open_connections(database_url) as connections:
        connection = await connections.acquire()
        assert connection._fileno is None
        assert connection.wire.descriptor == connection.raw.fileno()
        assert not loop.remove_reader(connection.wire.descriptor)  # whether it was watched
        assert await connection.run([Query("SELECT pg_sleep(0.05)::text AS x")]) == [[{"x": ""}]]
        assert not loop.remove_reader(connection.wire.descriptor)
        assert not loop.remove_writer(connection.wire.descriptor)


async def test_aiopg_reads_from_a_connection_only_until_it_is_taken_over(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    ready, take_over = aiopg.Connection._ready, Connection.take_over

    def counted(weak: weakref.ref[Any]) -> None:
        called.append(weak())
        ready(weak)

    def taken_over(connection: Connection) -> None:
        assert called
        assert {*called} == {connection}
        take_over(connection)
        called.clear()

    monkeypatch.setattr(aiopg.Connection, "_ready", staticmethod(counted))
    monkeypatch.setattr(Connection, "take_over", taken_over)
    async with open_connections(database_url) as connections:
        connection = await connections.acquire()
        assert await connection.run([Query("SELECT pg_sleep(0.05)::text AS x")]) == [[{"x": ""}]]
        connections.release(connection, reusable=False)
    assert called == []


async def test_closing_a_connection_leaves_the_event_loop_alone(database_url: str) -> None:
    loop = asyncio.get_running_loop()
    async with open_connections(database_url) as connections:
        connection = await connections.acquire()
        descriptor = connection.raw.fileno()
        connection.close()
        assert connection.closed
        one, other = socket.socketpair()
        with one, other:
            # Another part of the process has the same descriptor by now.
            assert descriptor in (one.fileno(), other.fileno())
            loop.add_reader(descriptor, lambda: None)
            connection.close()
            connections.release(connection, reusable=False)
            assert loop.remove_reader(descriptor)


SOURCES = {path.name: path.read_text() for path in Path(*server.postgres.__path__).glob("*.py")}


def attributes(tree: ast.AST) -> list[ast.Attribute]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


async def test_one_class_uses_one_private_part_of_aiopg(database_url: str) -> None:
    async with open_connections(database_url) as connections:
        connection = await connections.acquire()
        made_by_aiopg = {node.attr for node in attributes(ast.parse(inspect.getsource(aiopg.Connection)))}
        private = {name for name in {*dir(aiopg.Connection), *made_by_aiopg} if re.match("_[^_]", name)}
        assert "_fileno" in private & {*vars(connection)}
    # Our class has no attribute of the same name, except the one that it means to use.
    (own,) = ast.parse(inspect.getsource(Connection)).body
    assert {node.attr for node in attributes(own)} & private == {"_fileno"}
    for name, text in SOURCES.items():
        others = [node for node in ast.parse(text).body if getattr(node, "name", "") != "Connection"]
        for node in attributes(ast.Module(others, [])):
            # Our other classes may have parts of their own with the same names.
            assert node.attr not in private or ast.unparse(node.value) == "self", f"{name}, line {node.lineno}"


# --- closing while a thread reads -------------------------------------------------------------------------------


class BlockedReader(HoldsNothing):
    """A RowReader that does not return before it is released, not even when it is woken."""

    clean = False

    def __init__(self) -> None:
        self.started = threading.Event()
        self.released = threading.Event()

    def start(self, messages: bytes, units: int, more: bytes, /) -> None:
        self._messages = messages

    def read(self, wire: Bytes, wake: int, most: int, patience: int, /) -> tuple[bytes, int, int]:
        assert wire.send(self._messages) == len(self._messages)
        self.started.set()
        assert self.released.wait(SOON)
        return b"", 0, WOKEN

    def read_arrived(self, wire: Bytes, most: int, /) -> None:
        return None

    def failure(self) -> None:
        return None


@contextlib.contextmanager
def blocked_reader() -> Iterator[BlockedReader]:
    reader = BlockedReader()
    try:
        yield reader
    finally:
        reader.released.set()


async def export_blocked(database: Database, reader: BlockedReader, sessions: list[Session]) -> None:
    """Read in a session, which is added to `sessions`."""
    async with database.session() as session:
        await session.open()
        sessions.append(session)
        with session.rows(reader) as rows:
            rows.start(SLEEP)
            await rows.read(1)


async def test_closing_the_database_leaves_a_connection_open_that_a_thread_still_reads(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, emitted: list[Event]
) -> None:
    monkeypatch.setattr("server.postgres.database.DATABASE_SECONDS", 0.2)
    sessions: list[Session] = []
    with blocked_reader() as reader:
        async with (
            asyncio.timeout(SOON),
            open_database(settings) as database,
            database.session() as session,
        ):
            await session.open()
            idle = session.connection
            exporting = asyncio.create_task(export_blocked(database, reader, sessions))
            await eventually("the thread reads", reader.started.is_set)
        # The thread has not ended: `released` is not set.
        assert idle.closed
        assert not sessions[0].connection.closed
        assert sessions[0].connection.wire.descriptor >= 0
        assert backends(postgres, [sessions[0].backend_pid]) == ["active"]
        assert emitted == [ConnectionsLeftOpen(count=1)]
        assert not exporting.done()
        reader.released.set()
        with pytest.raises(errors.QueryCancelled, match="shutting down"):
            await exporting
    # This process continues, so the session ends as usual, except that the statement cannot be cancelled any more.
    assert sessions[0].connection.closed
    await eventually("the backend ends", lambda: not backends(postgres, [sessions[0].backend_pid]))
    await eventually("the event is there", lambda: len(emitted) == 2)
    assert isinstance(emitted[1], StatementNotCancelled)


async def test_a_cancelled_export_waits_for_its_thread_also_after_the_database_has_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.postgres.database.DATABASE_SECONDS", 0.1)
    sessions: list[Session] = []
    with blocked_reader() as reader:
        async with open_database(settings) as database:
            exporting = asyncio.create_task(export_blocked(database, reader, sessions))
            await eventually("the thread reads", reader.started.is_set)
            exporting.cancel()
        assert not exporting.done()
        assert not sessions[0].connection.closed
        reader.released.set()
        with pytest.raises(asyncio.CancelledError):
            await exporting
    assert sessions[0].connection.closed
    gc.collect()  # warns of a connection that is still open


async def test_closing_the_database_stops_its_readers_and_leaves_no_backend(
    settings: Settings, postgres: Postgres, emitted: list[Event]
) -> None:
    pids: list[int] = []

    async def export(database: Database) -> None:
        async with database.session() as session:
            await session.open()
            pids.append(session.backend_pid)
            with session.rows(encoder()) as rows:
                rows.start(SLEEP)
                while rows.pending:
                    await rows.read(1)

    async with asyncio.timeout(SOON):
        async with open_database(settings) as database:
            async with database.session() as session:  # one that is idle afterwards
                await session.open()
                pids.append(session.backend_pid)
            exporting = [asyncio.create_task(export(database)) for _ in range(3)]
            await eventually("three sleep", lambda: len(pids) == 4 and sleeping(postgres, pids) == 3)
        ended = await asyncio.gather(*exporting, return_exceptions=True)
    assert [type(error) for error in ended] == [errors.QueryCancelled] * 3
    assert emitted == []
    await eventually("no backend is left", lambda: not backends(postgres, pids))


def sleeping(postgres: Postgres, pids: list[int]) -> int:
    (count,) = postgres.run(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s) AND wait_event = 'PgSleep'", (pids,)
    )[0]
    return int(count)


def encoder() -> RowReader:
    return encoders(native=True).reader(Dialect(), "csv")


async def test_a_reader_that_is_stopped_between_two_reads_reads_no_more(settings: Settings) -> None:
    async with open_database(settings) as database, database.session() as session:
        await session.open()
        session.stop()  # nothing is read yet
        with session.rows(encoder()) as rows:
            rows.start(MANY)
            assert (await rows.read(1)).rows
            session.stop()
            for _ in range(2):
                with pytest.raises(errors.QueryCancelled):
                    await rows.read(1)
            assert session.statement_left_running


async def test_a_reader_to_which_rows_always_come_is_stopped_too(settings: Settings) -> None:
    class BusyReader(HoldsNothing):
        """Never waits at the socket, so it never sees that it is woken."""

        clean = False

        def start(self, messages: bytes, units: int, more: bytes, /) -> None:
            pass

        def read(self, wire: Bytes, wake: int, most: int, patience: int, /) -> tuple[bytes, int, int]:
            return b"1\n", 1, MORE

        def read_arrived(self, wire: Bytes, most: int, /) -> None:
            return None

        def failure(self) -> None:
            return None

    async with open_database(settings) as database, database.session() as session:
        await session.open()
        with session.rows(BusyReader()) as rows:
            rows.start(SLEEP)
            assert (await rows.read(1)).rows == 1
            session.stop()
            with pytest.raises(errors.QueryCancelled):
                await rows.read(1)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_session_that_does_not_end_loses_its_connection_when_the_database_closes(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("server.postgres.database.DATABASE_SECONDS", 0.2)
    closed = asyncio.Event()

    async def export(database: Database) -> None:
        async with database.session() as session:
            await session.open()
            pids.append(session.backend_pid)
            await closed.wait()
            assert session.connection.closed
            with pytest.raises(errors.ConnectionLost):
                await session.query("SELECT 1")

    async def stream(database: Database) -> None:
        async with database.session() as session:
            await session.open()
            with session.rows(encoder()) as rows:
                rows.start(Select("SELECT 1"))
                while rows.pending:
                    await rows.read(1)
                pids.append(session.backend_pid)
                await closed.wait()
                assert session.connection.closed
                rows.start(Select("SELECT 2"))
                with pytest.raises(errors.QueryCancelled):
                    await rows.read(1)
            with pytest.raises(errors.ConnectionLost):
                session.rows(encoder())

    pids: list[int] = []
    async with asyncio.timeout(SOON):
        async with open_database(settings) as database:
            exporting = asyncio.create_task(stream(database) if streaming else export(database))
            await eventually("it is open", lambda: pids)
        closed.set()
        await exporting
    await eventually("no backend is left", lambda: not backends(postgres, pids))


async def test_a_connection_that_is_closed_between_two_reads_is_lost(settings: Settings) -> None:
    async with open_database(settings) as database, database.session() as session:
        await session.open()
        with session.rows(encoder()) as rows:
            rows.start(MANY)
            assert (await rows.read(1)).rows
            session.connection.close()
            with pytest.raises(errors.ConnectionLost):
                await rows.read(1)
            assert (rows.pending, rows.clean) == (0, False)


async def test_what_does_not_end_in_the_background_does_not_keep_the_database_from_closing(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.postgres.database.DATABASE_SECONDS", 0.2)
    pids = []

    async def never(session: Session) -> bool:
        pids.append(session.backend_pid)
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(Session, "end", never)
    async with asyncio.timeout(SOON):
        async with open_database(settings) as database:
            pinging = asyncio.create_task(database.ping())
            await eventually("it ends", lambda: pids)
        with pytest.raises(asyncio.CancelledError):
            await pinging
    assert database._background == set()
    await eventually("no backend is left", lambda: not backends(postgres, pids))


async def test_nothing_is_opened_once_the_database_is_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(settings) as database, database.session():
        pass

    async def connect(connections: Connections) -> Any:
        raise AssertionError("it connects")

    monkeypatch.setattr(Connections, "_connect", connect)
    with pytest.raises(errors.DatabaseUnavailable, match="shutting down"):
        await database.ping()


async def test_a_connection_that_opens_while_the_database_closes_is_closed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, opened = Connections._connect, []

    async def late(connections: Connections) -> Any:
        opened.append(await connect(connections))
        connections.close()
        return opened[-1]

    monkeypatch.setattr(Connections, "_connect", late)
    async with open_connections(database_url) as connections:
        with pytest.raises(errors.DatabaseUnavailable, match="shutting down"):
            await connections.acquire()
        assert opened[0].closed


# --- names and addresses ----------------------------------------------------------------------------------------


@pytest.fixture
async def relay_port(database_url: str) -> AsyncIterator[int]:
    """A TCP port of 127.0.0.1 that leads to the database under test, which may listen only in a folder."""
    parts = psycopg2.extensions.parse_dsn(database_url)
    host, port = parts["host"], parts.get("port", "5432")

    running: set[asyncio.Task[Any]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        if host.startswith("/"):
            inner_reader, inner_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async with await asyncio.start_server(relay, "127.0.0.1") as relaying:
        yield relaying.sockets[0].getsockname()[1]
        async with asyncio.timeout(SOON):
            await asyncio.gather(*running)


class Resolver:
    """In the place of socket.getaddrinfo: the first `hanging` look-ups block, the others find 127.0.0.1."""

    def __init__(self, hanging: int) -> None:
        self.asked: list[str] = []
        self.released = threading.Event()
        self._hanging = hanging

    def __call__(self, host: str, port: str, **options: Any) -> list[Any]:
        self.asked.append(host)
        if len(self.asked) <= self._hanging:
            self.released.wait(SOON)
            raise socket.gaierror("no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]


@pytest.fixture
def replace_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Resolver]]:
    """Puts a Resolver in place, and releases its threads after the test."""
    made: list[Resolver] = []

    def put(hanging: int) -> Resolver:
        made.append(Resolver(hanging))
        monkeypatch.setattr(socket, "getaddrinfo", made[-1])
        return made[-1]

    yield put
    for resolver in made:
        resolver.released.set()


async def test_a_resolver_that_hangs_delays_only_connects_by_name(
    settings: Settings,
    relay_port: int,
    replace_resolver: Callable[[int], Resolver],
    monkeypatch: pytest.MonkeyPatch,
    emitted: list[Event],
) -> None:
    monkeypatch.setattr("server.postgres.connections.CONNECT_TIMEOUT", 2.0)
    resolver = replace_resolver(1_000_000)
    connects = 2 * NAME_THREADS
    one = [{"one": 1}]

    def reached(**parts: object) -> Database:
        dsn = psycopg2.extensions.make_dsn(settings.dsn, **{name: str(value) for name, value in parts.items()})
        return Database(replace(settings, database_url=dsn, max_concurrent_exports=connects), threads)

    async def ask(database: Database) -> list[dict[str, Any]]:
        async with database.session() as session:
            return await session.query("SELECT 1 AS one")

    threads = make_threads(replace(settings, max_concurrent_exports=connects))
    async with (
        reached() as as_given,
        reached(host="127.0.0.1", port=relay_port) as by_address,
        # The address stands first: the name after it is not looked up.
        reached(host="127.0.0.1,db.example", port=relay_port) as by_either,
        reached(host="db.example") as by_name,
        as_given.session() as existing,
    ):
        started = time.monotonic()
        waiting = [asyncio.create_task(ask(by_name)) for _ in range(connects)]
        await eventually("no thread is free", lambda: len(resolver.asked) == NAME_THREADS)
        assert await existing.query("SELECT 1 AS one") == one
        assert await ask(as_given) == await ask(by_address) == await ask(by_either) == one
        assert not any(task.done() for task in waiting)
        failures = await asyncio.gather(*waiting, return_exceptions=True)
        # All of them together take as long as one, though only NAME_THREADS were looked up at all.
        assert time.monotonic() - started < 4
    assert [type(failure) for failure in failures] == [errors.DatabaseUnavailable] * connects
    assert emitted == [DatabaseUnreachable(reason="no connection within 2 s")] * connects
    assert resolver.asked == ["db.example"] * NAME_THREADS
    threads.close()


async def test_a_look_up_that_hangs_does_not_delay_the_connects_of_others(
    settings: Settings, relay_port: int, replace_resolver: Callable[[int], Resolver]
) -> None:
    resolver = replace_resolver(1)
    dsn = psycopg2.extensions.make_dsn(settings.dsn, host="db.example", port=str(relay_port))
    async with open_connections(dsn) as connections:
        hanging = asyncio.create_task(connections.acquire())
        await eventually("it hangs", lambda: resolver.asked)
        connections.release(await connections.acquire(), reusable=False)
        assert not hanging.done()
        resolver.released.set()
        with pytest.raises(errors.DatabaseUnavailable):
            await hanging
    assert resolver.asked == ["db.example"] * 2


@pytest.mark.parametrize(
    ("hosts", "ports"),
    [("nobody.example,db.example", ""), ("{folder},db.example", ""), ("db.example,db.example", "1,{port}")],
    ids=["a name without an address", "a folder without a socket", "a port that refuses"],
)
async def test_the_next_host_is_tried_where_one_cannot_be_reached(
    settings: Settings,
    relay_port: int,
    tmp_path: Path,
    replace_resolver: Callable[[int], Resolver],
    hosts: str,
    ports: str,
) -> None:
    resolver = replace_resolver(0)
    look_up = resolver.__call__

    def known(host: str, port: str, **options: Any) -> list[Any]:
        if host == "nobody.example":
            raise socket.gaierror("unknown")
        return look_up(host, port, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", known)
        dsn = psycopg2.extensions.make_dsn(
            settings.dsn,
            host=hosts.format(folder=tmp_path),
            port=ports.format(port=relay_port) or str(relay_port),
        )
        async with open_connections(dsn) as connections:
            assert not (await connections.acquire()).closed


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "nobody.invalid"])
async def test_a_host_that_has_no_address_is_unavailable(settings: Settings, host: str, emitted: list[Event]) -> None:
    async with open_connections(psycopg2.extensions.make_dsn(settings.dsn, host=host)) as connections:
        with pytest.raises(errors.DatabaseUnavailable, match="cannot be reached"):
            await connections.acquire()
    assert [type(event) for event in emitted] == [DatabaseUnreachable]


async def test_ports_that_do_not_fit_the_hosts_are_an_error_of_libpq(settings: Settings, emitted: list[Event]) -> None:
    dsn = psycopg2.extensions.make_dsn(settings.dsn, host="127.0.0.1,127.0.0.1,127.0.0.1", port="1,2")
    async with open_connections(dsn) as connections:
        with pytest.raises(errors.DatabaseUnavailable):
            await connections.acquire()
    assert isinstance(emitted[0], DatabaseUnreachable)
    assert "port numbers" in emitted[0].reason


# --- the same on uvloop, which the server uses ------------------------------------------------------------------

Scenario = Callable[..., Coroutine[object, object, None]]
SCENARIOS: list[Scenario] = [
    test_aiopg_reads_from_a_connection_only_until_it_is_taken_over,
    test_closing_the_database_leaves_a_connection_open_that_a_thread_still_reads,
    test_a_cancelled_export_waits_for_its_thread_also_after_the_database_has_closed,
    test_closing_the_database_stops_its_readers_and_leaves_no_backend,
    test_what_does_not_end_in_the_background_does_not_keep_the_database_from_closing,
    test_a_connection_that_opens_while_the_database_closes_is_closed,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_on_uvloop(request: pytest.FixtureRequest, scenario: Scenario) -> None:
    given = {name: request.getfixturevalue(name) for name in inspect.signature(scenario).parameters}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(**given))

"""Connections as an attack: idle and dripping ones, too many, requests that never end, clients that never read."""

from __future__ import annotations

import asyncio
import fcntl
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from aiohttp import web

from server.app import MAX_HEADER_BYTES, MAX_REQUEST_LINE, create_app_runner
from server.errors import TooManyStreams
from server.http.connections import Connections, Limits, room_for_connections
from server.http.keys import CONNECTIONS, RUNNER, WATCH
from server.http.stall import Backlog
from server.saved.status import Entry
from server.settings import Settings
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.planted import plant
from tests.support.raw_http import Client, ask

HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
LIMITS = Limits(most=10, most_per_client=4, head_bytes=1000, stall_timeout=1.0)


# --- the limits, without sockets --------------------------------------------------------------------------------------


@dataclass(eq=False)
class Fake:
    """A connection. ended: whether it was closed."""

    connections: Connections
    client: str | None = None
    waits: bool = True
    waits_since: float = 0.0
    late: bool = False
    ended: bool = field(default=False, init=False)

    def is_late(self, now: float) -> bool:
        return self.late

    def end(self, *, late: bool) -> None:
        self.ended = True
        self.connections.remove(self)


def test_the_connection_that_has_waited_longest_makes_room() -> None:
    connections = Connections(LIMITS)
    opened = [Fake(connections, waits_since=float(-number)) for number in range(10)]
    assert all(connections.add(each, 0.0) for each in opened)
    opened[9].waits = False
    assert connections.add(Fake(connections), 1.0)
    assert [each.ended for each in opened] == [False] * 8 + [True, False]
    assert len(connections) == 10


def test_a_connection_is_refused_only_if_all_are_at_work() -> None:
    connections = Connections(LIMITS)
    opened = [Fake(connections, waits=False) for _ in range(10)]
    assert all(connections.add(each, 0.0) for each in opened)
    refused = Fake(connections)
    assert not connections.add(refused, 0.0)
    connections.remove(refused)
    assert len(connections) == 10
    opened[0].end(late=False)
    assert connections.add(Fake(connections), 0.0)


def test_one_client_takes_no_room_from_the_others() -> None:
    connections = Connections(LIMITS)
    others = [Fake(connections, "b", waits_since=-9.0) for _ in range(4)]
    assert all(connections.add(each, 0.0) for each in others)
    mine = [Fake(connections, "a", waits=False) for _ in range(4)]
    assert all(connections.add(each, 0.0) for each in mine)
    assert not connections.add(Fake(connections, "a"), 0.0)
    mine[2].waits = True
    assert connections.add(Fake(connections, "a"), 0.0)
    assert mine[2].ended
    assert not any(each.ended for each in others)
    # Connections that count for no client have no limit of their own.
    assert all(connections.add(Fake(connections), 0.0) for _ in range(2))


def test_nothing_is_left_of_connections_that_have_ended() -> None:
    connections = Connections(LIMITS)
    opened = [Fake(connections, client) for client in ("a", "b", "a", None)]
    for each in opened:
        assert connections.add(each, 0.0)
    for each in opened:
        each.end(late=True)
        connections.remove(each)
    assert (len(connections), connections._by_client) == (0, {})


def test_connections_that_are_late_are_closed() -> None:
    connections = Connections(LIMITS)
    opened = [Fake(connections, late=late) for late in (True, False)]
    for each in opened:
        connections.add(each, 0.0)
    connections.close_late(5.0)
    assert [each.ended for each in opened] == [True, False]


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("127.8.8.8", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("10.0.0.1", None),  # the trusted proxy
        ("::ffff:10.0.0.1", None),
        ("", None),
        ("unix", None),
    ],
)
def test_the_client_that_an_address_counts_for(address: str, client: str | None) -> None:
    assert Connections(LIMITS, lambda peer: peer == "10.0.0.1").client_of(address) == client


def test_event_streams_take_half_of_the_connections() -> None:
    connections = Connections(LIMITS)
    with ExitStack() as stack:
        for client in ("a", "a", "b", None, None):
            if client == "b":
                with pytest.raises(TooManyStreams, match="one client"), connections.stream("a"):
                    pass
            stack.enter_context(connections.stream(client))
        with pytest.raises(TooManyStreams, match="all clients"), connections.stream("c"):
            pass
    with connections.stream("a"), connections.stream("a"):
        pass
    assert not connections._streams


def test_connections_leave_descriptors_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    for descriptors, room in ((1024, 265), (128, 10), (resource.RLIM_INFINITY, 10**9)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=descriptors: (soft, soft))
        assert min(room_for_connections(100), 10**9) == room


def test_a_client_that_acknowledges_nothing_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    held = 0
    monkeypatch.setattr("server.http.stall.unacknowledged", lambda _: held)
    backlog = Backlog(None, 10.0)
    assert not backlog.is_stuck(100, 0.0)
    held = 107  # with the size of the chunk
    assert not backlog.is_stuck(100, 5.0)
    held = 214
    assert not backlog.is_stuck(100, 9.0)
    held = 150  # it has taken something
    assert not backlog.is_stuck(100, 14.0)
    held = 257
    assert not backlog.is_stuck(100, 23.0)
    held = 364
    assert backlog.is_stuck(100, 24.0)
    assert not Backlog(None, 0.0).is_stuck(1, 1e9)


# --- the server in this process ---------------------------------------------------------------------------------------

Start = Callable[..., Awaitable["Running"]]


@dataclass
class Running:
    """A server in this process. runner: aiohttp's. port: where it listens."""

    runner: web.AppRunner
    port: int

    @property
    def connections(self) -> Connections:
        return self.runner.app[CONNECTIONS]

    async def open(self, data: bytes = b"", **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection and send these bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send these bytes and return status, headers and body of the answer, after which the connection closes."""
        reader, writer = await self.open(data)
        return await whole(reader, writer)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until this holds."""
        await eventually("it holds", holds)


async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, dict[str, str], bytes]:
    received = b""
    with suppress(ConnectionError):
        while data := await asyncio.wait_for(reader.read(1 << 16), 30):
            received += data
    writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}, body


@pytest.fixture
async def start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Return a function that starts a server with other settings and with time-outs of fractions of a second."""
    monkeypatch.setattr("server.http.connections.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("server.http.aiohttp_connections.HEAD_SECONDS", 0.5)
    monkeypatch.setattr("server.http.bodies.BODY_SECONDS", 0.5)
    monkeypatch.setattr("server.app.LINGERING_SECONDS", 0.2)
    started: list[web.AppRunner] = []

    async def start(**values: Any) -> Running:
        runner = create_app_runner(replace(settings, **values))
        started.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return Running(runner, runner.addresses[0][1])

    yield start
    for runner in started:
        await runner.cleanup()


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Return status and code of an answer, which has to be a problem document."""
    status, headers, body = answer
    assert headers["content-type"].partition(";")[0] == "application/problem+json"
    document = json.loads(body)
    assert document["status"] == status
    assert document["requestId"] == headers["x-request-id"]
    return status, document["code"]


async def drip(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("beginning", [b"GET /", HEAD + b"X-Drip: "])
async def test_a_head_that_drips_in_is_given_up(start: Start, beginning: bytes) -> None:
    server = await start()
    reader, writer = await server.open(beginning)
    dripping = asyncio.create_task(drip(writer))
    started = time.monotonic()
    assert problem(await whole(reader, writer)) == (408, "request_timeout")
    assert 0.4 < time.monotonic() - started < 5
    await dripping
    await server.until(lambda: not len(server.connections))


async def test_a_connection_without_a_request_is_closed(start: Start) -> None:
    server = await start()
    reader, writer = await server.open()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_an_idle_connection_stays_between_requests(start: Start) -> None:
    server = await start()
    reader, writer = await server.open(HEAD + b"\r\n")
    assert (await reader.readuntil(b'live"}')).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(1)  # longer than a head may take
    writer.write(HEAD + b"\r\n")
    assert (await reader.readuntil(b'live"}')).startswith(b"HTTP/1.1 200")
    # The next head has its time from its own first byte.
    writer.write(b"GET")
    assert b" 408 " in await asyncio.wait_for(reader.read(), 10)
    writer.close()


async def pour(writer: asyncio.StreamWriter, data: bytes, most: int) -> int:
    """Send the data again and again, until the server closes the connection. Return how many bytes were sent."""
    sent = 0
    with suppress(ConnectionError):
        while sent < most and not writer.is_closing():
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)
            sent += len(data)
    return sent


async def test_a_head_that_is_too_long_is_refused_early(start: Start) -> None:
    server = await start()
    reader, writer = await server.open(HEAD)
    answer = asyncio.create_task(whole(reader, writer))
    longest = MAX_REQUEST_LINE + MAX_HEADER_BYTES
    assert await pour(writer, b"X-Long: " + b"x" * 4000 + b"\r\n", 100 << 20) <= longest + (4 << 20)
    assert problem(await answer)[0] in (400, 431)


async def test_many_small_pieces_of_a_head_are_counted(start: Start) -> None:
    server = await start()
    server.connections.limits = replace(server.connections.limits, head_bytes=1000)
    reader, writer = await server.open(HEAD + b"X-Long: ")
    answer = asyncio.create_task(whole(reader, writer))
    await server.until(lambda: [each for each in server.connections._open if each.waits])
    for _ in range(12):
        writer.write(b"x" * 100)
        await asyncio.sleep(0.01)
    assert problem(await answer) == (431, "head_too_long")


async def test_thousands_of_idle_connections_leave_room(start: Start) -> None:
    server = await start(max_connections=20)
    opened = [await server.open(beginning) for _ in range(40) for beginning in (b"", HEAD)]
    await server.until(lambda: len(server.connections) <= 20)
    assert (await server.ask(HEAD + b"Connection: close\r\n\r\n"))[0] == 200
    # The newest are those that are left.
    for reader, writer in opened[-10:]:
        writer.write(HEAD * (opened.index((reader, writer)) % 2 == 0) + b"Connection: close\r\n\r\n")
        assert (await whole(reader, writer))[0] == 200
    for _, writer in opened:
        writer.close()


async def test_a_new_connection_is_refused_while_all_are_at_work(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.bodies.BODY_SECONDS", 30.0)
    server = await start(max_connections=10)
    form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\n"
    request = f"POST /saved/delete HTTP/1.1\r\nHost: localhost\r\n{form}".encode()
    opened = [await server.open(request) for _ in range(10)]
    await server.until(lambda: sum(not each.waits for each in server.connections._open) == 10)
    assert problem(await server.ask(b"")) == (503, "too_many_connections")
    opened[0][1].close()
    await server.until(lambda: len(server.connections) < 10)
    assert (await server.ask(HEAD + b"Connection: close\r\n\r\n"))[0] == 200
    for _, writer in opened:
        writer.close()


async def test_one_client_has_a_limit_of_its_own(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start(max_connections_per_client=4)
    monkeypatch.setattr(server.connections, "client_of", lambda address: address)
    opened = [await server.open(HEAD) for _ in range(12)]
    await server.until(lambda: len(server.connections) <= 4)
    for reader, writer in opened[-3:]:
        writer.write(b"Connection: close\r\n\r\n")
        assert (await whole(reader, writer))[0] == 200
    for _, writer in opened:
        writer.close()


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_a_form_that_drips_in_is_given_up(start: Start) -> None:
    server = await start()
    form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100000\r\n\r\na"
    for path in ("/saved/delete", "/shape/users"):
        reader, writer = await server.open(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{form}".encode())
        dripping = asyncio.create_task(drip(writer))
        assert problem(await whole(reader, writer)) == (408, "request_timeout")
        await dripping


@pytest.mark.parametrize("path", ["/export/users.csv", "/health/live", "/exports", "/"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_body_that_no_route_takes_is_refused_at_once(start: Start, method: str, path: str) -> None:
    server = await start()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n"
    reader, writer = await server.open(head.encode())
    answer = asyncio.create_task(whole(reader, writer))
    started = time.monotonic()
    await pour(writer, b"x" * (64 << 10), 10_000_000_000)
    assert time.monotonic() - started < 5
    assert problem(await answer) == (400, "unexpected_body")


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ("Content-Type: application/x-www-form-urlencoded\r\nContent-Encoding: gzip", b"x", (400, "invalid_form")),
        ("Content-Type: multipart/form-data; boundary=x", b"--x--", (400, "invalid_form")),
        ("Content-Type: application/x-www-form-urlencoded", b"id=1&" * 15_000, (400, "too_many_fields")),
        ("Content-Type: application/x-www-form-urlencoded", b"x" * (1 << 20) + b"x", (413, "request_entity_too_large")),
    ],
)
async def test_only_forms_of_a_bounded_size_are_read(
    start: Start, headers: str, body: bytes, expected: tuple[int, str]
) -> None:
    server = await start()
    head = f"POST /saved/delete HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    answer = await server.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert problem(answer) == expected


# --- requests ahead of answers, old clients ---------------------------------------------------------------------------


async def test_requests_sent_ahead_are_answered_in_order(start: Start) -> None:
    server = await start()
    request = b"GET /export/users.csv?limit=%d HTTP/1.1\r\nHost: localhost\r\n"
    requests = [request % number + b"\r\n" for number in range(100)]
    last = request % 100 + b"Connection: close\r\n\r\n"
    reader, writer = await server.open()
    writer.write(b"".join(requests) + last)
    received = b""
    while data := await asyncio.wait_for(reader.read(1 << 20), 30):
        received += data
    writer.close()
    assert received.count(b"HTTP/1.1 200 OK") == 101
    assert received.count(b"signup_date") == 101


async def test_an_old_client_is_answered(start: Start) -> None:
    server = await start()
    status, headers, body = await server.ask(b"GET /export/users.csv?limit=1 HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert (status, body.count(b"\n")) == (200, 2)
    assert "transfer-encoding" not in headers


# --- clients that do not read -----------------------------------------------------------------------------------------


def small_receiver(port: int) -> socket.socket:
    """Return a connected socket that takes a few thousand bytes."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    raw.connect(("127.0.0.1", port))
    raw.setblocking(False)
    return raw


async def saved_export(server: Running) -> str:
    """Save a small export and return its address when it is completed."""
    request = b"POST /export/users.csv?limit=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    _, headers, _ = await server.ask(request)
    while True:
        asked = f"GET {headers['location']} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        _, _, body = await server.ask(asked.encode())
        if json.loads(body)["status"] == "completed":
            return headers["location"]
        await asyncio.sleep(0.02)


async def test_a_client_that_does_not_read_a_list_is_disconnected(start: Start, tmp_path: Path) -> None:
    server = await start(stall_timeout=0.4)
    await saved_export(server)
    plant(tmp_path / "exports", 999)
    await server.until(lambda: not len(server.connections))
    with small_receiver(server.port) as raw:
        for _ in range(20):  # more than the buffers of both sides take
            await asyncio.get_running_loop().sock_sendall(
                raw, b"GET /exports?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
        await server.until(lambda: len(server.connections))
        await server.until(lambda: not len(server.connections))


async def test_an_event_stream_that_is_not_read_ends(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("server.saved.watch.LOOK_SECONDS", 0.01)
    server = await start(stall_timeout=0.5, max_running_exports=1)
    address = await saved_export(server)
    changed = {"completed_at": None, "status": "processing"}
    (id,) = plant(tmp_path / "exports", 1, **changed)
    # Somebody else holds its lock, so that it counts as running.
    with lock(tmp_path / "exports" / id / "lock"):
        with small_receiver(server.port) as raw:
            request = f"GET {address.rpartition('/')[0]}/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(raw, request.encode())
            await server.until(lambda: server.connections._streams.total() == 1)
            await server.until(lambda: server.connections._streams.total() == 0)
        # One that is read goes on.
        reader, writer = await server.open(request.encode())
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            assert await asyncio.wait_for(reader.read(1 << 16), 10)
        writer.close()


def lock(path: Path) -> IO[str]:
    """Lock this file, as a running process does, until it is closed."""
    opened = path.open()
    fcntl.flock(opened, fcntl.LOCK_EX)
    return opened


async def test_one_look_serves_all_event_streams(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("server.saved.watch.LOOK_SECONDS", 0.05)
    server = await start(max_connections=50)
    await saved_export(server)
    (id,) = plant(tmp_path / "exports", 1, completed_at=None, status="processing")
    looks: list[list[str]] = []
    store = server.runner.app[RUNNER].queue.store
    current = store.current

    def counted(ids: Iterable[str]) -> dict[str, Entry | None]:
        looks.append(list(ids))
        return current([id])

    with lock(tmp_path / "exports" / id / "lock"):
        monkeypatch.setattr(store, "current", counted)
        request = f"GET /exports/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        opened = [await server.open(request) for _ in range(25)]
        await server.until(lambda: server.connections._streams.total() == 25)
        assert problem(await server.ask(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == (
            429,
            "too_many_streams",
        )
        await server.until(lambda: len(looks) >= 30)
        looks.clear()
        seen = 0
        while seen < 10:
            seen += (await asyncio.wait_for(opened[-1][0].read(1 << 16), 10)).count(b"data:")
        assert set(map(tuple, looks)) == {(id,)}
        assert len(looks) <= seen + 2
        for _, writer in opened:
            writer.close()
        await server.until(lambda: server.connections._streams.total() == 0)
        await server.until(lambda: server.runner.app[WATCH]._looker is None)


# --- gunicorn ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dripping_connections_do_not_disturb_the_others(start_live: Callable[..., LiveServer]) -> None:
    server = start_live(MAX_CONNECTIONS="500")
    with ExitStack() as stack:
        for _ in range(2000):
            raw = stack.enter_context(server.connect())
            raw.sendall(HEAD + b"X-Drip: ")
        (worker,) = server.workers()
        wait_until("the limit holds", lambda: worker.num_fds() < 560)
        assert ask(server, "/health/ready").status == 200
        assert ask(server, "/export/users.csv").ending == "terminator"
        assert sum(worker.cpu_times()[:2]) < 3  # of which starting takes one
        wait_until("the others are given up", lambda: worker.num_fds() < 60)


@pytest.mark.slow
def test_a_server_without_descriptors_accepts_again(start_live: Callable[..., LiveServer]) -> None:
    server = start_live()
    assert ask(server, "/export/users.csv?limit=1").status == 200
    (worker,) = server.workers()
    limit = worker.rlimit(psutil.RLIMIT_NOFILE)
    worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 3, limit[1]))
    with ExitStack() as stack:
        for _ in range(200):
            raw = stack.enter_context(server.connect())
            with suppress(OSError):
                raw.sendall(HEAD)
    wait_until("it answers", lambda: answers(server))
    worker.rlimit(psutil.RLIMIT_NOFILE, limit)
    assert ask(server, "/export/users.csv?limit=1").status == 200
    assert server.workers() == [worker]


def answers(server: LiveServer) -> bool:
    try:
        with Client(server.connect()) as client:
            return client.ask("/health/live").status == 200
    except OSError:
        return False

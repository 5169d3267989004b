"""What Sluice needs from private parts of aiohttp. A release of aiohttp that changes them fails here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from server import events
from server.app import create_app_runner
from server.http.aiohttp_internals import ProblemRunner, wait_for_write_buffer
from server.http.events import RequestCrashed
from server.settings import Settings

# More bytes than the sockets of both sides hold.
MANY = 32 << 20


async def listening(runner: web.AppRunner) -> int:
    """Start a server on a free port and return the port."""
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port: int = runner.addresses[0][1]
    return port


async def answer(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer to these bytes. The server has to close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}, body


# --- bytes that are not HTTP ----------------------------------------------------------------------------------------


async def test_bytes_that_are_not_http_get_a_problem_document(settings: Settings) -> None:
    runner = create_app_runner(settings)
    try:
        status, headers, body = await answer(await listening(runner), b"this is\x01 not HTTP\r\n\r\n")
    finally:
        await runner.cleanup()
    assert status == 400
    assert headers["content-type"] == "application/problem+json; charset=utf-8"
    assert (headers["server"], headers["x-content-type-options"]) == ("sluice", "nosniff")
    document = json.loads(body)
    assert (document["status"], document["code"]) == (400, "bad_request")
    assert document["requestId"] == headers["x-request-id"]


async def test_an_error_outside_of_the_application_is_a_problem_document_too(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: list[events.Event] = []
    monkeypatch.setattr(events, "_observers", [emitted.append])

    async def crash(_: web.Request) -> web.StreamResponse:
        raise ZeroDivisionError

    async def crash_later(request: web.Request) -> web.StreamResponse:
        await web.StreamResponse().prepare(request)
        raise ZeroDivisionError

    app = web.Application()
    app.router.add_get("/", crash)
    app.router.add_get("/later", crash_later)
    runner = ProblemRunner(app, access_log=None)
    try:
        port = await listening(runner)
        status, _, body = await answer(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, json.loads(body)["code"]) == (500, "internal_server_error")
        # Too late for a status: the connection is closed without the last chunk.
        status, _, body = await answer(port, b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, body) == (200, b"")
        status, _, body = await answer(
            port, b"GET / HTTP/1.1\r\nHost: a\r\nExpect: nothing\r\nConnection: close\r\n\r\n"
        )
        assert (status, json.loads(body)["code"]) == (417, "expectation_failed")
    finally:
        await runner.cleanup()
    assert [(type(event), type(event.error)) for event in emitted] == [(RequestCrashed, ZeroDivisionError)] * 2


async def test_the_options_of_the_runner_reach_its_connections() -> None:
    runner = ProblemRunner(web.Application(), access_log=None, handler_cancellation=True, max_line_size=100_000)
    try:
        port = await listening(runner)
        assert runner.server is not None
        assert runner.server.handler_cancellation
        path = b"/" + b"x" * 50_000
        status, _, _ = await answer(port, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert status == 404
        too_long = path + b"x" * 100_000
        status, _, body = await answer(port, b"GET " + too_long + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, json.loads(body)["status"]) == (400, 400)
    finally:
        await runner.cleanup()


# --- the write buffer -----------------------------------------------------------------------------------------------


@pytest.fixture
async def full() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.Task[None], list[int]]]:
    """Yield a client that has read nothing yet, the task that waits for the write buffer, and what is left in it."""
    waiting: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    left: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        transport = request.transport
        assert transport is not None
        transport.write(b"x" * MANY)
        task = asyncio.create_task(wait_for_write_buffer(request, transport))
        waiting.put_nowait(task)
        await asyncio.wait([task])
        left.append(transport.get_write_buffer_size())
        return response

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", await listening(runner))
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    try:
        yield reader, writer, await asyncio.wait_for(waiting.get(), 10), left
    finally:
        writer.close()
        await runner.cleanup()


Full = tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.Task[None], list[int]]


async def test_waiting_ends_when_the_socket_has_taken_everything(full: Full) -> None:
    reader, _, task, left = full
    assert await asyncio.wait([task], timeout=0.2) == (set(), {task})
    await asyncio.wait_for(reader.readexactly(MANY), 30)
    await asyncio.wait_for(task, 10)
    await asyncio.sleep(0)
    assert left == [0]


async def test_waiting_ends_with_an_error_when_the_client_leaves(full: Full) -> None:
    _, writer, task, _ = full
    writer.transport.abort()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(task, 10)

"""How a download ends: what is counted, the outcome that is logged, and whether the connection is reset."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request

from server.chunk import Chunk
from server.errors import ExportError, QueryFailed
from server.http.transfer import Downloads, Transfer


async def write_whole(transfer: Transfer) -> None:
    await transfer.write(Chunk(b"a\n1\n", 1))
    await transfer.write(Chunk(b"2\n", 1))
    await transfer.finish()


class Site:
    """A server whose one resource is a download. length: its Content-Length. sender: writes it."""

    def __init__(self) -> None:
        self.downloads = Downloads()
        self.transfer: Transfer | None = None
        self.length: int | None = None
        self.sender: Callable[[Transfer], Awaitable[None]] = write_whole

    async def handler(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = self.length
        with self.downloads.transfer(request, 0) as self.transfer:
            async with self.transfer.sending():
                await self.transfer.start(response)
                await self.sender(self.transfer)
        return response

    async def answer(self, http: str = "1.1") -> tuple[Transfer, bytes, bool]:
        """Send a request. Return the transfer, the bytes after the headers, and whether the connection was reset."""
        app = web.Application()
        app.router.add_get("/", self.handler)
        async with TestServer(app) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"GET / HTTP/{http}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            received, reset = b"", False
            try:
                while part := await asyncio.wait_for(reader.read(1 << 16), 10):
                    received += part
            except ConnectionResetError:
                reset = True
            writer.close()
        assert self.transfer is not None
        return self.transfer, received.partition(b"\r\n\r\n")[2], reset


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.parametrize(("http", "body"), [("1.1", b"4\r\na\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n"), ("1.0", b"a\n1\n2\n")])
async def test_a_whole_download_is_counted_and_ends_cleanly(site: Site, http: str, body: bytes) -> None:
    transfer, received, reset = await site.answer(http)
    assert (received, reset) == (body, False)
    assert (transfer.outcome, transfer.rows, transfer.bytes, transfer.error) == ("complete", 2, 6, None)


async def test_a_response_of_known_length_is_complete_with_its_last_byte(site: Site) -> None:
    site.length = 3
    endings = []

    async def sender(transfer: Transfer) -> None:
        assert transfer.request.transport is not None
        for byte in (b"a", b"b", b"c"):
            endings.append(transfer.ending)
            transfer.request.transport.write(byte)
            transfer.sent(1)
        endings.append(transfer.ending)
        raise ConnectionResetError  # the client has the file and closes the connection

    site.sender = sender
    transfer, received, reset = await site.answer()
    assert (received, reset) == (b"abc", False)
    assert endings == [None] * 3 + ["complete"]
    assert (transfer.outcome, transfer.bytes) == ("complete", 3)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ConnectionResetError(), "client_left"), (TimeoutError(), "stalled"), (ValueError("a defect"), "failed")],
    ids=["reset", "timeout", "defect"],
)
async def test_an_error_while_the_headers_are_sent_is_the_outcome_too(
    site: Site, error: Exception, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may leave at this very moment."""

    async def fails(response: web.StreamResponse, request: web.BaseRequest) -> None:
        raise error

    monkeypatch.setattr(web.StreamResponse, "prepare", fails)
    transfer, received, reset = await site.answer()
    assert (received, reset) == (b"", True)
    assert (transfer.outcome, transfer.bytes) == (outcome, 0)


@pytest.mark.parametrize("http", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionResetError(), "client_left"),
        (BrokenPipeError(), "client_left"),
        (TimeoutError(), "stalled"),
        (QueryFailed("no"), "failed"),
        (ValueError("a defect"), "failed"),
        (None, "failed"),
    ],
    ids=["reset", "broken pipe", "timeout", "ExportError", "defect", "not finished"],
)
async def test_an_error_while_sending_is_the_outcome_and_resets_the_connection(
    site: Site, http: str, error: Exception | None, outcome: str
) -> None:
    async def sender(transfer: Transfer) -> None:
        await transfer.write(Chunk(b"a\n1\n", 1))
        if error is not None:
            raise error

    site.sender = sender
    transfer, _, reset = await site.answer(http)
    assert reset
    assert (transfer.outcome, transfer.rows, transfer.bytes) == (outcome, 1, 4)
    assert transfer.error is (error if isinstance(error, ExportError) else None)


# --- before the first byte, and cancellation ------------------------------------------------------------------------


def test_an_error_before_the_first_byte_is_raised_and_kept() -> None:
    async def download() -> None:
        with Downloads().transfer(make_mocked_request("GET", "/"), 0) as transfer:
            kept.append(transfer)
            raise error

    error, kept = QueryFailed("no"), list[Transfer]()
    with pytest.raises(QueryFailed):
        asyncio.run(download())
    assert (kept[0].ending, kept[0].outcome, kept[0].error) == (None, "rejected", error)


@pytest.mark.parametrize("by_shutdown", [False, True])
@pytest.mark.parametrize("before", [None, "complete", "stalled"])
async def test_a_cancelled_task_means_that_the_client_has_left_or_that_the_server_stops(
    before: str | None, by_shutdown: bool
) -> None:
    downloads, running, kept = Downloads(), asyncio.Event(), list[Transfer]()

    async def download() -> None:
        with downloads.transfer(make_mocked_request("GET", "/"), 0) as transfer:
            kept.append(transfer)
            transfer.ending = before  # type: ignore[assignment]
            running.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(download())
    await running.wait()
    if by_shutdown:
        await downloads.drain(0)
        assert task.done()
    else:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    expected = "shutdown" if by_shutdown else "client_left"
    assert kept[0].outcome == (expected if before is None else before)


async def test_draining_waits_for_a_download_that_ends_in_time() -> None:
    downloads, running, finish = Downloads(), asyncio.Event(), asyncio.Event()

    async def download() -> str:
        with downloads.transfer(make_mocked_request("GET", "/"), 0):
            running.set()
            await finish.wait()
        return "whole"

    task = asyncio.create_task(download())
    await running.wait()
    draining = asyncio.create_task(downloads.drain(60))
    await asyncio.sleep(0)
    assert not draining.done()
    finish.set()
    await draining
    assert task.done()
    assert await task == "whole"

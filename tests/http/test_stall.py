"""The time in which a client has to take something: what counts as taking, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from server.http import stall
from server.http.stall import LOOKS, StallLimit, unacknowledged

# More than the sockets hold.
MUCH = bytes(16 << 20)


@pytest.fixture
async def connected() -> AsyncIterator[tuple[asyncio.StreamWriter, socket.socket]]:
    """The writing end of a connection, and the socket of a client that reads nothing."""
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: writers.put_nowait(writer), "127.0.0.1", 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, server.sockets[0].getsockname())
        writer = await writers.get()
        yield writer, client
        writer.transport.abort()
    server.close()


async def test_bytes_count_until_the_other_end_has_acknowledged_them(
    connected: tuple[asyncio.StreamWriter, socket.socket],
) -> None:
    writer, client = connected
    assert unacknowledged(writer.transport) == 0
    writer.write(MUCH)
    before = unacknowledged(writer.transport)
    assert len(MUCH) / 2 < before <= len(MUCH)
    received = 0
    while received < 1 << 20:  # far less than makes the socket writable again
        received += len(await asyncio.get_running_loop().sock_recv(client, 1 << 16))
    assert before - unacknowledged(writer.transport) >= received - (64 << 10)


async def test_a_closed_connection_counts_nothing(connected: tuple[asyncio.StreamWriter, socket.socket]) -> None:
    writer, _ = connected
    writer.transport.abort()
    await asyncio.sleep(0)
    assert unacknowledged(writer.transport) == unacknowledged(None) == 0


async def test_a_client_that_reads_nothing_exceeds_the_limit(
    connected: tuple[asyncio.StreamWriter, socket.socket],
) -> None:
    writer, _ = connected
    loop = asyncio.get_running_loop()
    writer.write(MUCH)
    started = loop.time()
    with pytest.raises(TimeoutError):
        async with StallLimit(writer.transport, 0.2):
            await writer.drain()
    assert loop.time() - started >= 0.2


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the looks at the connection see, in turn."""
    given: list[int] = []
    monkeypatch.setattr(stall, "unacknowledged", lambda transport: given.pop(0))
    return given


@pytest.mark.parametrize(
    ("seen", "cut"),
    [
        ([9] * (LOOKS + 1), True),
        ([9] * LOOKS + [8] * LOOKS + [7], False),
        ([9] * LOOKS + [8] * (LOOKS + 1), True),
        ([9, 8] * 2 * LOOKS, False),
    ],
    ids=["nothing", "a little in time", "a little and no more", "all the time"],
)
async def test_only_a_client_that_takes_nothing_for_the_whole_time_is_cut(
    readings: list[int], seen: list[int], cut: bool
) -> None:
    readings += seen
    done = asyncio.get_running_loop().create_future()
    limit = StallLimit(None, 0.02)
    look = limit._look

    def counted() -> None:
        look()
        if not readings and not done.done():
            asyncio.get_running_loop().call_soon(done.set_result, None)

    limit._look = counted  # type: ignore[method-assign]
    if cut:
        with pytest.raises(TimeoutError):
            async with limit:
                await asyncio.Event().wait()
        assert readings == []
    else:
        async with limit:
            await done


@pytest.mark.parametrize("seconds", [0.0, 30.0])
async def test_a_write_in_time_is_not_looked_at(readings: list[int], seconds: float) -> None:
    async with StallLimit(None, seconds):
        await asyncio.sleep(0)

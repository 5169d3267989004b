"""A part of a file → the client's socket: sendfile(2), so that no byte of it passes through Python.

uvloop has no sendfile of its own. Headers, statuses and what a broken end looks like are the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from aiohttp import web

# Bytes of one call. The kernel takes what the socket has room for, some megabytes at most; a call in between lets a
# cancelled download end.
CALL_BYTES = 16 << 20


class FileTooShort(Exception):
    """The file ended before its time: somebody has changed it."""


async def send_file(
    request: web.Request,
    file: int,
    first: int,
    length: int,
    *,
    stall_timeout: float,
    sent: Callable[[int], None],
) -> None:
    """Send these bytes of the file after the headers, which have been written already.

    sent: is told of each piece, also of one during which this is cancelled.
    Raises ConnectionError, TimeoutError where the client takes nothing for that long,
    FileTooShort.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    await _flush(request, transport, stall_timeout)
    # A descriptor of our own: the event loop watches the socket's one, and must not be asked to watch it twice.
    socket = os.dup(transport.get_extra_info("socket").fileno())
    try:
        last = first + length
        while first < last:
            if transport.is_closing():
                raise ConnectionResetError("the client has left")
            count = await _in_thread(socket, file, first, min(last - first, CALL_BYTES), sent)
            if count is None:
                async with asyncio.timeout(stall_timeout or None):
                    await _writable(socket)
            elif count:
                first += count
            else:
                raise FileTooShort
    finally:
        os.close(socket)


async def _flush(request: web.Request, transport: asyncio.Transport, stall_timeout: float) -> None:
    """Wait until the headers have left the event loop's own buffer: nothing may overtake them."""
    transport.set_write_buffer_limits(high=0)
    try:
        async with asyncio.timeout(stall_timeout or None):
            while transport.get_write_buffer_size():
                await request.protocol._drain_helper()
    finally:
        transport.set_write_buffer_limits()


async def _in_thread(socket: int, file: int, first: int, count: int, sent: Callable[[int], None]) -> int | None:
    """Bytes that the socket has taken, None where it has no room. In a thread: the file may have to be read first."""

    def work() -> int | None:
        try:
            return os.sendfile(socket, file, first, count)
        except BlockingIOError:
            return None

    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        taken = await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])  # it uses the descriptors
        with contextlib.suppress(OSError):
            sent(task.result() or 0)
        raise
    sent(taken or 0)
    return taken


async def _writable(socket: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(socket, wake)
    try:
        await ready
    finally:
        loop.remove_writer(socket)

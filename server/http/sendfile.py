"""A part of a file → the client's socket, with sendfile(2): no byte of the file passes through Python.

uvloop has no sendfile of its own. This module sends bytes; headers and the end of the response are for the caller.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from server.http.aiohttp_internals import wait_for_write_buffer
from server.http.keys import ENGINE
from server.http.transfer import Transfer
from server.threads import in_thread

# Bytes of one call. The kernel takes what the socket has space for, some megabytes at most. A cancelled download ends
# between two calls.
CALL_BYTES = 16 << 20


class FileTooShort(Exception):
    """The file has ended before the last byte that was to be sent: it was changed meanwhile."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of an open file. descriptor: stays open for the caller. first: the offset. length: in bytes."""

    descriptor: int
    first: int
    length: int


async def send_file(transfer: Transfer, part: FilePart) -> None:
    """Send these bytes after the headers, which have been written already. `transfer` counts them.

    A piece that the socket takes while this is cancelled is counted too. Raise ConnectionError if the client has left,
    TimeoutError if it stalls, FileTooShort.
    """
    request = transfer.request
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    # Nothing may overtake the headers.
    async with transfer.stall_limit():
        await wait_for_write_buffer(request, transport)
    # A descriptor of our own: the event loop already watches the connection's own and cannot watch it twice.
    socket = os.dup(transport.get_extra_info("socket").fileno())
    try:
        first, last = part.first, part.first + part.length
        while first < last:
            if transport.is_closing():
                raise ConnectionResetError("the client has left")
            piece = FilePart(part.descriptor, first, min(last - first, CALL_BYTES))
            try:
                first += await send_piece(request.app[ENGINE].threads.files, socket, piece, transfer.sent)
            except BlockingIOError:
                async with transfer.stall_limit():
                    await _writable(socket)
    finally:
        os.close(socket)


async def send_piece(pool: Executor, socket: int, piece: FilePart, sent: Callable[[int], None]) -> int:
    """Call sendfile once, in a thread of the pool: it may wait for the disk.

    Return the number of bytes that the socket has taken, at least 1. Raise BlockingIOError if the socket is full,
    FileTooShort at the end of the file. sent: called with that number, also if this is cancelled meanwhile.
    """

    def work() -> int:
        taken = os.sendfile(socket, piece.descriptor, piece.first, piece.length)
        if not taken:
            raise FileTooShort
        return taken

    taken = await in_thread(pool, work, discard=sent)
    sent(taken)
    return taken


async def _writable(socket: int) -> None:
    """Wait until the socket has space."""
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

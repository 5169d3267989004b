"""The sending of one download: back-pressure, the count of what was sent, and how it ended.

Before the first byte an error is raised and becomes a status. After it the connection is reset without the terminating
chunk, so that no client and no proxy takes the beginning of a file for the whole file. This module knows nothing of
PostgreSQL or of files: chunks are bytes with a number of rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from typing import Literal

from aiohttp import HttpVersion11, web

from server.chunk import Chunk
from server.errors import ExportError
from server.events import emit
from server.http.events import DownloadCrashed, DrainStarted
from server.http.stall import StallLimit
from server.shutdown import CANCEL_SECONDS

# Bytes handed to the socket at once. The rest of a larger chunk waits here, not in the event loop's buffer.
WRITE_BYTES = 256 << 10

Ending = Literal["complete", "client_left", "shutdown", "stalled", "failed"]
# "rejected": an error was answered with a status, so nothing of the file was sent.
Outcome = Literal["rejected"] | Ending


class Transfer:
    """One download: what has been sent of it and how it ended. Made by `Downloads.transfer`.

    rows, bytes: how many have been sent. scan: how the rows are read, "" as long as that is open. ranges: the number of
    block ranges, None without any. ending: how the sending ended, None until that is decided. error: the ExportError
    that ended it.
    """

    def __init__(self, request: web.Request, stall_timeout: float) -> None:
        """stall_timeout: seconds in which the client has to take something; 0 for no limit."""
        self.request = request
        self.rows = 0
        self.bytes = 0
        self.scan = ""
        self.ranges: int | None = None
        self.ending: Ending | None = None
        self.error: ExportError | None = None
        self._stall_timeout = stall_timeout
        self._started = time.monotonic()
        self._response: web.StreamResponse | None = None

    @property
    def outcome(self) -> Outcome:
        """How the download ended, for the log. Final after the block of `Downloads.transfer`, and not before."""
        return self.ending or "rejected"

    @property
    def seconds(self) -> float:
        """The duration of the download so far."""
        return round(time.monotonic() - self._started, 3)

    def stall_limit(self) -> StallLimit:
        """Return a context that raises TimeoutError if the client takes nothing for too long."""
        return StallLimit(self.request.transport, self._stall_timeout)

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send a response within the block: `start`, then what it holds.

        No status can be sent any more, so an error of the block is not raised: it becomes the outcome, and the
        connection is reset. Only cancellation is raised. The response can be returned afterwards in every case: either
        it is complete, or its connection is closed.
        """
        ending: Ending | None = "failed"
        try:
            yield
        except asyncio.CancelledError:
            ending = None  # `Downloads.transfer` decides on it
            raise
        except ConnectionError:
            ending = "client_left"
        except TimeoutError:
            ending = "stalled"
        except ExportError as error:
            self.error = error
        except Exception as error:
            emit(DownloadCrashed(error=error))
        finally:
            if self.ending != "complete":
                self.ending = ending
                self._abort()

    async def write(self, chunk: Chunk) -> None:
        """Send a chunk. Raise TimeoutError if the client stalls, ConnectionError if it has left."""
        assert self._response is not None
        data = memoryview(chunk.data)
        for start in range(0, len(data), WRITE_BYTES):
            async with self.stall_limit():
                await self._response.write(data[start : start + WRITE_BYTES])
        self.rows += chunk.rows
        self.bytes += len(data)

    async def finish(self) -> None:
        """End a chunked response and wait until the kernel has all of it: a server that stops would drop the rest."""
        assert self._response is not None
        transport = self.request.transport
        async with self.stall_limit():
            if transport is not None:
                transport.set_write_buffer_limits(high=0)
            await self._response.write_eof()
            if transport is not None:
                transport.set_write_buffer_limits()
            self._reset_on_close(False)
        self.ending = "complete"

    def sent(self, count: int) -> None:
        """Count bytes that the kernel has taken directly. With the last of them a response of known length is complete.

        A client that has the last byte may close the connection at once, so this does not wait for anything.
        """
        assert self._response is not None
        self.bytes += count
        if self.bytes == self._response.content_length:
            self.ending = "complete"
            self._reset_on_close(False)

    async def start(self, response: web.StreamResponse) -> None:
        """Send the headers. Raise ConnectionError if the client has left."""
        self._response = response
        if self.request.version < HttpVersion11 and response.content_length is None:
            response.force_close()  # without chunks and length only the end of the connection can end the file
        await response.prepare(self.request)
        # From here on any early end of the connection is a reset. aiohttp closes the connection by itself when a client
        # closes its half, and HTTP/1.0 would take a clean end for the end of the file.
        self._reset_on_close(True)

    def _abort(self) -> None:
        """Reset the connection at once."""
        if self.request.transport is not None:
            self._reset_on_close(True)
            self.request.transport.abort()

    def _reset_on_close(self, wanted: bool) -> None:
        """Choose whether the connection is reset or closed cleanly when it is closed (SO_LINGER with 0 seconds)."""
        transport = self.request.transport
        connection = None if transport is None else transport.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", wanted, 0))


class Downloads:
    """The downloads that this process is sending. A shutdown waits for them and then cancels them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._stopping = False

    @contextlib.contextmanager
    def transfer(self, request: web.Request, stall_timeout: float) -> Iterator[Transfer]:
        """Count the current task as a download until the block ends. After the block the outcome is final.

        A task is cancelled for two reasons only: aiohttp does it when the client leaves, `drain` when the server stops.
        """
        task = asyncio.current_task()
        assert task is not None
        transfer = Transfer(request, stall_timeout)
        self._tasks.add(task)
        try:
            yield transfer
        except asyncio.CancelledError:
            if transfer.ending is None:
                transfer.ending = "shutdown" if self._stopping else "client_left"
            raise
        except ExportError as error:
            transfer.error = error
            raise
        finally:
            self._tasks.discard(task)

    async def drain(self, seconds: float) -> None:
        """Wait at most this long for the running downloads to end, then cancel those that have not."""
        if self._tasks and seconds:
            emit(DrainStarted(running=len(self._tasks), seconds=seconds))
            await asyncio.wait(set(self._tasks), timeout=seconds)
        self._stopping = True
        remaining = set(self._tasks)
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=CANCEL_SECONDS)

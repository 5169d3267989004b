"""Chunks → HTTP response: headers, back-pressure, and an honest end.

Before the first byte an error is raised, to become a status; after it the connection is cut without the
terminating chunk, and reset. Knows nothing of PostgreSQL: chunks are bytes with a count of rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import structlog
from aiohttp import HttpVersion11, web

from server.chunk import Chunk
from server.errors import ExportError
from server.query.dialect import Dialect
from server.query.plan import ExportPlan

log = structlog.stdlib.get_logger("sluice.download")

# Bytes handed to the socket at once, so that the stall timeout measures progress even in a large chunk.
WRITE_BYTES = 256 << 10

CONTENT_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    "ndjson": "application/x-ndjson; charset=utf-8",
}

# Characters that some file system or shell takes amiss in a file name, beside control characters.
_UNSAFE_IN_FILENAMES = set('<>:"/\\|?*')
# RFC 8187, attr-char: what may stand unescaped in an extended parameter value, beside letters and digits.
_ATTR_CHARS = "!#$&+-.^_`|~"


@dataclass(slots=True)
class Tally:
    """What has been sent so far and how it ended, for the log."""

    rows: int = 0
    bytes: int = 0
    outcome: str = "rejected"
    scan: str = ""
    error: ExportError | None = None


class Downloads:
    """The downloads that this process is sending, so that a shutdown can wait for them and then cut them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self.cutting = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Marks the current task as a download."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def drain(self, seconds: float) -> None:
        """Give the running downloads so many seconds to end, then cut those that have not."""
        if self._tasks and seconds:
            log.info("waiting for downloads", running=len(self._tasks), seconds=seconds)
            await asyncio.wait(set(self._tasks), timeout=seconds)
        self.cutting = True
        remaining = set(self._tasks)
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=5)


def safe_filename(name: str) -> str:
    """A name that every common file system takes: no separators, controls or reserved characters, 200 bytes."""
    kept = "".join(
        "_" if character in _UNSAFE_IN_FILENAMES or unicodedata.category(character)[0] == "C" else character
        for character in name
    )
    kept = kept.encode()[:200].decode(errors="ignore").strip(" .")
    return kept or "export"


def content_disposition(filename: str) -> str:
    """The attachment header for a file of this name (RFC 6266; non-ASCII names by RFC 8187)."""
    plain = filename.encode("ascii", "replace").decode().replace("?", "_").replace("%", "_")
    header = f'attachment; filename="{plain}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe=_ATTR_CHARS)}"
    return header


def make_response(plan: ExportPlan, *, encoded: bool) -> web.StreamResponse:
    """The response with all its headers, nothing sent yet. encoded: compressed for the way only."""
    headers = file_headers(plan.format, plan.dialect, gzip=plan.gzip, filename=plan.filename)
    headers |= {"Cache-Control": "no-store", "Accept-Ranges": "none"}
    if not plan.gzip:
        headers["Vary"] = "Accept-Encoding"
        if encoded:
            headers["Content-Encoding"] = "gzip"
    return web.StreamResponse(headers=headers)


def file_headers(format: str, dialect: Dialect, *, gzip: bool, filename: str) -> dict[str, str]:
    """What is said of a file however it is sent. filename: without its suffix."""
    suffix = f".{format}.gz" if gzip else f".{format}"
    return {
        "Content-Type": "application/gzip" if gzip else _content_type(format, dialect),
        "Content-Disposition": content_disposition(safe_filename(filename) + suffix),
        "X-Accel-Buffering": "no",
    }


def _content_type(format: str, dialect: Dialect) -> str:
    if format != "csv":
        return CONTENT_TYPES[format]
    return f"{CONTENT_TYPES['csv']}; header={'present' if dialect.header else 'absent'}"  # RFC 4180, 3


async def send(
    request: web.Request,
    plan: ExportPlan,
    chunks: AsyncIterator[Chunk],
    *,
    encoded: bool,
    give_back: Callable[[], Awaitable[None]],
    tally: Tally,
    downloads: Downloads,
    stall_timeout: float,
) -> web.StreamResponse:
    """Stream the chunks. Raises ExportError only while nothing has been sent.

    give_back: lets go of what the chunks came from. Called before the end is sent: whoever has that may at once ask
    for the next file.
    """
    first = await anext(chunks)
    response = make_response(plan, encoded=encoded)
    if request.version < HttpVersion11:
        response.force_close()  # without chunks only the end of the connection can end the file
    with honest_end(request, tally, downloads):
        await response.prepare(request)
        # From here on a connection that closes before its time is a reset, whoever closes it: aiohttp does by
        # itself when a client closes its half, and HTTP/1.0 would take a clean end for the end of the file.
        reset_on_close(request, True)
        await _write(response, first, tally, stall_timeout)
        async for chunk in chunks:
            await _write(response, chunk, tally, stall_timeout)
        await give_back()
        async with asyncio.timeout(stall_timeout or None):
            await _finish(request, response)
        tally.outcome = "complete"
    # Cut or complete: the connection takes no more bytes, so returning the response cannot end it cleanly.
    return response


@contextlib.contextmanager
def honest_end(request: web.Request, tally: Tally, downloads: Downloads) -> Iterator[None]:
    """Around the sending of a file: unless that sets the outcome "complete", says why not, and cuts the connection."""
    outcome = "failed"
    try:
        yield
    except asyncio.CancelledError:
        outcome = "shutdown" if downloads.cutting else "client_left"
        raise
    except ConnectionError:
        outcome = "client_left"
    except TimeoutError:
        outcome = "stalled"
    except ExportError as error:
        tally.error = error
    except Exception:
        log.exception("a download failed")
    finally:
        if tally.outcome != "complete":
            tally.outcome = outcome
            cut(request)


async def _write(response: web.StreamResponse, chunk: Chunk, tally: Tally, stall_timeout: float) -> None:
    data = memoryview(chunk.data)
    for start in range(0, len(data), WRITE_BYTES):
        async with asyncio.timeout(stall_timeout or None):
            await response.write(data[start : start + WRITE_BYTES])
    tally.rows += chunk.rows
    tally.bytes += len(data)


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    """End the file, and wait until the kernel has all of it: a server that stops would drop the rest."""
    transport = request.transport
    if transport is not None:
        transport.set_write_buffer_limits(high=0)
    await response.write_eof()
    if transport is not None:
        transport.set_write_buffer_limits()
    reset_on_close(request, False)


def cut(request: web.Request) -> None:
    """Drop the connection at once with a reset, so that no proxy takes the end for a clean one."""
    if request.transport is not None:
        reset_on_close(request, True)
        request.transport.abort()


def reset_on_close(request: web.Request, wanted: bool) -> None:
    """Whether the end of the connection, whoever brings it about, is to be a reset."""
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", wanted, 0))

"""The gzip stage: chunks → chunks of one gzip stream, compressed off the event loop.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from typing import Protocol

from isal import isal_zlib

from server.chunk import Chunk
from server.threads import cancel_and_wait, in_thread

# ISA-L has the levels 0 to 3. Measured in docs/performance.md.
LEVEL = 2
# zlib's windowBits for a window of 32 kB, with a gzip header and trailer.
GZIP_WINDOW = 31


class Compressor(Protocol):
    """The methods of an isal_zlib compressor that this module calls."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int = ..., /) -> bytes: ...


async def gzipped(chunks: AsyncGenerator[Chunk, None], threads: Executor) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks as one gzip stream (RFC 1952). chunks: at least one; closed at the end.

    The first chunk is flushed, so that the client gets the first row at once. Every other chunk is compressed in a
    thread of the pool while the next one is read.
    """
    compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, GZIP_WINDOW)
    async with contextlib.aclosing(chunks):
        yield await _compress(threads, compressor, await anext(chunks), flush=True)
        compressing: asyncio.Task[Chunk] | None = None
        try:
            async for chunk in chunks:
                if compressing is not None:
                    yield await compressing
                compressing = asyncio.create_task(_compress(threads, compressor, chunk))
            if compressing is not None:
                yield await compressing
        finally:
            if compressing is not None:
                await cancel_and_wait(compressing)
        yield Chunk(await in_thread(threads, compressor.flush), 0)


async def _compress(threads: Executor, compressor: Compressor, chunk: Chunk, *, flush: bool = False) -> Chunk:
    def work() -> bytes:
        data = compressor.compress(chunk.data)
        return data + compressor.flush(isal_zlib.Z_SYNC_FLUSH) if flush else data

    return Chunk(await in_thread(threads, work), chunk.rows, chunk.done)

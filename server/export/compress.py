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

# ISA-L's levels are 0 to 3. Measured in docs/performance.md.
LEVEL = 2
# zlib's number for a window of 32 kB and a gzip header and trailer.
GZIP_WINDOW = 31


class Compressor(Protocol):
    """What isal_zlib.compressobj makes, as far as it is used from a thread."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


async def gzipped(chunks: AsyncGenerator[Chunk, None], threads: Executor) -> AsyncGenerator[Chunk, None]:
    """The same file as one gzip stream. The first chunk is flushed, so that the first row arrives at once.

    A chunk is compressed in a thread while the next one is being fetched and encoded.
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
        yield Chunk(compressor.flush(), 0)


async def _compress(threads: Executor, compressor: Compressor, chunk: Chunk, *, flush: bool = False) -> Chunk:
    def work() -> bytes:
        data = compressor.compress(chunk.data)
        return data + compressor.flush(isal_zlib.Z_SYNC_FLUSH) if flush else data

    return Chunk(await in_thread(threads, work), chunk.rows, chunk.done)

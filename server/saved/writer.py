"""Chunks → the part file: writes in a thread while the next chunks are read.

The event loop's side of `Claim` for one attempt. Decides nothing about the outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any

from server.chunk import Chunk
from server.saved.claim import Claim, Part
from server.saved.manifest import Reading
from server.threads import in_thread, wait_until_ended

# Bytes that may wait for the disk. The writing thread often waits for the encoder (Python's global lock). With a single
# chunk, the scan would wait for the thread in turn.
MOST_UNWRITTEN_BYTES = 4 << 20


class Writer:
    """The calls to the disk of one attempt, one at a time. Made by `open_writer`.

    Cancelling a method ends the wait at once and not the call, so that the database session can be given back while
    the disk hangs; leaving `open_writer` waits for the call.
    """

    def __init__(self, files: Executor, claim: Claim) -> None:
        self._files = files
        self._claim = claim
        self._call: asyncio.Task[Any] | None = None
        self._part: Part | None = None

    async def write(self, chunks: AsyncGenerator[Chunk, None], reading: Reading) -> None:
        """Start the attempt and write all chunks but the last ones, at most MOST_UNWRITTEN_BYTES behind the reader."""
        async with contextlib.aclosing(chunks):
            self._start_call(self._claim.start, reading)
            self._part = await self._result()
            assert self._part is not None
            waiting: list[Chunk] = []
            async for chunk in chunks:
                waiting.append(chunk)
                behind = self._call is not None and not self._call.done()
                if behind and sum(len(each.data) for each in waiting) < MOST_UNWRITTEN_BYTES:
                    continue
                await self._result()
                self._start_call(self._part.write, waiting)
                waiting = []
            if waiting:
                await self._result()
                self._start_call(self._part.write, waiting)

    async def complete(self) -> None:
        """Wait until everything has been written and publish the file."""
        await self._result()
        self._start_call(self._claim.complete, self._part)
        await self._result()

    def _start_call(self, work: Callable[..., object], *arguments: object) -> None:
        self._call = asyncio.create_task(in_thread(self._files, work, *arguments))

    async def _result(self) -> Any:
        """Wait for the call that was started last and return its result, or raise its error."""
        if self._call is None:
            return None
        await asyncio.wait([self._call])
        call, self._call = self._call, None
        return call.result()

    async def wait(self) -> None:
        """Wait until no call is running, even if the caller is cancelled. Drop the error of a call."""
        if self._call is not None:
            try:
                await wait_until_ended(self._call)
            finally:
                if not self._call.cancelled():
                    self._call.exception()


@contextlib.asynccontextmanager
async def open_writer(files: Executor, claim: Claim) -> AsyncIterator[Writer]:
    """Yield the writer of this claim. No thread uses the claim any more when the block has been left."""
    writer = Writer(files, claim)
    try:
        yield writer
    finally:
        await writer.wait()

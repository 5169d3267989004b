"""Ranges of one file, read by several at once and handed over in order.

Every reader takes the next range that nobody has, and may run ahead of the file by a bounded number of bytes. A
range whose reader fails ends the file there with that error: what comes after is never handed over. Knows no SQL
and no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from server.chunk import Chunk

# Bytes of a range that may wait until the file comes to them: one range of ordinary rows fits.
AHEAD_BYTES = 2 << 20


class Range:
    """A range that a reader has taken, and what it has read of it so far. number: counted from 0."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, chunk: Chunk) -> None:
        """Hand over some of its lines; waits while much of it is waiting already."""
        while self._bytes >= AHEAD_BYTES:
            self._room.clear()
            await self._room.wait()
        self._chunks.append(chunk)
        self._bytes += len(chunk.data)
        self._arrived.set()

    def end(self, error: BaseException | None = None) -> None:
        """That was all of it, or all that could be read."""
        self._ended, self._error = True, error
        self._arrived.set()

    async def next(self) -> Chunk | None:
        """More of its lines; None at its end. Raises what its reader failed with."""
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        chunk = self._chunks.popleft()
        self._bytes -= len(chunk.data)
        self._room.set()
        return chunk


class Ranges:
    """The ranges of one file, for its readers to take. ahead: how many may be taken and not yet handed over."""

    def __init__(self, count: int, ahead: int) -> None:
        self._count = count
        self._ahead = ahead
        self._next = 0
        self._waiting: deque[Range] = deque()
        self._changed = asyncio.Event()

    def take_now(self) -> Range | None:
        """The next range, unless all are taken or the file is too far behind."""
        if self._next == self._count or len(self._waiting) >= self._ahead:
            return None
        taken = Range(self._next)
        self._next += 1
        self._waiting.append(taken)
        self._changed.set()
        return taken

    async def take(self) -> Range | None:
        """The next range, as soon as the file has come near enough; None when all are taken."""
        while True:
            taken = self.take_now()
            if taken is not None or self._next == self._count:
                return taken
            self._changed.clear()
            await self._changed.wait()

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The file, in order. Raises what the reader of a range failed with, once it comes to that range."""
        for number in range(self._count):
            while not self._waiting:
                self._changed.clear()
                await self._changed.wait()
            while (chunk := await self._waiting[0].next()) is not None:
                yield chunk._replace(done=number / self._count) if self._count > 1 else chunk
            self._waiting.popleft()
            self._changed.set()

"""The memory that large values of this process may take: who holds how much of it, and who waits for some.

Everything else that an export holds is bounded by constants. A value of PostgreSQL may have a gigabyte, and it has to
be held as long as it is not known whether it needs quotes. All state belongs to one event loop.

Why there is no deadlock: whoever waits holds nothing, and whoever holds something waits for nothing but its client or
its disk, each within a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from types import TracebackType


class Memory:
    """A number of bytes that reservations share. limit: all of them. used: those that are reserved."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def _take(self, count: int) -> None:
        """Take bytes as soon as they are free, after those who have waited longer. count: at most the limit."""
        if not self._waiting and self.used + count <= self.limit:
            self.used += count
            return
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, taken))
        try:
            await taken
        except asyncio.CancelledError:
            if taken.done() and not taken.cancelled():
                self._give_back(count)
            else:
                with contextlib.suppress(ValueError):  # `_give_back` has passed over it
                    self._waiting.remove((count, taken))
                self._give_back(0)  # those behind it may need less
            raise

    def _give_back(self, count: int) -> None:
        self.used -= count
        while self._waiting and self.used + self._waiting[0][0] <= self.limit:
            first, taken = self._waiting.popleft()
            if not taken.cancelled():
                self.used += first
                taken.set_result(None)


class Reservation:
    """What one reader has reserved: nothing, or the bytes of one value. Given back when the block is left."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._count = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.keep(0)

    async def take(self, count: int, seconds: float) -> None:
        """Reserve these bytes, at most the limit. Raise TimeoutError if they are not free in time.

        seconds: 0 for no limit. Nothing may be reserved before.
        """
        if self._count:
            raise RuntimeError("a reader that waits for memory must not hold some")
        async with asyncio.timeout(seconds or None):
            await self._memory._take(count)
        self._count = count

    def keep(self, count: int) -> None:
        """Give back all but these bytes."""
        if count < self._count:
            released, self._count = self._count - count, count
            self._memory._give_back(released)

"""How many sessions of one kind a worker has at once. Knows no connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from server import errors


class Slots:
    """The slots of one kind of sessions. Those that find none free wait in order."""

    def __init__(self, count: int, wait: float, busy: str) -> None:
        """wait: seconds to wait for a slot, 0 to take one at once or not at all. busy: the error if none is free."""
        self._free = asyncio.Semaphore(count)
        self._wait = wait
        self._busy = busy

    @contextlib.asynccontextmanager
    async def slot(self, *, wait: float | None = None) -> AsyncIterator[None]:
        """Hold a slot. wait: other seconds than those of the kind. Raise ServerBusy if none becomes free."""
        seconds = self._wait if wait is None else wait
        busy = errors.ServerBusy(self._busy, hint=errors.TRY_AGAIN)
        if self._free.locked() and not seconds:
            raise busy
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise busy from None
        try:
            yield
        finally:
            self._free.release()

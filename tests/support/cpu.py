"""CPU time as the measure of what is quick: other work on the machine does not change it much, as it does wall time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Fail if this thread needs more CPU time in the block."""
    started = time.thread_time()
    yield
    used = time.thread_time() - started
    assert used < seconds, f"{used:.3f} s of CPU time, at most {seconds:g}"


@contextlib.asynccontextmanager
async def loop_limit(seconds: float) -> AsyncIterator[None]:
    """Fail if the event loop needs more CPU time between two passes in the block. It may need more than that in all."""
    longest = 0.0
    over = asyncio.Event()

    async def tick() -> None:
        nonlocal longest
        last = time.thread_time()
        while not over.is_set():
            await asyncio.sleep(0.002)
            now = time.thread_time()
            longest = max(longest, now - last)
            last = now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        over.set()
        await ticker
    assert longest < seconds, f"the event loop was busy for {longest:.3f} s of CPU time, at most {seconds:g}"

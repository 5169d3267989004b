"""CPU time as the measure of what is quick: other work on the machine does not change it much, as it does wall time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
from asyncio import events
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

# Seconds of CPU time that no callback of the event loop may take.
LONGEST_CALLBACK = 0.02
# How many times longer code may take that is traced, as `make test` does for its coverage.
TRACED = 4


def most_seconds(seconds: float) -> float:
    """Return the limit for a piece of code that takes so many seconds by itself: more if it is traced."""
    return seconds * TRACED if sys.gettrace() is not None else seconds


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


@dataclass(slots=True)
class Callbacks:
    """The callback of this thread's event loop that has taken the most CPU time so far. which: its name."""

    seconds: float = 0.0
    which: str = ""

    def reset(self) -> None:
        """Forget it."""
        self.seconds, self.which = 0.0, ""


@contextlib.contextmanager
def watched_callbacks() -> Iterator[Callbacks]:
    """Measure each callback of asyncio's event loop in this thread. Does not count the garbage of the test process."""
    longest = Callbacks()
    thread = threading.get_ident()
    run = events.Handle._run
    collecting = [0.0, 0.0]  # when the collection began, and how long those of this callback have taken

    def collected(phase: str, _: dict[str, int]) -> None:
        if threading.get_ident() != thread:
            return
        if phase == "start":
            collecting[0] = time.thread_time()
        else:
            collecting[1] += time.thread_time() - collecting[0]

    def measured(handle: Any) -> None:
        if threading.get_ident() != thread:
            run(handle)
            return
        collecting[1] = 0.0
        started = time.thread_time()
        run(handle)
        used = time.thread_time() - started - collecting[1]
        if used > longest.seconds:
            longest.seconds, longest.which = used, repr(handle)[:500]

    gc.callbacks.append(collected)
    events.Handle._run = measured  # type: ignore[method-assign, assignment]
    try:
        yield longest
    finally:
        events.Handle._run = run  # type: ignore[method-assign]
        gc.callbacks.remove(collected)

"""Blocking work in threads: one bounded pool for each resource that may hang, and one function that waits for a thread.

A disk or a name server that does not answer fills its own pool and delays nothing else. No module may use the event
loop's default pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

# Threads that read and write saved exports. A call takes milliseconds on a disk that answers.
FILE_THREADS = 16
# Seconds after which a callback that has more to do lets others run. No callback may take 20 ms.
TURN_SECONDS = 0.002
# Threads that make pages and read and write long documents. Python runs one of them at a time anyway; more would only
# keep the event loop waiting longer for its turn.
PAGE_THREADS = 1
# Threads that resolve host names. A lookup that hangs keeps its thread until the resolver gives up.
NAME_THREADS = 4


class Threads:
    """The thread pools of one worker process. A thread starts when it is first needed, hence after the fork.

    rows: reads rows from PostgreSQL and encodes them, one thread for each connection. compression: gzip, one thread for
    each export. pages: Python work whose time grows with a form, a relation or the catalogue. files: everything that
    touches the folder of saved exports. names: the resolver.
    """

    def __init__(self, *, readers: int, exports: int) -> None:
        """Create the pools. readers: most connections that read rows at once. exports: most exports at once."""
        self.rows = ThreadPoolExecutor(readers, thread_name_prefix="rows")
        self.compression = ThreadPoolExecutor(exports, thread_name_prefix="compression")
        self.pages = ThreadPoolExecutor(PAGE_THREADS, thread_name_prefix="pages")
        self.files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
        self.names = ThreadPoolExecutor(NAME_THREADS, thread_name_prefix="names")

    def close(self) -> None:
        """Accept no more work and drop what has not started. Does not wait for running threads."""
        for pool in (self.rows, self.compression, self.pages, self.files, self.names):
            pool.shutdown(wait=False, cancel_futures=True)


async def give_way(since: float) -> bool:
    """Let the other callbacks of the event loop run, if this one has taken TURN_SECONDS. Return whether it has.

    since: when it began, by `time.perf_counter`. Call it between two pieces of work whose time grows with a request.
    """
    long = time.perf_counter() - since > TURN_SECONDS
    if long:
        await asyncio.sleep(0)
    return long


async def in_thread(
    pool: Executor,
    work: Callable[..., Result],
    /,
    *arguments: Any,
    interrupt: Callable[[], None] | None = None,
    discard: Callable[[Result], None] | None = None,
) -> Result:
    """Run `work` in a thread of the pool and return its result, or raise what it raises.

    The work sees the context variables of the caller. If the caller is cancelled, work that has not started never runs.
    Work that has started cannot be stopped: this waits until it has ended and then raises CancelledError, so the caller
    may close what the work used.

    interrupt: called on cancellation, to ask running work to end early. discard: called with the result that a
    cancelled caller does not get, for example to close a file.
    """
    context = contextvars.copy_context()
    job = pool.submit(functools.partial(context.run, work, *arguments))
    done = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if not job.cancel():
            if interrupt is not None:
                interrupt()
            with contextlib.suppress(asyncio.CancelledError):  # raised below
                await wait_until_ended(done)
            if not done.cancelled() and done.exception() is None and discard is not None:
                discard(done.result())
        raise


async def wait_until_ended(task: asyncio.Future[Any]) -> None:
    """Wait until the task has ended, with any outcome, even if the caller is cancelled meanwhile.

    Raise CancelledError afterwards if it was.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel the task, wait until it has ended, and drop its result or exception."""
    task.cancel()
    try:
        await wait_until_ended(task)
    finally:
        if not task.cancelled():
            task.exception()

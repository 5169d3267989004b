"""Blocking work in threads: one bounded pool for each resource that may hang, and one way to wait for a thread.

A disk or a name server that does not answer fills its own pool and delays nothing else. Nothing of Sluice uses the
event loop's default pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

# Threads that read and write saved exports. One call lasts milliseconds on a disk that answers.
FILE_THREADS = 16
# Threads that resolve names. A connection waits CONNECT_TIMEOUT for its turn and then fails.
NAME_THREADS = 4


class Threads:
    """The thread pools of one worker process. Their threads start when they are first needed, after the fork.

    rows: read rows from PostgreSQL and encode them, one thread for each connection. compression: gzip, one thread for
    each export. files: everything that touches the folder of saved exports. names: the resolver.
    """

    def __init__(self, *, readers: int, exports: int) -> None:
        """readers: the most connections that read rows at once. exports: the most exports that run at once."""
        self.rows = ThreadPoolExecutor(readers, thread_name_prefix="rows")
        self.compression = ThreadPoolExecutor(exports, thread_name_prefix="compression")
        self.files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
        self.names = ThreadPoolExecutor(NAME_THREADS, thread_name_prefix="names")

    def close(self) -> None:
        """Take no more work. Threads that are at work end by themselves."""
        for pool in (self.rows, self.compression, self.files, self.names):
            pool.shutdown(wait=False, cancel_futures=True)


async def in_thread(
    pool: Executor,
    work: Callable[..., Result],
    /,
    *arguments: Any,
    interrupt: Callable[[], None] | None = None,
    discard: Callable[[Result], None] | None = None,
) -> Result:
    """Run `work` in a thread of the pool and return its result, or raise what it raises.

    If the caller is cancelled, work that has not begun never runs; work that has begun cannot be stopped, so this
    waits until it ends and raises CancelledError then: whatever the work uses may be closed afterwards.

    interrupt: called on cancellation; asks the work to end early. discard: called with a result that the cancelled
    caller does not get, for example to close a file.
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
            await ended(done)
            if not done.cancelled() and done.exception() is None and discard is not None:
                discard(done.result())
        raise


async def ended(task: asyncio.Future[Any]) -> None:
    """Wait until the task has ended, however it ends and however often the caller is cancelled meanwhile."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel the task, wait until it has ended, and drop its result or error."""
    task.cancel()
    await ended(task)
    if not task.cancelled():
        task.exception()

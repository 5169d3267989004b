"""`server/threads.py`: the result or the error of work in a thread, cancellation, and separate pools."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.threads import Threads, cancel_and_wait, in_thread, wait_until_ended

# Longest wait for another thread, in seconds; reached only when a test fails.
PATIENCE = 30


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """One thread."""
    with ThreadPoolExecutor(1) as opened:
        yield opened


class Gate:
    """Work that starts and then waits until it is opened."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.opened = threading.Event()
        self.finished = False

    def work(self, result: str = "result") -> str:
        self.started.set()
        assert self.opened.wait(PATIENCE)
        self.finished = True
        return result

    async def until_started(self) -> None:
        assert await asyncio.to_thread(self.started.wait, PATIENCE)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()  # a failed test must not leave a thread waiting


async def settle() -> None:
    """Let every callback run that is due."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_result_is_that_of_the_work(pool: ThreadPoolExecutor) -> None:
    assert await in_thread(pool, divmod, 7, 2) == (3, 1)


async def test_the_work_runs_in_a_thread_of_the_pool(pool: ThreadPoolExecutor) -> None:
    (of_the_pool,) = {await in_thread(pool, threading.get_ident) for _ in range(3)}
    assert of_the_pool != threading.get_ident()


async def test_an_error_of_the_work_is_raised_as_it_is(pool: ThreadPoolExecutor) -> None:
    failure = LookupError("missing")

    def fail() -> None:
        raise failure

    with pytest.raises(LookupError) as caught:
        await in_thread(pool, fail)
    assert caught.value is failure


async def test_without_cancellation_nothing_is_interrupted_or_discarded(pool: ThreadPoolExecutor) -> None:
    calls: list[object] = []
    assert await in_thread(pool, str, 7, interrupt=lambda: calls.append("interrupt"), discard=calls.append) == "7"
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(pool, int, "x", interrupt=lambda: calls.append("interrupt"), discard=calls.append)
    assert calls == []


async def test_the_work_sees_the_context_of_its_caller_and_changes_none_of_it(pool: ThreadPoolExecutor) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    def read_and_set() -> str:
        seen = variable.get()
        variable.set("changed by the thread")
        return seen

    variable.set("set by the caller")
    assert await in_thread(pool, read_and_set) == "set by the caller"
    assert variable.get() == "set by the caller"
    assert await in_thread(pool, read_and_set) == "set by the caller"


async def test_a_cancelled_caller_waits_for_running_work(pool: ThreadPoolExecutor, gate: Gate) -> None:
    task = asyncio.create_task(in_thread(pool, gate.work))
    await gate.until_started()
    task.cancel()
    await settle()
    assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.finished


async def test_repeated_cancellation_does_not_abandon_running_work(pool: ThreadPoolExecutor, gate: Gate) -> None:
    interrupts: list[str] = []
    task = asyncio.create_task(in_thread(pool, gate.work, interrupt=lambda: interrupts.append("interrupt")))
    await gate.until_started()
    for _ in range(5):
        task.cancel()
        await settle()
        assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.finished
    assert interrupts == ["interrupt"]


async def test_work_that_has_not_started_never_runs_after_a_cancellation(pool: ThreadPoolExecutor, gate: Gate) -> None:
    calls: list[object] = []
    running = asyncio.create_task(in_thread(pool, gate.work))
    await gate.until_started()
    waiting = asyncio.create_task(
        in_thread(pool, calls.append, "ran", interrupt=lambda: calls.append("interrupt"), discard=calls.append)
    )
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):  # at once: the pool's only thread is still busy
        await waiting
    assert not running.done()
    gate.opened.set()
    assert await running == "result"
    await in_thread(pool, str)  # everything that was queued before has run by now
    assert calls == []


async def test_interrupt_asks_running_work_to_end(pool: ThreadPoolExecutor, gate: Gate) -> None:
    task = asyncio.create_task(in_thread(pool, gate.work, interrupt=gate.opened.set))
    await gate.until_started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.finished


async def test_a_result_that_a_cancelled_caller_does_not_get_is_discarded(pool: ThreadPoolExecutor, gate: Gate) -> None:
    discarded: list[str] = []
    task = asyncio.create_task(in_thread(pool, gate.work, "descriptor", discard=discarded.append))
    await gate.until_started()
    task.cancel()
    await settle()
    assert discarded == []
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert discarded == ["descriptor"]


async def test_a_cancellation_that_comes_with_the_result_discards_it(pool: ThreadPoolExecutor, gate: Gate) -> None:
    discarded: list[str] = []
    task = asyncio.create_task(in_thread(pool, gate.work, "descriptor", discard=discarded.append))
    await gate.until_started()
    gate.opened.set()
    pool.shutdown(wait=True)  # blocks the event loop: the result is there, and the task does not know it yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert discarded == ["descriptor"]


async def test_an_error_of_cancelled_work_is_dropped_and_nothing_discarded(
    pool: ThreadPoolExecutor, gate: Gate
) -> None:
    discarded: list[object] = []

    def fail() -> None:
        gate.work()
        raise OSError("too late to matter")

    task = asyncio.create_task(in_thread(pool, fail, discard=discarded.append))
    await gate.until_started()
    task.cancel()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert discarded == []


@contextlib.contextmanager
def all_pools() -> Iterator[Threads]:
    threads = Threads(readers=2, exports=2)
    yield threads
    threads.close()


POOLS: dict[str, Callable[[Threads], ThreadPoolExecutor]] = {
    "rows": lambda threads: threads.rows,
    "compression": lambda threads: threads.compression,
    "files": lambda threads: threads.files,
    "names": lambda threads: threads.names,
}


@pytest.mark.parametrize("name", POOLS)
async def test_a_full_pool_delays_no_other(name: str, gate: Gate) -> None:
    with all_pools() as threads:
        full = POOLS[name](threads)
        # More work than the pool has threads: the last piece waits in its queue.
        count = full._max_workers + 1
        tasks = [asyncio.create_task(in_thread(full, gate.work)) for _ in range(count)]
        await gate.until_started()
        async with asyncio.timeout(PATIENCE):
            for other in POOLS.keys() - {name}:
                assert await in_thread(POOLS[other](threads), str, "done") == "done"
            # The event loop's default pool is another one still.
            assert await asyncio.get_running_loop().run_in_executor(None, str, "done") == "done"
        assert not any(task.done() for task in tasks)
        gate.opened.set()
        assert await asyncio.gather(*tasks) == ["result"] * count


async def test_pools_have_the_size_that_was_asked_for_and_start_no_thread_before_they_are_used() -> None:
    before = threading.active_count()
    threads = Threads(readers=3, exports=5)
    assert threading.active_count() == before
    assert (threads.rows._max_workers, threads.compression._max_workers) == (3, 5)
    threads.close()


async def test_closing_drops_what_has_not_started_and_waits_for_nothing(gate: Gate) -> None:
    threads = Threads(readers=1, exports=1)
    running = asyncio.create_task(in_thread(threads.rows, gate.work))
    await gate.until_started()
    ran: list[str] = []
    waiting = asyncio.create_task(in_thread(threads.rows, ran.append, "ran"))
    await settle()
    threads.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(RuntimeError):
        await in_thread(threads.rows, str)
    gate.opened.set()
    assert await running == "result"
    assert ran == []


@pytest.mark.parametrize("outcome", ["result", "error", "cancelled"])
async def test_ended_waits_for_each_outcome_and_raises_none(outcome: str) -> None:
    release = asyncio.Event()

    async def work() -> None:
        await release.wait()
        if outcome == "error":
            raise LookupError("unseen")
        if outcome == "cancelled":
            raise asyncio.CancelledError

    task = asyncio.create_task(work())
    waiting = asyncio.create_task(wait_until_ended(task))
    await settle()
    assert not waiting.done()
    release.set()
    await waiting
    assert task.done()
    if outcome == "error":
        assert isinstance(task.exception(), LookupError)


async def test_waiting_for_the_end_goes_beyond_the_cancellation_of_the_caller() -> None:
    release = asyncio.Event()
    task = asyncio.create_task(release.wait())
    waiting = asyncio.create_task(wait_until_ended(task))
    for _ in range(3):
        await settle()
        waiting.cancel()
    await settle()
    assert not waiting.done()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert task.result() is True


async def test_cancel_and_wait_returns_when_the_task_has_cleaned_up() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await settle()
            steps.append("cleaned up")

    task = asyncio.create_task(work())
    await settle()
    await cancel_and_wait(task)
    assert steps == ["cleaned up"]
    assert task.cancelled()


@pytest.mark.parametrize("ends_with", ["result", "error"])
async def test_cancel_and_wait_drops_how_the_task_ended(
    ends_with: str, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ends_with == "error":
                raise LookupError("while cleaning up") from None
        return "result"

    task = asyncio.create_task(work())
    await settle()
    await cancel_and_wait(task)
    assert task.done()
    assert not task.cancelled()
    del task  # an exception that nobody has retrieved would be logged here
    await settle()
    assert not caplog.records


async def test_cancel_and_wait_on_a_task_that_has_ended_does_nothing() -> None:
    task = asyncio.create_task(asyncio.sleep(0, "result"))
    await task
    await cancel_and_wait(task)
    assert task.result() == "result"

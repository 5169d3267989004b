"""Runs saved exports: takes the next one from the queue, scans it into its file, and does right by whatever ends it.

One of these in every worker process; they share nothing but the folder. Knows no HTTP. A row takes the very way of a
download: `open_export`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import structlog

from server.chunk import Chunk
from server.errors import (
    DatabaseUnavailable,
    ExportError,
    NoSpaceLeft,
    QueryCancelled,
    ServerBusy,
    SnapshotConflict,
    StorageUnavailable,
)
from server.export.engine import Engine
from server.export.pipeline import open_export
from server.query.request import parse_export_request
from server.saved.claim import Claim, Part
from server.saved.queue import Queue

log = structlog.stdlib.get_logger("sluice.exports")

P = ParamSpec("P")
Result = TypeVar("Result")

# Seconds between two looks at the folder: how long an export waits that another process has left or accepted.
LOOK_SECONDS = 1.0
# Seconds between two notes of the progress of an export, and looks at whether it has been cancelled.
NOTE_SECONDS = 0.25
# Bytes that may wait for the disk. The writing thread has to wait for the encoder again and again (Python's lock), so
# one chunk alone would make the scan wait for it in turn.
AHEAD_BYTES = 4 << 20
# Seconds that a DELETE waits for the process that runs the export; the cancellation holds in any case.
END_SECONDS = 5.0
# Seconds before an export is tried again, doubled each time, and the most of them.
FIRST_BACKOFF, MOST_BACKOFF = 1.0, 60.0
# Seconds before another look at an export that could not be ended, or at any where the disk is full.
SET_ASIDE_SECONDS = 6.0
# How often the database, or the folder, may go away in the middle of one export: a restart is forgiven, a query that
# brings the database down each time is not.
MOST_SETBACKS = 20


class Runner:
    """The saved exports that this process makes. Open it after the fork, on the loop that uses it."""

    def __init__(self, queue: Queue, engine: Engine) -> None:
        self.queue = queue
        self.stopping = asyncio.Event()
        self._engine = engine
        self._woken = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        # Seconds that the database has been given so far to come back, and when it is next asked.
        self._pause = 0.0
        self._resume_at = 0.0
        # Runner that could not even be ended, and when each is next looked at: the others do not wait for them.
        self._set_aside: dict[str, float] = {}

    async def __aenter__(self) -> Runner:
        with contextlib.suppress(ExportError):  # said in the log; downloads work all the same
            await asyncio.to_thread(self.queue.prepare)
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Give back what is running, at once, for the next process that sees it."""
        self.stopping.set()
        self._woken.set()
        if self._watcher is not None:
            await asyncio.wait([self._watcher])  # not cancelled: it may be taking one from the folder just now
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running.values()))

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def delete(self, id: str) -> None:
        """Cancel the export, or remove it if it has ended. Raises ExportNotFound, ExportUnreadable, ServerBusy."""
        deadline = asyncio.get_running_loop().time() + END_SECONDS
        entry = await asyncio.to_thread(self.queue.store.get, id)
        if not entry.manifest.finished:
            while not await asyncio.to_thread(self.queue.cancel, id):
                if asyncio.get_running_loop().time() > deadline:
                    return
                await asyncio.sleep(0.05)
            entry = await asyncio.to_thread(self.queue.store.get, id)
            if entry.manifest.status == "cancelled":
                return
        while not await asyncio.to_thread(self.queue.remove, id):
            if asyncio.get_running_loop().time() > deadline:
                raise ServerBusy("The export is in use.", hint="Try again in a moment.")
            await asyncio.sleep(0.05)

    async def _watch(self) -> None:
        while not self.stopping.is_set():
            self._woken.clear()
            try:
                await asyncio.to_thread(self.queue.sweep)
                while not self.stopping.is_set() and await self._take_one():
                    pass
            except (StorageUnavailable, NoSpaceLeft):
                pass  # said in the log once; the folder may come back
            except Exception:
                log.exception("looking after saved exports failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_SECONDS)

    async def _take_one(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._resume_at:
            return False
        self._set_aside = {id: until for id, until in self._set_aside.items() if until > now}
        claim = await asyncio.to_thread(self.queue.claim, {*self._running, *self._set_aside})
        if claim is None:
            return False
        task = asyncio.create_task(self._run(claim))
        self._running[claim.manifest.id] = task
        return True

    async def _run(self, claim: Claim) -> None:
        """One attempt, and its end."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(exportId=claim.manifest.id, relation=claim.manifest.relation)
        saving = asyncio.create_task(self._save(claim))
        with contextlib.suppress(asyncio.CancelledError):  # the state on the disk is to be right all the same
            await _until_done_or_cancelled(saving, claim)
        # A task of its own, which a server that stops does not cancel: its threads use what `close` lets go of.
        await _ended(asyncio.create_task(self._end_and_close(claim, saving)))

    async def _end_and_close(self, claim: Claim, saving: asyncio.Task[None]) -> None:
        try:
            await self._end(claim, saving)
        except Exception as error:
            # The disk is full, or broken: whoever sees the export next does with it what is right then.
            log.warning("a saved export could not be ended", reason=str(error))
            if isinstance(error, NoSpaceLeft | StorageUnavailable):
                self._pause_for(SET_ASIDE_SECONDS)
            else:
                self._set_aside[claim.manifest.id] = asyncio.get_running_loop().time() + SET_ASIDE_SECONDS
        finally:
            await asyncio.to_thread(claim.close)
            del self._running[claim.manifest.id]
            self.wake()

    async def _save(self, claim: Claim) -> None:
        """The whole way: request → plan → chunks → file."""
        wanted = parse_export_request(claim.manifest.target, claim.manifest.query)
        async with open_export(self._engine, wanted) as export:
            self._pause = 0.0
            part = await _in_thread(claim.begin, export.snapshot_at)
            await _write(part, export.chunks())
        await _in_thread(claim.complete, part)

    async def _end(self, claim: Claim, saving: asyncio.Task[None]) -> None:
        """What becomes of the export after this attempt."""
        manifest = claim.manifest
        if not await asyncio.to_thread(claim.in_place):
            log.warning("export removed by hand")
        elif manifest.status == "completed":
            log.info("export saved", rows=manifest.rows, bytes=manifest.bytes, attempts=manifest.attempts)
        elif await asyncio.to_thread(claim.cancel_wanted):
            log.info("export cancelled")
            await asyncio.to_thread(claim.cancel)
        elif saving.cancelled():
            log.info("export stopped")
            await asyncio.to_thread(claim.give_back)
        else:
            await self._end_after(claim, saving.exception())

    async def _end_after(self, claim: Claim, error: BaseException | None) -> None:
        if isinstance(error, ServerBusy) or (isinstance(error, DatabaseUnavailable) and not claim.begun):
            # Nothing has been done yet, and nothing is said against this export.
            busy = isinstance(error, ServerBusy)
            self._pause_for(FIRST_BACKOFF if busy else min(max(self._pause * 2, FIRST_BACKOFF), MOST_BACKOFF))
            return
        if not isinstance(error, ExportError):
            log.error("an export failed", exc_info=error)
            reason = ExportError("Something went wrong in the server; its log says what.")
        else:
            reason = error
        forgiven = isinstance(error, DatabaseUnavailable | SnapshotConflict | StorageUnavailable)
        again = forgiven or reason.transient or isinstance(error, QueryCancelled) or reason is not error
        tries = claim.manifest.setbacks if forgiven else claim.attempts_with_this
        spent = tries >= (MOST_SETBACKS if forgiven else claim.max_attempts)
        if again and not spent:
            after = min(FIRST_BACKOFF * 2 ** min(tries, 10), MOST_BACKOFF)
            log.warning("export will be tried again", code=reason.code, reason=reason.detail, seconds=after)
            await asyncio.to_thread(claim.give_back, counted=not forgiven, setback=forgiven, after=after)
        else:
            log.warning("export failed", code=reason.code, reason=reason.detail)
            await asyncio.to_thread(claim.fail, reason)

    def _pause_for(self, seconds: float) -> None:
        """Take no other export for so long."""
        self._pause = seconds
        self._resume_at = asyncio.get_running_loop().time() + seconds


async def _until_done_or_cancelled(saving: asyncio.Task[None], claim: Claim) -> None:
    try:
        while not (await asyncio.wait([saving], timeout=NOTE_SECONDS))[0]:
            await _in_thread(claim.note_progress)
            if await _in_thread(claim.cancel_wanted):
                return
    finally:
        # Also when the server stops: what has been opened is closed before the export is given back.
        saving.cancel()
        await _ended(saving)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for the end of this task, whoever asks the waiting one to end meanwhile."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def _in_thread(work: Callable[P, Result], *arguments: P.args, **named: P.kwargs) -> Result:
    """Disk work that is whole, or not begun, when this ends: a thread cannot be cancelled."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments, **named))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _ended(task)
        if not task.cancelled():
            task.exception()  # seen here, since nobody else will ask for it
        raise


async def _write(part: Part, chunks: AsyncGenerator[Chunk, None]) -> None:
    """Write the chunks while the next ones are being fetched and encoded, and no more than AHEAD_BYTES behind."""
    waiting: list[Chunk] = []
    writing: asyncio.Task[None] | None = None
    async with contextlib.aclosing(chunks):
        try:
            async for chunk in chunks:
                waiting.append(chunk)
                if writing is not None and not writing.done():
                    if sum(len(each.data) for each in waiting) < AHEAD_BYTES:
                        continue
                    await asyncio.shield(writing)
                if writing is not None:
                    writing.result()
                writing = asyncio.create_task(asyncio.to_thread(part.write, waiting))
                waiting = []
            if writing is not None:
                await asyncio.shield(writing)
        finally:
            if writing is not None:
                await asyncio.wait([writing])  # it must not outlive its file
                if not writing.cancelled():
                    writing.exception()
    if waiting:
        await _in_thread(part.write, waiting)

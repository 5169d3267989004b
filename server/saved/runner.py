"""Runs saved exports: takes the next one from the queue, writes its file, and records the outcome of the attempt.

Each worker process has one runner; they share nothing but the folder. Reads rows exactly as a download does, through
`open_export`. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, TypeVar

from server.errors import TRY_AGAIN, DatabaseUnavailable, ExportError, ServerBusy
from server.events import emit, set_context
from server.export.engine import Engine
from server.export.pipeline import open_export
from server.query.request import parse_export_request
from server.saved import retries
from server.saved.claim import Claim, LockLost
from server.saved.errors import NoSpaceLeft, StorageUnavailable
from server.saved.events import (
    ExportCancelled,
    ExportCrashed,
    ExportFolderRemoved,
    ExportGivenUp,
    ExportLockLost,
    ExportNotEnded,
    ExportPostponed,
    ExportSaved,
    ExportStopped,
    QueueCrashed,
    StopTimedOut,
)
from server.saved.manifest import Reading
from server.saved.queue import Queue
from server.saved.writer import open_writer
from server.shutdown import GIVE_BACK_SECONDS
from server.threads import cancel_and_wait, in_thread

Result = TypeVar("Result")

# Seconds between two polls of the folder. An export that another process has accepted or given back waits at most this
# long.
POLL_SECONDS = 1.0
# Seconds between two progress files of an export, and between two checks for a cancellation.
PROGRESS_SECONDS = 0.25
# Seconds that DELETE waits for the process that runs the export. The cancellation takes effect in any case.
DELETE_SECONDS = 5.0
# Seconds that a starting server waits for the folder. A disk that answers takes milliseconds.
START_SECONDS = 5.0
# Seconds until the next attempt at an export whose outcome could not be written, or at any export if the disk is full.
UNWRITABLE_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt of this process. saving: writes the file. running: waits for that and records the outcome."""

    saving: asyncio.Task[None]
    running: asyncio.Task[None]


class Runner:
    """The saved exports that this process runs. Open it after the fork, on the event loop that uses it."""

    def __init__(self, queue: Queue, engine: Engine) -> None:
        self.queue = queue
        self.stopping = asyncio.Event()
        self._engine = engine
        self._woken = asyncio.Event()
        self._prepared = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        # The attempts of this process, by id.
        self._running: dict[str, _Attempt] = {}
        # Seconds of the current back-off, and when (event loop's time) the next export may be claimed.
        self._backoff = 0.0
        self._resume_at = 0.0
        # Exports whose outcome could not be written, and when each is tried again: the others do not wait for them.
        self._set_aside: dict[str, float] = {}
        self._timed_out = False

    async def __aenter__(self) -> Runner:
        self._poller = asyncio.create_task(self._poll())
        with contextlib.suppress(TimeoutError):  # a folder that does not answer must not keep the server from starting
            await asyncio.wait_for(self._prepared.wait(), START_SECONDS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(0.0 if self.stopping.is_set() else GIVE_BACK_SECONDS)

    async def stop(self, seconds: float) -> None:
        """Stop all exports at once and give them back to the queue. Wait for that, at most `seconds`.

        May be called again. An export that was not given back in time is recovered by the next process that finds its
        lock released, as after a crash.
        """
        self.stopping.set()
        self._woken.set()
        for attempt in self._running.values():
            attempt.saving.cancel()
        # The poller is not cancelled: it may be claiming an export, which it then closes.
        tasks = {each.running for each in self._running.values()} | ({self._poller} if self._poller else set())
        left = (await asyncio.wait(tasks, timeout=seconds))[1] if tasks else ()
        if left and not self._timed_out:
            self._timed_out = True
            emit(StopTimedOut(running=len(self._running)))

    def wake(self) -> None:
        """Poll the queue now: there may be an export to run."""
        self._woken.set()

    async def delete(self, id: str) -> None:
        """Cancel the export, or remove it if it has finished.

        Raise ExportNotFound, ExportUnreadable, ServerBusy, StorageUnavailable, NoSpaceLeft.
        """
        deadline = asyncio.get_running_loop().time() + DELETE_SECONDS
        entry = await self._in_thread(self.queue.store.get, id)
        if not entry.manifest.finished:
            while not await self._in_thread(self.queue.cancel, id):
                if asyncio.get_running_loop().time() > deadline:
                    return
                await asyncio.sleep(0.05)
            entry = await self._in_thread(self.queue.store.get, id)
            if entry.manifest.status == "cancelled":
                return
        while not await self._in_thread(self.queue.remove, id):
            if asyncio.get_running_loop().time() > deadline:
                raise ServerBusy("The export is in use.", hint=TRY_AGAIN)
            await asyncio.sleep(0.05)

    async def _in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await in_thread(self._engine.threads.files, work, *arguments)

    async def _poll(self) -> None:
        """Prepare the folder, then run what waits in it until the server stops."""
        try:
            await self._in_thread(self.queue.prepare)
        except ExportError:
            pass  # logged; downloads work without the folder
        except Exception as error:
            emit(QueueCrashed(error=error))
        self._prepared.set()
        clock, sweep_at = asyncio.get_running_loop().time, 0.0
        while not self.stopping.is_set():
            self._woken.clear()
            try:
                if clock() >= sweep_at:  # and not each time that an export ends
                    sweep_at = clock() + POLL_SECONDS
                    await self._in_thread(self.queue.sweep)
                while not self.stopping.is_set() and await self._start_next():
                    pass
            except (StorageUnavailable, NoSpaceLeft):
                pass  # logged once; the folder may come back
            except Exception as error:
                emit(QueueCrashed(error=error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), max(0.0, sweep_at - clock()))

    async def _start_next(self) -> bool:
        """Start an attempt at the next export. Return whether there was one."""
        now = asyncio.get_running_loop().time()
        if now < self._resume_at:
            return False
        self._set_aside = {id: until for id, until in self._set_aside.items() if until > now}
        skipped = {*self._running, *self._set_aside}
        claim = await in_thread(self._engine.threads.files, self.queue.claim, skipped, discard=_close)
        if claim is None:
            return False
        if self.stopping.is_set():
            await self._in_thread(claim.close)
            return False
        context = contextvars.copy_context()
        context.run(set_context, export_id=claim.manifest.id, relation=claim.manifest.relation)
        saving = asyncio.create_task(self._save(claim), context=context)
        running = asyncio.create_task(self._run(claim, saving), context=context)
        self._running[claim.manifest.id] = _Attempt(saving, running)
        return True

    async def _run(self, claim: Claim, saving: asyncio.Task[None]) -> None:
        """Wait for the attempt and record its outcome. Never cancelled: only `saving` is, when the server stops."""
        watching = asyncio.create_task(self._watch(claim, saving))
        await asyncio.wait([saving])
        await cancel_and_wait(watching)
        await self._finish(claim, saving)

    async def _save(self, claim: Claim) -> None:
        """Write the file: request → plan → chunks → file."""
        request = parse_export_request(claim.manifest.target, claim.manifest.query)
        async with open_writer(self._engine.threads.files, claim) as writer:
            async with open_export(self._engine, request, told=True) as export:
                self._backoff = 0.0
                outline = await export.outline()
                reading = Reading(snapshot_at=export.snapshot_at, scan=outline.name, ranges=outline.ranges)
                await writer.write(export.chunks(), reading)
            await writer.complete()

    async def _watch(self, claim: Claim, saving: asyncio.Task[None]) -> None:
        """Save the progress until the attempt has ended. Cancel it if this was requested or the lock is lost."""
        while not (await asyncio.wait([saving], timeout=PROGRESS_SECONDS))[0]:
            with contextlib.suppress(OSError):  # the next call may succeed
                try:
                    await self._in_thread(claim.save_progress)
                    cancel = await self._in_thread(claim.cancel_requested)
                except LockLost:
                    cancel = True
                if cancel:
                    saving.cancel()
                    return

    async def _finish(self, claim: Claim, saving: asyncio.Task[None]) -> None:
        """Record the outcome, and release the claim even if the disk fails."""
        id = claim.manifest.id
        try:
            await self._record_outcome(claim, saving)
        except LockLost:
            emit(ExportLockLost())
        except Exception as error:
            # The disk is full or broken. The next process that sees the export recovers it.
            emit(ExportNotEnded(reason=str(error)))
            if isinstance(error, NoSpaceLeft | StorageUnavailable):
                self._pause(UNWRITABLE_SECONDS)
            else:
                self._set_aside[id] = asyncio.get_running_loop().time() + UNWRITABLE_SECONDS
        finally:
            try:
                await self._in_thread(self.queue.release, claim)
            finally:
                del self._running[id]
                self.wake()

    async def _record_outcome(self, claim: Claim, saving: asyncio.Task[None]) -> None:
        manifest = claim.manifest
        error = None if saving.cancelled() else saving.exception()
        if not await self._in_thread(claim.in_place):
            emit(ExportFolderRemoved())
        elif manifest.status == "completed":
            emit(ExportSaved(rows=manifest.rows, bytes=manifest.bytes, attempts=manifest.attempts))
        elif isinstance(error, LockLost):
            raise error
        elif await self._in_thread(claim.cancel_requested):
            await self._in_thread(claim.cancel)
            emit(ExportCancelled())
        elif saving.cancelled():
            await self._in_thread(claim.give_back)
            emit(ExportStopped())
        else:
            await self._record_error(claim, error)

    async def _record_error(self, claim: Claim, error: BaseException | None) -> None:
        """Try the export again later, or fail it for this error."""
        if isinstance(error, ServerBusy) or (isinstance(error, DatabaseUnavailable) and not claim.started):
            # Nothing has been done yet, and the reason has nothing to do with this export: it keeps its place.
            busy = isinstance(error, ServerBusy)
            first, most = retries.FIRST_BACKOFF, retries.MOST_BACKOFF
            self._pause(first if busy else min(max(self._backoff * 2, first), most))
            return
        if isinstance(error, ExportError):
            reason = error
        else:
            emit(ExportCrashed(error=error))
            reason = ExportError("An unexpected error occurred in the server. Its log shows the error.")
        retry = retries.next_attempt(error, claim)
        if retry is not None:
            await self._in_thread(functools.partial(claim.give_back, **asdict(retry)))
            emit(ExportPostponed(code=reason.code, sqlstate=reason.sqlstate, reason=reason.detail, seconds=retry.after))
        else:
            await self._in_thread(claim.fail, reason)
            emit(ExportGivenUp(code=reason.code, sqlstate=reason.sqlstate, reason=reason.detail))

    def _pause(self, seconds: float) -> None:
        """Claim no export for this time."""
        self._backoff = seconds
        self._resume_at = asyncio.get_running_loop().time() + seconds


def _close(claim: Claim | None) -> None:
    """Release a claim that a cancelled caller does not get."""
    if claim is not None:
        claim.close()

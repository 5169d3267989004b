"""Stopping on SIGTERM: exports return to the queue, within a limit, and no lock is released before that is written."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.events import Event
from server.postgres.database import Database
from server.saved.claim import Claim, Part
from server.saved.events import ExportStopped, StopTimedOut
from server.saved.manifest import Manifest, Reading
from server.saved.queue import Queue
from server.saved.runner import Runner
from tests.support.engines import make_engine
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.postgres import Postgres
from tests.support.saved_exports import Gate, assert_whole, save, status, wait_for
from tests.support.saved_queue import created, fail, is_locked, make_queue, open_below, statuses


class Disk:
    """Makes calls hang until `answer` is set. calls: how many have been made."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer = threading.Event()
        self._lock = threading.Lock()

    def hang(self) -> None:
        with self._lock:
            self.calls += 1
        assert self.answer.wait(60)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.answer.set()


@pytest.fixture
async def runner(tmp_path: Path, database: Database) -> Runner:
    """A runner that starts nothing by itself."""
    return Runner(make_queue(tmp_path, max_running_exports=3), make_engine(database))


async def test_the_outcome_of_an_export_is_written_before_its_lock_is_released(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    id = created(runner.queue)
    write = Claim._write

    def slowly(claim: Claim, manifest: Manifest) -> None:
        disk.hang()
        write(claim, manifest)

    monkeypatch.setattr(Claim, "_write", slowly)
    monkeypatch.setattr(runner, "_save", fail)
    assert await runner._start_next()
    await eventually("the outcome is being written", lambda: disk.calls)
    stopping = asyncio.create_task(runner.stop(60))
    for _ in range(10):  # until the cancellation has arrived
        await asyncio.sleep(0)
    assert is_locked(runner.queue, id)
    assert not stopping.done()
    disk.answer.set()
    await stopping
    assert runner.queue.store.get(id).manifest.status == "failed"
    assert not is_locked(runner.queue, id)


@pytest.mark.parametrize("call", ["start", "write", "finish", "complete", "save_progress", "close"])
async def test_stopping_is_bounded_if_the_disk_hangs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk, emitted: list[Event], tmp_path: Path, call: str
) -> None:
    """The disk may hang in any call. When it answers again, the exports are still given back."""
    owner = Part if call in ("write", "finish") else Claim
    real = getattr(owner, call)

    def hanging(self: object, *arguments: object) -> object:
        disk.hang()
        return real(self, *arguments)

    monkeypatch.setattr(owner, call, hanging)
    if call == "save_progress":  # which runs next to the export
        monkeypatch.setattr("server.saved.runner.PROGRESS_SECONDS", 0.0)
    ids = [created(runner.queue) for _ in range(3)]
    for _ in ids:
        assert await runner._start_next()
    await eventually("all wait for the disk", lambda: disk.calls == 3)
    await runner.stop(0.05)
    assert [event for event in emitted if isinstance(event, StopTimedOut)] == [StopTimedOut(running=3)]
    # The sessions have not waited for the disk.
    await eventually("the database has its connections back", lambda: not runner._engine.database._connections._in_use)
    await runner.stop(0.05)
    await runner.__aexit__(None, None, None)
    assert sum(isinstance(event, StopTimedOut) for event in emitted) == 1
    disk.answer.set()
    await runner.stop(60)
    assert not runner._running
    assert set(statuses(runner.queue).values()) <= {"pending", "completed"}
    assert open_below(tmp_path) == []


async def test_stopping_does_not_wait_for_a_queue_that_hangs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk, emitted: list[Event]
) -> None:
    monkeypatch.setattr(Queue, "sweep", lambda queue: disk.hang())
    async with runner:
        await eventually("the queue hangs", lambda: disk.calls)
        await runner.stop(0.05)
    assert emitted == [StopTimedOut(running=0)]
    disk.answer.set()
    await runner.stop(60)


async def test_leaving_the_runner_is_bounded_too(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk, emitted: list[Event]
) -> None:
    monkeypatch.setattr("server.saved.runner.GIVE_BACK_SECONDS", 0.05)
    monkeypatch.setattr(Queue, "sweep", lambda queue: disk.hang())
    async with runner:
        await eventually("the queue hangs", lambda: disk.calls)
    assert emitted == [StopTimedOut(running=0)]
    disk.answer.set()
    await runner.stop(60)


async def test_starting_does_not_wait_for_a_folder_that_hangs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    monkeypatch.setattr("server.saved.runner.START_SECONDS", 0.05)
    monkeypatch.setattr(Queue, "prepare", lambda queue: disk.hang())
    id = created(runner.queue)
    async with runner:
        assert disk.calls
        disk.answer.set()
        await eventually("the export runs", lambda: statuses(runner.queue) == {id: "completed"}, seconds=60)


async def test_an_export_claimed_while_the_server_stops_is_not_started(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk, emitted: list[Event], tmp_path: Path
) -> None:
    id = created(runner.queue)
    claim = Queue.claim

    def slowly(queue: Queue, skipped: object) -> Claim | None:
        disk.hang()
        return claim(queue)

    monkeypatch.setattr(Queue, "claim", slowly)
    async with runner:
        await eventually("it is being claimed", lambda: disk.calls)
        await runner.stop(0.05)
        disk.answer.set()
        await runner.stop(60)
    assert statuses(runner.queue) == {id: "pending"}
    assert open_below(tmp_path) == []


async def test_an_attempt_that_is_stopped_before_its_first_step_is_given_back(
    runner: Runner, emitted: list[Event], tmp_path: Path
) -> None:
    ids = [created(runner.queue) for _ in range(3)]
    for _ in ids:
        assert await runner._start_next()
    await runner.stop(60)
    assert emitted == [ExportStopped()] * 3
    assert statuses(runner.queue) == dict.fromkeys(ids, "pending")
    assert {entry.manifest.attempts for entry in runner.queue.store.newest_first()} == {0}
    assert not any(is_locked(runner.queue, id) for id in ids)
    assert open_below(tmp_path) == []  # no slot either


async def test_a_claim_that_arrives_after_the_cancellation_of_its_caller_is_released(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, disk: Disk, tmp_path: Path
) -> None:
    id = created(runner.queue)
    claim = Queue.claim

    def slowly(queue: Queue, skipped: object) -> Claim | None:
        claimed = claim(queue)
        disk.hang()
        return claimed

    monkeypatch.setattr(Queue, "claim", slowly)
    starting = asyncio.create_task(runner._start_next())
    await eventually("it has been claimed", lambda: disk.calls)
    assert is_locked(runner.queue, id)
    starting.cancel()
    for _ in range(10):  # until the cancellation has arrived
        await asyncio.sleep(0)
    assert not starting.done()
    disk.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not is_locked(runner.queue, id)
    assert open_below(tmp_path) == []  # no slot either
    assert statuses(runner.queue) == {id: "pending"}


async def test_all_exports_are_given_back_at_once(runner: Runner, emitted: list[Event], tmp_path: Path) -> None:
    async def never_end(claim: Claim) -> None:
        claim.start(Reading())
        await asyncio.Event().wait()

    runner._save = never_end  # type: ignore[method-assign]
    ids = [created(runner.queue) for _ in range(3)]
    for _ in ids:
        assert await runner._start_next()
    await eventually("all run", lambda: set(statuses(runner.queue).values()) == {"processing"})
    await runner.stop(60)
    assert emitted == [ExportStopped()] * 3
    assert statuses(runner.queue) == dict.fromkeys(ids, "pending")
    assert {entry.manifest.attempts for entry in runner.queue.store.newest_first()} == {0}
    assert open_below(tmp_path) == []
    await runner.stop(0)  # once more does nothing
    assert len(emitted) == 3


async def test_a_runner_that_was_never_started_stops(runner: Runner) -> None:
    await runner.stop(60)


@pytest.mark.slow
def test_a_stopping_server_gives_its_exports_back(
    start_live: Callable[..., LiveServer], tmp_path: Path, postgres: Postgres, gate: Gate
) -> None:
    first = start_live(EXPORT_STORAGE_PATH=str(tmp_path), SHUTDOWN_TIMEOUT="60", EXPORT_MAX_ATTEMPTS="1")
    ids = [save(first, "gated.csv") for _ in range(3)]
    wait_until("two wait at the gate", lambda: len(gate.waiting(postgres)) == 2)
    # It would wait 60 s for downloads, and the exports have not finished.
    assert first.stop(signal.SIGTERM, seconds=30) == 0
    assert not gate.waiting(postgres)
    second = start_live(EXPORT_STORAGE_PATH=str(tmp_path), EXPORT_MAX_ATTEMPTS="1")
    wait_until("two wait at the gate", lambda: len(gate.waiting(postgres)) == 2)
    assert status(second, ids[2])["status"] == "pending"
    gate.open()
    for id in ids:
        document = wait_for(second, id, "completed")
        assert document["attempts"] == 1
        assert_whole(tmp_path, document, gate.content)

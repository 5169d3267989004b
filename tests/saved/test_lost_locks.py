"""A lock that is lost while an export runs, as on a network file system: the loser publishes and writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.chunk import Chunk
from server.errors import QueryFailed
from server.events import Event
from server.postgres.database import Database
from server.saved import durable_files
from server.saved.claim import Claim, LockLost, Part
from server.saved.events import ExportLeftAlone, ExportLockLost
from server.saved.lock import LOCK
from server.saved.manifest import Reading
from server.saved.runner import Runner
from server.saved.writer import Writer
from tests.support.engines import make_engine
from tests.support.live_server import eventually
from tests.support.saved_queue import claimed, completed, created, finish, make_queue, open_below, snapshot, statuses

# Descriptors of the other holders, to be closed after the test.
OTHERS: list[int] = []


def lose_the_flock(claim: Claim, path: Path) -> None:
    """Another descriptor takes the lock after ours was dropped."""
    fcntl.flock(claim._lock._descriptor, fcntl.LOCK_UN)
    other = os.open(path / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    OTHERS.append(other)


def replace_the_lock_file(claim: Claim, path: Path) -> None:
    """Our lock is on a file that no longer has the name."""
    (path / "lock").rename(path / "old")
    (path / "lock").touch(mode=0o600)


def remove_the_lock_file(claim: Claim, path: Path) -> None:
    (path / "lock").unlink()


def write_another_manifest(claim: Claim, path: Path) -> None:
    """Another process had the lock for a moment, wrote the manifest and released the lock again."""
    count_another_attempt(path)


def count_another_attempt(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["attempts"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest))


def break_the_manifest(claim: Claim, path: Path) -> None:
    (path / "manifest.json").write_text("{}")


def remove_the_manifest(claim: Claim, path: Path) -> None:
    (path / "manifest.json").unlink()


LOSSES = [
    lose_the_flock,
    replace_the_lock_file,
    remove_the_lock_file,
    write_another_manifest,
    break_the_manifest,
    remove_the_manifest,
]


@pytest.fixture(autouse=True)
def close_others() -> Iterator[None]:
    yield
    while OTHERS:
        os.close(OTHERS.pop())


def complete(claim: Claim, part: Part) -> None:
    claim.complete(part)


def fail(claim: Claim, part: Part) -> None:
    claim.fail(QueryFailed("x"))


def cancel(claim: Claim, part: Part) -> None:
    claim.cancel()


def give_back(claim: Claim, part: Part) -> None:
    claim.give_back(counted=True)


def start(claim: Claim, part: Part) -> None:
    claim.start(Reading())


ENDS = [complete, fail, cancel, give_back, start]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("end", ENDS)
def test_a_claim_without_its_lock_writes_nothing(
    tmp_path: Path, lose: Callable[[Claim, Path], None], end: Callable[[Claim, Part], None]
) -> None:
    queue = make_queue(tmp_path)
    path = tmp_path / created(queue)
    with contextlib.closing(claimed(queue)) as claim:
        part = claim.start(Reading())
        part.write([Chunk(b"ours", 1)])
        claim.save_progress()
        lose(claim, path)
        (path / "data.csv").write_text("theirs")
        (path / "data.csv.0000000000000000.part").write_text("theirs")
        before = snapshot(path)
        with pytest.raises(LockLost):
            end(claim, part)
        after = snapshot(path)
    if end is complete:  # the progress is written before the lock is checked
        before.pop("progress.json")
        after.pop("progress.json")
    assert after == before


@pytest.mark.parametrize("lose", LOSSES)
def test_the_progress_is_not_written_without_the_lock(tmp_path: Path, lose: Callable[[Claim, Path], None]) -> None:
    queue = make_queue(tmp_path)
    path = tmp_path / created(queue)
    with contextlib.closing(claimed(queue)) as claim:
        claim.start(Reading()).write([Chunk(b"ours", 1)])
        lose(claim, path)
        before = snapshot(path)
        with pytest.raises(LockLost):
            claim.save_progress()
        assert snapshot(path) == before


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("name", ["manifest.json", "data.csv"])
def test_the_lock_is_checked_right_before_each_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Claim, Path], None], name: str
) -> None:
    """The lock is lost during the fsync before: of the part file, or of the manifest."""
    queue = make_queue(tmp_path)
    path = tmp_path / created(queue)
    with contextlib.closing(claimed(queue)) as claim:
        part = claim.start(Reading())
        part.write([Chunk(b"ours", 1)])
        fsync = os.fsync
        waiting = 1 if name == "data.csv" else 3  # the part file, the folder, the manifest

        def slow_fsync(descriptor: int) -> None:
            nonlocal waiting
            fsync(descriptor)
            waiting -= 1
            if not waiting:
                lose(claim, path)

        monkeypatch.setattr(os, "fsync", slow_fsync)
        before = (path / "manifest.json").read_bytes()
        with pytest.raises(LockLost):
            claim.complete(part)
        assert (path / "data.csv").exists() == (name == "manifest.json")
        if lose in LOSSES[:3]:
            assert (path / "manifest.json").read_bytes() == before
        assert not list(path.glob("*.tmp"))


def test_two_holders_never_publish_the_bytes_of_each_other(tmp_path: Path) -> None:
    queue, other = make_queue(tmp_path), make_queue(tmp_path)
    id = created(queue)
    with contextlib.closing(claimed(queue)) as loser:
        part = loser.start(Reading())
        part.write([Chunk(b"loser\n", 1)])
        # As a file server does that has lost its locks.
        fcntl.flock(loser._lock._descriptor, fcntl.LOCK_UN)
        other.sweep()
        winner = claimed(other)
        whole = winner.start(Reading())
        part.write([Chunk(b"loser\n", 1)])
        whole.write([Chunk(b"winner\n", 1)])
        with pytest.raises(LockLost):
            loser.complete(part)
        winner.complete(whole)
        winner.close()
        with pytest.raises(LockLost):
            loser.fail(QueryFailed("x"))
    assert statuses(queue) == {id: "completed"}
    assert (tmp_path / id / "data.csv").read_bytes() == b"winner\n"
    assert not list((tmp_path / id).glob("*.part"))


@pytest.mark.parametrize("call", ["cancel", "sweep"])
def test_the_queue_ends_nothing_whose_lock_it_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emitted: list[Event], call: str
) -> None:
    queue = make_queue(tmp_path)
    id = created(queue)
    claim = claimed(queue)
    claim.start(Reading())
    claim.close()
    requested = Claim.cancel_requested

    def lose(claim: Claim) -> bool:
        lose_the_flock(claim, tmp_path / id)
        return requested(claim)

    monkeypatch.setattr(Claim, "cancel_requested", lose)
    monkeypatch.setattr(Claim, "cancel", lambda claim: (lose(claim), claim._remove_files()))
    before = (tmp_path / id / "manifest.json").read_bytes()
    if call == "cancel":
        assert not queue.cancel(id)
    else:
        queue.sweep()
    assert (tmp_path / id / "manifest.json").read_bytes() == before
    assert ExportLockLost(export_id=id) in emitted


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("way", ["completes", "fails", "is cancelled", "is stopped"])
async def test_a_runner_that_loses_the_lock_says_so_and_leaves_the_folder_alone(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    emitted: list[Event],
    lose: Callable[[Claim, Path], None],
    way: str,
) -> None:
    # Only the end of the attempt notices the loss.
    monkeypatch.setattr("server.saved.runner.PROGRESS_SECONDS", 0.01 if way == "is cancelled" else 60.0)
    monkeypatch.setattr(Claim, "save_progress", lambda claim: None)
    queue = make_queue(tmp_path)
    runner = Runner(queue, make_engine(database))
    path = tmp_path / created(queue)
    held = asyncio.Event()
    lost = asyncio.Event()
    begin = Claim.start

    def start_and_lose(claim: Claim, reading: Reading) -> Part:
        part = begin(claim, reading)
        lose(claim, path)
        taken.update(snapshot(path))
        loop.call_soon_threadsafe(lost.set)
        return part

    complete = Writer.complete

    async def complete_later(writer: Writer) -> None:
        if way == "fails":
            raise QueryFailed("x")
        await held.wait()
        await complete(writer)

    taken: dict[str, tuple[int, bytes]] = {}
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Claim, "start", start_and_lose)
    monkeypatch.setattr(Writer, "complete", complete_later)
    assert await runner._start_next()
    (attempt,) = runner._running.values()
    await lost.wait()
    if way == "is cancelled":
        (path / "cancel").touch()
        taken = snapshot(path)
    elif way == "is stopped":
        await runner.stop(60)
    held.set()
    await attempt.running
    now = snapshot(path)
    # Apart from its own part file, whose name no other process uses.
    parts = {name for name in {**now, **taken} if name.endswith(".part")}
    for name in parts | {"progress.json"}:
        now.pop(name, None)
        taken.pop(name, None)
    assert now == taken
    # A broken manifest may have been noticed as well.
    assert [event for event in emitted if not isinstance(event, ExportLeftAlone)] == [ExportLockLost()]
    await eventually("nothing is running", lambda: not runner._running)


async def test_a_running_export_that_loses_its_lock_is_ended_at_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emitted: list[Event]
) -> None:
    """It does not read the rest of the rows, which it could not publish."""
    queue = make_queue(tmp_path)
    runner = Runner(queue, make_engine(database))
    path = tmp_path / created(queue)

    async def never_end(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Writer, "complete", never_end)
    assert await runner._start_next()
    await eventually("it has started", lambda: json.loads((path / "manifest.json").read_text())["attempts"] == 1)
    count_another_attempt(path)
    await asyncio.wait_for(next(iter(runner._running.values())).running, 60)
    # A broken manifest may have been noticed as well.
    assert [event for event in emitted if not isinstance(event, ExportLeftAlone)] == [ExportLockLost()]


def test_the_part_files_of_dead_attempts_are_removed(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, export_max_attempts=10)
    path = tmp_path / created(queue)
    names = set()
    for _ in range(3):
        claim = claimed(queue)
        claim.start(Reading()).write([Chunk(b"x", 1)])
        names |= {each.name for each in path.glob("*.part")}
        claim.close()
        queue.sweep()
        assert not list(path.glob("*.part"))
    assert len(names) == 3
    (path / "data.csv.part").touch()  # as versions with one fixed name have left it
    (path / "mine.part").touch()
    finish(claimed(queue))
    assert {each.name for each in path.iterdir()} == {
        *("lock", "manifest.json", "progress.json", "data.csv", "mine.part")
    }


@pytest.mark.parametrize("call", ["claim", "remove"])
def test_a_folder_that_is_removed_while_it_is_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    queue = make_queue(tmp_path)
    id = created(queue) if call == "claim" else completed(queue)
    try_lock = durable_files.try_lock

    def slow_lock(folder: int, name: str) -> int | None:
        descriptor = try_lock(folder, name)
        if name == LOCK:
            (tmp_path / id).rename(tmp_path / "removed")
        return descriptor

    monkeypatch.setattr(durable_files, "try_lock", slow_lock)
    if call == "claim":
        assert queue.claim() is None
    else:
        assert queue.remove(id)
    assert open_below(tmp_path) == []
    assert (tmp_path / "removed" / "manifest.json").exists()

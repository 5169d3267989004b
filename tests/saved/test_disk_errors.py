"""An error of the file system at every single step of a saved export: nothing stays locked or open."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import ExportError
from server.postgres.database import Database
from server.saved.errors import ExportFailed, ExportUnreadable, StorageUnavailable
from server.saved.manifest import Reading
from server.saved.queue import Queue
from server.saved.runner import Runner
from tests.support.engines import make_engine
from tests.support.failing_os import Calls
from tests.support.saved_queue import NEW, claimed, created, finish, make_queue, open_below, statuses

pytestmark = pytest.mark.slow

# More calls than an attempt makes: the test ends before.
MOST_CALLS = 400
# The error, and whether all later calls fail too.
ERRORS = [(errno.EIO, False), (errno.ESTALE, False), (errno.EIO, True)]


@pytest.fixture(autouse=True)
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.saved.retries.FIRST_BACKOFF", 0.0)
    monkeypatch.setattr("server.saved.runner.UNWRITABLE_SECONDS", 0.0)


async def run_next(runner: Runner) -> bool:
    """Run the next export of the queue to the end of its attempt. Return whether there was one."""
    try:
        found = await runner._start_next()
    except ExportError:
        return True  # the folder could not be used; it is tried again
    for attempt in list(runner._running.values()):
        await attempt.running
    return found


async def run_all(runner: Runner) -> None:
    """Run exports until none is left, as `Runner._poll` does."""
    for _ in range(10):
        runner.queue.sweep()
        if not await run_next(runner):
            return
    raise AssertionError("the queue does not become empty")


async def attempt(database: Database, path: Path, calls: Calls, patch: pytest.MonkeyPatch) -> tuple[Runner, list[str]]:
    """Make one attempt at the first of two exports, during which the chosen call fails."""
    queue = make_queue(path, max_running_exports=1, export_max_attempts=100, export_storage_limit=1 << 30)
    runner = Runner(queue, make_engine(database))
    ids = [queue.create(replace(NEW, query="limit=5")).manifest.id for _ in range(2)]
    with patch.context() as patched:
        calls.install(patched)
        await run_next(runner)
    return runner, ids


@pytest.mark.parametrize(("error", "lasting"), ERRORS)
async def test_an_error_in_any_call_of_an_attempt_leaves_nothing_locked_or_open(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, lasting: bool
) -> None:
    names: set[str] = set()
    for number in range(1, MOST_CALLS):
        path = tmp_path / str(number)
        calls = Calls(number, error, lasting=lasting)
        runner, ids = await attempt(database, path, calls, monkeypatch)
        names.update(calls.made)
        step = f"call {number}, {calls.made[number - 1] if calls.failed else 'none'}"
        assert open_below(path) == [], step
        for id in ids:
            if statuses(runner.queue)[id] == "completed":
                assert (path / id / "data.csv").read_bytes().count(b"\n") == 6, step
        with runner.queue.store.open_root() as root:
            slot = runner.queue._take_slot(root)
            assert slot is not None, step
            os.close(slot)
        await run_all(runner)
        assert statuses(runner.queue) == dict.fromkeys(ids, "completed"), step
        for id in ids:
            files = {each.name for each in (path / id).iterdir()}
            assert files == {"lock", "manifest.json", "progress.json", "data.csv"}, step
        assert open_below(path) == [], step
        if not calls.failed:
            break
    else:
        raise AssertionError("an attempt makes more calls")
    # Taking the lock, checking it, writing, publishing and releasing were all among them.
    assert {"open", "close", "dup", "stat", "fstat", "flock", "read", "write", "fsync", "rename", "listdir"} <= names


def interrupt(queue: Queue) -> None:
    created(queue)
    claim = claimed(queue)
    claim.start(Reading())
    claim.close()


def finish_one(queue: Queue) -> None:
    created(queue)
    finish(claimed(queue))


def request_cancellation(queue: Queue) -> None:
    (queue.store.path / created(queue) / "cancel").touch()


def use(queue: Queue, call: str, id: str) -> None:
    """Call this method of the queue or its store, and release what it returns."""
    if call == "claim":
        claim = queue.claim()
        if claim is not None:
            claim.close()
    elif call == "open_data":
        os.close(queue.store.open_data(id)[1])
    elif call == "newest_first":
        queue.store.newest_first()
    elif call in ("cancel", "remove"):
        getattr(queue, call)(id)
    else:
        getattr(queue, call)()


def expected(before: Callable[[Queue], None], call: str, *, refused: bool) -> set[str | None]:
    """Return the statuses that the export may have after the call and another sweep; None if it has been removed.

    refused: the call has raised an error. It may have had its effect before.
    """
    if before is request_cancellation:
        return {None} if call == "sweep" else {"cancelled"}  # the sweep also removes what has expired
    if before is finish_one:
        effect: str | None = None if call in ("sweep", "remove") else "completed"
        return {effect, "completed"} if refused and call == "remove" else {effect}
    if call == "cancel":
        return {"cancelled", "pending"} if refused else {"cancelled"}
    return {"pending"}


@pytest.mark.parametrize(("error", "lasting"), ERRORS)
@pytest.mark.parametrize("before", [interrupt, finish_one, request_cancellation])
@pytest.mark.parametrize("call", ["prepare", "sweep", "cancel", "remove", "claim", "newest_first", "open_data"])
def test_an_error_in_any_call_of_the_queue_leaves_nothing_locked_or_open(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    lasting: bool,
    before: Callable[[Queue], None],
    call: str,
) -> None:
    for number in range(1, MOST_CALLS):
        path = tmp_path / str(number)
        queue = make_queue(path, export_retention=0.000001 if call == "sweep" else 3600)
        before(make_queue(path))
        (entry,) = queue.store.newest_first()
        id = entry.manifest.id
        calls = Calls(number, error, lasting=lasting)
        refused = False
        with monkeypatch.context() as patched:
            calls.install(patched)
            try:
                use(queue, call, id)
            except (StorageUnavailable, ExportUnreadable, ExportFailed):
                refused = True
        step = f"call {number}, {calls.made[number - 1] if calls.failed else 'none'}"
        assert open_below(path) == [], step
        queue.sweep()
        found = statuses(queue).get(id)
        assert found in expected(before, call, refused=refused), step
        if found == "pending":
            finish(claimed(queue))
        if found is not None:
            assert queue.remove(id), step
        queue.sweep()  # removes what a removal that failed has left
        assert [each for each in path.iterdir() if not each.name.startswith((".secret", ".slot-", ".new-"))] == [], step
        assert open_below(path) == [], step
        if not calls.failed:
            return
    raise AssertionError("the method makes more calls")

"""The outcome of a saved export for each kind of error: tried again, forgiven, or failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import errors
from server.events import Event
from server.postgres.database import Database
from server.saved import errors as saved_errors
from server.saved.claim import Claim
from server.saved.events import QueueCrashed
from server.saved.manifest import Manifest, Reading
from server.saved.queue import Queue
from server.saved.retries import MOST_SETBACKS
from server.saved.runner import Runner
from server.settings import Settings
from tests.support.engines import make_engine, make_threads
from tests.support.live_server import eventually
from tests.support.saved_queue import claimed, created, fail, make_queue

AGAIN, FORGIVEN, FAILED, UNTOUCHED, WAITS = "again", "forgiven", "failed", "untouched", "waits"


@pytest.fixture
async def exports(tmp_path: Path) -> Runner:
    """A runner that starts nothing by itself."""
    queue = make_queue(tmp_path, export_max_attempts=3)
    settings = Settings(database_url="postgresql://nowhere.invalid/")
    return Runner(queue, make_engine(Database(settings, make_threads(settings)), native=False))


CASES = [
    (errors.ServerBusy("x"), UNTOUCHED, UNTOUCHED),
    (errors.DatabaseUnavailable("x"), UNTOUCHED, FORGIVEN),
    (errors.ConnectionLost("x"), UNTOUCHED, FORGIVEN),
    (errors.SnapshotConflict("x"), FORGIVEN, FORGIVEN),
    (saved_errors.StorageUnavailable("x"), FORGIVEN, FORGIVEN),
    (errors.QueryCancelled("x"), AGAIN, AGAIN),
    (errors.RelationChanged("x"), AGAIN, AGAIN),
    (errors.RelationGone("x"), AGAIN, AGAIN),
    (errors.RelationLocked("x"), WAITS, AGAIN),
    (ValueError("x"), AGAIN, AGAIN),
    (OSError("x"), AGAIN, AGAIN),
    (errors.RelationNotFound("x"), FAILED, FAILED),
    (errors.InvalidRequest("x"), FAILED, FAILED),
    (errors.Forbidden("x"), FAILED, FAILED),
    (errors.QueryFailed("x"), FAILED, FAILED),
    (errors.QueryTimeout("x"), FAILED, FAILED),
    (saved_errors.NoSpaceLeft("x"), FAILED, FAILED),
]


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(("error", "before", "after"), CASES, ids=lambda value: type(value).__name__)
async def test_the_outcome_of_each_error(
    exports: Runner, tmp_path: Path, error: Exception, before: str, after: str, started: bool
) -> None:
    id = created(exports.queue)
    expected = after if started else before
    for number in range(1, MOST_SETBACKS + 2):
        with exports.queue.store.open_root() as root:
            claim = exports.queue.take(root, id)
        assert claim is not None
        if started and expected != UNTOUCHED:
            claim.start(Reading())
        await exports._record_error(claim, error)
        claim.close()
        manifest = exports.queue.store.get(id).manifest
        assert not list((tmp_path / id).glob("data*"))
        if expected == UNTOUCHED:
            assert (manifest.status, manifest.attempts, manifest.setbacks) == ("pending", 0, 0)
            assert exports._resume_at > 0
        elif expected == WAITS:  # its place in the queue is free for the others meanwhile
            assert (manifest.status, manifest.attempts, manifest.setbacks) == ("pending", 0, 0)
            assert manifest.not_before is not None
            assert exports._resume_at == 0
        elif expected == FAILED or (expected == AGAIN and number == 3) or number > MOST_SETBACKS:
            assert manifest.status == "failed"
            assert manifest.error_code == getattr(error, "code", "internal")
            break
        else:
            assert manifest.status == "pending"
            assert manifest.not_before is not None
            assert (manifest.attempts, manifest.setbacks) == ((number, 0) if expected == AGAIN else (0, number))
    else:
        assert expected in (UNTOUCHED, WAITS)


async def test_an_export_waits_before_its_next_attempt(exports: Runner) -> None:
    id = created(exports.queue)
    claim = claimed(exports.queue)
    await exports._record_error(claim, errors.QueryCancelled("x"))
    claim.close()
    assert exports.queue.claim() is None  # it is not due yet
    assert exports.queue.store.get(id).manifest.status == "pending"


async def test_an_export_whose_outcome_cannot_be_written_delays_no_other(
    exports: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, good = created(exports.queue), created(exports.queue)
    write = Claim._write

    def refused(claim: Claim, manifest: Manifest) -> None:
        if claim.manifest.id == damaged:
            raise PermissionError("its folder belongs to somebody else")
        write(claim, manifest)

    monkeypatch.setattr(Claim, "_write", refused)
    monkeypatch.setattr(exports, "_save", fail)
    for id in (damaged, good):
        assert await exports._start_next()
        await exports._running[id].running
    assert not await exports._start_next()
    assert exports.queue.store.get(damaged).manifest.status == "pending"
    assert exports.queue.store.get(good).manifest.status == "failed"


async def test_a_full_disk_pauses_the_queue(exports: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome cannot be written either, and any other export would fail too."""

    def full(claim: Claim, manifest: Manifest) -> None:
        raise saved_errors.NoSpaceLeft("x")

    id, _ = created(exports.queue), created(exports.queue)
    monkeypatch.setattr(Claim, "_write", full)
    monkeypatch.setattr(exports, "_save", fail)
    assert await exports._start_next()
    await exports._running[id].running
    assert not await exports._start_next()
    assert exports._resume_at > 0


async def test_unexpected_errors_of_the_queue_do_not_end_the_runner(
    exports: Runner, monkeypatch: pytest.MonkeyPatch, emitted: list[Event]
) -> None:
    monkeypatch.setattr("server.saved.runner.POLL_SECONDS", 0.0)
    monkeypatch.setattr(exports, "_save", fail)
    id = created(exports.queue)
    crashes = [ValueError("prepare"), ValueError("sweep")]
    left = list(crashes)

    def crash(queue: Queue) -> None:
        if left:
            raise left.pop(0)

    monkeypatch.setattr(Queue, "prepare", crash)
    monkeypatch.setattr(Queue, "sweep", crash)
    async with exports:
        await eventually("the export has ended", lambda: exports.queue.store.get(id).manifest.status == "failed")
    assert [event.error for event in emitted if isinstance(event, QueueCrashed)] == crashes


@pytest.mark.parametrize(("held", "expected"), [("cancel", None), ("remove", errors.ServerBusy)])
async def test_delete_waits_for_a_held_lock_within_its_limit(
    exports: Runner, monkeypatch: pytest.MonkeyPatch, held: str, expected: type[Exception] | None
) -> None:
    monkeypatch.setattr("server.saved.runner.DELETE_SECONDS", 0.1)
    id = created(exports.queue)
    claim = claimed(exports.queue)
    if held == "remove":
        claim.fail(errors.QueryFailed("x"))
    if expected is None:
        await exports.delete(id)
        assert claim.cancel_requested()
    else:
        with pytest.raises(expected):
            await exports.delete(id)
    claim.close()
    await exports.delete(id)
    if held == "cancel":
        assert exports.queue.store.get(id).manifest.status == "cancelled"
    else:
        with pytest.raises(saved_errors.ExportNotFound):
            exports.queue.store.get(id)

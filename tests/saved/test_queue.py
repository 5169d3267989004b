"""The queue of saved exports without server and database: order, locks, keys, crashes, changes made by others."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.chunk import Chunk
from server.errors import QueryFailed
from server.saved import durable_files
from server.saved.claim import Claim
from server.saved.errors import (
    ExportFailed,
    ExportNotFound,
    ExportUnreadable,
    KeyReused,
    NoSpaceLeft,
    StorageUnavailable,
    TooManyWaiting,
)
from server.saved.manifest import Reading, utc_now
from server.saved.queue import Queue
from server.saved.status import Entry
from server.settings import Settings
from tests.support.saved_queue import (
    NEW,
    claimed,
    completed,
    created,
    finish,
    make_queue,
    open_below,
    snapshot,
    statuses,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "storage"


def drop(claim: Claim) -> None:
    """Release a claim as the kernel does when the process is killed."""
    claim.close()


# --- order and locks -------------------------------------------------------------------------------------------------


def test_exports_are_claimed_in_order_and_each_once(path: Path) -> None:
    one, other = make_queue(path, max_running_exports=3), make_queue(path, max_running_exports=3)
    ids = [created(one) for _ in range(4)]
    assert [entry.manifest.id for entry in other.store.newest_first()] == ids[::-1]
    claims = [claimed(one), claimed(other), claimed(one)]
    assert [claim.manifest.id for claim in claims] == ids[:3]
    assert other.claim() is None  # all slots are in use
    finish(claims.pop(0))
    assert claimed(other).manifest.id == ids[3]
    for claim in claims:
        claim.close()


def test_the_slot_of_a_killed_process_is_free_again(path: Path) -> None:
    queue = make_queue(path, max_running_exports=1)
    ids = [created(queue) for _ in range(2)]
    claim = claimed(queue)
    claim.start(Reading())
    assert make_queue(path, max_running_exports=1).claim() is None
    drop(claim)
    other = make_queue(path, max_running_exports=1)
    other.sweep()
    again = claimed(other)
    assert again.manifest.id == ids[0]  # it keeps its place in the queue
    assert again.manifest.attempts == 1
    again.close()


def test_concurrent_processes_run_each_export_once(path: Path) -> None:
    first = make_queue(path, max_running_exports=8)
    ids = [created(first) for _ in range(40)]
    done: list[str] = []
    lock = threading.Lock()

    def work(_: int) -> None:
        queue = make_queue(path, max_running_exports=8)
        while "pending" in statuses(queue).values():
            queue.sweep()
            claim = queue.claim()
            if claim is not None:
                with lock:
                    done.append(claim.manifest.id)
                finish(claim)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(done) == sorted(ids)
    assert set(statuses(first).values()) == {"completed"}


def test_exports_that_back_off_or_are_skipped_are_not_claimed(path: Path) -> None:
    queue = make_queue(path)
    ids = [created(queue) for _ in range(3)]
    claim = claimed(queue)
    claim.give_back(after=100)
    claim.close()
    second = queue.claim({ids[1]})
    assert second is not None
    assert second.manifest.id == ids[2]
    second.close()


def test_a_wait_longer_than_any_back_off_is_ignored(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    claim.give_back(after=3e7)
    claim.close()
    again = claimed(queue)
    assert again.manifest.id == id
    again.close()


# --- attempts --------------------------------------------------------------------------------------------------------


def test_an_attempt_is_counted_before_it_does_anything(path: Path) -> None:
    queue = make_queue(path, export_max_attempts=2)
    id = created(queue)
    for attempt in (1, 2):
        claim = claimed(queue)
        claim.start(Reading())
        manifest = json.loads((path / id / "manifest.json").read_text())
        assert (manifest["attempts"], manifest["status"]) == (attempt, "processing")
        drop(claim)
        assert make_queue(path).store.get(id).manifest.status == "processing"
        queue.sweep()
    entry = queue.store.get(id)
    assert (entry.manifest.status, entry.manifest.error_code) == ("failed", "interrupted")
    assert queue.claim() is None


def test_an_attempt_that_is_given_back_does_not_count(path: Path) -> None:
    queue = make_queue(path, export_max_attempts=1)
    id = created(queue)
    for _ in range(5):
        claim = claimed(queue)
        claim.start(Reading()).write([Chunk(b"id\n", 0)])
        claim.give_back()
        claim.close()
        assert not list((path / id).glob("data*"))
    finish(claimed(queue))
    assert queue.store.get(id).manifest.attempts == 1


@pytest.mark.parametrize("end", ["given back", "killed", "failed", "completed"])
def test_the_manifest_says_how_the_rows_were_read_until_the_export_is_given_back(path: Path, end: str) -> None:
    queue = make_queue(path)
    id = created(queue)
    reading = Reading(snapshot_at=utc_now(), scan="cursor, block ranges", ranges=7)

    def written() -> Reading:
        manifest = make_queue(path).store.get(id).manifest
        return Reading(snapshot_at=manifest.snapshot_at, scan=manifest.scan, ranges=manifest.ranges)

    assert written() == Reading()
    claim = claimed(queue)
    part = claim.start(reading)
    assert written() == reading
    if end == "killed":
        drop(claim)
        queue.sweep()
    elif end == "given back":
        claim.give_back()
    elif end == "failed":
        claim.fail(QueryFailed("x"))
    else:
        claim.complete(part)
    assert written() == (reading if end in ("failed", "completed") else Reading())
    if end != "killed":
        claim.close()


def test_an_export_runs_again_after_a_crash_between_file_and_manifest(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    part = claim.start(Reading())
    part.write([Chunk(b"old", 1)])
    part.finish()
    (path / id / part.name).rename(path / id / "data.csv")
    (path / id / "manifest.json.0.tmp").write_text("cut sho")
    drop(claim)
    queue.sweep()
    assert sorted(each.name for each in (path / id).iterdir()) == ["lock", "manifest.json", "progress.json"]
    finish(claimed(queue), b"new")
    assert (path / id / "data.csv").read_bytes() == b"new"


def test_the_percentage_is_kept_when_another_attempt_starts(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    part = claim.start(Reading())
    part.write([Chunk(b"x", 60)])
    part.save_progress()
    assert queue.store.get(id).progress.percentage == 60
    drop(claim)
    queue.sweep()
    claimed(queue).start(Reading())
    assert queue.store.get(id).progress.percentage == 60
    assert queue.store.get(id).progress.rows == 0


def test_a_failed_export_has_a_reason_and_no_file(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    claim.start(Reading()).write([Chunk(b"x", 1)])
    claim.fail(QueryFailed("It failed.", hint="Ask for less."))
    claim.close()
    manifest = make_queue(path).store.get(id).manifest
    assert (manifest.status, manifest.error_code, manifest.error_detail) == (
        "failed",
        "query_failed",
        "It failed. Ask for less.",
    )
    assert not list((path / id).glob("data*"))


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancellation_survives_a_crash(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    claim.start(Reading())
    assert not claim.cancel_requested()
    assert not make_queue(path).cancel(id)
    assert claim.cancel_requested()
    drop(claim)
    later = make_queue(path)
    assert later.claim() is None
    later.sweep()
    assert later.store.get(id).manifest.status == "cancelled"
    assert sorted(each.name for each in (path / id).iterdir()) == ["lock", "manifest.json", "progress.json"]
    assert later.cancel(id)
    later.remove(id)
    assert statuses(later) == {}


def test_the_sweep_cancels_a_pending_export_that_was_only_marked(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    (path / id / "cancel").touch()
    assert queue.claim() is None
    queue.sweep()
    assert queue.store.get(id).manifest.status == "cancelled"


def test_concurrent_cancellations_all_succeed(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    barrier = threading.Barrier(4)

    def cancel(_: int) -> set[bool]:
        each = make_queue(path)
        barrier.wait(30)
        return {each.cancel(id) for _ in range(200)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(cancel, range(4))) == [{False}] * 4
    assert claim.cancel_requested()
    claim.close()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_work_across_processes_and_restarts(path: Path) -> None:
    first, again = make_queue(path), make_queue(path)
    assert first.find("k", "users.csv", "") is None
    id = created(first, key="k")
    assert again.create(NEW, "k").manifest.id == id
    found = again.find("k", "users.csv", "")
    assert found is not None
    assert found.manifest.id == id
    for target, query in (("users.tsv", ""), ("users.csv", "limit=1")):
        with pytest.raises(KeyReused):
            again.find("k", target, query)
    assert created(first, key="other") != id
    # The id cannot be computed from the key without the secret of the folder.
    elsewhere = make_queue(path.parent / "elsewhere")
    assert created(elsewhere, key="k") != id


def test_concurrent_processes_create_one_secret(path: Path) -> None:
    barrier = threading.Barrier(8)

    def make(_: int) -> str:
        barrier.wait(30)
        return make_queue(path).create(NEW, "k").manifest.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1
    assert len(statuses(make_queue(path))) == 1


@pytest.mark.parametrize("secret", [b"short", b"x" * 33])
def test_a_changed_secret_is_an_error(path: Path, secret: bytes) -> None:
    make_queue(path)
    (path / ".secret").write_bytes(secret)
    queue = Queue(Settings(export_storage_path=path))
    with pytest.raises(StorageUnavailable):
        queue.prepare()


def test_a_folder_without_manifest_in_the_place_of_an_export_stays(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue, key="k")
    (path / id / "manifest.json").unlink()
    there = snapshot(path)
    with pytest.raises(ExportUnreadable):
        queue.create(NEW, "k")
    assert snapshot(path) == there
    assert created(queue, key="other") != id


def test_removing_an_export_does_not_remove_a_newer_one_with_its_key(path: Path) -> None:
    queue, other = make_queue(path), make_queue(path)
    id = created(queue, key="k")
    finish(claimed(queue))
    seen = queue.store.get(id).manifest
    assert other.remove(id)
    for ended in (False, True):  # the newer one is pending, then completed
        if ended:
            finish(claimed(other))
        else:
            assert created(other, key="k") == id
        with queue.store.open_root() as root:
            assert queue.quota.remove(root, seen)
        assert statuses(other) == {id: "completed" if ended else "pending"}
        assert queue.remove(id)
    assert statuses(other) == {}


def test_an_export_whose_lock_is_held_is_not_removed(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    claim = claimed(queue)
    part = claim.start(Reading())
    claim.complete(part)
    other = make_queue(path, export_retention=0.000001)
    assert not other.remove(id)
    other.sweep()
    assert statuses(other) == {id: "completed"}
    claim.close()
    assert other.remove(id)
    assert statuses(other) == {}


# --- quota -----------------------------------------------------------------------------------------------------------


def test_the_oldest_finished_exports_are_removed_first(path: Path) -> None:
    queue = make_queue(path, export_storage_limit=25_000)
    ids = [completed(queue, b"x" * 10_000) for _ in range(4)]
    waiting = created(queue)
    queue.sweep()
    assert set(statuses(queue)) == {ids[2], ids[3], waiting}


def test_a_running_export_counts_and_is_not_removed(path: Path) -> None:
    queue = make_queue(path, export_storage_limit=25_000)
    old = completed(queue, b"x" * 10_000)
    id = created(queue)
    claim = claimed(queue)
    part = claim.start(Reading())
    part.write([Chunk(b"x" * 20_000, 1)])
    part.save_progress()
    queue.quota.enforce_limit()
    assert set(statuses(queue)) == {id}
    assert old not in statuses(queue)
    part.write([Chunk(b"x" * 10_000, 1)])
    part.save_progress()
    with pytest.raises(NoSpaceLeft):
        queue.quota.enforce_limit()
    assert statuses(queue) == {id: "processing"}
    claim.close()


def test_a_short_export_over_the_limit_fails_before_it_is_completed(path: Path) -> None:
    queue = make_queue(path, export_storage_limit=25_000)
    old = completed(queue, b"x" * 20_000)
    id = created(queue)
    claim = claimed(queue)
    part = claim.start(Reading())
    part.write([Chunk(b"x" * 30_000, 1)])  # too soon after the start for a check of the limit
    with pytest.raises(NoSpaceLeft) as raised:
        claim.complete(part)
    claim.fail(raised.value)
    claim.close()
    queue.sweep()
    assert statuses(queue) == {old: "completed", id: "failed"}  # the old one is not removed for one that cannot fit
    assert queue.store.get(id).manifest.error_code == "no_space_left"
    assert completed(queue, b"x" * 10_000) in statuses(queue)
    assert old not in statuses(queue)


def test_a_disk_without_the_minimum_of_free_space_accepts_nothing(path: Path) -> None:
    with pytest.raises(NoSpaceLeft):
        make_queue(path, export_min_free_space=2**62).create(NEW)
    queue = make_queue(path)
    created(queue)
    full = make_queue(path, export_min_free_space=2**62)
    claim = claimed(full)
    part = claim.start(Reading())
    with pytest.raises(NoSpaceLeft):
        part.write([Chunk(b"x", 1)])
    claim.close()


def test_the_queue_is_bounded(path: Path) -> None:
    queue = make_queue(path, max_waiting_exports=3)
    for _ in range(3):
        created(queue)
    with pytest.raises(TooManyWaiting):
        queue.create(NEW)


def test_an_expired_export_is_removed_with_its_folder(path: Path) -> None:
    queue = make_queue(path, export_retention=3600)
    old, young = completed(queue), completed(queue)
    manifest = json.loads((path / old / "manifest.json").read_text())
    manifest["completed_at"] = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)).isoformat()
    (path / old / "manifest.json").write_text(json.dumps(manifest))
    queue.sweep()
    assert set(statuses(queue)) == {young}
    assert not (path / old).exists()
    unlimited = make_queue(path, export_retention=0)
    unlimited.sweep()
    assert set(statuses(unlimited)) == {young}


# --- changes made by others ------------------------------------------------------------------------------------------


def put_link_for_a_folder(path: Path, id: str, outside: Path) -> None:
    shutil.rmtree(path / id)
    (path / id).symlink_to(outside)


def put_link_for_a_manifest(path: Path, id: str, outside: Path) -> None:
    (path / id / "manifest.json").unlink()
    (path / id / "manifest.json").symlink_to(outside / "manifest.json")


def put_link_for_a_lock(path: Path, id: str, outside: Path) -> None:
    (path / id / "lock").unlink()
    (path / id / "lock").symlink_to(outside / "precious")


def put_pipe_for_a_manifest(path: Path, id: str, outside: Path) -> None:
    (path / id / "manifest.json").unlink()
    os.mkfifo(path / id / "manifest.json")


def put_folder_for_a_manifest(path: Path, id: str, outside: Path) -> None:
    (path / id / "manifest.json").unlink()
    (path / id / "manifest.json").mkdir()


def put_newer_version(path: Path, id: str, outside: Path) -> None:
    manifest = json.loads((path / id / "manifest.json").read_text())
    (path / id / "manifest.json").write_text(json.dumps({**manifest, "version": 2, "shape": "round"}))


def put_half_a_manifest(path: Path, id: str, outside: Path) -> None:
    text = (path / id / "manifest.json").read_text()
    (path / id / "manifest.json").write_text(text[: len(text) // 2])


def put_huge_manifest(path: Path, id: str, outside: Path) -> None:
    (path / id / "manifest.json").write_bytes(b" " * (2 << 20))


def put_other_manifest(path: Path, id: str, outside: Path) -> None:
    shutil.copy(outside / "manifest.json", path / id / "manifest.json")


ALL = [
    put_link_for_a_folder,
    put_link_for_a_manifest,
    put_pipe_for_a_manifest,
    put_folder_for_a_manifest,
    put_newer_version,
    put_half_a_manifest,
    put_huge_manifest,
    put_other_manifest,
]


@pytest.mark.parametrize("change", ALL)
@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_that_cannot_be_read_is_left_alone(
    path: Path, tmp_path: Path, change: Callable[[Path, str, Path], None], finished: bool
) -> None:
    queue = make_queue(path, export_retention=0.000001, export_storage_limit=2000)
    outside = tmp_path / "outside"
    elsewhere = make_queue(outside)
    shutil.copytree(outside / created(elsewhere), outside, dirs_exist_ok=True)
    (outside / "precious").write_text("precious")
    id = created(queue)
    if finished:
        finish(claimed(make_queue(path)))
    statuses(queue)  # so that it is cached before it is changed
    change(path, id, outside)
    before, there = snapshot(outside), snapshot(path)
    good = created(queue)
    for each in (queue, make_queue(path, export_retention=0.000001)):
        each.sweep()
        assert id not in statuses(each)
        with pytest.raises((ExportUnreadable, ExportNotFound)):
            each.store.get(id)
        with pytest.raises((ExportUnreadable, ExportNotFound)):
            each.remove(id)
        with pytest.raises((ExportUnreadable, ExportNotFound)):
            each.cancel(id)
    claim = claimed(queue)
    assert claim.manifest.id == good
    claim.close()
    assert queue.claim({good}) is None
    assert snapshot(outside) == before
    now = snapshot(path)
    assert {name: now.get(name) for name in there} == there


def test_a_link_for_a_lock_is_not_followed(path: Path, tmp_path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    (tmp_path / "precious").write_text("precious")
    put_link_for_a_lock(path, id, tmp_path)
    assert queue.claim() is None
    queue.sweep()
    assert statuses(queue) == {id: "pending"}
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["data.csv.0123456789abcdef.part", "data.csv.part", "data.csv", "cancel"])
def test_an_export_with_a_folder_in_the_place_of_a_file_can_be_cancelled(path: Path, name: str) -> None:
    queue = make_queue(path)
    id = created(queue)
    (path / id / name / "inner").mkdir(parents=True)
    assert queue.cancel(id)
    assert queue.store.get(id).manifest.status == "cancelled"
    assert queue.remove(id)
    assert statuses(queue) == {}


def test_a_lock_that_cannot_be_taken_stops_no_other_export(path: Path) -> None:
    queue = make_queue(path)
    damaged, good = created(queue), created(queue)
    (path / damaged / "lock").unlink()
    (path / damaged / "lock").mkdir()
    with pytest.raises(ExportUnreadable):
        queue.cancel(damaged)
    queue.sweep()
    finish(claim_of(queue, good))
    assert statuses(queue) == {damaged: "pending", good: "completed"}


def test_a_failed_start_leaves_no_descriptor_open(path: Path) -> None:
    queue = make_queue(path)
    id = created(queue)
    (path / id / "progress.json").mkdir()
    claim = claimed(queue)
    before = open_below(path)
    assert before
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            claim.start(Reading())
    assert open_below(path) == before
    claim.close()


@pytest.mark.parametrize("name", ["data.csv.0123456789abcdef.part", "data.csv.part", "data.csv", "progress.json"])
def test_links_in_a_folder_are_replaced_and_not_followed(path: Path, tmp_path: Path, name: str) -> None:
    queue = make_queue(path)
    id = created(queue)
    (tmp_path / "precious").write_text("precious")
    (path / id / name).symlink_to(tmp_path / "precious")
    finish(claimed(queue), b"mine")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (path / id / "data.csv").read_bytes() == b"mine"
    assert not [each for each in (path / id).iterdir() if each.is_symlink()]


def test_foreign_files_and_folders_stay(path: Path) -> None:
    queue = make_queue(path, export_retention=0.000001, export_storage_limit=1)
    (path / "notes.txt").write_text("mine")
    (path / "folder").mkdir()
    (path / "folder" / "manifest.json").write_text("{}")
    (path / ("B" * 22)).write_text("a file with the name of an export")
    (path / ("C" * 22)).mkdir()
    before = snapshot(path)
    id = completed(make_queue(path))
    queue.sweep()
    assert id not in statuses(queue)
    after = snapshot(path)
    assert {name: after.get(name) for name in before} == before


def test_a_folder_inside_an_export_stays(path: Path) -> None:
    queue = make_queue(path)
    id = completed(queue)
    (path / id / "mine").mkdir()
    (path / id / "mine" / "note").write_text("mine")
    queue.remove(id)
    assert statuses(queue) == {}
    assert [each.read_text() for each in path.rglob("note")] == ["mine"]
    queue.sweep()


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "/etc", ".secret", "A" * 21, "A" * 23, "A" * 21 + "\n", "é" * 22]
)
def test_an_invalid_id_is_not_found(path: Path, id: str) -> None:
    queue = make_queue(path)
    calls: list[Callable[[str], object]] = [queue.store.get, queue.store.open_data, queue.cancel, queue.remove]
    for call in calls:
        with pytest.raises(ExportNotFound):
            call(id)


def test_folders_left_by_killed_processes_are_removed(path: Path) -> None:
    queue = make_queue(path)
    for name in (".gone-1", ".new-young", ".new-old"):
        (path / name).mkdir()
        (path / name / "manifest.json").write_text("{}")
    os.utime(path / ".new-old", (1, 1))
    queue.sweep()
    assert {each.name for each in path.iterdir() if each.is_dir()} == {".new-young"}


def test_ids_are_random_and_files_are_private(path: Path) -> None:
    queue = make_queue(path)
    ids = {created(queue) for _ in range(50)}
    assert len(ids) == 50
    assert all(len(id) == 22 for id in ids)
    for each in (path, *path.rglob("*")):
        mode = stat.S_IMODE(each.lstat().st_mode)
        assert mode == (0o700 if each.is_dir() else 0o600), each


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_fails_one_export(tiny: Path) -> None:
    queue = make_queue(tiny)
    kept = completed(queue, b"x" * 1000)
    id = created(queue)
    claim = claimed(queue)
    part = claim.start(Reading())
    with pytest.raises(NoSpaceLeft) as raised:
        part.write([Chunk(b"x" * (2 << 20), 1)])
    claim.fail(raised.value)
    claim.close()
    manifest = queue.store.get(id).manifest
    assert (manifest.status, manifest.error_code) == ("failed", "no_space_left")
    assert not list((tiny / id).glob("data*"))
    assert queue.store.get(kept).manifest.status == "completed"
    finish(claim_of(queue, created(queue)), b"x" * 1000)


def claim_of(queue: Queue, id: str) -> Claim:
    claim = claimed(queue)
    assert claim.manifest.id == id
    return claim


def test_a_full_disk_accepts_nothing_and_loses_nothing(tiny: Path) -> None:
    queue = make_queue(tiny)
    waiting = created(queue)
    with pytest.raises(OSError, match="No space left"):
        (tiny / "ballast").write_bytes(b"x" * (2 << 20))
    assert os.statvfs(tiny).f_bavail == 0
    with pytest.raises(NoSpaceLeft):
        queue.create(NEW)
    claim = claimed(queue)
    with pytest.raises(NoSpaceLeft):
        claim.start(Reading())
    claim.close()
    queue.sweep()
    assert statuses(queue) == {waiting: "pending"}
    assert not [each for each in tiny.iterdir() if each.name.startswith(".new-")]
    (tiny / "ballast").unlink()
    finish(claimed(queue))
    assert statuses(queue) == {waiting: "completed"}


def test_a_limit_on_the_size_of_files_counts_as_no_space(path: Path) -> None:
    """Run in another process, because the limit would apply to this one too."""
    make_queue(path)
    program = f"""
import resource
from pathlib import Path
from server.saved.errors import NoSpaceLeft
from server.chunk import Chunk
from server.saved.manifest import Reading
from tests.support.saved_queue import claimed, created, make_queue
queue = make_queue(Path({str(path)!r}))
id = created(queue)
claim = claimed(queue)
part = claim.start(Reading())
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
try:
    for _ in range(100):
        part.write([Chunk(b"x" * 10_000, 1)])
except NoSpaceLeft as error:
    claim.fail(error)
    claim.close()
    print(id)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    manifest = make_queue(path).store.get(done.stdout.strip()).manifest
    assert (manifest.status, manifest.error_code) == ("failed", "no_space_left")


def test_an_error_that_only_fsync_reports_ends_the_export_early(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    queue = make_queue(path)
    created(queue)
    with contextlib.closing(claimed(queue)) as claim:
        part = claim.start(Reading())
        monkeypatch.setattr("server.saved.claim.SYNC_BYTES", 10)
        monkeypatch.setattr("server.saved.claim.os.fsync", full)
        part.write([Chunk(b"1,2\n3,4\n", 2, 0.1)])
        with pytest.raises(NoSpaceLeft):
            part.write([Chunk(b"5,6\n7,8\n", 2, 0.2)])


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_disk_that_is_full_when_the_file_is_published_is_no_internal_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    queue = make_queue(path)
    created(queue)
    with contextlib.closing(claimed(queue)) as claim:
        part = claim.start(Reading())
        part.write([Chunk(b"1,2\n", 1)])
        part.finish()
        monkeypatch.setattr(part, "finish", lambda: None)
        monkeypatch.setattr(f"server.saved.claim.os.{call}", full)
        with pytest.raises(NoSpaceLeft):
            claim.complete(part)


def test_progress_that_cannot_be_written_does_not_end_a_complete_export(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "no space left")

    queue = make_queue(path)
    id = created(queue)
    with contextlib.closing(claimed(queue)) as claim:
        part = claim.start(Reading())
        part.write([Chunk(b"1,2\n", 1)])
        monkeypatch.setattr(part, "save_progress", full)
        claim.complete(part)
    assert queue.store.get(id).manifest.status == "completed"


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    queue = Queue(Settings(export_storage_path=tmp_path / "file"))
    for call in (queue.prepare, queue.sweep, queue.claim, queue.store.newest_first):
        with pytest.raises(StorageUnavailable) as raised:
            call()
        assert str(tmp_path) not in raised.value.detail


# --- durable_files.py ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with durable_files.open_folder(tmp_path) as folder:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fails)
            with pytest.raises(OSError, match="broken"):
                durable_files.write_file(folder, "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
        assert [each.name for each in tmp_path.iterdir()] == ["file"]
        durable_files.write_file(folder, "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_of_another_size_is_not_opened(path: Path) -> None:
    queue = make_queue(path)
    id = completed(queue, b"right")
    manifest, descriptor = queue.store.open_data(id)
    assert (manifest.bytes, os.read(descriptor, 100)) == (5, b"right")
    os.close(descriptor)
    (path / id / "data.csv").write_bytes(b"wrong size")
    with pytest.raises(ExportFailed):
        queue.store.open_data(id)


def test_listing_reads_no_finished_manifest_twice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(path)
    ids = {completed(queue) for _ in range(5)}
    first = queue.store.newest_first()

    def reads(descriptor: int, count: int) -> bytes:
        raise AssertionError("a finished export was read again")

    monkeypatch.setattr("server.saved.store.os.read", reads)
    assert queue.store.newest_first() == first
    assert {entry.manifest.id for entry in first} == ids
    assert all(isinstance(entry, Entry) for entry in first)

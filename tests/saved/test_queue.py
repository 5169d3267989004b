"""The folder of saved exports without server and database: order, locks, keys, crashes, hands of others."""

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
from typing import Any

import pytest

from server.errors import (
    ExportFailed,
    ExportNotFound,
    ExportUnreadable,
    KeyReused,
    NoSpaceLeft,
    QueryFailed,
    ServerBusy,
    StorageUnavailable,
)
from server.postgres.rows import Chunk
from server.saved import durable_files
from server.saved.claim import Claim
from server.saved.queue import MOST_WAITING, Spool
from server.saved.store import Entry
from server.settings import Settings

REQUEST: dict[str, Any] = {
    "target": "users.csv",
    "query": "",
    "relation": "users",
    "format": "csv",
    "total_rows": 100,
}


def make_spool(path: Path, **values: Any) -> Spool:
    """A spool as a process has it; several on one folder are several processes."""
    values = {"export_min_free_space": 0, **values}
    spool = Spool(Settings(export_storage_path=path, **values))
    spool.prepare()
    return spool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "storage"


def created(spool: Spool, **values: Any) -> str:
    entry, new = spool.create(**{**REQUEST, **values})
    assert new
    return entry.manifest.id


def claimed(spool: Spool) -> Claim:
    claim = spool.claim()
    assert claim is not None
    return claim


def finish(claim: Claim, data: bytes = b"id\n1\n") -> None:
    part = claim.begin(None)
    part.write([Chunk(data, 1)])
    claim.complete(part)
    claim.close()


def completed(spool: Spool, data: bytes = b"id\n1\n") -> str:
    id = created(spool)
    finish(claimed(spool), data)
    return id


def statuses(spool: Spool) -> dict[str, str]:
    return {entry.manifest.id: entry.manifest.status for entry in spool.shelf.newest_first()}


def drop(claim: Claim) -> None:
    """What is left of a claim whose process is killed: nothing but the files."""
    claim.close()


# --- order and locks ----------------------------------------------------------------------------------------------


def test_the_first_comes_first_and_nobody_gets_one_twice(path: Path) -> None:
    one, other = make_spool(path, max_running_exports=3), make_spool(path, max_running_exports=3)
    ids = [created(one) for _ in range(4)]
    assert [entry.manifest.id for entry in other.shelf.newest_first()] == ids[::-1]
    claims = [claimed(one), claimed(other), claimed(one)]
    assert [claim.manifest.id for claim in claims] == ids[:3]
    assert other.claim() is None  # three run
    finish(claims.pop(0))
    assert claimed(other).manifest.id == ids[3]
    for claim in claims:
        claim.close()


def test_a_place_is_free_again_when_its_process_has_died(path: Path) -> None:
    spool = make_spool(path, max_running_exports=1)
    ids = [created(spool) for _ in range(2)]
    claim = claimed(spool)
    claim.begin(None)
    assert make_spool(path, max_running_exports=1).claim() is None
    drop(claim)
    other = make_spool(path, max_running_exports=1)
    other.sweep()
    again = claimed(other)
    assert again.manifest.id == ids[0]  # it keeps its place in the line
    assert again.manifest.attempts == 1
    again.close()


def test_many_processes_at_once_run_each_export_once(path: Path) -> None:
    first = make_spool(path, max_running_exports=8)
    ids = [created(first) for _ in range(40)]
    done: list[str] = []
    lock = threading.Lock()

    def work(_: int) -> None:
        spool = make_spool(path, max_running_exports=8)
        while "pending" in statuses(spool).values():
            spool.sweep()
            claim = spool.claim()
            if claim is not None:
                with lock:
                    done.append(claim.manifest.id)
                finish(claim)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(done) == sorted(ids)
    assert set(statuses(first).values()) == {"completed"}


def test_back_off_and_those_to_skip_are_passed_over(path: Path) -> None:
    spool = make_spool(path)
    ids = [created(spool) for _ in range(3)]
    claim = claimed(spool)
    claim.give_back(after=100)
    claim.close()
    second = spool.claim({ids[1]})
    assert second is not None
    assert second.manifest.id == ids[2]
    second.close()


def test_a_wait_until_next_year_is_a_clock_put_right(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    claim.give_back(after=3e7)
    claim.close()
    again = claimed(spool)
    assert again.manifest.id == id
    again.close()


# --- attempts -----------------------------------------------------------------------------------------------------


def test_an_attempt_is_counted_before_anything_of_it(path: Path) -> None:
    spool = make_spool(path, export_max_attempts=2)
    id = created(spool)
    for attempt in (1, 2):
        claim = claimed(spool)
        claim.begin(None)
        manifest = json.loads((path / id / "manifest.json").read_text())
        assert (manifest["attempts"], manifest["status"]) == (attempt, "processing")
        drop(claim)
        assert make_spool(path).shelf.get(id).manifest.status == "processing"
        spool.sweep()
    entry = spool.shelf.get(id)
    assert (entry.manifest.status, entry.manifest.error_code) == ("failed", "interrupted")
    assert spool.claim() is None


def test_an_attempt_that_is_given_back_does_not_count(path: Path) -> None:
    spool = make_spool(path, export_max_attempts=1)
    id = created(spool)
    for _ in range(5):
        claim = claimed(spool)
        claim.begin(None).write([Chunk(b"id\n", 0)])
        claim.give_back()
        claim.close()
        assert not list((path / id).glob("data*"))
    finish(claimed(spool))
    assert spool.shelf.get(id).manifest.attempts == 1


def test_a_crash_between_the_file_and_the_manifest_runs_it_again(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    part = claim.begin(None)
    part.write([Chunk(b"old", 1)])
    part.finish()
    (path / id / "data.csv.part").rename(path / id / "data.csv")
    (path / id / "manifest.json.0.tmp").write_text("cut sho")
    drop(claim)
    spool.sweep()
    assert sorted(each.name for each in (path / id).iterdir()) == ["lock", "manifest.json", "progress.json"]
    finish(claimed(spool), b"new")
    assert (path / id / "data.csv").read_bytes() == b"new"


def test_a_percentage_survives_another_attempt(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    part = claim.begin(None)
    part.write([Chunk(b"x", 60)])
    part.note()
    assert spool.shelf.get(id).progress.percentage == 60
    drop(claim)
    spool.sweep()
    claimed(spool).begin(None)
    assert spool.shelf.get(id).progress.percentage == 60
    assert spool.shelf.get(id).progress.rows == 0


def test_what_failed_says_why_and_has_no_file(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    claim.begin(None).write([Chunk(b"x", 1)])
    claim.fail(QueryFailed("It failed.", hint="Ask for less."))
    claim.close()
    manifest = make_spool(path).shelf.get(id).manifest
    assert (manifest.status, manifest.error_code, manifest.error_detail) == (
        "failed",
        "query_failed",
        "It failed. Ask for less.",
    )
    assert not list((path / id).glob("data*"))


# --- cancelling ---------------------------------------------------------------------------------------------------


def test_a_cancellation_holds_though_everybody_is_killed(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    claim.begin(None)
    assert not claim.cancel_wanted()
    assert not make_spool(path).cancel(id)
    assert claim.cancel_wanted()
    drop(claim)
    later = make_spool(path)
    assert later.claim() is None
    later.sweep()
    assert later.shelf.get(id).manifest.status == "cancelled"
    assert sorted(each.name for each in (path / id).iterdir()) == ["lock", "manifest.json", "progress.json"]
    assert later.cancel(id)
    later.remove(id)
    assert statuses(later) == {}


def test_a_waiting_one_that_was_marked_and_left_is_ended_by_the_sweep(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    (path / id / "cancel").touch()
    assert spool.claim() is None
    spool.sweep()
    assert spool.shelf.get(id).manifest.status == "cancelled"


def test_simultaneous_cancellations_all_count(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    barrier = threading.Barrier(4)

    def cancel(_: int) -> set[bool]:
        each = make_spool(path)
        barrier.wait(30)
        return {each.cancel(id) for _ in range(200)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(cancel, range(4))) == [{False}] * 4
    assert claim.cancel_wanted()
    claim.close()


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_work_across_processes_and_restarts(path: Path) -> None:
    first, again = make_spool(path), make_spool(path)
    assert first.find("k", "users.csv", "") is None
    id = created(first, key="k")
    entry, new = again.create(**REQUEST, key="k")
    assert (entry.manifest.id, new) == (id, False)
    found = again.find("k", "users.csv", "")
    assert found is not None
    assert found.manifest.id == id
    for target, query in (("users.tsv", ""), ("users.csv", "limit=1")):
        with pytest.raises(KeyReused):
            again.find("k", target, query)
    assert created(first, key="other") != id
    # Nobody can tell the id from the key without the folder's secret.
    elsewhere = make_spool(path.parent / "elsewhere")
    assert created(elsewhere, key="k") != id


def test_simultaneous_makers_of_the_first_secret_agree(path: Path) -> None:
    barrier = threading.Barrier(8)

    def make(_: int) -> str:
        barrier.wait(30)
        return make_spool(path).create(**REQUEST, key="k")[0].manifest.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1
    assert len(statuses(make_spool(path))) == 1


@pytest.mark.parametrize("secret", [b"short", b"x" * 33])
def test_a_secret_that_was_changed_is_reported(path: Path, secret: bytes) -> None:
    make_spool(path)
    (path / ".secret").write_bytes(secret)
    spool = Spool(Settings(export_storage_path=path))
    with pytest.raises(StorageUnavailable):
        spool.prepare()


def test_something_else_in_the_place_of_a_key_is_said_and_stays(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool, key="k")
    (path / id / "manifest.json").unlink()
    there = snapshot(path)
    with pytest.raises(ExportUnreadable):
        spool.create(**REQUEST, key="k")
    assert snapshot(path) == there
    assert created(spool, key="other") != id


def test_whoever_saw_an_export_does_not_remove_the_next_one_of_its_key(path: Path) -> None:
    spool, other = make_spool(path), make_spool(path)
    id = created(spool, key="k")
    finish(claimed(spool))
    seen = spool.shelf.get(id).manifest
    assert other.remove(id)
    for ended in (False, True):  # the next one is waiting, then completed too
        if ended:
            finish(claimed(other))
        else:
            assert created(other, key="k") == id
        with spool.shelf.root() as root:
            assert spool.room.remove(root, seen)
        assert statuses(other) == {id: "completed" if ended else "pending"}
        assert spool.remove(id)
    assert statuses(other) == {}


def test_an_export_whose_lock_is_held_is_not_removed(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    claim = claimed(spool)
    part = claim.begin(None)
    claim.complete(part)
    other = make_spool(path, export_retention=0.000001)
    assert not other.remove(id)
    other.sweep()
    assert statuses(other) == {id: "completed"}
    claim.close()
    assert other.remove(id)
    assert statuses(other) == {}


# --- room ---------------------------------------------------------------------------------------------------------


def test_the_oldest_finished_goes_first(path: Path) -> None:
    spool = make_spool(path, export_storage_limit=250)
    ids = [completed(spool, b"x" * 100) for _ in range(4)]
    waiting = created(spool)
    spool.sweep()
    assert set(statuses(spool)) == {ids[2], ids[3], waiting}


def test_what_runs_counts_and_is_not_removed(path: Path) -> None:
    spool = make_spool(path, export_storage_limit=250)
    old = completed(spool, b"x" * 100)
    id = created(spool)
    claim = claimed(spool)
    part = claim.begin(None)
    part.write([Chunk(b"x" * 200, 1)])
    part.note()
    spool.room.check_limit()
    assert set(statuses(spool)) == {id}
    assert old not in statuses(spool)
    part.write([Chunk(b"x" * 100, 1)])
    part.note()
    with pytest.raises(NoSpaceLeft):
        spool.room.check_limit()
    assert statuses(spool) == {id: "processing"}
    claim.close()


def test_a_quick_one_over_the_limit_fails_and_is_not_promised_first(path: Path) -> None:
    spool = make_spool(path, export_storage_limit=250)
    old = completed(spool, b"x" * 200)
    id = created(spool)
    claim = claimed(spool)
    part = claim.begin(None)
    part.write([Chunk(b"x" * 300, 1)])  # too soon after the beginning for a look at the limit
    with pytest.raises(NoSpaceLeft) as raised:
        claim.complete(part)
    claim.fail(raised.value)
    claim.close()
    spool.sweep()
    assert statuses(spool) == {old: "completed", id: "failed"}  # the old one is not removed for what cannot fit
    assert spool.shelf.get(id).manifest.error_code == "no_space_left"
    assert completed(spool, b"x" * 100) in statuses(spool)
    assert old not in statuses(spool)


def test_a_disk_that_is_too_full_takes_nothing(path: Path) -> None:
    with pytest.raises(NoSpaceLeft):
        make_spool(path, export_min_free_space=2**62).create(**REQUEST)
    spool = make_spool(path)
    created(spool)
    full = make_spool(path, export_min_free_space=2**62)
    claim = claimed(full)
    part = claim.begin(None)
    with pytest.raises(NoSpaceLeft):
        part.write([Chunk(b"x", 1)])
    claim.close()


def test_no_endless_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.saved.queue.MOST_WAITING", 3)
    assert MOST_WAITING >= 1000
    spool = make_spool(path)
    for _ in range(3):
        created(spool)
    with pytest.raises(ServerBusy):
        spool.create(**REQUEST)


def test_what_expires_goes_whole(path: Path) -> None:
    spool = make_spool(path, export_retention=3600)
    old, young = completed(spool), completed(spool)
    manifest = json.loads((path / old / "manifest.json").read_text())
    manifest["completed_at"] = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)).isoformat()
    (path / old / "manifest.json").write_text(json.dumps(manifest))
    spool.sweep()
    assert set(statuses(spool)) == {young}
    assert not (path / old).exists()
    for_ever = make_spool(path, export_retention=0)
    for_ever.sweep()
    assert set(statuses(for_ever)) == {young}


# --- what others do to the folder ---------------------------------------------------------------------------------


def snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, with modes and contents."""
    return {
        str(each.relative_to(path)): (each.lstat().st_mode, each.read_bytes() if each.is_file() else b"")
        for each in sorted(path.rglob("*"))
    }


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
def test_what_is_not_understood_is_left_alone(
    path: Path, tmp_path: Path, change: Callable[[Path, str, Path], None], finished: bool
) -> None:
    spool = make_spool(path, export_retention=0.000001, export_storage_limit=1)
    outside = tmp_path / "outside"
    elsewhere = make_spool(outside)
    shutil.copytree(outside / created(elsewhere), outside, dirs_exist_ok=True)
    (outside / "precious").write_text("precious")
    id = created(spool)
    if finished:
        finish(claimed(make_spool(path)))
    statuses(spool)  # so that it is known before it is changed
    change(path, id, outside)
    before, there = snapshot(outside), snapshot(path)
    good = created(spool)
    for each in (spool, make_spool(path, export_retention=0.000001)):
        each.sweep()
        assert id not in statuses(each)
        with pytest.raises((ExportUnreadable, ExportNotFound)):
            each.shelf.get(id)
        with pytest.raises((ExportUnreadable, ExportNotFound)):
            each.remove(id)
        with pytest.raises((ExportUnreadable, ExportNotFound)):
            each.cancel(id)
    claim = claimed(spool)
    assert claim.manifest.id == good
    claim.close()
    assert spool.claim({good}) is None
    assert snapshot(outside) == before
    now = snapshot(path)
    assert {name: now.get(name) for name in there} == there


def test_a_link_for_a_lock_is_not_followed(path: Path, tmp_path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    (tmp_path / "precious").write_text("precious")
    put_link_for_a_lock(path, id, tmp_path)
    assert spool.claim() is None
    spool.sweep()
    assert statuses(spool) == {id: "pending"}
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["data.csv.part", "data.csv", "cancel"])
def test_a_folder_in_the_place_of_a_file_can_be_ended(path: Path, name: str) -> None:
    spool = make_spool(path)
    id = created(spool)
    (path / id / name / "inner").mkdir(parents=True)
    assert spool.cancel(id)
    assert spool.shelf.get(id).manifest.status == "cancelled"
    assert spool.remove(id)
    assert statuses(spool) == {}


def test_a_lock_that_cannot_be_taken_is_said_to_who_cancels_and_stops_no_other(path: Path) -> None:
    spool = make_spool(path)
    damaged, good = created(spool), created(spool)
    (path / damaged / "lock").unlink()
    (path / damaged / "lock").mkdir()
    with pytest.raises(ExportUnreadable):
        spool.cancel(damaged)
    spool.sweep()
    finish(claim_of(spool, good))
    assert statuses(spool) == {damaged: "pending", good: "completed"}


def open_below(path: Path) -> list[str]:
    """What this process has open below this path, with what has been removed."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return sorted(name for name in found if name.startswith(f"{path}/"))


def test_a_file_that_cannot_be_begun_leaves_no_descriptor_behind(path: Path) -> None:
    spool = make_spool(path)
    id = created(spool)
    (path / id / "progress.json").mkdir()
    claim = claimed(spool)
    before = open_below(path)
    assert before
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            claim.begin(None)
    assert open_below(path) == before
    claim.close()


@pytest.mark.parametrize("name", ["data.csv.part", "data.csv", "progress.json"])
def test_links_in_a_folder_are_replaced_and_not_followed(path: Path, tmp_path: Path, name: str) -> None:
    spool = make_spool(path)
    id = created(spool)
    (tmp_path / "precious").write_text("precious")
    (path / id / name).symlink_to(tmp_path / "precious")
    finish(claimed(spool), b"mine")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (path / id / "data.csv").read_bytes() == b"mine"
    assert not [each for each in (path / id).iterdir() if each.is_symlink()]


def test_what_is_not_ours_stays(path: Path) -> None:
    spool = make_spool(path, export_retention=0.000001, export_storage_limit=1)
    (path / "notes.txt").write_text("mine")
    (path / "folder").mkdir()
    (path / "folder" / "manifest.json").write_text("{}")
    (path / ("B" * 22)).write_text("a file with the name of an export")
    (path / ("C" * 22)).mkdir()
    before = snapshot(path)
    id = completed(make_spool(path))
    spool.sweep()
    assert id not in statuses(spool)
    after = snapshot(path)
    assert {name: after.get(name) for name in before} == before


def test_a_folder_with_something_else_in_it_loses_only_what_is_ours(path: Path) -> None:
    spool = make_spool(path)
    id = completed(spool)
    (path / id / "mine").mkdir()
    (path / id / "mine" / "note").write_text("mine")
    spool.remove(id)
    assert statuses(spool) == {}
    assert [each.read_text() for each in path.rglob("note")] == ["mine"]
    spool.sweep()


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "/etc", ".secret", "A" * 21, "A" * 23, "A" * 21 + "\n", "é" * 22]
)
def test_what_is_no_id_reaches_nothing(path: Path, id: str) -> None:
    spool = make_spool(path)
    calls: list[Callable[[str], object]] = [spool.shelf.get, spool.shelf.open_data, spool.cancel, spool.remove]
    for call in calls:
        with pytest.raises(ExportNotFound):
            call(id)


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(path: Path) -> None:
    spool = make_spool(path)
    for name in (".gone-1", ".new-young", ".new-old"):
        (path / name).mkdir()
        (path / name / "manifest.json").write_text("{}")
    os.utime(path / ".new-old", (1, 1))
    spool.sweep()
    assert {each.name for each in path.iterdir() if each.is_dir()} == {".new-young"}


def test_ids_cannot_be_guessed_and_nothing_is_for_others(path: Path) -> None:
    spool = make_spool(path)
    ids = {created(spool) for _ in range(50)}
    assert len(ids) == 50
    assert all(len(id) == 22 for id in ids)
    for each in (path, *path.rglob("*")):
        mode = stat.S_IMODE(each.lstat().st_mode)
        assert mode == (0o700 if each.is_dir() else 0o600), each


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_ends_the_export_and_nothing_else(tiny: Path) -> None:
    spool = make_spool(tiny)
    kept = completed(spool, b"x" * 1000)
    id = created(spool)
    claim = claimed(spool)
    part = claim.begin(None)
    with pytest.raises(NoSpaceLeft) as raised:
        part.write([Chunk(b"x" * (2 << 20), 1)])
    claim.fail(raised.value)
    claim.close()
    manifest = spool.shelf.get(id).manifest
    assert (manifest.status, manifest.error_code) == ("failed", "no_space_left")
    assert not list((tiny / id).glob("data*"))
    assert spool.shelf.get(kept).manifest.status == "completed"
    finish(claim_of(spool, created(spool)), b"x" * 1000)


def claim_of(spool: Spool, id: str) -> Claim:
    claim = claimed(spool)
    assert claim.manifest.id == id
    return claim


def test_a_full_disk_accepts_nothing_and_loses_nothing(tiny: Path) -> None:
    spool = make_spool(tiny)
    waiting = created(spool)
    with pytest.raises(OSError, match="No space left"):
        (tiny / "ballast").write_bytes(b"x" * (2 << 20))
    assert os.statvfs(tiny).f_bavail == 0
    with pytest.raises(NoSpaceLeft):
        spool.create(**REQUEST)
    claim = claimed(spool)
    with pytest.raises(NoSpaceLeft):
        claim.begin(None)
    claim.close()
    spool.sweep()
    assert statuses(spool) == {waiting: "pending"}
    assert not [each for each in tiny.iterdir() if each.name.startswith(".new-")]
    (tiny / "ballast").unlink()
    finish(claimed(spool))
    assert statuses(spool) == {waiting: "completed"}


def test_a_limit_on_the_size_of_files_is_no_space_either(path: Path) -> None:
    """In a process of its own, since the limit would hold for this one too."""
    make_spool(path)
    program = f"""
import resource
from pathlib import Path
from server.errors import NoSpaceLeft
from server.postgres.rows import Chunk
from tests.saved.test_queue import claimed, created, make_spool
spool = make_spool(Path({str(path)!r}))
id = created(spool)
claim = claimed(spool)
part = claim.begin(None)
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
    manifest = make_spool(path).shelf.get(done.stdout.strip()).manifest
    assert (manifest.status, manifest.error_code) == ("failed", "no_space_left")


def test_what_the_disk_refuses_late_is_said_before_the_whole_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    spool = make_spool(path)
    created(spool)
    with contextlib.closing(claimed(spool)) as claim:
        part = claim.begin(None)
        monkeypatch.setattr("server.saved.claim.SYNC_BYTES", 10)
        monkeypatch.setattr("server.saved.claim.os.fsync", full)
        part.write([Chunk(b"1,2\n3,4\n", 2, 0.1)])
        with pytest.raises(NoSpaceLeft):
            part.write([Chunk(b"5,6\n7,8\n", 2, 0.2)])


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(Settings(export_storage_path=tmp_path / "file"))
    for call in (spool.prepare, spool.sweep, spool.claim, spool.shelf.newest_first):
        with pytest.raises(StorageUnavailable) as raised:
            call()
        assert str(tmp_path) not in raised.value.detail


# --- durable_files.py ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_file_that_is_not_there_or_changed_is_not_handed_out(path: Path) -> None:
    spool = make_spool(path)
    id = completed(spool, b"right")
    manifest, descriptor = spool.shelf.open_data(id)
    assert (manifest.bytes, os.read(descriptor, 100)) == (5, b"right")
    os.close(descriptor)
    (path / id / "data.csv").write_bytes(b"wrong size")
    with pytest.raises(ExportFailed):
        spool.shelf.open_data(id)


def test_a_list_costs_no_reading_of_what_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = make_spool(path)
    ids = {completed(spool) for _ in range(5)}
    first = spool.shelf.newest_first()

    def reads(descriptor: int, count: int) -> bytes:
        raise AssertionError("a finished export was read again")

    monkeypatch.setattr("server.saved.store.os.read", reads)
    assert spool.shelf.newest_first() == first
    assert {entry.manifest.id for entry in first} == ids
    assert all(isinstance(entry, Entry) for entry in first)

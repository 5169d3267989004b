"""Saved exports as an attack: many of them, long requests, and a folder full of what others put there."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import MAX_REQUEST_LINE, create_app
from server.errors import ExportError, ServerBusy
from server.pages.saved import DELETED_AT_ONCE
from server.saved import store
from server.saved.errors import NoSpaceLeft, TooManyExports, TooManyWaiting
from server.saved.manifest import NewExport
from server.saved.queue import Queue
from server.saved.runner import Runner
from server.settings import Settings
from server.threads import FILE_THREADS
from tests.support.failing_os import Calls
from tests.support.live_server import LiveServer
from tests.support.planted import plant
from tests.support.postgres import Postgres
from tests.support.raw_http import ask
from tests.support.saved_exports import Gate, answer_json, eventually, post, save, saved, wait_for
from tests.support.saved_queue import NEW, claimed, completed, created, finish, make_queue, statuses

BROWSER = {"Accept": "text/html"}
LONG = "id=in.(" + ",".join(["1"] * 2000) + ")"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
async def bounded(settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """Run Sluice in this process with low limits."""
    server = TestServer(create_app(replace(settings, max_saved_exports=3)))
    await server.start_server(max_line_size=MAX_REQUEST_LINE)
    async with TestClient(server) as opened:
        yield opened


@pytest.fixture
def gate(postgres: Postgres) -> Iterator[Gate]:
    """A view that gives some of its rows and then waits until the test opens it."""
    gate = Gate(postgres)
    yield gate
    gate.open()


def create_many(queue: Queue, new: NewExport) -> None:
    """Create more exports than the limits of these tests allow."""
    for _ in range(100):
        queue.create(new)


def cancelled(queue: Queue) -> str:
    id = created(queue)
    queue.cancel(id)
    return id


# --- how many, and how large ------------------------------------------------------------------------------------------


def test_exports_that_wait_are_limited_also_if_many_come_at_once(path: Path) -> None:
    queue = make_queue(path, max_waiting_exports=5)

    def create(_: int) -> type[ExportError] | None:
        try:
            queue.create(NEW)
        except ExportError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(create, range(40)))
    assert outcomes.count(None) == 5
    assert set(outcomes) == {None, TooManyWaiting}
    finish(claimed(queue))
    created(queue)


def test_exports_that_are_kept_are_limited(path: Path) -> None:
    queue = make_queue(path, max_saved_exports=4)
    kept = [completed(queue) for _ in range(2)]
    useless = [cancelled(queue) for _ in range(2)]
    # The oldest one without a file makes room.
    new = created(queue)
    assert set(statuses(queue)) == {*kept, useless[1], new}
    newer = created(queue)
    assert set(statuses(queue)) == {*kept, new, newer}
    with pytest.raises(TooManyExports) as raised:
        queue.create(NEW)
    assert "MAX_SAVED_EXPORTS" in str(raised.value.hint)
    assert set(statuses(queue)) == {*kept, new, newer}
    # Another process deletes one.
    assert make_queue(path).remove(kept[0])
    created(queue)


def test_the_requests_of_all_exports_take_limited_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.saved.quota.MOST_MANIFEST_BYTES", 100_000)
    queue = make_queue(path)
    useless = cancelled(queue)
    with pytest.raises(TooManyExports):
        create_many(queue, replace(NEW, query=LONG))
    assert 90_000 < sum(each.stat().st_size for each in path.rglob("manifest.json")) <= 100_000
    assert useless in statuses(queue)  # its removal would not have helped
    long = next(iter(queue.store.newest_first())).manifest.id
    assert queue.cancel(long)
    queue.create(replace(NEW, query=LONG))
    assert {useless, long} & set(statuses(queue)) == set()


def test_manifests_count_as_space(path: Path) -> None:
    queue = make_queue(path, export_storage_limit=12_500)
    old = [cancelled(queue) for _ in range(2)]
    queue.create(replace(NEW, query=LONG))
    finish(claimed(queue), b"x" * 7300)
    queue.sweep()
    assert old[0] not in statuses(queue)
    with pytest.raises(NoSpaceLeft):
        create_many(queue, NEW)
    assert sum(each.stat().st_size for each in path.rglob("manifest.json")) <= 40_000


async def test_the_answer_at_a_limit_says_what_to_do(bounded: TestClient[Any, Any]) -> None:
    for _ in range(3):
        async with bounded.post("/export/users.csv?limit=1") as response:
            assert response.status == 202
    await all_ended(bounded)
    async with bounded.post("/export/users.csv?limit=1") as response:
        document = await response.json()
        assert (response.status, document["code"]) == (507, "too_many_exports")
        assert response.headers["Retry-After"] == "3600"
        assert "DELETE" in document["hint"]
        assert "MAX_SAVED_EXPORTS" in document["hint"]


async def all_ended(client: TestClient[Any, Any]) -> None:
    while True:
        async with client.get("/exports") as response:
            if all(each["status"] == "completed" for each in (await response.json())["exports"]):
                return
        await asyncio.sleep(0.02)


@pytest.mark.slow
def test_waiting_exports_get_429_and_downloads_work(start_live: Callable[..., LiveServer], gate: Gate) -> None:
    server = start_live(MAX_WAITING_EXPORTS="3", WEB_CONCURRENCY="2")
    ids = [save(server, "gated.csv") for _ in range(3)]
    answer = post(server, "users.csv")
    assert (answer.status, answer.problem()["code"]) == (429, "too_many_waiting")
    assert int(answer.headers["retry-after"]) > 0
    assert "MAX_WAITING_EXPORTS" in answer.problem()["hint"]
    assert ask(server, "/health/ready").status == 200
    assert ask(server, "/export/users.csv?limit=1").status == 200
    gate.open()
    for id in ids:
        wait_for(server, id, "completed")
    saved(server, "users.csv?limit=1")


# --- long requests and long lists -------------------------------------------------------------------------------------


async def test_a_long_query_is_cut_wherever_it_is_shown(client: TestClient[Any, Any]) -> None:
    query = f"{LONG}&filename=mine"
    async with client.post(URL(f"/export/users.csv?{query}", encoded=True)) as response:
        assert response.status == 202
        document = await response.json()
        address = response.headers["Location"]
    assert (document["query"], document["queryTruncated"]) == (query[:1000], True)
    await all_ended(client)
    async with client.get(address) as one, client.get("/exports") as listed:
        document = await one.json()
        assert (await listed.json())["exports"] == [document]
    assert len(document["query"]) == 1000
    assert document["downloadUrl"].endswith("/mine.csv")
    async with client.get(document["downloadUrl"]) as file:
        assert (file.status, (await file.read()).count(b"\n")) == (200, 2)
    async with client.get("/saved", headers=BROWSER, allow_redirects=False) as shown:
        assert len(await shown.text()) < 10_000
    async with client.get(f"/saved/{document['exportId']}/form", headers=BROWSER, allow_redirects=False) as shown:
        assert shown.headers["Location"] == f"/table/users?{query}&format=csv"
    async with client.post(f"/saved/{document['exportId']}/again", headers=BROWSER, allow_redirects=False) as again:
        assert (again.status, again.headers["Location"]) == (303, "/saved")
    async with client.get("/exports") as listed:
        assert (await listed.json())["total"] == 2


@pytest.mark.parametrize("length", [1000, 1001])
async def test_a_query_is_cut_only_beyond_the_limit(client: TestClient[Any, Any], length: int) -> None:
    query = "filename=".ljust(length, "x")
    async with client.post(f"/export/users.csv?{query}") as response:
        document = await response.json()
    assert (document["query"], document["queryTruncated"]) == (query[:1000], length > 1000)


async def test_the_list_is_read_page_by_page(client: TestClient[Any, Any], tmp_path: Path) -> None:
    async with client.post("/export/users.csv?limit=1") as response:
        assert response.status == 202
    await all_ended(client)
    plant(tmp_path / "exports", 6)
    expected, _ = await listed(client, "/exports")
    found: list[str] = []
    address: str | None = "/exports?limit=3"
    while address is not None:
        ids, address = await listed(client, address)
        if not found:  # the place of the next page does not depend on the export that was the last one
            async with client.delete(f"/exports/{ids[-1]}") as response:
                assert response.status == 204
        found += ids
    assert found == expected
    async with client.get("/exports") as response:
        document = await response.json()
        assert (document["total"], "Link" in response.headers) == (6, False)
        created = [each["createdAt"] for each in document["exports"]]
        assert created == sorted(created, reverse=True)


async def listed(client: TestClient[Any, Any], address: str) -> tuple[list[str], str | None]:
    """Return the ids of a page, and the address of the next one."""
    async with client.get(URL(address, encoded=True)) as response:
        assert response.status == 200
        following = response.links.get("next")
        ids = [each["exportId"] for each in (await response.json())["exports"]]
        return ids, None if following is None else URL(following["url"]).path_qs


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "invalid_limit"),
        ("limit=1001", "invalid_limit"),
        ("limit=-1", "invalid_limit"),
        ("limit=%D9%A1", "invalid_limit"),
        ("after=x", "invalid_after"),
        ("after=1-short", "invalid_after"),
        ("after=999999999999999999-AAAAAAAAAAAAAAAAAAAAAA", "invalid_after"),
        ("status=failed", "unknown_parameter"),
    ],
)
async def test_a_wrong_page_is_refused(client: TestClient[Any, Any], query: str, code: str) -> None:
    async with client.get(URL(f"/exports?{query}", encoded=True)) as response:
        assert (response.status, (await response.json())["code"]) == (400, code)


async def test_the_page_goes_on_to_older_exports(client: TestClient[Any, Any], tmp_path: Path) -> None:
    async with client.post("/export/users.csv?limit=1") as response:
        assert response.status == 202
    await all_ended(client)
    plant(tmp_path / "exports", 110)
    newest = await text(client, "/saved?q=users")
    assert newest.count("<article") == 100
    assert "100 of 111" in newest
    older = newest.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")
    assert older.startswith("/saved?q=users&after=")
    last = await text(client, older)
    assert last.count("<article") == 11
    assert "Older" not in last
    assert 'href="/saved?q=users">Newest' in last
    fields = {
        "id": last.partition('data-id="')[2][:22],
        "sure": "yes",
        "q": "users",
        "after": older.partition("after=")[2],
    }
    async with client.post("/saved/delete", data=fields, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, older)
    assert (await text(client, older)).count("<article") == 10
    async with client.post("/saved/delete", data=[("id", str(n)) for n in range(1001)]) as response:
        assert response.status == 400


async def test_many_exports_are_deleted_a_few_at_a_time(
    client: TestClient[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.post("/export/users.csv?limit=1") as response:
        assert response.status == 202
    await all_ended(client)
    ids = plant(tmp_path / "exports", 60)
    delete = Runner.delete
    running = most = 0

    async def counted(runner: Runner, id: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            if id == ids[0]:
                raise ServerBusy("The export is in use.")
            await delete(runner, id)
        finally:
            running -= 1

    monkeypatch.setattr(Runner, "delete", counted)
    fields = [("sure", "yes"), *(("id", id) for id in ids)]
    async with client.post("/saved/delete", data=fields, allow_redirects=False) as response:
        assert response.status == 503  # after all others have been deleted
    assert most == DELETED_AT_ONCE < FILE_THREADS
    assert {each.name for each in (tmp_path / "exports").iterdir()} & set(ids) == {ids[0]}


async def text(client: TestClient[Any, Any], address: str) -> str:
    async with client.get(URL(address, encoded=True)) as response:
        assert response.status == 200
        return await response.text()


# --- a folder full of exports -----------------------------------------------------------------------------------------


def calls_of_a_sweep(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return how often each function of the file system is called while nothing happens."""
    calls = Calls(10**9, 0)
    with monkeypatch.context() as patched:
        calls.install(patched)
        queue.sweep()
        assert queue.claim() is None
    return {name: calls.made.count(name) for name in set(calls.made)}


def settle(queue: Queue) -> None:
    """Let the folder count as unchanged for some time."""
    queue.sweep()
    queue.store._changed -= store.SETTLED_SECONDS + 1


@pytest.mark.slow
def test_an_idle_look_does_not_depend_on_the_number_of_exports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(path, export_storage_limit=10**9)
    completed(queue)
    plant(path, 1000)
    settle(queue)
    calls = calls_of_a_sweep(queue, monkeypatch)
    assert calls.pop("stat") <= store.ENDED_PER_SWEEP
    assert calls.get("read", 0) == calls.get("listdir", 0) == 0
    assert sum(calls.values()) < 30


def test_names_without_a_manifest_cost_little(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(path)
    for _ in range(3000):
        (path / secrets.token_urlsafe(16)).mkdir()
    settle(queue)
    calls = calls_of_a_sweep(queue, monkeypatch)
    assert calls["stat"] <= store.UNREADABLE_PER_SWEEP
    assert sum(calls.values()) < store.UNREADABLE_PER_SWEEP + 30
    id = completed(queue)
    assert statuses(queue) == {id: "completed"}


def test_the_names_in_a_huge_folder_are_not_read_all_the_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(path)
    queue.sweep()
    queue.store._took = 1.0  # seconds: a tenth of the time may go into reading them
    queue.store._read = time.monotonic() - 9.0
    other = created(make_queue(path))
    assert calls_of_a_sweep(queue, monkeypatch).get("listdir", 0) == 0
    assert statuses(queue) == {}
    queue.store._read -= 2.0
    assert statuses(queue) == {other: "pending"}


def test_a_manifest_of_a_gigabyte_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(path)
    planted, good = created(queue), created(queue)
    os.truncate(path / planted / "manifest.json", 1 << 30)
    os.utime(path / planted / "manifest.json", (1, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settle(queue)
    finish(claimed(queue))
    assert statuses(queue) == {good: "completed"}
    calls = calls_of_a_sweep(queue, monkeypatch)
    assert calls.get("read", 0) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_more_exports_than_are_known_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.saved.store.MOST_KNOWN", 5)
    completed(make_queue(path))
    plant(path, 9)
    queue = make_queue(path)
    seen = statuses(queue)
    assert len(seen) == 5
    for id in seen:
        assert queue.remove(id)
    assert len(statuses(queue)) == 5
    assert not set(statuses(queue)) & set(seen)


def test_a_manifest_that_is_changed_is_read_again(path: Path) -> None:
    queue = make_queue(path)
    id = completed(queue)
    queue.sweep()
    manifest = json.loads((path / id / "manifest.json").read_text())
    (path / id / "manifest.json").write_text(json.dumps({**manifest, "relation": "renamed"}))
    queue.sweep()
    assert [entry.manifest.relation for entry in queue.store.newest_first()] == ["renamed"]
    (path / id / "manifest.json").write_text("{}")
    queue.sweep()
    assert statuses(queue) == {}
    (path / id / "manifest.json").write_text(json.dumps(manifest))
    assert statuses(queue) == {id: "completed"}


def test_expired_exports_are_removed_a_part_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.saved.quota._REMOVING_SECONDS", -1.0)
    queue = make_queue(path, export_retention=0.000001)
    id = completed(queue)
    (path / ".gone-1").mkdir()
    queue.sweep()
    assert (path / id).exists()
    monkeypatch.setattr("server.saved.quota._REMOVING_SECONDS", 10.0)
    queue.sweep()
    assert not (path / id).exists()
    queue.sweep()
    assert not (path / ".gone-1").exists()


@pytest.mark.slow
def test_ten_thousand_exports_cost_an_idle_server_nothing(start_live: Callable[..., LiveServer], path: Path) -> None:
    server = start_live(EXPORT_STORAGE_PATH=str(path), WEB_CONCURRENCY="2")
    saved(server, "users.csv?limit=1")
    plant(path, 9_999)
    eventually("all are listed", lambda: answer_json(ask(server, "/exports"))["total"] == 10_000)
    answer = post(server, "users.csv")
    assert (answer.status, answer.problem()["code"]) == (507, "too_many_exports")
    time.sleep(5)  # the folder counts as unchanged, and what is measured is time
    for worker in server.workers():
        before = sum(worker.cpu_times()[:2])
        time.sleep(3)
        assert sum(worker.cpu_times()[:2]) - before < 0.1
        assert worker.memory_info().rss < 120 << 20
    started = time.perf_counter()
    assert ask(server, "/exports").status == 200
    assert time.perf_counter() - started < 0.5


@pytest.mark.slow
def test_a_hundred_thousand_names_cost_little(path: Path) -> None:
    make_queue(path)
    for _ in range(100_000):
        (path / secrets.token_urlsafe(16)).mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue = make_queue(path)
    queue.sweep()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    settle(queue)
    started = time.process_time()
    for _ in range(10):
        queue.sweep()
    assert time.process_time() - started < 0.5
    created(queue)

"""Several who watch exports share the looks at the folder, and each learns how its export ends."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.saved.errors import ExportNotFound, StorageUnavailable
from server.saved.queue import Queue
from server.saved.watch import Seen, Watch
from tests.support.live_server import eventually
from tests.support.saved_queue import claimed, created, finish, make_queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return make_queue(tmp_path / "storage")


@pytest.fixture
def stopping() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def watch(queue: Queue, stopping: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    monkeypatch.setattr("server.saved.watch.LOOK_SECONDS", 0.01)
    with ThreadPoolExecutor(2) as pool:
        yield Watch(queue.store, pool, stopping, 0.0)


async def statuses_until(watch: Watch, id: str, last: str | None) -> list[str | None]:
    """Return the statuses that looks have found, each once, until this one. None: the export is gone."""
    found: list[str | None] = []
    async with contextlib.aclosing(watch.looks(id)) as looks:
        async for seen in looks:
            status = None if seen is None else seen.status
            if found[-1:] != [status]:
                found.append(status)
            if status == last:
                break
    return found


async def test_each_watcher_sees_its_export_end(queue: Queue, watch: Watch) -> None:
    first, second = created(queue), created(queue)
    tasks = [
        asyncio.create_task(statuses_until(watch, first, "completed")),
        asyncio.create_task(statuses_until(watch, first, "completed")),
        asyncio.create_task(statuses_until(watch, second, None)),
    ]
    await eventually("both are seen", lambda: len(watch._seen) == 2)
    finish(claimed(queue))
    assert (await tasks[0])[-1] == "completed"
    await tasks[1]
    assert set(watch._watched) == {second}
    shutil.rmtree(queue.store.path / second)
    assert await tasks[2] == ["pending", None]
    await eventually("nobody looks", lambda: watch._looker is None)
    assert (watch._watched, watch._seen) == ({}, {})
    # Another one starts looking again.
    assert await statuses_until(watch, first, "completed") == ["completed"]


async def test_a_folder_that_is_away_for_some_time_ends_no_watch(
    queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = created(queue)
    task = asyncio.create_task(statuses_until(watch, id, "completed"))
    await eventually("it is seen", lambda: watch._seen)
    away = queue.store.path.with_name("away")
    queue.store.path.rename(away)
    with pytest.raises(StorageUnavailable):
        await watch.look(id)
    seen = watch._looked
    await eventually("it looks in vain", lambda: watch._looked is not seen)
    away.rename(queue.store.path)
    finish(claimed(queue))
    assert (await task)[-1] == "completed"


async def test_the_end_of_the_server_ends_every_watch(queue: Queue, watch: Watch, stopping: asyncio.Event) -> None:
    id = created(queue)
    task = asyncio.create_task(statuses_until(watch, id, "completed"))
    await eventually("it is seen", lambda: watch._seen)
    stopping.set()
    assert await asyncio.wait_for(task, 10) == ["pending"]


async def test_one_look_finds_an_export_or_says_why_not(queue: Queue, watch: Watch) -> None:
    id = created(make_queue(queue.store.path))  # another process creates it
    seen = await watch.look(id)
    assert isinstance(seen, Seen)
    assert (seen.status, seen.finished) == ("pending", False)
    for wrong in ("A" * 22, "../x"):
        with pytest.raises(ExportNotFound):
            await watch.look(wrong)

"""Saved exports in this process: a queue, and exports in each of their states."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NoReturn

from server.chunk import Chunk
from server.errors import QueryFailed
from server.saved.claim import Claim
from server.saved.manifest import NewExport, Reading
from server.saved.queue import Queue
from server.settings import Settings

NEW = NewExport(target="users.csv", query="", relation="users", format="csv", total_rows=100)


def make_queue(path: Path, **values: Any) -> Queue:
    """Return a queue as one process has it. Several queues on one folder stand for several processes."""
    values = {"export_min_free_space": 0, **values}
    queue = Queue(Settings(export_storage_path=path, **values))
    queue.prepare()
    return queue


def created(queue: Queue, key: str | None = None) -> str:
    """Create an export and return its id."""
    before = [each.name for each in queue.store.path.iterdir()]
    id = queue.create(NEW, key).manifest.id
    assert id not in before
    return id


def claimed(queue: Queue) -> Claim:
    """Claim the next export, which must exist."""
    claim = queue.claim()
    assert claim is not None
    return claim


def finish(claim: Claim, data: bytes = b"id\n1\n") -> None:
    """Write the file of a claimed export, complete the export and release the claim."""
    part = claim.start(Reading())
    part.write([Chunk(data, 1)])
    claim.complete(part)
    claim.close()


def completed(queue: Queue, data: bytes = b"id\n1\n") -> str:
    """Create and complete an export, and return its id."""
    id = created(queue)
    finish(claimed(queue), data)
    return id


def statuses(queue: Queue) -> dict[str, str]:
    """Return the status of each export by its id."""
    return {entry.manifest.id: entry.manifest.status for entry in queue.store.newest_first()}


def snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return everything below a folder, with modes and contents."""
    return {
        str(each.relative_to(path)): (each.lstat().st_mode, each.read_bytes() if each.is_file() else b"")
        for each in sorted(path.rglob("*"))
    }


def open_below(path: Path) -> list[str]:
    """Return what this process has open below this path, including removed files."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return sorted(name for name in found if name.startswith(f"{path}/"))


def is_locked(queue: Queue, id: str) -> bool:
    """Return whether the lock of this export is held."""
    with queue.store.open_root() as root:
        claim = queue.take(root, id)
    if claim is not None:
        claim.close()
    return claim is None


async def fail(claim: Claim) -> NoReturn:
    """Fail the attempt. Takes the place of `Runner._save`."""
    raise QueryFailed("x")

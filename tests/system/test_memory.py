"""`server/memory.py` and `server/ram.py`: who gets memory for large values, in which order, and how much there is."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from server import ram
from server.memory import Memory, Reservation
from server.ram import MOST_FOR_VALUES, available_memory, cgroup_limit, memory_for_values
from server.settings import read_settings
from tests.support.waiting import settle


class Reader:
    """A task that reserves, and keeps what it has until it is told to give it back."""

    def __init__(self, memory: Memory, count: int, seconds: float = 0) -> None:
        self.has_some = False
        self.release = asyncio.Event()
        self.task = asyncio.create_task(self._run(memory, count, seconds))

    async def _run(self, memory: Memory, count: int, seconds: float) -> None:
        with Reservation(memory) as reserved:
            await reserved.take(count, seconds)
            self.has_some = True
            await self.release.wait()


async def test_what_is_free_is_given_at_once() -> None:
    memory = Memory(100)
    with Reservation(memory) as one, Reservation(memory) as other:
        await one.take(60, 1)
        await other.take(40, 1)
        assert memory.used == 100
        one.keep(10)
        assert memory.used == 50
        one.keep(30)  # not more than it has
        assert memory.used == 50
    assert memory.used == 0


async def test_those_who_wait_get_it_in_their_order() -> None:
    memory = Memory(100)
    first, large, small = Reader(memory, 60), Reader(memory, 50), Reader(memory, 10)
    await settle()
    # The small one would fit. It waits behind the large one, which would otherwise never get anything.
    assert [first.has_some, large.has_some, small.has_some] == [True, False, False]
    first.release.set()
    await settle()
    assert [large.has_some, small.has_some] == [True, True]
    large.release.set()
    small.release.set()
    await asyncio.gather(first.task, large.task, small.task)
    assert memory.used == 0


async def test_whoever_waits_too_long_lets_the_next_one_pass() -> None:
    memory = Memory(100)
    first, impatient, small = Reader(memory, 60), Reader(memory, 50, 0.02), Reader(memory, 10)
    with pytest.raises(TimeoutError):
        await impatient.task
    await settle()
    assert small.has_some
    assert memory.used == 70
    for each in (first, small):
        each.release.set()
        await each.task
    assert memory.used == 0


@pytest.mark.parametrize("given_first", [False, True])
async def test_whoever_is_cancelled_keeps_nothing(given_first: bool) -> None:
    memory = Memory(100)
    first, waiting, last = Reader(memory, 100), Reader(memory, 50), Reader(memory, 60)
    await settle()
    if given_first:  # both at once: it was given the memory, and does not know yet
        first.release.set()
        with contextlib.suppress(asyncio.CancelledError):
            await first.task
        waiting.task.cancel()
    else:
        waiting.task.cancel()
        first.release.set()
    await settle()
    assert waiting.task.cancelled()
    assert last.has_some
    assert memory.used == 60
    last.release.set()
    await asyncio.gather(first.task, last.task)
    assert memory.used == 0


async def test_whoever_has_some_must_not_wait_for_more() -> None:
    with Reservation(Memory(100)) as reserved:
        await reserved.take(10, 1)
        with pytest.raises(RuntimeError):
            await reserved.take(10, 1)


# --- How much there is. ---

LIMITS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "v2": ("0::/\n", {"memory.max": "157286400\n"}, 157286400),
    "v2: no limit": ("0::/\n", {"memory.max": "max\n"}, None),
    "v2: no files": ("0::/\n", {}, None),
    "v2: the smallest of all above": ("0::/a/b\n", {"a/memory.max": "100\n", "a/b/memory.max": "200\n"}, 100),
    "v1": ("4:cpu:/c\n3:memory:/a\n", {"memory/a/memory.limit_in_bytes": "300\n"}, 300),
    "v1: other controllers do not count": ("3:cpu:/a\n", {"cpu/a/memory.limit_in_bytes": "300\n"}, None),
}


@pytest.mark.parametrize(("lines", "files", "limit"), LIMITS.values(), ids=LIMITS)
def test_the_limit_of_control_groups(lines: str, files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    mount = tmp_path / "cgroup"
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    (tmp_path / "own").write_text(lines)
    assert cgroup_limit(tmp_path / "own", mount) == limit


def limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str) -> None:
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(ram, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(ram, "CGROUPS", tmp_path)


def test_values_may_take_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limited(monkeypatch, tmp_path, str(160 << 20))
    assert available_memory() == 160 << 20
    assert read_settings({}).most_memory == 40 << 20
    assert read_settings({"WEB_CONCURRENCY": "4"}).most_memory == 10 << 20
    assert read_settings({"MEMORY_LIMIT": "1GB"}).most_memory == 10**9
    assert read_settings({"MEMORY_LIMIT": "0"}).most_memory == 0


def test_no_more_than_the_largest_value_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limited(monkeypatch, tmp_path, "max")
    assert 0 < memory_for_values(1) <= MOST_FOR_VALUES
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 20)
    assert memory_for_values(1) == MOST_FOR_VALUES


def test_a_system_that_does_not_tell_has_some_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limited(monkeypatch, tmp_path, "max")

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert available_memory() == ram.UNKNOWN_MEMORY

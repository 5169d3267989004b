"""`SpareReaders`: how many further readers there are, without a database."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest

from server.postgres.spare_readers import SpareReader, SpareReaders


async def turns() -> None:
    """Let every task that can continue do so."""
    for _ in range(20):
        await asyncio.sleep(0)


class Readers:
    """Tasks that each want to be a further reader, and are one until `leave`."""

    def __init__(self, all: SpareReaders, count: int) -> None:
        self._all = all
        self._ends = [asyncio.Event() for _ in range(count)]
        self.active: dict[int, SpareReader] = {}
        self.tasks = [asyncio.create_task(self._read(number)) for number in range(count)]

    async def _read(self, number: int) -> None:
        async with self._all.reader() as self.active[number]:
            await self._ends[number].wait()
        del self.active[number]

    async def leave(self, number: int) -> None:
        self._ends[number].set()
        await turns()


@pytest.mark.parametrize(
    ("most_readers", "exports", "expected"),
    [(1, 1, 0), (2, 1, 1), (4, 1, 3), (4, 2, 2), (4, 3, 1), (4, 4, 0), (4, 9, 0)],
)
async def test_all_exports_together_have_no_more_readers_than_one_may_have(
    most_readers: int, exports: int, expected: int
) -> None:
    all = SpareReaders(most_readers, 2 * (most_readers - 1))
    with ExitStack() as stack:
        for _ in range(exports):
            stack.enter_context(all.export())
        readers = Readers(all, 10)
        await turns()
        assert len(readers.active) == all.in_use == expected
        for task in readers.tasks:
            task.cancel()
        await asyncio.gather(*readers.tasks, return_exceptions=True)
    assert all.in_use == 0


async def test_a_reader_that_leaves_makes_room_for_another() -> None:
    all = SpareReaders(3, 4)
    with all.export():
        readers = Readers(all, 5)
        await turns()
        assert sorted(readers.active) == [0, 1]
        await readers.leave(0)
        assert len(readers.active) == all.in_use == 2
        for task in readers.tasks:
            task.cancel()
        await asyncio.gather(*readers.tasks, return_exceptions=True)


async def test_no_more_readers_step_back_than_others_need_and_they_come_back() -> None:
    all = SpareReaders(4, 6)
    async with AsyncExitStack() as stack:
        stack.enter_context(all.export())
        readers = [await stack.enter_async_context(all.reader()) for _ in range(3)]
        assert not any(reader.step_back_if_needed() for reader in readers)
        with all.export():
            assert [reader.step_back_if_needed() for reader in readers] == [True, False, False]
            # It stays so: a reader that has said that it stops does.
            assert [reader.step_back_if_needed() for reader in readers] == [True, False, False]
            coming_back = Readers(all, 1)
            await turns()
            assert not coming_back.active
            assert all.in_use == 2
        assert [reader.step_back_if_needed() for reader in readers] == [True, False, False]
        await turns()
        assert all.in_use == 3
        await coming_back.leave(0)
        assert all.in_use == 2
    assert all.in_use == 0


async def test_readers_that_have_stepped_back_keep_their_connections_until_they_leave() -> None:
    all = SpareReaders(3, 4)
    async with AsyncExitStack() as stack:
        stack.enter_context(all.export())
        leaving = [await stack.enter_async_context(all.reader()) for _ in range(2)]
        with ExitStack() as others:
            for _ in range(2):
                others.enter_context(all.export())
            assert [reader.step_back_if_needed() for reader in leaving] == [True, True]
        readers = Readers(all, 5)
        await turns()
        assert len(readers.active) == 2
        # Two read, two have stepped back: there is no connection for another, although fewer are needed.
        await readers.leave(0)
        assert len(readers.active) == 2
        assert all.in_use == 2
        for task in readers.tasks:
            task.cancel()
        await asyncio.gather(*readers.tasks, return_exceptions=True)


async def test_there_are_no_more_connections_than_allowed() -> None:
    all = SpareReaders(4, 3)
    async with AsyncExitStack() as stack:
        stack.enter_context(all.export())
        first = [await stack.enter_async_context(all.reader()) for _ in range(3)]
        with ExitStack() as others:
            for _ in range(3):
                others.enter_context(all.export())
            assert all_back(first)
        waiting = Readers(all, 2)
        await turns()
        assert not waiting.active
        await stack.aclose()
        await turns()
        assert len(waiting.active) == 2
        for number in range(2):
            await waiting.leave(number)


def all_back(readers: list[SpareReader]) -> bool:
    return all(reader.step_back_if_needed() for reader in readers)

"""Ranges of one file: in order whoever reads them when, bounded look-ahead, back-pressure, errors in their place.

Nothing but asyncio: readers are tasks, and a schedule says how often each lets the others go first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.chunk import Chunk
from server.errors import QueryFailed
from server.export import ranges as module
from server.export.ranges import Ranges

# Turns of the event loop after which nothing moves any more that is not waiting for somebody else.
SETTLED = 200


async def settle() -> None:
    for _ in range(SETTLED):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(*readers: object) -> AsyncIterator[list[asyncio.Task[None]]]:
    """These readers at work; those that still are at the end are stopped."""
    tasks = [asyncio.ensure_future(reader) for reader in readers]  # type: ignore[call-overload]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def lines(number: int, count: int, size: int = 10) -> list[Chunk]:
    """What the range of this number holds: chunks that tell which they are."""
    return [Chunk(b"%d.%d;" % (number, place) + b"x" * size, 1) for place in range(count)]


async def read(
    ranges: Ranges,
    contents: Sequence[Sequence[Chunk]],
    pauses: Iterator[int] | None = None,
    fails: dict[int, Exception] | None = None,
) -> None:
    """A reader: takes ranges until there are none, or until one fails."""
    while (taken := await ranges.take()) is not None:
        for chunk in contents[taken.number]:
            for _ in range(next(pauses, 0) if pauses else 0):
                await asyncio.sleep(0)
            await taken.put(chunk)
        if fails and taken.number in fails:
            taken.end(fails[taken.number])
            return
        taken.end()


async def collect(ranges: Ranges) -> list[Chunk]:
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        return [chunk async for chunk in chunks]


def plain(chunks: Sequence[Chunk]) -> list[tuple[bytes, int]]:
    return [(chunk.data, chunk.rows) for chunk in chunks]


# --- order ------------------------------------------------------------------------------------------------------


async def test_one_range_comes_as_it_is() -> None:
    ranges = Ranges(1, ahead=2)
    async with running(read(ranges, [lines(0, 3)])):
        assert await collect(ranges) == lines(0, 3)  # and no share of the whole: there is nothing to tell it by


async def test_no_lines_at_all() -> None:
    ranges = Ranges(3, ahead=2)
    async with running(read(ranges, [[], [], []])):
        assert await collect(ranges) == []


async def test_the_first_range_is_handed_over_while_it_is_read() -> None:
    ranges = Ranges(2, ahead=2)
    first = await ranges.take()
    assert first is not None
    await first.put(Chunk(b"a", 1))
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        assert (await anext(chunks)).data == b"a"
        following = asyncio.ensure_future(anext(chunks))
        await settle()
        assert not following.done()
        await first.put(Chunk(b"b", 1))
        assert (await following).data == b"b"


async def test_a_range_read_too_early_waits_for_those_before_it() -> None:
    ranges = Ranges(2, ahead=2)
    first, second = await ranges.take(), await ranges.take()
    assert first is not None
    assert second is not None
    await second.put(Chunk(b"second", 1))
    second.end()
    collected = asyncio.ensure_future(collect(ranges))
    await settle()
    assert not collected.done()
    await first.put(Chunk(b"first", 1))
    first.end()
    assert [chunk.data for chunk in await collected] == [b"first", b"second"]


async def test_each_chunk_says_how_much_of_the_whole_was_read_before_it() -> None:
    ranges = Ranges(4, ahead=8)
    async with running(read(ranges, [lines(number, 2) for number in range(4)])):
        assert [chunk.done for chunk in await collect(ranges)] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[int], int, int, list[int], dict[int, Exception]]:
    """(chunks of each range, readers, ahead, pauses, the ranges that fail)."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    failing = draw(st.sets(st.integers(0, len(counts) - 1), max_size=2))
    return (
        counts,
        draw(st.integers(1, 5)),
        draw(st.integers(1, 8)),
        draw(st.lists(st.integers(0, 5), max_size=60)),
        {number: QueryFailed(str(number)) for number in failing},
    )


@hypothesis_settings(max_examples=200)
@given(schedule=schedules(), size=st.sampled_from([1, 100, 700, 3000]))
@example(schedule=([1, 1], 2, 1, [5, 0], {0: QueryFailed("0")}), size=1)
@example(schedule=([4, 4, 4], 3, 3, [], {2: QueryFailed("2")}), size=3000)
async def test_whatever_the_schedule_the_file_is_whole_or_ends_at_the_first_failure(
    schedule: tuple[list[int], int, int, list[int], dict[int, Exception]], size: int
) -> None:
    counts, readers, ahead, pauses, fails = schedule
    contents = [lines(number, count, size) for number, count in enumerate(counts)]
    ranges = Ranges(len(counts), ahead)
    shared = iter(pauses)
    received: list[Chunk] = []

    async def consume() -> None:
        async with contextlib.aclosing(ranges.chunks()) as chunks:
            async for chunk in chunks:
                received.append(chunk)
                for _ in range(next(shared, 0)):
                    await asyncio.sleep(0)

    # A reader that has failed takes nothing more, so there is always one that has not.
    async with running(*(read(ranges, contents, shared, fails) for _ in range(readers + len(fails)))):
        async with asyncio.timeout(30):
            if fails:
                first = min(fails)
                with pytest.raises(QueryFailed) as caught:
                    await consume()
                assert caught.value is fails[first]
                right = [chunk for content in contents[: first + 1] for chunk in content]
            else:
                await consume()
                right = [chunk for content in contents for chunk in content]
    assert plain(received) == plain(right)


# --- how far ahead ----------------------------------------------------------------------------------------------


async def test_no_more_ranges_are_taken_than_may_wait() -> None:
    ranges = Ranges(10, ahead=3)
    taken = [ranges.take_now() for _ in range(10)]
    assert [one.number for one in taken if one is not None] == [0, 1, 2]
    waiting = asyncio.ensure_future(ranges.take())
    await settle()
    assert not waiting.done()
    # Once the file is past the first range there is room for one more.
    assert taken[0] is not None
    taken[0].end()
    collecting = asyncio.ensure_future(collect(ranges))
    following = await waiting
    assert following is not None
    assert following.number == 3
    await settle()
    assert ranges.take_now() is None
    collecting.cancel()


async def test_every_range_is_taken_once_and_then_there_are_none() -> None:
    ranges = Ranges(5, ahead=100)
    taken = [await ranges.take() for _ in range(5)]
    assert [one.number for one in taken if one is not None] == [0, 1, 2, 3, 4]
    assert ranges.take_now() is None
    assert await ranges.take() is None


async def test_those_who_wait_for_a_range_are_told_that_there_are_none() -> None:
    ranges = Ranges(3, ahead=1)
    contents = [lines(number, 2) for number in range(3)]
    async with running(*(read(ranges, contents) for _ in range(4))) as tasks:
        assert len(await collect(ranges)) == 6
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)


async def test_a_reader_waits_where_its_range_is_not_taken_off_its_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES", 1000)
    ranges = Ranges(2, ahead=2)
    contents = [lines(number, 100, 100) for number in range(2)]
    put: list[Chunk] = []

    async def reader() -> None:
        taken = await ranges.take()
        assert taken is not None
        for chunk in contents[taken.number]:
            await taken.put(chunk)
            put.append(chunk)
        taken.end()

    async with running(reader(), reader()):
        await settle()
        # Each has put what may wait, and stands with one chunk more in its hand.
        assert sum(len(chunk.data) for chunk in put) < 2 * (1000 + 110)
        stuck = len(put)
        async with contextlib.aclosing(ranges.chunks()) as chunks:
            for taken_off in range(1, 31):
                await anext(chunks)
                await settle()
                assert len(put) <= stuck + taken_off
            rest = [chunk async for chunk in chunks]
    assert len(rest) == 170
    assert len(put) == 200


async def test_a_chunk_larger_than_what_may_wait_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES", 1000)
    ranges = Ranges(1, ahead=1)
    async with running(read(ranges, [lines(0, 5, 50_000)])):
        assert plain(await collect(ranges)) == plain(lines(0, 5, 50_000))


# --- readers that fail, leave or never come ---------------------------------------------------------------------


async def test_what_a_range_held_comes_before_its_error() -> None:
    ranges = Ranges(3, ahead=3)
    contents = [lines(number, 2) for number in range(3)]
    async with running(read(ranges, contents, fails={1: QueryFailed("it broke")})):
        chunks = ranges.chunks()
        received = [await anext(chunks) for _ in range(4)]
        with pytest.raises(QueryFailed, match="it broke"):
            await anext(chunks)
    assert plain(received) == plain(contents[0] + contents[1])


async def test_an_error_further_on_waits_for_its_turn() -> None:
    ranges = Ranges(2, ahead=2)
    first, second = await ranges.take(), await ranges.take()
    assert first is not None
    assert second is not None
    second.end(QueryFailed("too early"))
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        waiting = asyncio.ensure_future(anext(chunks))
        await settle()
        assert not waiting.done()
        await first.put(Chunk(b"first", 1))
        first.end()
        assert (await waiting).data == b"first"
        with pytest.raises(QueryFailed, match="too early"):
            await anext(chunks)


async def test_one_reader_is_enough_where_others_never_come() -> None:
    ranges = Ranges(20, ahead=6)
    contents = [lines(number, 3) for number in range(20)]

    async def never() -> None:
        await asyncio.Event().wait()

    async with running(read(ranges, contents), never(), never()), asyncio.timeout(10):
        assert plain(await collect(ranges)) == plain([chunk for content in contents for chunk in content])


async def test_a_reader_that_is_stopped_in_its_range_ends_the_file_there() -> None:
    ranges = Ranges(2, ahead=2)
    ready = asyncio.Event()

    async def stopped() -> None:
        taken = await ranges.take()
        assert taken is not None
        await taken.put(Chunk(b"some", 1))
        ready.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            taken.end(QueryFailed("stopped"))
            raise error

    async with running(stopped()) as (task,):
        await ready.wait()
        task.cancel()
        with pytest.raises(QueryFailed, match="stopped"):
            await collect(ranges)


async def test_a_file_that_nobody_wants_holds_its_readers_and_lets_them_be_stopped() -> None:
    ranges = Ranges(50, ahead=4)
    contents = [lines(number, 1) for number in range(50)]
    async with running(*(read(ranges, contents) for _ in range(3))) as tasks:
        chunks = ranges.chunks()
        await anext(chunks)
        await chunks.aclose()
        await settle()
        assert not any(task.done() for task in tasks)
    assert all(task.cancelled() for task in tasks)

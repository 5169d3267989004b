"""The ranges of one file: their order, the look-ahead limits, and readers that fail.

Needs only asyncio. A reader here is a task that takes ranges and puts chunks; a list of pauses says how many times it
lets the other tasks run first. `settle` runs the event loop until nothing changes any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.chunk import Chunk
from server.errors import ConnectionLost, QueryFailed
from server.export import ranges as module
from server.export.ranges import RangeReader, Ranges
from tests.support.waiting import settle

# Seconds until a test is taken to hang. Nothing here waits for time to pass.
HANGS = 30

pytestmark = pytest.mark.timeout(HANGS)

LOST = ConnectionLost("the connection is gone")


@contextlib.asynccontextmanager
async def running(*readers: Coroutine[None, None, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run these readers as tasks. Cancel those that have not ended at the end."""
    tasks = [asyncio.ensure_future(reader) for reader in readers]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let only 1000 bytes of a range wait for the file."""
    monkeypatch.setattr(module, "RANGE_BUFFER_BYTES", 1000)
    return 1000


def content(number: int, count: int, size: int = 10) -> list[Chunk]:
    """The chunks of the range of this number; each names its range and its place."""
    return [Chunk(b"%d.%d;" % (number, place) + b"x" * size, 1) for place in range(count)]


def contents(ranges: int, count: int, size: int = 10) -> list[list[Chunk]]:
    """The chunks of that many ranges, `count` each."""
    return [content(number, count, size) for number in range(ranges)]


def plain(chunks: Sequence[Chunk]) -> list[bytes]:
    """The data of the chunks, without those that hold none."""
    return [chunk.data for chunk in chunks if chunk.data]


def joined(parts: Sequence[Sequence[Chunk]]) -> list[bytes]:
    return [chunk.data for part in parts for chunk in part]


async def take(ranges: Ranges, *, permanent: bool = False) -> RangeReader:
    """A new reader that has taken a range, which must be there at once."""
    reader = ranges.reader(permanent=permanent)
    taking = asyncio.ensure_future(reader.take())
    await asyncio.sleep(0)
    assert taking.done()
    assert taking.result()
    return reader


async def read(ranges: Ranges, parts: Sequence[Sequence[Chunk]], *, permanent: bool = False) -> None:
    """A reader that takes ranges until none is left for it."""
    reader = ranges.reader(permanent=permanent)
    more = await reader.take()
    while more:
        for chunk in parts[reader.number]:
            if not await reader.put(chunk):
                break
        else:
            reader.end(Chunk(b"", 0))
            more = await reader.take()


async def collect(ranges: Ranges) -> list[Chunk]:
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        return [chunk async for chunk in chunks]


# --- order -------------------------------------------------------------------------------------------------------


async def test_one_range_is_handed_over_as_it_is() -> None:
    ranges = Ranges(1, ahead=2)
    async with running(read(ranges, contents(1, 3), permanent=True)):
        collected = await collect(ranges)
    assert plain(collected) == joined(contents(1, 3))
    assert {chunk.done for chunk in collected} == {None}  # one range does not show how much has been read


async def test_ranges_without_rows_make_an_empty_file() -> None:
    ranges = Ranges(3, ahead=2)
    async with running(read(ranges, [[], [], []], permanent=True)):
        assert plain(await collect(ranges)) == []


async def test_the_first_range_is_handed_over_while_it_is_read() -> None:
    ranges = Ranges(2, ahead=2)
    first = await take(ranges, permanent=True)
    await first.put(Chunk(b"a", 1))
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        assert (await anext(chunks)).data == b"a"
        following = asyncio.ensure_future(anext(chunks))
        await settle()
        assert not following.done()
        await first.put(Chunk(b"b", 1))
        assert (await following).data == b"b"


async def test_a_range_that_is_read_early_waits_for_those_before_it() -> None:
    ranges = Ranges(2, ahead=2)
    first, second = await take(ranges, permanent=True), await take(ranges)
    second.end(Chunk(b"second", 1))
    collected = asyncio.ensure_future(collect(ranges))
    await settle()
    assert not collected.done()
    first.end(Chunk(b"first", 1))
    assert plain(await collected) == [b"first", b"second"]


async def test_each_chunk_says_what_share_of_the_ranges_was_handed_over_before_it() -> None:
    ranges = Ranges(4, ahead=8)
    async with running(read(ranges, contents(4, 1), permanent=True)):
        shares = [chunk.done for chunk in await collect(ranges)]
    # Chunks without bytes too: a filter may select nothing for a long time.
    assert shares == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


# --- how far ahead -----------------------------------------------------------------------------------------------


async def test_no_more_ranges_are_taken_than_the_look_ahead_allows() -> None:
    ranges = Ranges(10, ahead=3)
    readers = [await take(ranges, permanent=not number) for number in range(3)]
    assert [reader.number for reader in readers] == [0, 1, 2]
    fourth = ranges.reader()
    taking = asyncio.ensure_future(fourth.take())
    await settle()
    assert not taking.done()
    # One more may be taken when the first range has been handed over whole, and only then.
    readers[0].end(Chunk(b"", 0))
    await settle()
    assert not taking.done()
    collecting = asyncio.ensure_future(collect(ranges))
    assert await taking
    assert fourth.number == 3
    collecting.cancel()


async def test_more_ranges_are_taken_ahead_while_another_reader_reads() -> None:
    ranges = Ranges(10, ahead=2)
    first, further = ranges.reader(permanent=True), ranges.reader()

    def read_all_that_can_be_taken(reader: RangeReader) -> int:
        count = 0
        while ranges._take_new(reader) is not None:
            count += 1
        return count

    assert read_all_that_can_be_taken(first) == 2
    with ranges.more_ahead(2):
        assert read_all_that_can_be_taken(further) == 2
    assert read_all_that_can_be_taken(first) == 0
    with ranges.more_ahead(3):
        assert read_all_that_can_be_taken(further) == 1
        assert not ranges.all_taken
    with ranges.more_ahead(8):
        assert read_all_that_can_be_taken(further) == 5
        assert ranges.all_taken


async def test_every_range_is_taken_once_and_then_no_one_waits_for_more() -> None:
    ranges = Ranges(5, ahead=100)
    readers = [await take(ranges) for _ in range(5)]
    assert [reader.number for reader in readers] == [0, 1, 2, 3, 4]
    assert not await ranges.reader().take()


async def test_readers_that_wait_for_a_range_learn_that_none_is_left(small_buffer: int) -> None:
    ranges = Ranges(3, ahead=1)
    readers = (read(ranges, contents(3, 2), permanent=not number) for number in range(4))
    async with running(*readers) as tasks, asyncio.timeout(HANGS):
        assert plain(await collect(ranges)) == joined(contents(3, 2))
        await asyncio.gather(*tasks)


async def test_a_reader_waits_while_too_much_of_its_range_waits_for_the_file(small_buffer: int) -> None:
    ranges = Ranges(2, ahead=2)
    parts = contents(2, 100, 100)
    put: list[Chunk] = []

    async def reader(*, permanent: bool) -> None:
        reader = ranges.reader(permanent=permanent)
        await reader.take()
        for chunk in parts[reader.number]:
            assert await reader.put(chunk)
            put.append(chunk)
        reader.end(Chunk(b"", 0))

    async with running(reader(permanent=True), reader(permanent=False)):
        await settle()
        # Each has filled its buffer, and holds one chunk more.
        assert sum(len(chunk.data) for chunk in put) < 2 * (small_buffer + 110)
        stuck = len(put)
        async with contextlib.aclosing(ranges.chunks()) as chunks:
            for handed_over in range(1, 31):
                await anext(chunks)
                await settle()
                assert len(put) <= stuck + handed_over
            rest = plain([chunk async for chunk in chunks])
    assert len(rest) == 170
    assert len(put) == 200


async def test_the_last_chunk_of_a_range_never_waits(small_buffer: int) -> None:
    ranges = Ranges(2, ahead=2)
    reader = await take(ranges, permanent=True)
    await reader.put(Chunk(b"x" * small_buffer, 1))
    reader.end(Chunk(b"end", 1))
    assert await reader.take()
    assert reader.number == 1


async def test_a_chunk_larger_than_the_buffer_is_handed_over(small_buffer: int) -> None:
    ranges = Ranges(1, ahead=1)
    async with running(read(ranges, contents(1, 5, 50_000), permanent=True)):
        assert plain(await collect(ranges)) == joined(contents(1, 5, 50_000))


# --- errors that end the file ------------------------------------------------------------------------------------


async def test_what_was_read_of_a_range_comes_before_its_error() -> None:
    ranges = Ranges(3, ahead=3)
    first, second = await take(ranges, permanent=True), await take(ranges)
    first.end(Chunk(b"first", 1))
    await second.put(Chunk(b"second", 1))
    second.fail(QueryFailed("it broke"))
    chunks = ranges.chunks()
    assert [(await anext(chunks)).data for _ in range(2)] == [b"first", b"second"]
    with pytest.raises(QueryFailed, match="it broke"):
        await anext(chunks)


async def test_an_error_of_a_later_range_waits_for_its_turn() -> None:
    ranges = Ranges(2, ahead=2)
    first, second = await take(ranges, permanent=True), await take(ranges)
    second.fail(QueryFailed("too early"))
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        waiting = asyncio.ensure_future(anext(chunks))
        await settle()
        assert not waiting.done()
        first.end(Chunk(b"first", 1))
        assert (await waiting).data == b"first"
        with pytest.raises(QueryFailed, match="too early"):
            await anext(chunks)


@pytest.mark.parametrize("give_back", [False, True])
async def test_a_range_of_which_bytes_were_handed_over_ends_the_file(give_back: bool) -> None:
    ranges = Ranges(2, ahead=2)
    first, second = await take(ranges, permanent=True), await take(ranges)
    first.end(Chunk(b"first", 1))
    await second.put(Chunk(b"some", 1))
    await second.put(Chunk(b"more", 1))
    async with contextlib.aclosing(ranges.chunks()) as chunks:
        assert [(await anext(chunks)).data for _ in range(2)] == [b"first", b"some"]
        second.fail(LOST, give_back=give_back)
        assert (await anext(chunks)).data == b"more"
        with pytest.raises(ConnectionLost):
            await anext(chunks)


@pytest.mark.parametrize("give_back", [False, True])
async def test_the_failure_of_the_permanent_reader_ends_the_file_at_its_range(give_back: bool) -> None:
    ranges = Ranges(4, ahead=4)
    helper, first = await take(ranges), await take(ranges, permanent=True)
    await first.put(Chunk(b"some", 1))
    first.fail(LOST, give_back=give_back)
    helper.end(Chunk(b"helper", 1))
    chunks = ranges.chunks()
    assert [(await anext(chunks)).data for _ in range(2)] == [b"helper", b"some"]
    with pytest.raises(ConnectionLost):
        await anext(chunks)


async def test_the_failure_of_a_permanent_reader_without_a_range_ends_a_file_that_no_one_reads() -> None:
    ranges = Ranges(2, ahead=2)
    collecting = asyncio.ensure_future(collect(ranges))
    await settle()
    ranges.reader(permanent=True).fail(LOST, give_back=True)
    with pytest.raises(ConnectionLost):
        await collecting


@pytest.mark.parametrize("first_fails_last", [True, False])
async def test_a_range_that_no_one_can_take_any_more_ends_the_file(first_fails_last: bool) -> None:
    ranges = Ranges(3, ahead=3)
    helper, first = await take(ranges), await take(ranges, permanent=True)
    failing = [(helper, ConnectionLost("helper")), (first, ConnectionLost("first"))]
    for reader, error in failing if first_fails_last else reversed(failing):
        reader.fail(error, give_back=True)
    async with asyncio.timeout(HANGS):
        with pytest.raises(ConnectionLost, match="first" if first_fails_last else "helper"):
            await collect(ranges)


async def test_a_reader_that_is_cancelled_in_its_range_ends_the_file_there() -> None:
    ranges = Ranges(2, ahead=2)
    ready = asyncio.Event()

    async def cancelled() -> None:
        reader = await take(ranges, permanent=True)
        await reader.put(Chunk(b"some", 1))
        ready.set()
        try:
            await asyncio.Event().wait()
        except BaseException:
            reader.fail(QueryFailed("cancelled"))
            raise

    async with running(cancelled()) as (task,):
        await ready.wait()
        task.cancel()
        with pytest.raises(QueryFailed, match="cancelled"):
            await collect(ranges)


async def test_a_file_that_is_closed_early_holds_its_readers_until_they_are_cancelled() -> None:
    ranges = Ranges(50, ahead=4)
    readers = (read(ranges, contents(50, 1), permanent=not number) for number in range(3))
    async with running(*readers) as tasks:
        chunks = ranges.chunks()
        await anext(chunks)
        await chunks.aclose()
        await settle()
        assert not any(task.done() for task in tasks)
    assert all(task.cancelled() for task in tasks)


# --- ranges that are given back ----------------------------------------------------------------------------------


async def test_one_reader_is_enough_if_the_others_never_connect() -> None:
    ranges = Ranges(20, ahead=6)

    async def never() -> None:
        await asyncio.Event().wait()

    async with running(read(ranges, contents(20, 3), permanent=True), never(), never()), asyncio.timeout(HANGS):
        assert plain(await collect(ranges)) == joined(contents(20, 3))


@pytest.mark.parametrize("buffered", [0, 1, 3])
async def test_a_range_given_back_is_read_anew_in_its_place(buffered: int) -> None:
    ranges = Ranges(3, ahead=3)
    first, second, third = await take(ranges, permanent=True), await take(ranges), await take(ranges)
    for number in range(buffered):
        await second.put(Chunk(b"%d" % number, 1))
    second.fail(LOST, give_back=True)
    third.end(Chunk(b"third", 1))
    first.end(Chunk(b"first", 1))
    assert await first.take()
    assert first.number == 1
    first.end(Chunk(b"second", 1))
    assert not await first.take()
    assert plain(await collect(ranges)) == [b"first", b"second", b"third"]


async def test_ranges_given_back_are_taken_first_and_in_order_and_beyond_the_look_ahead() -> None:
    ranges = Ranges(9, ahead=4)
    first = await take(ranges, permanent=True)
    others = [await take(ranges) for _ in range(3)]
    waiting = ranges.reader()
    taking = asyncio.ensure_future(waiting.take())
    await settle()
    assert not taking.done()
    for other in (others[2], others[0]):
        other.fail(LOST, give_back=True)
    assert await taking
    assert waiting.number == 1
    first.end(Chunk(b"", 0))
    assert await first.take()
    assert first.number == 3


async def test_a_range_of_which_only_empty_chunks_were_handed_over_can_be_given_back() -> None:
    ranges = Ranges(1, ahead=3)
    helper = await take(ranges)
    await helper.put(Chunk(b"", 0))
    chunks = ranges.chunks()
    assert (await anext(chunks)).data == b""
    helper.fail(LOST, give_back=True)
    first = await take(ranges, permanent=True)
    first.end(Chunk(b"all", 1))
    assert plain([chunk async for chunk in chunks]) == [b"all"]


async def test_the_permanent_reader_waits_until_every_range_has_ended() -> None:
    ranges = Ranges(2, ahead=2)
    first, helper = await take(ranges, permanent=True), await take(ranges)
    first.end(Chunk(b"first", 1))
    staying, leaving = asyncio.ensure_future(first.take()), asyncio.ensure_future(ranges.reader().take())
    await settle()
    assert not staying.done()
    assert leaving.done()
    assert not leaving.result()
    helper.fail(LOST, give_back=True)
    assert await staying
    assert first.number == 1
    first.end(Chunk(b"second", 1))
    # It leaves though nothing has been handed over: nothing can come back any more.
    assert not await first.take()
    assert plain(await collect(ranges)) == [b"first", b"second"]


async def test_a_reader_that_waits_for_the_file_takes_the_range_that_the_file_waits_for(small_buffer: int) -> None:
    ranges = Ranges(2, ahead=2)
    helper, first = await take(ranges), await take(ranges, permanent=True)
    await first.put(Chunk(b"x" * small_buffer, 1))
    putting = asyncio.ensure_future(first.put(Chunk(b"dropped", 1)))
    await settle()
    assert not putting.done()
    helper.fail(LOST, give_back=True)
    assert not await putting
    assert first.number == 0
    collecting = asyncio.ensure_future(collect(ranges))
    first.end(Chunk(b"first", 1))
    assert await first.take()
    assert first.number == 1
    first.end(Chunk(b"second", 1))
    assert plain(await collecting) == [b"first", b"second"]


async def test_only_one_of_the_readers_that_wait_exchanges_its_range(small_buffer: int) -> None:
    ranges = Ranges(4, ahead=4)
    helper, *others = await take(ranges), await take(ranges, permanent=True), await take(ranges), await take(ranges)
    for other in others:
        await other.put(Chunk(b"x" * small_buffer, 1))
    putting = [asyncio.ensure_future(other.put(Chunk(b"more", 1))) for other in others]
    await settle()
    helper.fail(LOST, give_back=True)
    await settle()
    assert min(other.number for other in others) == 0
    assert [task.done() for task in putting].count(True) == 1
    for task in putting:
        task.cancel()


async def test_a_reader_that_waits_keeps_its_range_while_the_file_has_another_to_read(small_buffer: int) -> None:
    ranges = Ranges(3, ahead=3)
    first, helper, blocked = await take(ranges, permanent=True), await take(ranges), await take(ranges)
    await blocked.put(Chunk(b"x" * small_buffer, 1))
    putting = asyncio.ensure_future(blocked.put(Chunk(b"more", 1)))
    helper.fail(LOST, give_back=True)
    await settle()
    # The first range has its reader, which takes the second one next.
    assert not putting.done()
    first.end(Chunk(b"first", 1))
    assert await first.take()
    assert first.number == 1
    await settle()
    assert not putting.done()
    putting.cancel()


# --- any order of events -----------------------------------------------------------------------------------------


@dataclass
class Case:
    """A file and what happens while it is read.

    counts: chunks of each range. size: bytes of a chunk. ahead: ranges. pauses: passes of the event loop before each
    step, in the order of the steps; none when they are used up. lifetimes: steps after which each reader but the
    first loses its connection, None for never. first_lives: the same for the first reader. broken: ranges whose query
    fails after that many chunks.
    """

    counts: list[int]
    size: int = 1
    ahead: int = 3
    pauses: list[int] = field(default_factory=list)
    lifetimes: list[int | None] = field(default_factory=list)
    first_lives: int | None = None
    broken: dict[int, int] = field(default_factory=dict)


class Simulation:
    """Runs a case and keeps its own record of it, from which the expected file follows.

    put: the chunks of each range that its present reader has added. free: the ranges that were given back and not taken
    since. errors: the error that ends each range that can no longer be read. first_failure: the first reader's error.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.contents = [content(number, count, case.size) for number, count in enumerate(case.counts)]
        self.ranges = Ranges(len(case.counts), case.ahead)
        self.pauses = iter(case.pauses)
        self.received: list[Chunk] = []
        self.put: dict[int, list[bytes]] = {}
        self.free: set[int] = set()
        self.errors: dict[int, BaseException] = {}
        self.first_failure: BaseException | None = None

    async def pause(self) -> None:
        for _ in range(next(self.pauses, 0)):
            await asyncio.sleep(0)

    def handed_over(self, number: int) -> bool:
        return any(chunk.data.startswith(b"%d." % number) for chunk in self.received)

    async def read(self, lifetime: int | None, *, permanent: bool) -> None:
        """A reader that does what `scan.py` does, on a connection that dies after `lifetime` steps."""
        reader = self.ranges.reader(permanent=permanent)
        steps = iter(range(lifetime)) if lifetime is not None else iter(int, 1)
        try:
            while await reader.take():
                self.taken(reader.number)
                while not await self.read_range(reader, steps):
                    pass
        except (ConnectionLost, QueryFailed) as error:
            give_back = isinstance(error, ConnectionLost)
            self.failed(reader.number, error, permanent=permanent, give_back=give_back)
            reader.fail(error, give_back=give_back)

    def taken(self, number: int) -> None:
        assert number not in self.errors
        assert (number in self.free) == (number in self.put)  # nobody has it, or had it before
        self.free.discard(number)
        self.put[number] = []

    def given_back(self, number: int) -> None:
        self.free.add(number)
        self.put[number] = []

    def failed(self, number: int, error: BaseException, *, permanent: bool, give_back: bool) -> None:
        """Record the failure of a reader in this range, from what the consumer has received until now."""
        if permanent:
            self.first_failure = error
            self.errors.update(dict.fromkeys(self.free, error))
            self.free.clear()
        if give_back and self.first_failure is None and not self.handed_over(number):
            self.given_back(number)
        else:
            self.errors[number] = error

    async def step(self, steps: Iterator[int]) -> None:
        await self.pause()
        if next(steps, None) is None:
            raise ConnectionLost("the reader's connection is gone")

    async def read_range(self, reader: RangeReader, steps: Iterator[int]) -> bool:
        """Read the reader's range. Return whether to its end: False if it has another range now."""
        number = reader.number
        for place, chunk in enumerate(self.contents[number]):
            await self.step(steps)
            if self.case.broken.get(number) == place:
                raise QueryFailed(str(number))
            if not await reader.put(chunk):
                self.given_back(number)
                self.taken(reader.number)
                # The rest of the old range is read and dropped.
                for _ in self.contents[number][place + 1 :]:
                    await self.step(steps)
                return False
            self.put[number].append(chunk.data)
        await self.step(steps)
        if number in self.case.broken:
            raise QueryFailed(str(number))
        reader.end(Chunk(b"", 0))
        return True

    async def consume(self) -> None:
        async with contextlib.aclosing(self.ranges.chunks()) as chunks:
            async for chunk in chunks:
                self.received.append(chunk)
                await self.pause()

    def expect_whole(self) -> None:
        assert plain(self.received) == joined(self.contents)

    def expect_end_at(self, error: BaseException) -> None:
        """The file has every range before the first one that has failed, and exactly what was read of that one."""
        number = min(self.errors)
        assert error is self.errors[number]
        assert plain(self.received) == joined(self.contents[:number]) + self.put[number]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    lifetime = st.none() | st.integers(0, 12)
    return Case(
        counts,
        draw(st.sampled_from([1, 400, 3000])),
        draw(st.integers(1, 8)),
        draw(st.lists(st.integers(0, 5), max_size=120)),
        draw(st.lists(lifetime, max_size=4)),
        draw(lifetime),
        draw(st.dictionaries(st.integers(0, len(counts) - 1), st.integers(0, 4), max_size=2))
        if draw(st.booleans())
        else {},
    )


@hypothesis_settings(max_examples=600)
@given(case=cases())
@example(case=Case([4, 4, 4], 3000, 3, lifetimes=[0, 1]))
@example(case=Case([0, 0], lifetimes=[0, 0], first_lives=0))
@example(case=Case([4, 4, 4, 4], 3000, 4, [0, 0, 5, 0, 5], lifetimes=[2, 3, 4]))
# The first reader fails in a later range while one that was given back is free.
@pytest.mark.slow
@example(case=Case([0, 4, 4], pauses=[2, 6, 10], lifetimes=[0], first_lives=1))
async def test_in_any_order_of_events_the_file_is_whole_or_ends_with_the_error(case: Case) -> None:
    simulation = Simulation(case)
    readers = [simulation.read(case.first_lives, permanent=True)]
    readers += [simulation.read(lifetime, permanent=False) for lifetime in case.lifetimes]
    with mock.patch.object(module, "RANGE_BUFFER_BYTES", 1000):
        async with running(*readers) as tasks, asyncio.timeout(HANGS):
            try:
                await simulation.consume()
            except (ConnectionLost, QueryFailed) as error:
                simulation.expect_end_at(error)
            else:
                assert not simulation.errors
                simulation.expect_whole()
                await asyncio.gather(*tasks)  # nobody waits for a range that will not come


# --- Values that have to be held. ---


async def test_a_reader_leads_as_soon_as_the_file_waits_for_its_range() -> None:
    ranges = Ranges(3, ahead=3)
    first, second = await take(ranges, permanent=True), await take(ranges)
    assert await first.lead()
    leading = asyncio.ensure_future(second.lead())
    chunks = ranges.chunks()
    await settle()
    assert not leading.done()
    first.end(Chunk(b"a", 1))
    assert (await anext(chunks)).data == b"a"
    following = asyncio.ensure_future(anext(chunks))
    await settle()
    assert leading.done()
    assert leading.result()
    second.end(Chunk(b"b", 1))
    assert (await following).data == b"b"
    await chunks.aclose()


async def test_the_permanent_reader_that_waits_to_lead_takes_a_range_that_was_given_back() -> None:
    ranges = Ranges(2, ahead=3)
    first = await take(ranges)
    permanent = await take(ranges, permanent=True)
    leading = asyncio.ensure_future(permanent.lead())
    await settle()
    assert not leading.done()
    first.fail(LOST, give_back=True)
    await settle()
    assert leading.done()
    assert not leading.result()  # it has another range now
    assert permanent.number == 0
    permanent.end(Chunk(b"a", 1))
    assert await permanent.take()
    permanent.end(Chunk(b"b", 1))
    assert plain([chunk async for chunk in ranges.chunks()]) == [b"a", b"b"]


async def test_a_reader_that_waits_to_lead_can_be_cancelled() -> None:
    ranges = Ranges(2, ahead=3)
    first, second = await take(ranges, permanent=True), await take(ranges)
    leading = asyncio.ensure_future(second.lead())
    await settle()
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    second.fail(LOST, give_back=True)
    first.end(Chunk(b"a", 1))
    assert await first.take()
    first.end(Chunk(b"b", 1))
    assert plain([chunk async for chunk in ranges.chunks()]) == [b"a", b"b"]

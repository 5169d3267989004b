"""The ranges of one file: read by several readers at once and yielded in order.

Holds the order of the ranges, the look-ahead limits and what happens when a reader fails. Must not know SQL or
connections. All state belongs to one event loop: only `take`, `put`, `lead` and `chunks` suspend, and between two
suspensions the state changes at once.

Why there is no deadlock: the file waits for one range, the first that has not been handed over completely. Either its
reader is reading it, or no reader has taken it yet and the next one that calls `take` gets it, or its reader has failed
and has given it back. In the last case the permanent reader takes it: it calls `take`, or it waits in `put` or `lead`
for the file and exchanges its own range for that one. If the permanent reader has failed, the range ends with its
error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from server.chunk import Chunk

# Bytes of one range that may wait for the file: a range of ordinary rows (strategy.RANGE_BLOCKS) fits. One more chunk
# may follow them.
RANGE_BUFFER_BYTES = 2 << 20


@dataclass(slots=True, eq=False)
class _Range:
    """One range. reader: who reads it, None after it was given back. chunks: read, and not yet handed over."""

    number: int
    reader: RangeReader | None
    chunks: deque[Chunk] = field(default_factory=deque)
    buffered: int = 0  # bytes
    handed_over: bool = False  # at least one byte
    ended: bool = False
    error: BaseException | None = None

    @property
    def free(self) -> bool:
        """Whether it was given back and nobody has taken it since."""
        return self.reader is None and not self.ended

    def append(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.buffered += len(chunk.data)

    def pop(self) -> Chunk:
        chunk = self.chunks.popleft()
        self.buffered -= len(chunk.data)
        self.handed_over |= bool(chunk.data)
        return chunk

    def give_back(self) -> None:
        self.reader = None
        self.chunks.clear()
        self.buffered = 0

    def end(self, error: BaseException | None = None) -> None:
        self.ended, self.error = True, error


class Ranges:
    """The ranges of one file. Readers take them through `reader()`; `chunks` yields the file."""

    def __init__(self, count: int, ahead: int) -> None:
        """count: of ranges. ahead: how many the first reader may have taken that are not yet handed over completely."""
        self._count = count
        self._ahead = ahead
        self._readers = 0
        self._untaken = 0  # the first number that was never taken
        self._taken: deque[_Range] = deque()  # those that are not handed over completely, in order
        self._failure: BaseException | None = None  # of the permanent reader
        # Set for the file when a chunk or an end arrives, and for the readers when one of them may continue. Most
        # chunks concern the file only, so they wake no reader.
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()

    def reader(self, *, permanent: bool = False) -> RangeReader:
        """Return a further reader of the ranges.

        permanent: this one takes ranges until all have ended, so that it can read those that others give back. A file
        has exactly one such reader.
        """
        self._readers += 1
        return RangeReader(self, permanent)

    @contextlib.contextmanager
    def more_ahead(self, count: int) -> Iterator[None]:
        """Let so many more ranges be taken that are not yet handed over completely, while another reader reads."""
        self._ahead += count
        self._changed.set()
        try:
            yield
        finally:
            self._ahead -= count

    @property
    def all_taken(self) -> bool:
        """Whether no range is left that nobody has taken."""
        return self._untaken == self._count

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the file in order. At a range whose reader has failed, raise the reader's error.

        With more than one range, `Chunk.done` is the share of the ranges that have been handed over completely.
        """
        handed_over = 0
        while handed_over < self._count:
            if not self._taken:
                if self._failure is not None:
                    raise self._failure
                await _wait(self._arrived)
                continue
            head = self._taken[0]
            if head.chunks:
                if head.buffered >= RANGE_BUFFER_BYTES:  # its reader may wait in `put`
                    self._changed.set()
                chunk = head.pop()
                yield chunk._replace(done=handed_over / self._count) if self._count > 1 else chunk
            elif not head.ended:
                await _wait(self._arrived)
            elif head.error is not None:
                raise head.error
            else:
                self._taken.popleft()
                handed_over += 1
                self._changed.set()

    def _take(self, reader: RangeReader) -> _Range | None:
        """Give the reader the first free range, or else the next one that the look-ahead limit allows."""
        for each in self._taken:
            if each.free:
                each.reader = reader
                return each
        return self._take_new(reader)

    def _take_new(self, reader: RangeReader) -> _Range | None:
        """Give the reader the next range that was never taken, if the look-ahead limit allows it."""
        if self._untaken == self._count or len(self._taken) >= self._ahead:
            return None
        taken = _Range(self._untaken, reader)
        self._taken.append(taken)
        self._untaken += 1
        return taken

    def _take_head(self, reader: RangeReader) -> _Range | None:
        """Give the reader the range that the file waits for, if that is free."""
        head = self._taken[0]
        if not head.free:
            return None
        head.reader = reader
        return head

    def _few_left(self) -> bool:
        """Return whether no more ranges are left than there have been readers."""
        return self._count - self._untaken <= self._readers

    def _all_ended(self) -> bool:
        return self.all_taken and all(each.ended for each in self._taken)

    def _fail(self, error: BaseException) -> None:
        """Note that the permanent reader has failed: what nobody reads now will never be read."""
        self._failure = error
        for each in self._taken:
            if each.free:
                each.end(error)

    def _give_back(self, taken: _Range, error: BaseException) -> None:
        """Give a range back for another reader, or end it with the error where that is no longer possible."""
        if taken.handed_over or self._failure is not None:
            taken.end(error)
        else:
            taken.give_back()

    def _notify(self) -> None:
        """Wake the file and all readers. Each looks again."""
        self._arrived.set()
        self._changed.set()


async def _wait(event: asyncio.Event) -> None:
    """Wait until the event is set from now on."""
    event.clear()
    await event.wait()


class RangeReader:
    """One reader of the ranges of a file. It reads one range at a time, and may have reserved the one after that."""

    def __init__(self, ranges: Ranges, permanent: bool) -> None:
        self._ranges = ranges
        self._permanent = permanent
        self._range: _Range | None = None
        self._reserved: _Range | None = None

    @property
    def number(self) -> int:
        """The number of the reader's range, counted from 0."""
        return self._held().number

    async def take(self) -> bool:
        """Take a range as soon as there is one. Return False when nothing is left for this reader to do.

        The reserved range comes first, then one that was given back, which the look-ahead limit does not hold up.
        """
        ranges = self._ranges
        if self._reserved is not None:
            self._range, self._reserved = self._reserved, None
            return True
        while True:
            self._range = ranges._take(self)
            if self._range is not None:
                ranges._notify()
                return True
            if ranges._all_ended() if self._permanent else ranges.all_taken:
                return False
            await _wait(ranges._changed)

    def reserve(self) -> int | None:
        """Take the next range in advance, if that is possible without waiting. Return its number; None if not.

        Only a range that nobody has taken before: it comes after the one that the reader has, so the file never waits
        for a reserved range while its reader waits for the file. The last ranges are left to whoever is free first.
        """
        if self._reserved is not None or self._ranges._few_left():
            return None
        self._reserved = self._ranges._take_new(self)
        return None if self._reserved is None else self._reserved.number

    async def put(self, chunk: Chunk) -> bool:
        """Add a chunk to the reader's range. Wait while RANGE_BUFFER_BYTES of it wait for the file.

        Return False if the reader now has another range: one that was given back and that the file waits for. The
        chunk is dropped, and all that was read of the old range, which another reader takes later, as the reserved one.
        """
        ranges, mine = self._ranges, self._held()
        while mine.buffered >= RANGE_BUFFER_BYTES:
            if self._exchange():
                return False
            await _wait(ranges._changed)
        mine.append(chunk)
        ranges._arrived.set()
        return True

    async def lead(self) -> bool:
        """Wait until the file waits for the reader's range. Return False as `put` does.

        A reader that is ahead must not hold a large value: the range before it might wait for that memory.
        """
        while self._ranges._taken[0] is not self._held():
            if self._exchange():
                return False
            await _wait(self._ranges._changed)
        return True

    def _exchange(self) -> bool:
        """Take the range that the file waits for instead of the reader's own, if it was given back."""
        head = self._ranges._take_head(self)
        if head is None:
            return False
        self._held().give_back()
        if self._reserved is not None:
            self._reserved.give_back()
            self._reserved = None
        self._range = head
        self._ranges._notify()
        return True

    def end(self, chunk: Chunk) -> None:
        """Add the last chunk of the reader's range. Never wait: the reader can begin another range at once."""
        ended = self._held()
        ended.append(chunk)
        ended.end()
        self._range = None
        self._ranges._notify()

    def fail(self, error: BaseException, *, give_back: bool = False) -> None:
        """Note that the reader has failed; it must not be used afterwards. Its range, if any, ends with the error.

        give_back: another reader may read that range. So it goes back, unless a byte of it has been handed over or the
        permanent reader has failed. The failure of the permanent reader always ends its own range.
        """
        failed, self._range = self._range, None
        reserved, self._reserved = self._reserved, None
        if self._permanent:
            self._ranges._fail(error)
        if reserved is not None:
            self._ranges._give_back(reserved, error)
        if failed is not None and give_back:
            self._ranges._give_back(failed, error)
        elif failed is not None:
            failed.end(error)
        self._ranges._notify()

    def _held(self) -> _Range:
        assert self._range is not None, "the reader has taken no range"
        return self._range

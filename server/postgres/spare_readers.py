"""How many connections of a worker read rows at once, beside the first one of each export.

Knows no connection: it only counts. All state belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator


class SpareReaders:
    """The further readers of all exports of a worker.

    All exports together read with at most `most_readers` connections, or with one each: the processors are busy then,
    and more readers only cost time.
    """

    def __init__(self, most_readers: int, most_spare: int) -> None:
        """most_readers: of one export, its first included. most_spare: further readers of all exports together."""
        self._most_readers = most_readers
        self._most_spare = most_spare
        self._exports = 0
        self.in_use = 0
        # Set when an export or a further reader ends.
        self._freed = asyncio.Event()

    @contextlib.contextmanager
    def export(self) -> Iterator[None]:
        """Count an export, which reads with one connection at least."""
        self._exports += 1
        try:
            yield
        finally:
            self._exports -= 1
            self._freed.set()

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[SpareReader]:
        """Wait until a further reader is useful, and count it until it steps back or leaves the block."""
        while self.in_use >= self._most_spare or self._exports + self.in_use >= self._most_readers:
            self._freed.clear()
            await self._freed.wait()
        self.in_use += 1
        reader = SpareReader(self)
        try:
            yield reader
        finally:
            reader._leave()

    @property
    def _too_many(self) -> bool:
        return self._exports + self.in_use > self._most_readers


class SpareReader:
    """One further reader."""

    def __init__(self, all: SpareReaders) -> None:
        self._all = all
        self.stepped_back = False

    def steps_back(self) -> bool:
        """Return whether this reader should stop, because other exports have started. It no longer counts then."""
        if not self.stepped_back and self._all._too_many:
            self._leave()
        return self.stepped_back

    def _leave(self) -> None:
        if not self.stepped_back:
            self.stepped_back = True
            self._all.in_use -= 1
            self._all._freed.set()

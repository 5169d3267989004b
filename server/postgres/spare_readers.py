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
    and more readers only cost time. An export whose client pauses counts too.

    in_use: how many there are, without those that have stepped back.
    """

    def __init__(self, most_readers: int, most_connections: int) -> None:
        """most_readers: of one export, its first included. most_connections: of the further readers of all exports."""
        self._most_readers = most_readers
        self._most_connections = most_connections
        self._exports = 0
        self.in_use = 0
        # Also of those that have stepped back and still read what they had begun.
        self._connections = 0
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
        while self._connections >= self._most_connections or self._exports + self.in_use >= self._most_readers:
            self._freed.clear()
            await self._freed.wait()
        self.in_use += 1
        self._connections += 1
        reader = SpareReader(self)
        try:
            yield reader
        finally:
            reader._leave()
            self._connections -= 1
            self._freed.set()

    @property
    def _too_many(self) -> bool:
        return self._exports + self.in_use > self._most_readers


class SpareReader:
    """One further reader. stepped_back: whether it no longer counts."""

    def __init__(self, readers: SpareReaders) -> None:
        self._readers = readers
        self.stepped_back = False

    def step_back_if_needed(self) -> bool:
        """Step back if so many other exports have started. Return whether this reader has stepped back.

        It then begins no other range. The readers that ask after it see that it no longer counts.
        """
        if not self.stepped_back and self._readers._too_many:
            self._leave()
        return self.stepped_back

    def _leave(self) -> None:
        if not self.stepped_back:
            self.stepped_back = True
            self._readers.in_use -= 1
            self._readers._freed.set()

"""One look at the folder for everybody who watches an export: the status of each watched one, twice a second.

The cost of a look depends on the exports that are watched, not on how many clients watch them. Runs on the event loop;
the looks themselves run in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from dataclasses import dataclass

from server.errors import ExportError
from server.saved.manifest import Status
from server.saved.status import Entry, status_json
from server.saved.store import Store
from server.threads import in_thread

# Seconds between two looks. A progress bar that moves twice a second looks steady.
LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """An export as a look has found it. document: its status as JSON."""

    status: Status
    finished: bool
    document: str


class Watch:
    """The exports that clients of this process watch."""

    def __init__(self, store: Store, files: Executor, stopping: asyncio.Event, retention: float) -> None:
        """files: the threads for the looks. stopping: ends every watch. retention: as of `status_json`."""
        self._store = store
        self._files = files
        self._stopping = stopping
        self._retention = retention
        # How many watch each export.
        self._watched: Counter[str] = Counter()
        # What the last look has found, None for an export that is gone. Exports that could not be looked at are absent.
        self._seen: dict[str, Seen | None] = {}
        self._looked = asyncio.Event()
        self._looker: asyncio.Task[None] | None = None

    async def look(self, id: str) -> Seen:
        """Return one export now. Raise ExportNotFound, ExportUnreadable, StorageUnavailable, NoSpaceLeft."""
        entry = (await in_thread(self._files, self._store.current, [id])).get(id)
        if entry is None:
            entry = await in_thread(self._files, self._store.get, id)
        return self._as_seen(entry)

    async def looks(self, id: str) -> AsyncGenerator[Seen | None, None]:
        """Yield what each look finds, None if the export is gone, until the server stops.

        A look that fails yields what the one before has found, or nothing. Close the iterator when it is not used any
        more: `contextlib.aclosing`.
        """
        self._watched[id] += 1
        if self._looker is None:
            self._looker = asyncio.create_task(self._look_again_and_again())
        try:
            while True:
                await self._looked.wait()
                if self._stopping.is_set() or self._looker is None:
                    return
                if id in self._seen:
                    yield self._seen[id]
        finally:
            self._watched[id] -= 1
            if not self._watched[id]:
                del self._watched[id]
                self._seen.pop(id, None)

    async def _look_again_and_again(self) -> None:
        """Look at all watched exports while there are any."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), LOOK_SECONDS)
                    return
                if not self._watched:
                    return
                with contextlib.suppress(ExportError):  # the folder may be readable again later
                    found = await in_thread(self._files, self._look_at, list(self._watched))
                    self._seen.update({id: seen for id, seen in found.items() if id in self._watched})
                self._tell()
        finally:
            self._looker = None
            self._tell()

    def _tell(self) -> None:
        """Wake everybody who waits for this look."""
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    def _look_at(self, ids: list[str]) -> dict[str, Seen | None]:
        found = self._store.current(ids)
        return {id: None if entry is None else self._as_seen(entry) for id, entry in found.items()}

    def _as_seen(self, entry: Entry) -> Seen:
        manifest = entry.manifest
        return Seen(manifest.status, manifest.finished, json.dumps(status_json(entry, self._retention)))

"""What a process knows of the exports in the folder: a bounded record of each, their orders and their sums.

Pure: no files. A record may be out of date, so nothing is decided by it alone. Not for several threads at once.
"""

from __future__ import annotations

import datetime
from bisect import bisect_left, insort
from collections.abc import Iterator, KeysView
from dataclasses import dataclass

from server.saved.status import Entry

# A place in an order: a time and an id.
Place = tuple[datetime.datetime, str]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one export. entry: shortened. manifest_bytes: the size of its manifest."""

    entry: Entry
    manifest_bytes: int

    @property
    def bytes(self) -> int:
        """The size of its file, as far as the manifest tells, and of its manifest."""
        return (self.entry.manifest.bytes or 0) + self.manifest_bytes


class Known:
    """Records by id. Every method but the iterators takes a time that hardly depends on their number."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        # All exports by their creation, the pending ones among them, those that have ended by their end, and the failed
        # and cancelled ones among those.
        self._created: list[Place] = []
        self._pending: list[Place] = []
        self._ended: list[Place] = []
        self._without_file: list[Place] = []
        self.unfinished: set[str] = set()
        # The bytes of all manifests, and those of ended exports with their manifests.
        self.manifest_bytes = self.ended_bytes = self._ended_manifest_bytes = 0

    @property
    def unfinished_bytes(self) -> int:
        """The bytes of the manifests of unfinished exports."""
        return self.manifest_bytes - self._ended_manifest_bytes

    def __len__(self) -> int:
        return len(self._records)

    def ids(self) -> KeysView[str]:
        """Return the ids, as a set."""
        return self._records.keys()

    def get(self, id: str) -> Record | None:
        """Return the record of this export, or None."""
        return self._records.get(id)

    def put(self, record: Record) -> None:
        """Add the record of an export, or replace it."""
        manifest = record.entry.manifest
        self.drop(manifest.id)
        self._records[manifest.id] = record
        self.manifest_bytes += record.manifest_bytes
        created = (manifest.created_at, manifest.id)
        insort(self._created, created)
        if manifest.status == "pending":
            insort(self._pending, created)
        if manifest.completed_at is not None and manifest.finished:
            ended = (manifest.completed_at, manifest.id)
            insort(self._ended, ended)
            if manifest.status != "completed":
                insort(self._without_file, ended)
            self.ended_bytes += record.bytes
            self._ended_manifest_bytes += record.manifest_bytes
        else:
            self.unfinished.add(manifest.id)

    def drop(self, id: str) -> None:
        """Remove the record of an export; do nothing if there is none."""
        record = self._records.pop(id, None)
        if record is None:
            return
        manifest = record.entry.manifest
        self.manifest_bytes -= record.manifest_bytes
        created = (manifest.created_at, id)
        _remove(self._created, created)
        if manifest.status == "pending":
            _remove(self._pending, created)
        if id in self.unfinished:
            self.unfinished.discard(id)
        elif manifest.completed_at is not None:
            ended = (manifest.completed_at, id)
            _remove(self._ended, ended)
            if manifest.status != "completed":
                _remove(self._without_file, ended)
            self.ended_bytes -= record.bytes
            self._ended_manifest_bytes -= record.manifest_bytes

    def newest_first(self, after: Place | None = None) -> Iterator[Record]:
        """Yield the records by creation, newest first. after: only those created before this place."""
        end = len(self._created) if after is None else bisect_left(self._created, after)
        for number in range(end - 1, -1, -1):
            yield self._records[self._created[number][1]]

    @property
    def any_pending(self) -> bool:
        """Whether an export waits."""
        return bool(self._pending)

    def pending(self) -> list[Record]:
        """Return the records of the exports that wait, oldest first."""
        return [self._records[id] for _, id in self._pending]

    def ended(self) -> Iterator[Record]:
        """Yield the records of the exports that have ended, those that ended first before the others."""
        for _, id in self._ended:
            yield self._records[id]

    def without_file(self) -> Iterator[Record]:
        """Yield the records of the failed and cancelled exports, those that ended first before the others."""
        for _, id in self._without_file:
            yield self._records[id]


def _remove(places: list[Place], place: Place) -> None:
    del places[bisect_left(places, place)]

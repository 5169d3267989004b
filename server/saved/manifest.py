"""The manifest of a saved export: its request, its state and its outcome, as a value and as JSON.

Pure. A file on the disk may be truncated, edited by hand or written by another version: every field is checked, and
anything invalid raises ManifestError instead of being guessed. Fields that this version does not know are ignored: a
change that must not be ignored gets a new VERSION. A manifest holds the URL of a request and no SQL.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

VERSION = 1

# 128 bits in URL-safe base64. No path and no name of our own files, which begin with a dot, matches.
EXPORT_ID = re.compile(r"[A-Za-z0-9_-]{22}", re.ASCII)

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
FINISHED: tuple[Status, ...] = ("completed", "failed", "cancelled")

# "csv", "ndjson.gz": part of a file name, so nothing else is allowed.
FORMAT = re.compile(r"(csv|tsv|ndjson)(\.gz)?")


class ManifestError(ValueError):
    """The text is not a manifest that this version understands; the message says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One saved export.

    target, query: of the URL, percent-encoded as they were sent. format: with ".gz" if the file is compressed.
    total_rows: PostgreSQL's estimate. attempts: how many have been started. setbacks: how many of them failed
    because the database or the folder was not available. not_before: when to try again. completed_at: when the export
    finished, with any outcome. rows, bytes, sha256: of the completed file only. snapshot_at, scan, ranges: as of
    Reading, None until an attempt has started.
    """

    id: str
    target: str
    query: str
    relation: str
    format: str
    status: Status
    created_at: datetime.datetime
    started_at: datetime.datetime | None = None
    completed_at: datetime.datetime | None = None
    not_before: datetime.datetime | None = None
    attempts: int = 0
    setbacks: int = 0
    total_rows: int | None = None
    error_code: str | None = None
    error_detail: str | None = None
    rows: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    snapshot_at: datetime.datetime | None = None
    scan: str | None = None
    ranges: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the status is final."""
        return self.status in FINISHED

    @property
    def file_name(self) -> str:
        """The name of the complete file in the folder of the export."""
        return f"data.{self.format}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How an attempt reads its rows.

    snapshot_at: when the transaction started. scan: the name of the strategy. ranges: the number of block ranges.
    """

    snapshot_at: datetime.datetime | None = None
    scan: str | None = None
    ranges: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExport:
    """An export to create. The fields are those of Manifest."""

    target: str
    query: str
    relation: str
    format: str
    total_rows: int | None

    def manifest(self, id: str) -> Manifest:
        """Return the manifest of this export while it waits for its first attempt."""
        return Manifest(
            id=id,
            target=self.target,
            query=self.query,
            relation=self.relation,
            format=self.format,
            status="pending",
            created_at=utc_now(),
            total_rows=self.total_rows,
        )


def utc_now() -> datetime.datetime:
    """Return the current time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def write_time(time: datetime.datetime) -> str:
    """Return the time in UTC as RFC 3339, to the millisecond, which is what JavaScript reads."""
    return time.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON."""
    document: dict[str, Any] = {"version": VERSION}
    for field in fields(Manifest):
        value = getattr(manifest, field.name)
        if isinstance(value, datetime.datetime):
            value = value.astimezone(datetime.UTC).isoformat()
        document[field.name] = value
    return json.dumps(document, indent=1).encode()


def read_manifest(id: str, text: bytes) -> Manifest:
    """Return the manifest of the export with this id. Raise ManifestError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ManifestError("it is not JSON") from None
    if not isinstance(document, dict):
        raise ManifestError("it is not a JSON object")
    version = document.pop("version", None)
    if type(version) is not int or version < 1:
        raise ManifestError("it has no version")
    if version > VERSION:
        raise ManifestError(f"it has version {version}, and this server knows {VERSION}")
    values = {}
    for field in fields(Manifest):
        try:
            if field.name in _ADDED:
                document.setdefault(field.name, None)
            values[field.name] = _READERS[field.name](document[field.name])
        except (KeyError, ValueError, TypeError, OverflowError):
            raise ManifestError(f'its "{field.name}" is missing or invalid') from None
    manifest = Manifest(**values)
    if manifest.id != id:
        raise ManifestError("it belongs to another export")
    if manifest.finished and manifest.completed_at is None:
        raise ManifestError("it is finished without a time")
    if manifest.status == "completed" and None in (manifest.rows, manifest.bytes, manifest.sha256):
        raise ManifestError("it is completed without rows, bytes or sha256")
    return manifest


# Fields that manifests of older versions of Sluice do not have.
_ADDED = frozenset(("scan", "ranges"))

# Each returns the value of a field, or raises ValueError, TypeError or OverflowError.


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    value.encode()  # a lone surrogate could not be sent
    return value


def _matching(pattern: re.Pattern[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return read


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError
    return value


def _time(value: object) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError
    return time.astimezone(datetime.UTC)


def _status(value: object) -> Status:
    if value not in STATUSES:
        raise ValueError
    return value


def _or_none(read: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else read(value)


_READERS: dict[str, Callable[[object], Any]] = {
    "id": _matching(EXPORT_ID),
    "target": _text,
    "query": _text,
    "relation": _text,
    "format": _matching(FORMAT),
    "status": _status,
    "created_at": _time,
    "started_at": _or_none(_time),
    "completed_at": _or_none(_time),
    "not_before": _or_none(_time),
    "attempts": _count,
    "setbacks": _count,
    "total_rows": _or_none(_count),
    "error_code": _or_none(_text),
    "error_detail": _or_none(_text),
    "rows": _or_none(_count),
    "bytes": _or_none(_count),
    "sha256": _or_none(_matching(re.compile("[0-9a-f]{64}"))),
    "snapshot_at": _or_none(_time),
    "scan": _or_none(_text),
    "ranges": _or_none(_count),
}

"""The progress of a saved export, what lists keep of it, and its status as JSON: only here that document is created.

Pure. The percentage never falls, not even when another attempt starts after a crash, and is 100 only when the export is
complete.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote

from server.errors import InvalidRequest
from server.query.file_names import file_name_of
from server.saved.manifest import Manifest, write_time

# The highest percentage of an unfinished export: an estimate may be too low.
MOST_UNFINISHED_PERCENTAGE = 99.0
# Characters of a query string in the status of an export. It may be as long as a request, and a list has up to 1,000.
LONGEST_QUERY = 1000
# Characters of any other text that lists keep of an export.
_LONGEST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an attempt.

    rows, bytes: written so far. percentage: the highest of all attempts, or None if unknown. seconds: since the attempt
    started. share: the percentage of this attempt alone.
    """

    rows: int = 0
    bytes: int = 0
    percentage: float | None = None
    seconds: float = 0.0
    share: float | None = None

    def advanced(
        self, *, rows: int, bytes: int, seconds: float, done: float | None, total_rows: int | None
    ) -> Progress:
        """Return the progress after this many rows, bytes and seconds of the attempt.

        done: the share of the relation that has been read, from 0 to 1, if the scan knows it. total_rows: the estimate
        that is used otherwise.
        """
        if done is None and total_rows:
            done = rows / total_rows
        percentage, share = self.percentage, None
        if done is not None and math.isfinite(done):
            share = min(math.floor(min(max(done, 0.0), 1.0) * 1000) / 10, MOST_UNFINISHED_PERCENTAGE)
            percentage = share if percentage is None else max(percentage, share)
        return Progress(rows, bytes, percentage, seconds, share)

    def restarted(self) -> Progress:
        """Return the progress of the next attempt before its first row."""
        return Progress(percentage=self.percentage)


@dataclass(frozen=True, slots=True)
class Entry:
    """A saved export as it is now. download_name: the name of its file, None if it has not been looked for."""

    manifest: Manifest
    progress: Progress
    download_name: str | None = None


def shortened(entry: Entry) -> Entry:
    """Return what lists keep of this export: its texts cut, so that each takes a bounded number of bytes.

    Its status document is the same as that of the whole entry.
    """
    manifest = entry.manifest
    return Entry(
        replace(
            manifest,
            target=manifest.target[:_LONGEST_TEXT],
            query=manifest.query[: LONGEST_QUERY + 1],
            # The same few values occur in all exports.
            relation=sys.intern(manifest.relation[:_LONGEST_TEXT]),
            format=sys.intern(manifest.format),
            scan=None if manifest.scan is None else sys.intern(manifest.scan[:_LONGEST_TEXT]),
            error_code=None if manifest.error_code is None else sys.intern(manifest.error_code[:_LONGEST_TEXT]),
            error_detail=None if manifest.error_detail is None else manifest.error_detail[:_LONGEST_TEXT],
        ),
        entry.progress,
        _download_name(entry) if manifest.status == "completed" else None,
    )


def write_progress(progress: Progress) -> bytes:
    """Return the progress as JSON."""
    return json.dumps(asdict(progress)).encode()


def read_progress(text: bytes) -> Progress:
    """Return the progress that `write_progress` wrote, or an empty one if the text is anything else.

    Losing the progress does no harm: it is not fsynced.
    """
    try:
        document = json.loads(text)
        rows, count, seconds = document["rows"], document["bytes"], float(document["seconds"])
        percentage, share = (
            None if each is None else float(each) for each in (document["percentage"], document["share"])
        )
        if any(each is not None and not 0 <= each <= MOST_UNFINISHED_PERCENTAGE for each in (percentage, share)):
            return Progress()
        if type(rows) is not int or type(count) is not int or min(rows, count) < 0 or not 0 <= seconds < 1e12:
            return Progress()
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return Progress()
    return Progress(rows, count, percentage, seconds, share)


def expires_at(manifest: Manifest, retention: float) -> datetime.datetime | None:
    """Return when the export is removed, or None for never. retention: seconds after it finished; 0 keeps it."""
    if manifest.completed_at is None or not retention:
        return None
    try:
        return manifest.completed_at + datetime.timedelta(seconds=retention)
    except OverflowError:
        return None


def status_json(entry: Entry, retention: float) -> dict[str, Any]:
    """Return the status document: names in camel case, times as RFC 3339, null where a value is unknown.

    A query longer than LONGEST_QUERY is cut there, and queryTruncated says so. retention: as in `expires_at`.
    """
    manifest, progress = entry.manifest, entry.progress
    error = None
    if manifest.error_code is not None:
        error = {"code": manifest.error_code[:_LONGEST_TEXT], "detail": (manifest.error_detail or "")[:_LONGEST_TEXT]}
    completed = manifest.status == "completed"
    return {
        "exportId": manifest.id,
        "status": manifest.status,
        "relation": manifest.relation[:_LONGEST_TEXT],
        "query": manifest.query[:LONGEST_QUERY],
        "queryTruncated": len(manifest.query) > LONGEST_QUERY,
        "format": manifest.format,
        "progress": _progress_json(manifest, progress),
        "error": error,
        "createdAt": write_time(manifest.created_at),
        "startedAt": _time(manifest.started_at),
        "completedAt": _time(manifest.completed_at),
        "expiresAt": _time(expires_at(manifest, retention)),
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "sha256": manifest.sha256,
        "snapshotAt": _time(manifest.snapshot_at),
        "scan": manifest.scan,
        "ranges": manifest.ranges,
        "attempts": manifest.attempts,
        "downloadUrl": _download_url(entry) if completed else None,
    }


def eta_seconds(manifest: Manifest, progress: Progress) -> int | None:
    """Return how many seconds the export still takes, assuming the rate of this attempt. Return None if unknown."""
    if manifest.status == "completed":
        return 0
    if manifest.status == "processing" and progress.share and progress.seconds:
        return math.ceil(progress.seconds * (100 - progress.share) / progress.share)
    return None


def _progress_json(manifest: Manifest, progress: Progress) -> dict[str, Any]:
    """Return the progress of the status. rate: rows per second of this attempt."""
    if manifest.status == "completed":
        seconds = progress.seconds
        return {
            "processedRows": manifest.rows,
            "totalRows": manifest.rows,
            "percentage": 100.0,
            "bytes": manifest.bytes,
            "rate": _rate(manifest.rows or 0, seconds),
            "etaSeconds": eta_seconds(manifest, progress),
        }
    percentage = progress.percentage
    running = manifest.status == "processing"
    started = manifest.status != "pending"  # otherwise the rows are those of an attempt that has ended
    return {
        "processedRows": progress.rows if started else 0,
        "totalRows": manifest.total_rows,
        "percentage": 0.0 if percentage is None else percentage,
        "bytes": progress.bytes if started else 0,
        "rate": _rate(progress.rows, progress.seconds) if running else None,
        "etaSeconds": eta_seconds(manifest, progress),
    }


def _download_url(entry: Entry) -> str:
    """Return the address of the file, which ends in the name of the file: `curl -O` saves it under that name."""
    address = f"/exports/{entry.manifest.id}/download"
    name = _download_name(entry)
    return f"{address}/{quote(name, safe='')}" if name else address


def _download_name(entry: Entry) -> str:
    """Return the name of the file, or "" if the manifest has none: another version wrote it."""
    if entry.download_name is not None:
        return entry.download_name
    try:
        return file_name_of(entry.manifest.target, entry.manifest.query)
    except InvalidRequest:
        return ""


def _rate(rows: int, seconds: float) -> int | None:
    return round(rows / seconds) if seconds else None


def _time(time: datetime.datetime | None) -> str | None:
    return None if time is None else write_time(time)

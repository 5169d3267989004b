"""How far a saved export has come, and its status as JSON: the one place that makes that document.

Pure. A percentage never falls, not even when the export is begun again after a crash, and is 100 only at the end.
"""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from server.saved.manifest import Manifest, write_time

# The most that an unfinished export shows: an estimate may be short of the truth.
MOST_UNFINISHED = 99.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the attempt has come. percentage: furthest ever; None where nothing is known. seconds: so far.

    share: the percentage of this attempt alone, which the seconds belong to.
    """

    rows: int = 0
    bytes: int = 0
    percentage: float | None = None
    seconds: float = 0.0
    share: float | None = None

    def advanced(
        self, *, rows: int, bytes: int, seconds: float, done: float | None, total_rows: int | None
    ) -> Progress:
        """The progress after so many rows. done: the share of the relation read, where the scan knows it."""
        if done is None and total_rows:
            done = rows / total_rows
        percentage, now = self.percentage, None
        if done is not None and math.isfinite(done):
            now = min(math.floor(min(max(done, 0.0), 1.0) * 1000) / 10, MOST_UNFINISHED)
            percentage = now if percentage is None else max(percentage, now)
        return Progress(rows, bytes, percentage, seconds, now)

    def begun_again(self) -> Progress:
        """The progress of another attempt that has nothing yet."""
        return Progress(percentage=self.percentage)


def write_progress(progress: Progress) -> bytes:
    """The progress as JSON."""
    return json.dumps(asdict(progress)).encode()


def read_progress(text: bytes) -> Progress:
    """The progress of `write_progress`; none where the text is anything else, since it may be lost at any time."""
    try:
        document = json.loads(text)
        rows, count, seconds = document["rows"], document["bytes"], float(document["seconds"])
        percentage, share = (
            None if each is None else float(each) for each in (document["percentage"], document["share"])
        )
        if any(each is not None and not 0 <= each <= MOST_UNFINISHED for each in (percentage, share)):
            return Progress()
        if type(rows) is not int or type(count) is not int or min(rows, count) < 0 or not 0 <= seconds < 1e12:
            return Progress()
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return Progress()
    return Progress(rows, count, percentage, seconds, share)


def expires_at(manifest: Manifest, retention: float) -> datetime.datetime | None:
    """When the export goes by itself. retention: seconds after its end, 0 for ever."""
    if manifest.completed_at is None or not retention:
        return None
    try:
        return manifest.completed_at + datetime.timedelta(seconds=retention)
    except OverflowError:
        return None


def status_json(manifest: Manifest, progress: Progress, retention: float) -> dict[str, Any]:
    """The status document of design: fields in camel case, times in RFC 3339, null where nothing is known."""
    error = None
    if manifest.error_code is not None:
        error = {"code": manifest.error_code, "detail": manifest.error_detail}
    completed = manifest.status == "completed"
    return {
        "exportId": manifest.id,
        "status": manifest.status,
        "relation": manifest.relation,
        "query": manifest.query,
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
        "attempts": manifest.attempts,
        "downloadUrl": f"/exports/{manifest.id}/download" if completed else None,
    }


def _progress_json(manifest: Manifest, progress: Progress) -> dict[str, Any]:
    """rate: rows a second of this attempt; etaSeconds: at that rate."""
    if manifest.status == "completed":
        seconds = progress.seconds
        return {
            "processedRows": manifest.rows,
            "totalRows": manifest.rows,
            "percentage": 100.0,
            "bytes": manifest.bytes,
            "rate": _rate(manifest.rows or 0, seconds),
            "etaSeconds": 0,
        }
    percentage = progress.percentage
    running = manifest.status == "processing"
    begun = manifest.status != "pending"  # else the rows are those of an attempt that was ended
    eta = None
    if running and progress.share and progress.seconds:
        eta = math.ceil(progress.seconds * (100 - progress.share) / progress.share)
    return {
        "processedRows": progress.rows if begun else 0,
        "totalRows": manifest.total_rows,
        "percentage": 0.0 if percentage is None else percentage,
        "bytes": progress.bytes if begun else 0,
        "rate": _rate(progress.rows, progress.seconds) if running else None,
        "etaSeconds": eta,
    }


def _rate(rows: int, seconds: float) -> int | None:
    return round(rows / seconds) if seconds else None


def _time(time: datetime.datetime | None) -> str | None:
    return None if time is None else write_time(time)

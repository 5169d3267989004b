"""When an export whose attempt failed is tried again, or that it is not.

Decides from the error and from what the export has been through. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import (
    DatabaseUnavailable,
    ExportError,
    ForeignServerAway,
    MemoryBusy,
    QueryCancelled,
    RelationLocked,
    SnapshotConflict,
)
from server.saved.claim import Claim
from server.saved.errors import StorageUnavailable

# Seconds before the next attempt: doubled each time, up to a limit.
FIRST_BACKOFF, MOST_BACKOFF = 1.0, 60.0
# Seconds until the next attempt at an export whose relation is locked. Each attempt occupies one of the
# MAX_RUNNING_EXPORTS for LOCK_TIMEOUT.
LOCKED_SECONDS = 15.0
# How many times the database or the folder may become unavailable during one export: restarts are forgiven, a query
# that crashes the database each time is not.
MOST_SETBACKS = 20


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt.

    after: seconds until then. counted: the attempt that failed counts towards EXPORT_MAX_ATTEMPTS. setback: it counts
    towards MOST_SETBACKS.
    """

    after: float
    counted: bool = False
    setback: bool = False


def next_attempt(error: BaseException | None, claim: Claim) -> Retry | None:
    """Return when this export is tried again, or None if it has failed. error: what ended its attempt."""
    if isinstance(error, RelationLocked) and not claim.started:
        # Nothing has been done yet. It waits as long as the lock is held, as it waits for a database that is away.
        return Retry(LOCKED_SECONDS)
    forgiven = isinstance(error, DatabaseUnavailable | ForeignServerAway | SnapshotConflict | StorageUnavailable)
    fails = isinstance(error, ExportError) and not (
        forgiven or error.transient or isinstance(error, MemoryBusy | QueryCancelled | RelationLocked)
    )
    tries = claim.manifest.setbacks if forgiven else claim.attempts_with_this
    if fails or tries >= (MOST_SETBACKS if forgiven else claim.max_attempts):
        return None
    return Retry(min(FIRST_BACKOFF * 2 ** min(tries, 10), MOST_BACKOFF), counted=not forgiven, setback=forgiven)

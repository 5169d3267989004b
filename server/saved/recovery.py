"""Recovery of exports whose processes were killed, and of cancellations that were requested but not carried out.

Decides for one claimed export at a time. May block on the disk: call it in a thread.
"""

from __future__ import annotations

from server.errors import ExportError
from server.events import emit
from server.saved import durable_files
from server.saved.claim import Claim
from server.saved.events import ExportGivenUp, ExportInterrupted
from server.saved.folder import CANCEL
from server.saved.manifest import Manifest


class AttemptsInterrupted(ExportError):
    """The server was killed during every attempt."""

    code = "interrupted"


def may_need_recovery(root: int, manifest: Manifest) -> bool:
    """Return whether `recover` may have something to do. Does not check the lock. Raise OSError."""
    if manifest.status == "pending":
        return durable_files.exists(root, f"{manifest.id}/{CANCEL}")
    return not manifest.finished


def recover(claim: Claim) -> None:
    """Carry out a cancellation, or end an attempt whose process was killed. Raise LockLost, NoSpaceLeft, OSError.

    As the lock could be taken, no process is working on the export.
    """
    manifest = claim.manifest
    if manifest.finished:
        return
    if claim.cancel_requested():
        claim.cancel()
    elif claim.started and manifest.attempts >= claim.max_attempts:
        error = AttemptsInterrupted(f"The server was killed during each of {manifest.attempts} attempts.")
        emit(ExportGivenUp(export_id=manifest.id, attempts=manifest.attempts, code=error.code))
        claim.fail(error)
    elif claim.started:
        emit(ExportInterrupted(export_id=manifest.id, attempts=manifest.attempts))
        claim.give_back(counted=True)

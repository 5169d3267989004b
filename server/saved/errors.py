"""The errors of saved exports that a user may see: see `server/errors.py`."""

from __future__ import annotations

from server.errors import ExportError


class ExportNotFound(ExportError):
    """No saved export has this id, or it has been removed."""

    status = 404
    code = "export_not_found"


class ExportNotFinished(ExportError):
    """The file of the saved export is not complete yet."""

    status = 409
    code = "export_not_finished"
    retry_after = 2


class ExportFailed(ExportError):
    """The saved export failed or was cancelled: there will be no file."""

    status = 410
    code = "export_failed"


class ExportUnreadable(ExportError):
    """The folder of this export is not understood. It is left unchanged."""

    status = 500
    code = "export_unreadable"


class KeyReused(ExportError):
    """An earlier, different request had the same Idempotency-Key."""

    status = 422
    code = "idempotency_key_reused"


class StorageUnavailable(ExportError):
    """The folder of saved exports cannot be read or written."""

    status = 503
    code = "storage_unavailable"
    retry_after = 60


class NoSpaceLeft(ExportError):
    """The disk is full, or saved exports have used up their quota."""

    status = 507
    code = "no_space_left"
    retry_after = 300


class TooManyWaiting(ExportError):
    """As many saved exports wait or run as MAX_WAITING_EXPORTS allows."""

    status = 429
    code = "too_many_waiting"
    retry_after = 30


class TooManyExports(ExportError):
    """The server keeps as many saved exports as MAX_SAVED_EXPORTS allows, or their requests take too much space."""

    status = 507
    code = "too_many_exports"
    retry_after = 3600

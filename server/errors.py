"""The errors that a user may see: a stable code, an HTTP status and a message that is safe to send.

Raise these anywhere below the routes; they become `application/problem+json` (RFC 9457) in one place,
`server/problems.py`. A message here must never hold SQL text, a path of the server, a host or a password.
"""

from __future__ import annotations


class ExportError(Exception):
    """An export that cannot be given. Subclasses fix `status` and a default `code`.

    detail: what is wrong, in the user's terms. hint: what to change. retry_after: seconds.
    transient: the same request may work at once on another connection; only before the first byte.
    """

    status = 500
    code = "internal"
    transient = False
    retry_after: int | None = None

    def __init__(self, detail: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        if code is not None:
            self.code = code


class InvalidRequest(ExportError):
    """The URL or one of its values is wrong: the user changes it."""

    status = 400
    code = "invalid_request"


class Forbidden(ExportError):
    """The database role may not read all of what was asked for."""

    status = 403
    code = "forbidden"


class RelationNotFound(ExportError):
    """No such relation, or none that may be read: the two are not told apart."""

    status = 404
    code = "relation_not_found"


class RelationGone(RelationNotFound):
    """The relation was there a moment ago. Looked up anew, another of its name may be."""

    transient = True


class QueryFailed(ExportError):
    """PostgreSQL stopped the query for a reason that the user cannot mend in the URL."""

    status = 500
    code = "query_failed"


class ServerBusy(ExportError):
    """Every export slot is taken."""

    status = 503
    code = "busy"
    retry_after = 5


class DatabaseUnavailable(ExportError):
    """The database cannot be reached, or dropped the connection."""

    status = 503
    code = "database_unavailable"
    retry_after = 5


class ConnectionLost(DatabaseUnavailable):
    """An open connection died: a fresh one may work at once (a restarted server, a pooler's recycling)."""

    transient = True


class SnapshotConflict(ExportError):
    """A replica's recovery or a deadlock ended the query; the same query may well work next time."""

    status = 503
    code = "conflict_with_recovery"
    transient = True
    retry_after = 1


class RelationChanged(ExportError):
    """DDL came between looking the relation up and reading it: looked up anew, it may well be there."""

    status = 503
    code = "relation_changed"
    transient = True
    retry_after = 1


class QueryCancelled(ExportError):
    """Somebody cancelled the query in the database."""

    status = 503
    code = "query_cancelled"
    retry_after = 5


class QueryTimeout(ExportError):
    """The query gave nothing within STATEMENT_TIMEOUT."""

    status = 504
    code = "query_timeout"


class ExportNotFound(ExportError):
    """No saved export has this id, or no longer."""

    status = 404
    code = "export_not_found"


class ExportNotFinished(ExportError):
    """The saved export has no file yet."""

    status = 409
    code = "export_not_finished"
    retry_after = 2


class ExportFailed(ExportError):
    """The saved export has no file and will have none."""

    status = 410
    code = "export_failed"


class ExportUnreadable(ExportError):
    """What is on the disk for this export is not understood; it is left alone."""

    status = 500
    code = "export_unreadable"


class KeyReused(ExportError):
    """The Idempotency-Key was given with another request before."""

    status = 422
    code = "idempotency_key_reused"


class StorageUnavailable(ExportError):
    """The folder of saved exports cannot be used."""

    status = 503
    code = "storage_unavailable"
    retry_after = 60


class NoSpaceLeft(ExportError):
    """The disk, or the room that saved exports may take, is full."""

    status = 507
    code = "no_space_left"


class ForeignPage(ExportError):
    """A page of another site asks for a change in the name of whoever is looking at it."""

    status = 403
    code = "foreign_page"

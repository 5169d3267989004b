"""The errors that a user may see: a stable code, an HTTP status and a message that is safe to send.

Any module may raise them; `server/http/problems.py` turns them into `application/problem+json` (RFC 9457). A message
must not hold SQL text, a path of the server, a host or a password.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.visible import visible

# The hint of an error that passes by itself.
TRY_AGAIN = "Try again in a few seconds."


class ExportError(Exception):
    """A request that cannot be answered. Each subclass sets the HTTP `status` and a default `code`.

    detail: what is wrong, in the user's terms. hint: what to change. code: replaces the default of the class.
    retry_after: seconds after which the request may work, for the header Retry-After. transient: the request may work
    at once on another connection, so it is retried as long as nothing has been sent. of_query: the statement itself
    failed or was ended, so another reader of the same export must not repeat it. sqlstate: that of PostgreSQL's error,
    if there is one behind this. server_message: what PostgreSQL says about it. It may hold values of rows, so it is
    only logged at DEBUG, and sent only where `export/rejected_values.py` knows that it holds none.
    """

    status = 500
    code = "internal"
    transient = False
    of_query = False
    retry_after: int | None = None
    sqlstate: str | None = None
    server_message = ""
    # Relations that the user may have meant, as they are written in an address.
    similar: tuple[str, ...] = ()

    def __init__(self, detail: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        # Names of the request and of the catalogue may hold any character.
        self.detail = visible(detail)
        self.hint = None if hint is None else visible(hint)
        if code is not None:
            self.code = code


class InvalidRequest(ExportError):
    """The URL, or a value in it, is wrong."""

    status = 400
    code = "invalid_request"
    of_query = True


class RequestTooLarge(InvalidRequest):
    """The URL or a form is longer, or asks for more, than a request may."""

    code = "too_complex"


class ValueTooLarge(InvalidRequest):
    """A value is larger than the memory that values may take, and has to be held to know whether it needs quotes."""

    code = "value_too_large"


class Forbidden(ExportError):
    """The database role lacks a privilege that the export needs."""

    status = 403
    code = "forbidden"
    of_query = True


class RelationNotFound(ExportError):
    """The relation does not exist or may not be read. The error does not tell which."""

    status = 404
    code = "relation_not_found"
    of_query = True

    def __init__(
        self, detail: str, *, hint: str | None = None, code: str | None = None, similar: Sequence[str] = ()
    ) -> None:
        super().__init__(detail, hint=hint, code=code)
        self.similar = tuple(similar)


class RelationGone(RelationNotFound):
    """The relation was dropped after it had been looked up. Another one of its name may exist by now."""

    transient = True
    of_query = False


class QueryFailed(ExportError):
    """PostgreSQL rejected or ended a statement, and nothing is known of the cause but the SQLSTATE."""

    status = 500
    code = "query_failed"
    of_query = True


class RelationFailed(QueryFailed):
    """The relation itself cannot be read: its definition, its values or a function in it fails, for every request."""

    code = "relation_failed"


class ForeignServerAway(ExportError):
    """The relation reads from another server, which cannot be reached."""

    status = 503
    code = "foreign_server_unavailable"
    of_query = True
    retry_after = 5


class ServerBusy(ExportError):
    """All export slots, or all control connections, are in use."""

    status = 503
    code = "busy"
    retry_after = 5


class MemoryBusy(ExportError):
    """Other exports take the memory for large values, and did not give enough of it back in time."""

    status = 503
    code = "memory_busy"
    of_query = True
    retry_after = 5


class DatabaseUnavailable(ExportError):
    """The database cannot be reached, or it closed the connection."""

    status = 503
    code = "database_unavailable"
    retry_after = 5


class TooManyConnections(DatabaseUnavailable):
    """A limit of connections is reached: max_connections, or the limit of the role or of the database."""

    code = "too_many_connections"


class DatabaseNotAccepting(DatabaseUnavailable):
    """The server runs and accepts no connections yet, or none any more: it starts, recovers or shuts down."""

    code = "database_not_accepting"


class ConnectionLost(DatabaseUnavailable):
    """An open connection was lost. A new one may work at once, for example after a restart of the server."""

    transient = True


class SnapshotConflict(ExportError):
    """A conflict with a replica's recovery, a serialization failure or a deadlock ended the query."""

    status = 503
    code = "conflict_with_recovery"
    transient = True
    retry_after = 1


class AnswerTooLarge(ExportError):
    """PostgreSQL's answer to a question about the relation or the query is too large to be held."""

    code = "answer_too_large"
    of_query = True


class RelationChanged(ExportError):
    """DDL changed the relation after it had been looked up. Looked up again, it may be readable."""

    status = 503
    code = "relation_changed"
    transient = True
    retry_after = 1


class RelationLocked(ExportError):
    """Another session holds a lock that keeps the relation from being read, and did not release it in LOCK_TIMEOUT."""

    status = 503
    code = "relation_locked"
    retry_after = 5


class QueryCancelled(ExportError):
    """A user or an administrator cancelled the query in the database."""

    status = 503
    code = "query_cancelled"
    of_query = True
    retry_after = 5


class PlanTimeout(QueryCancelled):
    """PostgreSQL needed too long to plan the query. seconds: the limit, mostly PLAN_TIMEOUT."""

    code = "plan_timeout"
    seconds = 0.0


class QueryTimeout(ExportError):
    """The query delivered no row within its time limit, for exports STATEMENT_TIMEOUT."""

    status = 504
    code = "query_timeout"
    of_query = True


class TooManyStreams(ExportError):
    """As many event streams are open as the server takes from one client, or from all."""

    status = 429
    code = "too_many_streams"
    retry_after = 5


class SlowRequest(ExportError):
    """The body of a request did not arrive in time."""

    status = 408
    code = "request_timeout"


class ForeignPage(ExportError):
    """The page of another site sent the request, and only a person who follows a link may come from there."""

    status = 403
    code = "foreign_page"


class MisdirectedRequest(ExportError):
    """The request names a host to which this server does not answer (RFC 9110, 15.5.20)."""

    status = 421
    code = "misdirected_request"

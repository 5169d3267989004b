"""The errors of PostgreSQL as ExportErrors, whose text a user may see.

A text made here holds the server's primary message only where the user can act on it, and never its detail, hint or
statement: they may hold values of rows.
"""

from __future__ import annotations

from server import errors
from server.postgres.messages import error_fields

# Characters of a primary message that are kept. It may quote a value of any length.
LONGEST_MESSAGE = 300
# The detail of the errors that end sessions when the worker stops.
SHUTTING_DOWN = "The server is shutting down."


def error_in(body: bytes) -> errors.ExportError:
    """Return the ExportError for an ErrorResponse. body: of the message, perhaps only its beginning."""
    fields = error_fields(body)
    return error_for(fields.get("C"), fields.get("M", ""))


def error_for(state: str | None, primary: str) -> errors.ExportError:
    """Return the ExportError for a SQLSTATE (PostgreSQL manual, appendix "PostgreSQL Error Codes").

    state: the five characters of the SQLSTATE; None if the server gave none. primary: the primary message.
    """
    primary = primary[:LONGEST_MESSAGE]
    # 26000: something in the session has dropped the statements that Sluice had prepared. 57P05: the session was idle
    # for too long.
    if state is None or state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05", "26000"):
        return connection_lost()
    if state == "57014":
        return query_cancelled()
    if state.startswith("22"):
        return errors.InvalidRequest(f"PostgreSQL rejected a value: {primary}.", code="invalid_value")
    if state in ("42883", "42804", "42809", "42P22", "42725"):
        return errors.InvalidRequest(
            f"PostgreSQL cannot compare or sort these values: {primary}.", code="operator_not_supported"
        )
    if state.startswith("54"):
        return errors.InvalidRequest(f"The query is too complex for PostgreSQL: {primary}.", code="too_complex")
    if state == "42501":
        return errors.Forbidden("The database role lacks a privilege that reading this relation requires.")
    if state in ("42P01", "42703"):
        return errors.RelationGone("The relation or one of its columns no longer exists.")
    if state in ("40001", "40P01"):
        return errors.SnapshotConflict("The database ended the query because of a conflict.")
    if state == "55P03":
        return errors.RelationLocked(
            "The relation, or one that it reads, is locked by another session.", hint=errors.TRY_AGAIN
        )
    if state.startswith("53"):
        return errors.DatabaseUnavailable("The database lacks the resources for another query.")
    return errors.QueryFailed(f"PostgreSQL stopped the query (SQLSTATE {state}).")


def query_cancelled() -> errors.QueryCancelled:
    """Return the error for a statement that someone cancelled in the database."""
    return errors.QueryCancelled("The query was cancelled in the database.")


def connection_lost() -> errors.ConnectionLost:
    """Return the error for a connection that broke while it was in use."""
    return errors.ConnectionLost("The connection to the database was lost.")


def statement_timed_out(limit: float) -> errors.QueryTimeout:
    """Return the error for a statement that returned no rows within this limit, in seconds.

    It is STATEMENT_TIMEOUT, or a shorter statement_timeout of the database role.
    """
    return errors.QueryTimeout(
        f"PostgreSQL returned no rows for {limit:g} seconds.",
        hint="Request fewer rows or columns, or ask the operator to raise STATEMENT_TIMEOUT, or the statement_timeout "
        "of the database role if that is shorter.",
    )

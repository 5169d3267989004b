"""The errors of PostgreSQL as ExportErrors, whose text a user may see.

A text made here never holds the server's messages or the statement: they may hold values of rows. It holds the class
of the SQLSTATE, and that only if it is one of PostgreSQL's: a function may raise an error with a SQLSTATE of any five
characters. `server_message` keeps the primary message, and the event `ServerErrorReported` shows all texts at DEBUG.
"""

from __future__ import annotations

import re

from server import errors
from server.events import emit
from server.postgres.events import ServerErrorReported
from server.postgres.messages import error_fields

# Characters of a primary message that are kept. It may quote a value of any length.
LONGEST_MESSAGE = 300
# The detail of the errors that end sessions when the worker stops.
SHUTTING_DOWN = "The server is shutting down."
# The classes of PostgreSQL's SQLSTATEs (PostgreSQL manual, appendix "PostgreSQL Error Codes").
_CLASSES = re.compile("0[0-389ABFLPZ]|10|2[0-8BDF]|3[489BDF]|4[024]|5[34578]|72|F0|HV|P0|XX")
# The severities (field V) after which the server ends the session.
_ENDS_SESSION = ("FATAL", "PANIC")
# The SQLSTATE in an error of libpq whose verbosity is VERBOSE: `FATAL:  53300: sorry, too many clients already`.
_STATE_IN_TEXT = re.compile(r":  ([0-9A-Z]{5}): ")


def error_in(body: bytes) -> errors.ExportError:
    """Return the ExportError for an ErrorResponse. body: of the message, perhaps only its beginning."""
    fields = error_fields(body)
    state, message = fields.get("C"), fields.get("M", "")[:LONGEST_MESSAGE]
    detail, hint, where = ((fields.get(code) or "")[:LONGEST_MESSAGE] or None for code in "DHW")
    emit(ServerErrorReported(sqlstate=state, message=message, detail=detail, hint=hint, where=where))
    # Without the field V (before PostgreSQL 9.6, and in poolers) the severity in S may be a translated word.
    severity = fields.get("V", fields.get("S"))
    return error_for(
        state,
        message,
        ends_session=severity is None or severity in _ENDS_SESSION,
        # The context names the functions that were running. A message of the statement itself is short.
        in_function="W" in fields or not body.endswith(b"\0\0"),
    )


def error_for(
    state: str | None, message: str = "", *, ends_session: bool = True, in_function: bool = False
) -> errors.ExportError:
    """Return the ExportError for a SQLSTATE (PostgreSQL manual, appendix "PostgreSQL Error Codes").

    state: the five characters of the SQLSTATE; None if the server gave none. message: the primary message.
    ends_session: whether the server has ended the session. in_function: whether a function was running that the
    statement calls.
    """
    error = _error_for(state, ends_session=ends_session, in_function=in_function)
    error.sqlstate, error.server_message = state, message
    return error


def _error_for(state: str | None, *, ends_session: bool, in_function: bool) -> errors.ExportError:
    if state is None or _is_of_connection(state, ends_session=ends_session, in_function=in_function):
        return connection_lost()
    if state == "57014":
        return query_cancelled()
    if state == "42501" and not in_function:
        return errors.Forbidden("The database role lacks a privilege that reading this relation requires.")
    if state in ("42P01", "42703") and not in_function:
        return errors.RelationGone("The relation or one of its columns no longer exists.")
    if state in ("40001", "40P01"):
        return errors.SnapshotConflict("The database ended the query because of a conflict.")
    if state == "55P03":
        return errors.RelationLocked(
            "The relation, or one that it reads, is locked by another session.", hint=errors.TRY_AGAIN
        )
    if state.startswith("53"):
        return errors.DatabaseUnavailable("The database lacks the resources for another query.")
    if state in ("22021", "22P05"):  # also in a name, which makes a query of the catalogue fail
        return errors.QueryFailed(f"A text in the database cannot be sent as UTF-8{in_brackets(state)}.")
    return errors.QueryFailed(f"PostgreSQL stopped the query{in_brackets(state)}.")


def in_brackets(state: str | None) -> str:
    """Return what a text may say about a SQLSTATE, after a blank: its class, or nothing if PostgreSQL has no such."""
    return f" (SQLSTATE class {state[:2]})" if state and _CLASSES.match(state) else ""


def _is_of_connection(state: str, *, ends_session: bool, in_function: bool) -> bool:
    """Return whether an error means that the connection of the session cannot be used any more."""
    if state.startswith("57P"):  # the server or the database goes away, or the session was idle for too long
        return ends_session
    if state == "26000":  # something in the session has dropped the statements that Sluice had prepared
        return not in_function
    # A foreign data wrapper reports an error of its own connection, and the session goes on. But 08P01, a violation of
    # the protocol, always means the session.
    return state == "08P01" or (state.startswith("08") and ends_session)


def connect_error(text: str) -> tuple[errors.DatabaseUnavailable, str]:
    """Return the error for a connection that libpq could not open, and its reason for the log.

    text: the message of libpq, with the verbosity of `libpq.report_sqlstates`.
    """
    states = _STATE_IN_TEXT.findall(text)  # several if libpq has tried with TLS and without
    state = next((each for each in states if each in ("53300", "57P03")), states[0] if states else None)
    error: errors.DatabaseUnavailable
    if state == "53300":
        error = errors.TooManyConnections(
            "The database has no connection free: it has reached a limit, its own or that of the database role.",
            hint=errors.TRY_AGAIN,
        )
    elif state == "57P03":
        error = errors.DatabaseNotAccepting(
            "The database accepts no connections at the moment: it is starting, recovering or shutting down.",
            hint=errors.TRY_AGAIN,
        )
    else:
        error = errors.DatabaseUnavailable("The database cannot be reached.")
    error.sqlstate = state
    # The place in PostgreSQL's source code, which this verbosity adds.
    return error, re.sub(r"\nLOCATION: .*", "", text).strip()


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

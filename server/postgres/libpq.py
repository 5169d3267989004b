"""The driver's own libpq, through ctypes: what psycopg2 has no door to, and errors of the server as ours.

With `connections.py` and `session.py` the only importer of the driver. Holds no state and waits for nothing.
"""

from __future__ import annotations

import ctypes

import psycopg2

from server import errors

# Loaded through the driver's own dependency: also found where psycopg2-binary bundles it. Any other libpq would
# not understand this one's connections and results.
LIBPQ = ctypes.CDLL(psycopg2._psycopg.__file__)

# PostgreSQL manual, "libpq", "Retrieving Query Results in Chunks": new in 17.
HAS_CHUNKS = hasattr(LIBPQ, "PQsetChunkedRowsMode")

# postgres_ext.h
_SQLSTATE = ord("C")
_PRIMARY_MESSAGE = ord("M")


def _declare(name: str, result: object, *arguments: object) -> None:
    function = getattr(LIBPQ, name)
    function.restype = result
    function.argtypes = arguments


_declare("PQresultMemorySize", ctypes.c_size_t, ctypes.c_void_p)
_declare("PQresultErrorField", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
_declare("PQclear", None, ctypes.c_void_p)
_declare("PQsendQuery", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
if HAS_CHUNKS:
    _declare("PQsetChunkedRowsMode", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def result_memory(result: int) -> int:
    """Bytes that libpq holds for the PGresult at this address."""
    size: int = LIBPQ.PQresultMemorySize(result)
    return size


def send_query(connection: int, sql: bytes, chunk_rows: int) -> bool:
    """Start a statement on the PGconn at this address; its rows come in results of at most so many.

    Sends what the socket takes at once; whoever reads sends the rest. Whether that worked.
    """
    return bool(LIBPQ.PQsendQuery(connection, sql)) and bool(LIBPQ.PQsetChunkedRowsMode(connection, chunk_rows))


def take_error(result: int) -> errors.ExportError:
    """The error that this PGresult holds, as one that a user may see. Frees the result."""
    try:
        state = LIBPQ.PQresultErrorField(result, _SQLSTATE)
        primary = LIBPQ.PQresultErrorField(result, _PRIMARY_MESSAGE)
    finally:
        LIBPQ.PQclear(result)
    return error_for(state.decode() if state else None, primary.decode(errors="replace") if primary else "")


def translate(error: psycopg2.Error) -> errors.ExportError:
    """The driver's error as one that a user may see."""
    return error_for(error.pgcode, error.diag.message_primary or "")


def error_for(state: str | None, primary: str) -> errors.ExportError:
    """SQLSTATE and primary message → an error of ours (PostgreSQL manual, "PostgreSQL Error Codes")."""
    primary = primary[:300]
    if state is None or state.startswith("08") or state in ("57P01", "57P02", "57P03"):
        return errors.ConnectionLost("The connection to the database was lost.")
    if state == "57014":
        return errors.QueryCancelled("The query was cancelled in the database.")
    if state.startswith("22"):
        return errors.InvalidRequest(f"PostgreSQL rejected a value: {primary}.", code="invalid_value")
    if state in ("42883", "42804", "42809", "42P22", "42725"):
        return errors.InvalidRequest(f"PostgreSQL cannot compare or sort so: {primary}.", code="operator_not_supported")
    if state.startswith("54"):
        return errors.InvalidRequest(f"PostgreSQL cannot take so much in one query: {primary}.", code="too_complex")
    if state == "42501":
        return errors.Forbidden("The database role may not read all that this relation needs.")
    if state in ("42P01", "42703"):
        return errors.RelationGone("The relation or one of its columns is gone.")
    if state in ("40001", "40P01"):
        return errors.SnapshotConflict("The database ended the query because of a conflict.")
    if state.startswith("53"):
        return errors.DatabaseUnavailable("The database has no room for another query.")
    return errors.QueryFailed(f"PostgreSQL stopped the query (SQLSTATE {state}).")

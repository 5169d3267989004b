"""The driver's own libpq, called through ctypes for what psycopg2 does not offer.

It must hold no state and wait for nothing: a call here returns at once.
"""

from __future__ import annotations

import ctypes

import psycopg2

from server import errors
from server.postgres.server_errors import error_for

# Loaded through the driver's extension module, which also finds the libpq that psycopg2-binary bundles. Another libpq
# could not read the connections and results of this one.
LIBPQ = ctypes.CDLL(psycopg2._psycopg.__file__)

# PostgreSQL manual, "libpq", "Retrieving Query Results in Chunks": new in 17.
HAS_CHUNKS = hasattr(LIBPQ, "PQsetChunkedRowsMode")

# Field codes of an error: postgres_ext.h.
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
    """Return how many bytes libpq holds for the PGresult at this address."""
    size: int = LIBPQ.PQresultMemorySize(result)
    return size


def send_query(connection: int, sql: bytes, chunk_rows: int) -> bool:
    """Start a statement on the PGconn at this address; return whether that worked. It does not at address 0.

    Its rows come in PGresults of at most `chunk_rows` rows. This sends what the socket takes at once; the code that
    reads the rows sends the rest (PostgreSQL manual, "libpq", "Asynchronous Command Processing").
    """
    return bool(LIBPQ.PQsendQuery(connection, sql)) and bool(LIBPQ.PQsetChunkedRowsMode(connection, chunk_rows))


def take_error(result: int) -> errors.ExportError:
    """Return the error that the PGresult at this address holds, and free the PGresult."""
    try:
        state = LIBPQ.PQresultErrorField(result, _SQLSTATE)
        primary = LIBPQ.PQresultErrorField(result, _PRIMARY_MESSAGE)
    finally:
        LIBPQ.PQclear(result)
    return error_for(state.decode() if state else None, primary.decode(errors="replace") if primary else "")

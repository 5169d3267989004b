"""The functions of the driver's libpq that the driver does not offer, by its shared object.

Holds no state and waits for nothing.
"""

from __future__ import annotations

import contextlib
import ctypes

import psycopg2

# Loaded through the driver's extension module, which also finds the libraries that psycopg2-binary bundles. Another
# libpq or OpenSSL could not use the objects of this one.
DRIVER = ctypes.CDLL(psycopg2._psycopg.__file__)

# PGVerbosity (PostgreSQL manual, "libpq", "Control Functions").
_VERBOSE = 2


def report_sqlstates(pgconn: int) -> None:
    """Make the text of each error hold its SQLSTATE: libpq gives the errors of connecting in no other way.

    pgconn: the address of a PGconn, on which libpq may still be connecting. Does nothing if the driver hides the
    function.
    """
    with contextlib.suppress(AttributeError):
        function = DRIVER.PQsetErrorVerbosity
        function.argtypes = (ctypes.c_void_p, ctypes.c_int)
        function(pgconn, _VERBOSE)

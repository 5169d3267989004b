"""The functions of the OpenSSL that the driver's libpq uses, for connections whose bytes Sluice reads by itself.

libpq makes the connection and its TLS session; `PQsslStruct` hands over the session's SSL object (PostgreSQL manual,
"libpq", "Connection Status Functions"). Holds no state and waits for nothing.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from server.postgres.libpq import DRIVER

# The functions that the native encoder calls too, by their addresses.
FUNCTIONS = ("SSL_read", "SSL_write", "SSL_get_error", "ERR_clear_error")

# Results of SSL_get_error (ssl.h): call again when the socket is readable, or writable; the session has ended.
WANT_READ, WANT_WRITE, ZERO_RETURN = 2, 3, 6


def addresses() -> dict[str, int]:
    """Return the address of each of FUNCTIONS by its name; empty if the driver hides them or is without OpenSSL."""
    try:
        return {name: ctypes.cast(DRIVER[name], ctypes.c_void_p).value or 0 for name in FUNCTIONS}
    except AttributeError:
        return {}


def ssl_of(pgconn: int) -> int:
    """Return the address of the SSL object of the PGconn at this address; 0 if it does not use OpenSSL."""
    function = DRIVER.PQsslStruct
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    return function(pgconn, b"OpenSSL") or 0


@functools.cache
def _functions() -> tuple[Any, ...]:
    """Return SSL_read, SSL_write, SSL_get_error and ERR_clear_error."""
    read, write, get_error, clear_error = (DRIVER[name] for name in FUNCTIONS)
    read.argtypes = write.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    get_error.argtypes = (ctypes.c_void_p, ctypes.c_int)
    clear_error.argtypes, clear_error.restype = (), None
    return read, write, get_error, clear_error


def receive(ssl: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Read at most as many bytes as the buffer has; return how many. Raise BlockingIOError or OSError; see `_check`.

    ssl: the address of the SSL object. 0: the peer has ended the session.
    """
    read, _, get_error, clear_error = _functions()
    clear_error()
    count: int = read(ssl, buffer, len(buffer))
    return count if count > 0 else _check(get_error(ssl, count))


def send(ssl: int, data: bytes) -> int:
    """Write the beginning of the data; return how many bytes. Raise as `receive` does.

    After BlockingIOError the next call must begin with the same bytes (SSL_write(3)).
    """
    _, write, get_error, clear_error = _functions()
    clear_error()
    count: int = write(ssl, data, len(data))
    return count if count > 0 else _check(get_error(ssl, count))


def _check(error: int) -> int:
    """Return 0 at the end of the session. Raise BlockingIOError if the call has to be repeated, OSError otherwise."""
    if error in (WANT_READ, WANT_WRITE):
        raise BlockingIOError
    if error == ZERO_RETURN:
        return 0
    raise OSError("the TLS session is broken")

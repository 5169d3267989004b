"""OpenSSL's functions as the native encoder calls them, over a script: each SSL_read returns what the script says.

So a stream can be cut at any byte, without a server, a thread or a wait. Where AddressSanitizer is loaded, the part of
the encoder's receive buffer that holds nothing yet is poisoned; elsewhere it is overwritten.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import random
import socket
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar

# Results of SSL_get_error (ssl.h).
SSL_ERROR_SSL, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_SYSCALL, SSL_ERROR_ZERO_RETURN = 1, 2, 3, 5, 6

_process = ctypes.CDLL(None)
try:
    _poison = _process.__asan_poison_memory_region
    _unpoison = _process.__asan_unpoison_memory_region
except AttributeError:
    CHECKED = False
else:
    CHECKED = True
    _poison.argtypes = _unpoison.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _poison.restype = _unpoison.restype = None


class Pause(enum.Enum):
    """What may happen before the next bytes arrive."""

    AGAIN = enum.auto()  # SSL_read has no bytes yet, and the socket is readable
    QUIET = enum.auto()  # SSL_read has no bytes yet, and nothing arrives at the socket
    WAKE = enum.auto()  # the reader is woken, and the next step of the script follows at once


Step = bytes | Pause


class ScriptedSession:
    """A `reader.Bytes` with TLS for the native encoder. The connection ends after the last step.

    wake: a descriptor, readable after Pause.WAKE. sent: what the encoder has written. given: how many bytes it has
    read, and `given_before` the last SSL_read. faults: what it has done that OpenSSL does not allow.
    """

    _sessions: ClassVar[dict[int, ScriptedSession]] = {}
    _addresses: ClassVar = itertools.count(1)
    _errors_cleared: ClassVar = False

    def __init__(self, rng: random.Random, script: Iterable[Step]) -> None:
        self._rng = rng
        self._script = deque(script)
        self._error = 0
        self._buffer_end: int | None = None
        self._refused = b""
        self._socket, self._peer = socket.socketpair()
        self._wake, self._waker = socket.socketpair()
        self._readable = self._woken = False
        self.descriptor = self._socket.fileno()
        self.wake = self._wake.fileno()
        self.ssl = next(self._addresses)
        self.sent = b""
        self.given = self.given_before = 0
        self.faults: list[str] = []
        self._sessions[self.ssl] = self

    def __enter__(self) -> ScriptedSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._sessions[self.ssl]
        for each in (self._socket, self._peer, self._wake, self._waker):
            each.close()

    def sleep_again(self) -> None:
        """Make `wake` no longer readable."""
        if self._woken:
            self._wake.recv(1)
            self._woken = False

    def receive(self) -> bytes | None:
        raise AssertionError("the native encoder reads by itself")

    def send(self, data: bytes) -> int:
        raise AssertionError("the native encoder writes by itself")

    def _set_readable(self, readable: bool) -> None:
        if readable and not self._readable:
            self._peer.send(b"!")
        elif self._readable and not readable:
            self._socket.recv(1)
        self._readable = readable

    def _check(self, fault: bool, message: str) -> None:
        if fault:
            self.faults.append(message)

    def _check_errors_cleared(self, function: str) -> None:
        self._check(not ScriptedSession._errors_cleared, f"{function} without ERR_clear_error")
        ScriptedSession._errors_cleared = False

    def _read(self, address: int, room: int) -> int:
        self._check_errors_cleared("SSL_read")
        if self._buffer_end is None:
            ctypes.memset(address, 0, room)  # AddressSanitizer finds a buffer that is smaller than the encoder says
            self._buffer_end = address + room
        self._check(room <= 0, f"a buffer of {room} bytes")
        self._check(address + room != self._buffer_end, "the receive buffer ends elsewhere")
        data = self._next(room)
        empty, rest = address + len(data or b""), room - len(data or b"")
        if CHECKED:
            _unpoison(address, room - rest)
            _poison(empty, rest)
        else:
            ctypes.memset(empty, self._rng.choice(b"\0\1D\xff"), rest)
        if not data:
            return -1 if data is None else 0
        ctypes.memmove(address, data, len(data))
        self.given_before, self.given = self.given, self.given + len(data)
        return len(data)

    def _next(self, room: int) -> bytes | None:
        """Return the next bytes; None if there are none now or the connection is broken, b"" at its end."""
        self._set_readable(True)
        while self._script and room > 0:
            step = self._script.popleft()
            if step is Pause.WAKE:
                if not self._woken:
                    self._waker.send(b"!")
                self._woken = True
            elif isinstance(step, Pause):
                self._set_readable(step is Pause.AGAIN)
                writes = step is Pause.AGAIN and self._rng.random() < 0.2
                self._error = SSL_ERROR_WANT_WRITE if writes else SSL_ERROR_WANT_READ
                return None
            else:
                if step[room:]:
                    self._script.appendleft(step[room:])
                return step[:room]
        self._error = self._rng.choice([SSL_ERROR_ZERO_RETURN, SSL_ERROR_SYSCALL, SSL_ERROR_SSL])
        return b"" if self._error == SSL_ERROR_ZERO_RETURN else None

    def _write(self, data: bytes) -> int:
        self._check_errors_cleared("SSL_write")
        self._check(not data, "SSL_write of nothing")
        self._check(not data.startswith(self._refused), "SSL_write of other bytes than before")
        if self._rng.random() < 0.2:
            self._refused = data
            self._error = self._rng.choice([SSL_ERROR_WANT_WRITE, SSL_ERROR_WANT_READ])
            return -1
        self._refused = b""
        taken = data if self._rng.random() < 0.5 else data[: self._rng.randint(1, len(data))]
        self.sent += taken
        return len(taken)

    @classmethod
    def _clear_error(cls) -> None:
        cls._errors_cleared = True

    @classmethod
    def addresses(cls) -> dict[str, int]:
        """Return the address of each function by its name, as `_encode.bind` takes them."""
        return {name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in _FUNCTIONS.items()}


_session = ScriptedSession._sessions.__getitem__
_FUNCTIONS = {
    "SSL_read": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)(
        lambda ssl, address, room: _session(ssl)._read(address, room)
    ),
    "SSL_write": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)(
        lambda ssl, address, length: _session(ssl)._write(ctypes.string_at(address, length))
    ),
    "SSL_get_error": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(
        lambda ssl, result: _session(ssl)._error
    ),
    "ERR_clear_error": ctypes.CFUNCTYPE(None)(ScriptedSession._clear_error),
}

"""Why bytes are not an HTTP request: aiohttp's errors without the bytes that they repeat, perhaps a secret."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

# What the parser (llhttp) says, the line with the wrong byte, and a mark below that byte.
_MARKED = re.compile(r"(?:Bad status line:\n  )?([^\n]{1,80}):\n\n  (b['\"][^\n]*)\n  ( *)\^")
# What aiohttp itself says, with nothing from the request but a name of its own list.
_PLAIN = re.compile(
    r"(Missing 'Host' header in request|Too many headers received|Duplicate '[\w-]{1,20}' header found)\.?"
)
# Characters between the beginning of the marked line and its first byte: b and a quote, as Python writes bytes.
_BEFORE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Malformed:
    """kind: the class of the error. reason: a fixed sentence. position: bytes of the line before the wrong one."""

    kind: str
    reason: str | None = None
    position: int | None = None

    def __str__(self) -> str:
        if self.reason is None:
            return self.kind
        return self.reason if self.position is None else f"{self.reason}, after {self.position} bytes of its line"


def describe(error: HttpProcessingError) -> Malformed:
    """Return what is known of the error without any byte of the request."""
    kind = type(error).__name__
    if isinstance(error, LineTooLong):
        limit = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], int) else None
        return Malformed(kind, None if limit is None else f"Line or header of more than {limit} bytes")
    if marked := _MARKED.fullmatch(error.message):
        return Malformed(kind, marked[1], max(0, len(marked[3]) - _BEFORE_BYTES))
    plain = _PLAIN.fullmatch(error.message)
    return Malformed(kind, None if plain is None else plain[1])

"""What the routes read from an address in the same way."""

from __future__ import annotations

from aiohttp import web

from server.errors import InvalidRequest

EXPORT_PREFIX = "/export/"
SAVED_PREFIX = "/exports"


def raw_target(request: web.Request) -> str:
    """Return the path after its first segment, still percent-encoded: a name may hold an encoded slash.

    aiohttp's match_info is decoded already.
    """
    return request.rel_url.raw_path.split("/", 2)[2]


def refuse_parameters(request: web.Request, detail: str, *, hint: str | None = None) -> None:
    """Raise InvalidRequest if the address has a query string. detail: says what takes no parameters."""
    if request.query_string:
        raise InvalidRequest(detail, code="unknown_parameter", hint=hint)

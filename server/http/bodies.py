"""The bodies of requests: only forms have one. They are short, arrive in time, and are not compressed."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import InvalidRequest, SlowRequest

# Seconds in which the body of a form has to arrive. aiohttp refuses one of more than 1 MB.
BODY_SECONDS = 20.0


@web.middleware
async def body_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 400 to a body where no method of ours has one, before anything else is done."""
    if request.body_exists and request.method != "POST":
        raise InvalidRequest(f"A {request.method[:20]} request must have no body.", code="unexpected_body")
    return await handler(request)


async def read_body(request: web.Request) -> bytes:
    """Return the body of a request. Raise InvalidRequest if it is compressed, SlowRequest."""
    if "Content-Encoding" in request.headers:
        raise InvalidRequest("The body must not be compressed.", code="invalid_form")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise SlowRequest("The body of the request did not arrive in time.") from None

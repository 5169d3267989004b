"""Who may ask for a change: not the page of another site, in the name of whoever is looking at it.

There is no login, so a browser inside the network would be the only key that a foreign page needs. What is not a
browser sends none of these headers. Decides, and knows nothing of what is asked for.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import ForeignPage

_READING = ("GET", "HEAD", "OPTIONS")


@web.middleware
async def origin_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """403 for what a page of another site would change."""
    if request.method not in _READING and is_foreign(
        request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin"), request.headers.get("Host", "")
    ):
        raise ForeignPage(
            "A page of another site may not change anything here.",
            hint="Open the page of this server. A proxy in front of it must pass the Host header on.",
        )
    return await handler(request)


def is_foreign(fetch_site: str | None, origin: str | None, host: str) -> bool:
    """Whether another site's page asks (W3C, "Fetch Metadata Request Headers"; browsers without them send Origin)."""
    if fetch_site is not None:
        return fetch_site.lower() not in ("same-origin", "none")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:  # "http://[": no browser of ours
        return True

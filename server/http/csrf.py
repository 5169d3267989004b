"""Protection against cross-site requests: a page of another site may not change anything through a user's browser.

Sluice has no login, so a page of another site would need nothing but a browser inside the network. Clients other than
browsers send none of these headers and are not affected.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import ForeignPage

# RFC 9110, 9.2.1: methods that change nothing.
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@web.middleware
async def origin_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 403 to a request of another site's page that would change something."""
    if request.method not in _SAFE_METHODS and is_foreign(
        request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin"), request.headers.get("Host", "")
    ):
        raise ForeignPage(
            "A page of another site may not change anything here.",
            hint="Use the pages of this server. A proxy in front of it must pass the Host header on.",
        )
    return await handler(request)


def is_foreign(fetch_site: str | None, origin: str | None, host: str) -> bool:
    """Return whether the page of another site sends the request.

    fetch_site, origin, host: the headers Sec-Fetch-Site (W3C, "Fetch Metadata Request Headers"), Origin, which older
    browsers send instead, and Host.
    """
    if fetch_site is not None:
        return fetch_site.lower() not in ("same-origin", "none")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:  # "http://[": no browser sends this
        return True

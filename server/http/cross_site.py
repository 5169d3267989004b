"""What a page of another site may do through a user's browser: link to this server, and nothing else.

There is no login, so such a page would need nothing but a browser inside the network. A browser says who asks in
Sec-Fetch-Site and in Origin, and no page can change these headers. Clients other than browsers send none of them and
are not affected. A page of an origin in CORS_ORIGINS may do what the pages of this server may.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDictProxy

from server.errors import ForeignPage
from server.http.forwarded import Arrival, arrival
from server.network_names import DEFAULT_PORTS, origin, parse_host, parse_origin

# Methods that a person uses by following a link.
_LINK_METHODS = ("GET", "HEAD")
# What Sec-Fetch-Dest says of a link that is followed in a tab of its own, and perhaps of a download.
_LINK_DESTINATIONS = ("document", "empty")
# What Sec-Fetch-Site says of the own pages, and of an address that a person has typed.
_OWN_SITES = ("same-origin", "none")

# What a page of an allowed origin may send and read besides what browsers always allow (WHATWG Fetch, 3.3).
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    "Access-Control-Allow-Headers": "Content-Type, Idempotency-Key, If-Match, If-Modified-Since, If-None-Match, "
    "If-Range, If-Unmodified-Since, Last-Event-ID, Range, X-Request-Id",
    # Seconds; the most that Chromium takes.
    "Access-Control-Max-Age": "7200",
    "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
}
_EXPOSED = (
    "Accept-Ranges, Content-Disposition, Content-Range, ETag, Link, Location, Repr-Digest, Retry-After, X-Request-Id, "
    "X-Sluice-Also-In, X-Sluice-Relation"
)


def cross_site_middleware(allowed: Iterable[str]) -> Middleware:
    """Return a middleware that answers 403 to what a page of another site may not send, and preflights of allowed ones.

    allowed: origins as `parse_origins` returns them.
    """
    origins = frozenset(allowed)

    @web.middleware
    async def check_sender(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_foreign(request.method, request.headers, arrival(request), origins):
            raise ForeignPage(
                "A page of another site may only link here.",
                hint="Use the pages of this server, or list the other site in CORS_ORIGINS. A proxy in front of this "
                "server must pass on the Host header.",
            )
        if request.method == "OPTIONS" and _allowed_origin(request.headers, origins):
            return web.Response(status=204, headers=_PREFLIGHT)
        return await handler(request)

    return check_sender


def is_foreign(method: str, headers: CIMultiDictProxy[str], sent: Arrival, allowed: Container[str]) -> bool:
    """Return whether a page of another site sends the request, and it is more than a link that is followed.

    Where a browser sends both Sec-Fetch-Site (W3C, "Fetch Metadata Request Headers") and Origin, both must agree.
    """
    if "Sec-Fetch-Site" not in headers and "Origin" not in headers and "Sec-Purpose" not in headers:
        return False
    sites, origins = headers.getall("Sec-Fetch-Site", []), headers.getall("Origin", [])
    if "Sec-Purpose" in headers and [site.lower() for site in sites] != ["same-origin"]:
        # Fetched before anybody clicks. For a page's speculation rules Chromium says "none", as for a typed address.
        return True
    if len(sites) > 1 or len(origins) > 1:
        return True
    own_site = not sites or sites[0].lower() in _OWN_SITES
    if origins:
        if _is_own(origins[0], sent):
            return not own_site
        return (bool(sites) and own_site) or _canonical(origins[0]) not in allowed
    return not own_site and not _is_followed_link(method, headers)


def _is_own(text: str, sent: Arrival) -> bool:
    """Return whether this Origin is that of this server. Its scheme counts only if a trusted proxy tells it."""
    parsed, own = parse_origin(text), parse_host(sent.host or "")
    if parsed is None or own is None:
        return False
    scheme, host = parsed
    default = DEFAULT_PORTS[scheme]
    return sent.scheme in (None, scheme) and (host.name, host.port or default) == (own.name, own.port or default)


def _canonical(text: str) -> str:
    parsed = parse_origin(text)
    return "" if parsed is None else origin(*parsed)


def _is_followed_link(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a person follows a link. What a browser fetches into a frame is none."""
    return (
        method in _LINK_METHODS
        and headers.get("Sec-Fetch-Mode", "").lower() == "navigate"
        and headers.get("Sec-Fetch-Dest", "document").lower() in _LINK_DESTINATIONS
    )


# --- origins of CORS_ORIGINS ---


def cors_headers(allowed: Iterable[str]) -> Callable[[web.BaseRequest, web.StreamResponse], Awaitable[None]]:
    """Return a handler of the signal `on_response_prepare` that lets the pages of these origins read each response."""
    origins = frozenset(allowed)

    async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
        vary = response.headers.get("Vary")
        response.headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
        if sender := _allowed_origin(request.headers, origins):
            response.headers["Access-Control-Allow-Origin"] = sender
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    return add_headers


def _allowed_origin(headers: Mapping[str, str], allowed: Container[str]) -> str | None:
    """Return the origin of the sender if it is one of these."""
    sender = _canonical(headers.get("Origin", ""))
    return sender if sender in allowed else None

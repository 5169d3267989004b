"""What all pages share: templates, their own files, security headers, numbers as text, and errors as pages.

Holds no page of its own. Everything that the catalogue says is escaped by the templates.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp_jinja2
import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import InvalidRequest
from server.http.negotiation import accepts_html

FOLDER = Path(__file__).parent
STATIC_FILES = {path.name: path for path in (FOLDER / "static").iterdir()}

# Nothing from elsewhere, nothing inline, no frame: what the catalogue says can only ever be text.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # Not no-referrer: a form would then say "Origin: null", and be taken for another site's.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept",
}


def render(request: web.Request, template: str, context: Mapping[str, Any], status: int = 200) -> web.Response:
    """The page of this template."""
    response = aiohttp_jinja2.render_template(template, request, dict(context), status=status)
    response.headers.update(SECURITY_HEADERS)
    return response


def origin(request: web.Request) -> str:
    """Scheme, host and port as the browser knows them. Raises InvalidRequest."""
    try:
        return str(request.url.origin())
    except ValueError:
        raise InvalidRequest("The Host header names no host.") from None


def wants_page(request: web.Request) -> bool:
    """Return whether a browser opens this address; scripts and curl accept anything and get JSON."""
    return accepts_html(request.headers)


@web.middleware
async def pages_for_people(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What a browser would show to a person as JSON becomes a page: problems, and an export accepted for saving."""
    response = await handler(request)
    if not isinstance(response, web.Response):
        return response
    if response.status == 202 and response.headers.get("Location", "").startswith("/exports/") and wants_page(request):
        return web.Response(status=303, headers={"Location": "/saved", "Cache-Control": "no-store"})
    if response.content_type != "application/problem+json":
        return response
    if not wants_page(request):
        response.headers["Vary"] = "Accept"
        return response
    assert isinstance(response.body, bytes)
    page = render(request, "error.html", {"problem": json.loads(response.body)}, response.status)
    for name in ("Allow", "Retry-After"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page


async def static(request: web.Request) -> web.FileResponse:
    """One of the page's own files."""
    path = STATIC_FILES.get(request.match_info["name"])
    if path is None:
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})


def grouped(number: float | None) -> str:
    """1234567 → 1,234,567."""
    return "" if number is None else f"{round(number):,}"


def size(count: float | None) -> str:
    """Bytes as 12.3 MB."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def moment(text: str | None) -> str:
    """A time of the API as a person reads it."""
    if text is None:
        return ""
    return f"{datetime.datetime.fromisoformat(text).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def duration(seconds: float) -> str:
    """Seconds as 5 s, 3 min, 2 h or 4 days."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def about(number: float) -> str:
    """An estimate with no more digits than it deserves: 1234567 → 1,230,000."""
    return f"{float(f'{number:.3g}'):,.0f}"


@functools.cache
def templates() -> jinja2.Environment:
    """All templates, read and compiled once for the process: later it would block the event loop."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": grouped, "size": size, "about": about, "moment": moment, "duration": duration}
    for path in (FOLDER / "templates").glob("*.html"):
        environment.get_template(path.name)
    return environment


def setup(app: web.Application) -> None:
    """Add the templates, the pages' own files and error pages."""
    app[aiohttp_jinja2.APP_KEY] = templates()
    app.router.add_get("/static/{name}", static)
    app.middlewares.insert(0, pages_for_people)

"""What all pages share: templates, security headers, and errors as pages.

Holds no page of its own. The templates escape all text from the database.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp_jinja2
import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import ExportError
from server.http.addresses import SAVED_PREFIX
from server.http.caching import NO_STORE
from server.http.keys import ENGINE
from server.http.negotiation import accepts_html
from server.http.problems import log_failure
from server.pages.formatting import FILTERS
from server.threads import in_thread

FOLDER = Path(__file__).parent / "templates"

SAVED_PAGE = "/saved"
# Nothing from other sites, nothing inline, no frames: text from the database cannot become markup or script.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # Not no-referrer: a form would then send "Origin: null" and be refused as another site's (cross_site.py).
    "Referrer-Policy": "same-origin",
    **NO_STORE,
    "Vary": "Accept",
}


async def render(
    request: web.Request, template: str, context: Mapping[str, Any] | Callable[[], Mapping[str, Any]], status: int = 200
) -> web.Response:
    """Return the page that this template makes of the context, in a thread: a page may have megabytes.

    context: or a function that makes it, in the same thread.
    """

    def page() -> bytes:
        values = context() if callable(context) else context
        return aiohttp_jinja2.render_string(template, request, values).encode(errors="replace")

    body = await in_thread(request.app[ENGINE].threads.pages, page)
    return web.Response(body=body, content_type="text/html", charset="utf-8", status=status, headers=SECURITY_HEADERS)


async def render_with_error(
    request: web.Request, template: str, context: Callable[[], Mapping[str, Any]], error: ExportError | None
) -> web.Response:
    """Return the page that this template makes of the context, with the status and Retry-After of the error, if any.

    For a page that shows the error in its place. The template finds its text as `reason`, which is else None.
    """
    if error is not None:
        log_failure(request, error)
    reason = None if error is None else error.detail
    status = 200 if error is None else error.status
    response = await render(request, template, lambda: {**context(), "reason": reason}, status)
    if error is not None and error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def wants_page(request: web.Request) -> bool:
    """Return whether a browser opens this address; scripts and curl accept anything and get JSON."""
    return accepts_html(request.headers)


@web.middleware
async def pages_for_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a browser with a page in place of JSON: for errors, and for an export accepted for saving."""
    response = await handler(request)
    if not isinstance(response, web.Response):
        return response
    if (
        response.status == 202
        and response.headers.get("Location", "").startswith(f"{SAVED_PREFIX}/")
        and wants_page(request)
    ):
        return web.Response(status=303, headers={"Location": SAVED_PAGE, **NO_STORE})
    if response.content_type != "application/problem+json":
        return response
    if not wants_page(request):
        response.headers["Vary"] = "Accept"
        return response
    assert isinstance(response.body, bytes)
    page = await render(request, "error.html", {"problem": json.loads(response.body)}, response.status)
    for name in ("Allow", "Retry-After"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page


@functools.cache
def templates() -> jinja2.Environment:
    """Return all templates, compiled once per process. Compiling them in a request would block the event loop."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {**FILTERS, "unquote": unquote}
    for path in FOLDER.glob("*.html"):
        environment.get_template(path.name)
    return environment


def setup(app: web.Application) -> None:
    """Add the templates and the error pages."""
    app[aiohttp_jinja2.APP_KEY] = templates()
    app.middlewares.insert(0, pages_for_browsers)

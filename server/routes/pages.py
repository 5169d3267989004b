"""`GET /`: the page that lists what can be exported, each with a plain link."""

from __future__ import annotations

from pathlib import Path

import aiohttp_jinja2
import jinja2
from aiohttp import web

from server.errors import DatabaseUnavailable, InvalidRequest
from server.request import export_path
from server.routes.keys import DATABASE, SETTINGS

FOLDER = Path(__file__).parent.parent / "web"
STATIC_FILES = {path.name: path for path in (FOLDER / "static").iterdir()}

# Nothing from elsewhere, no script, no frame: what the catalogue says can only ever be text.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


async def index(request: web.Request) -> web.Response:
    """All relations with kind, estimated rows and size."""
    schemas = request.app[SETTINGS].export_schemas
    status, reason = 200, None
    relations = []
    try:
        for relation in await request.app[DATABASE].relations():
            schema = None if relation.schema == schemas[0] else relation.schema
            relations.append((relation, schema, export_path(schema, relation.name, "csv")))
    except DatabaseUnavailable as error:
        status, reason = error.status, error.detail
    context = {"relations": relations, "origin": _origin(request), "reason": reason, "schemas": schemas}
    response = aiohttp_jinja2.render_template("index.html", request, context, status=status)
    response.headers.update(SECURITY_HEADERS)
    return response


async def static(request: web.Request) -> web.FileResponse:
    """One of the page's own files."""
    path = STATIC_FILES.get(request.match_info["name"])
    if path is None:
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})


def _origin(request: web.Request) -> str:
    try:
        return str(request.url.origin())
    except ValueError:
        raise InvalidRequest("The Host header names no host.") from None


def _grouped(number: int | None) -> str:
    return "" if number is None else f"{number:,}".replace(",", "\u202f")


def _size(count: int | None) -> str:
    if count is None:
        return ""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}\u202f{unit}"
        size /= 1000
    return f"{size:.3g}\u202fTB"


def setup(app: web.Application) -> None:
    """Add this resource's routes and the folder of its style sheet."""
    environment = aiohttp_jinja2.setup(app, loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, auto_reload=False)
    environment.filters |= {"grouped": _grouped, "size": _size}
    environment.get_template("index.html")  # read here: later it would block the event loop
    app.router.add_get("/", index)
    app.router.add_get("/static/{name}", static)

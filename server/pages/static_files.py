"""`GET /static/{name}`: the styles, scripts and the icon of the pages.

They are few and small, so they are read once, when the server starts, and sent from memory: no request waits for a
disk.
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from server.http.byte_ranges import unmet_precondition

FOLDER = Path(__file__).parent / "static"
# By suffix. The table of the operating system, which `mimetypes` reads, may have other names for them.
CONTENT_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the folder. etag: strong, with its quotes. modified: the time of its last change."""

    content: bytes
    content_type: str
    etag: str
    modified: datetime.datetime


@functools.cache
def static_files() -> Mapping[str, StaticFile]:
    """Return all static files by name, read once per process."""
    return {path.name: _read(path) for path in FOLDER.iterdir() if path.suffix in CONTENT_TYPES}


def _read(path: Path) -> StaticFile:
    content = path.read_bytes()
    return StaticFile(
        content,
        CONTENT_TYPES[path.suffix],
        f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC),
    )


async def static(request: web.Request) -> web.Response:
    """Send a static file, or 304 if the browser has it already (RFC 9110, 13). A Range is ignored."""
    file = static_files().get(request.match_info["name"])
    if file is None:
        raise web.HTTPNotFound
    headers = {
        "Cache-Control": "no-cache",
        "ETag": file.etag,
        "Last-Modified": email.utils.format_datetime(file.modified, usegmt=True),
    }
    status = unmet_precondition(request.headers, etag=file.etag, modified=file.modified)
    if status == 412:
        raise web.HTTPPreconditionFailed
    if status == 304:
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.content, content_type=file.content_type, headers=headers)


def setup(app: web.Application) -> None:
    """Read the files and add their route."""
    static_files()
    app.router.add_get("/static/{name}", static)

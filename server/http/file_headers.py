"""The headers of a file that is downloaded: its media type, its name, and what caches and proxies may do with it."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from server.http.addresses import relation_headers
from server.http.caching import NO_STORE
from server.query.dialect import Dialect
from server.query.file_names import file_name
from server.query.plan import ExportPlan
from server.query.request import GZIP_SUFFIX

CONTENT_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    "ndjson": "application/x-ndjson; charset=utf-8",
}
# RFC 8187, attr-char: the characters other than letters and digits that need no escape in an extended parameter value.
_ATTR_CHARS = "!#$&+-.^_`|~"


def content_disposition(filename: str) -> str:
    """Return the Content-Disposition of an attachment with this name (RFC 6266; RFC 8187 for names beyond ASCII)."""
    plain = filename.encode("ascii", "replace").decode().replace("?", "_").replace("%", "_")
    header = f'attachment; filename="{plain}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe=_ATTR_CHARS)}"
    return header


def file_headers(stem: str, full_format: str, dialect: Dialect) -> dict[str, str]:
    """Return the headers that a file has however it is sent. stem, full_format: as in `file_name`."""
    return {
        "Content-Type": _content_type(full_format, dialect),
        "Content-Disposition": content_disposition(file_name(stem, full_format)),
        "X-Accel-Buffering": "no",
    }


def make_response(plan: ExportPlan, *, compressed: bool) -> web.StreamResponse:
    """Return the response of an export with all its headers, not started. compressed: gzip for the transfer only."""
    headers = file_headers(plan.filename, plan.full_format, plan.dialect)
    headers |= {**NO_STORE, "Accept-Ranges": "none", **relation_headers(plan.relation)}
    if not plan.gzip:
        headers["Vary"] = "Accept-Encoding"
        if compressed:
            headers["Content-Encoding"] = "gzip"
    return web.StreamResponse(headers=headers)


def _content_type(full_format: str, dialect: Dialect) -> str:
    if full_format.endswith(f".{GZIP_SUFFIX}"):
        return "application/gzip"
    if full_format != "csv":
        return CONTENT_TYPES[full_format]
    return f"{CONTENT_TYPES['csv']}; header={'present' if dialect.header else 'absent'}"  # RFC 4180, 3

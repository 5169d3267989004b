"""`POST /export/{relation}.{format}`: the very request of a download, saved on the disk in the background."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from server.errors import InvalidRequest
from server.export.pipeline import open_export, with_retries
from server.http.keys import ENGINE, RUNNER
from server.http.routes.export import PREFIX
from server.http.routes.exports import answer_status
from server.query.request import ExportRequest, parse_export_request
from server.saved.manifest import NewExport
from server.saved.store import Entry

# Draft "The Idempotency-Key HTTP Header Field": any text; ours without what no header needs, and not endless.
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


async def save(request: web.Request) -> web.Response:
    """202 with the status of a new export, which is on the disk by then; 200 where its key has made it and it ended."""
    target = request.rel_url.raw_path.split("/", 2)[2]  # still percent-encoded, unlike match_info
    query = request.rel_url.raw_query_string
    wanted = parse_export_request(target, query)
    key = _key(request)
    if request.body_exists:
        raise InvalidRequest("This takes no body: the address says what to export.", code="unexpected_body")
    exports = request.app[RUNNER]
    entry = None if key is None else await asyncio.to_thread(exports.queue.find, key, target, query)
    if entry is None:
        entry = await _accepted(request, wanted, target, query, key)
    response = answer_status(request, entry, status=200 if entry.manifest.finished else 202)
    response.headers["Location"] = f"/exports/{entry.manifest.id}"
    return response


async def _accepted(request: web.Request, wanted: ExportRequest, target: str, query: str, key: str | None) -> Entry:
    total_rows = await with_retries(lambda: _estimated_rows(request, wanted))
    exports = request.app[RUNNER]
    entry, _ = await asyncio.to_thread(
        exports.queue.create,
        NewExport(
            target=target,
            query=query,
            relation=str(wanted.relation),
            format=wanted.format + (".gz" if wanted.gzip else ""),
            total_rows=total_rows,
        ),
        key,
    )
    exports.wake()
    return entry


async def _estimated_rows(request: web.Request, wanted: ExportRequest) -> int:
    """PostgreSQL's estimate; fails as the export itself would, before anything is promised."""
    async with open_export(request.app[ENGINE], wanted, control=True) as export:
        return (await export.explained()).rows


def _key(request: web.Request) -> str | None:
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidRequest(
            "The Idempotency-Key cannot be used.",
            code="invalid_idempotency_key",
            hint="Send it once, with 1 to 255 printable ASCII characters.",
        )
    return given[0]


def setup(app: web.Application) -> None:
    """Add this method to the resource of `routes/export.py`."""
    app.router.add_resource(PREFIX + "{target:(?s:.*)}").add_route("POST", save)

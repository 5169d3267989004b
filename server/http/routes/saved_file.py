"""`GET` and `HEAD /exports/{id}/download`: the finished file, in parts too, and honest about its end."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import os
import time

import structlog
from aiohttp import web

from server.errors import ExportFailed, ExportNotFinished, ExportUnreadable, InvalidRequest
from server.http.byte_ranges import Selection, select
from server.http.keys import DOWNLOADS, RUNNER, SETTINGS
from server.http.problems import problem
from server.http.sendfile import FileTooShort, send_file
from server.http.streaming import Tally, file_headers, honest_end, reset_on_close
from server.query.plan import file_stem
from server.query.request import parse_export_request
from server.saved.manifest import Manifest
from server.saved.status import status_json
from server.saved.store import Entry, Store

log = structlog.stdlib.get_logger("sluice.saved_file")

# Seconds after which a client may ask again for a file that is being made: between these.
_SOONEST, _LATEST = 1, 60


async def download(request: web.Request) -> web.StreamResponse:
    """The file, or the part of it that is asked for."""
    if request.query_string:
        raise InvalidRequest("Saved exports take no parameters.", code="unknown_parameter")
    store = request.app[RUNNER].queue.store
    entry = await asyncio.to_thread(store.get, request.match_info["id"])
    if entry.manifest.status != "completed":
        raise _no_file(request, entry)
    manifest, file = await open_file(store, entry.manifest.id)
    try:
        return await _answer(request, manifest, file)
    finally:
        os.close(file)


async def open_file(store: Store, id: str) -> tuple[Manifest, int]:
    """`Store.open_data` in a thread; where the client leaves meanwhile, the descriptor is closed."""
    opening = asyncio.create_task(asyncio.to_thread(store.open_data, id))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: asyncio.Task[tuple[Manifest, int]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[1])


async def _answer(request: web.Request, manifest: Manifest, file: int) -> web.StreamResponse:
    assert manifest.sha256 is not None
    assert manifest.bytes is not None
    assert manifest.completed_at is not None
    try:
        wanted = parse_export_request(manifest.target, manifest.query)
    except InvalidRequest:  # it was understood when it was saved: not the fault of who asks now
        raise ExportUnreadable(
            "The manifest of this export cannot be used: its request is not understood.",
            hint="Delete the export and save it again.",
        ) from None
    etag = f'"{manifest.sha256}"'
    selection = select(request.method, request.headers, size=manifest.bytes, etag=etag, modified=manifest.completed_at)
    headers = {
        "ETag": etag,
        "Last-Modified": email.utils.format_datetime(manifest.completed_at, usegmt=True),
        "Accept-Ranges": "bytes",
        # Of the whole file, whatever part is sent (RFC 9530, 3).
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(manifest.sha256)).decode()}:",
        "Cache-Control": "private, no-cache",
    }
    if selection.status == 304:
        return web.Response(status=304, headers=headers)
    if selection.status in (412, 416):
        return _refused(request, selection, manifest.bytes)
    headers |= file_headers(wanted.format, wanted.dialect, gzip=wanted.gzip, filename=file_stem(wanted))
    if selection.status == 206:
        last = selection.first + selection.length - 1
        headers["Content-Range"] = f"bytes {selection.first}-{last}/{manifest.bytes}"
    response = web.StreamResponse(status=selection.status, headers=headers)
    response.content_length = selection.length
    if request.method == "HEAD" or not selection.length:
        await response.prepare(request)
        await response.write_eof()
        return response
    return await _send(request, response, manifest, file, selection)


async def _send(
    request: web.Request, response: web.StreamResponse, manifest: Manifest, file: int, selection: Selection
) -> web.StreamResponse:
    downloads = request.app[DOWNLOADS]
    tally = Tally()
    started = time.monotonic()

    def sent(count: int) -> None:
        tally.bytes += count
        if tally.bytes == selection.length:  # whoever has the last byte may leave at once
            tally.outcome = "complete"
            reset_on_close(request, False)

    try:
        with honest_end(request, tally, downloads), downloads.running():
            await response.prepare(request)
            reset_on_close(request, True)
            stall_timeout = request.app[SETTINGS].stall_timeout
            try:
                await send_file(
                    request, file, selection.first, selection.length, stall_timeout=stall_timeout, sent=sent
                )
                await response.write_eof()
            except FileTooShort:
                log.error("the file of a saved export is shorter than it was", exportId=manifest.id)
    finally:
        log.info(
            "saved export sent",
            exportId=manifest.id,
            outcome=tally.outcome,
            bytes=tally.bytes,
            seconds=round(time.monotonic() - started, 3),
        )
    return response


def _refused(request: web.Request, selection: Selection, size: int) -> web.Response:
    if selection.status == 412:
        return problem(request, 412, "precondition_failed", "The file is not the one that the request is about.")
    response = problem(
        request, 416, "range_not_satisfiable", f"The file has {size} bytes.", "Ask for bytes that it has."
    )
    response.headers["Content-Range"] = f"bytes */{size}"
    return response


def _no_file(request: web.Request, entry: Entry) -> ExportNotFinished | ExportFailed:
    manifest = entry.manifest
    if manifest.status == "cancelled":
        return ExportFailed("This export was cancelled.", code="export_cancelled")
    if manifest.status == "failed":
        return ExportFailed(
            f"This export failed: {manifest.error_detail}", hint="Save it again with POST, or download it with GET."
        )
    left = status_json(manifest, entry.progress, 0)["progress"]["etaSeconds"]
    unfinished = ExportNotFinished(
        "This export is not finished yet.", hint=f"GET /exports/{manifest.id} says how far it is."
    )
    unfinished.retry_after = min(max(left or _SOONEST, _SOONEST), _LATEST)
    return unfinished


def setup(app: web.Application) -> None:
    """Add this resource's routes."""
    app.router.add_get("/exports/{id}/download", download)

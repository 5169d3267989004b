"""`GET` and `HEAD /exports/{id}/download`: the file of a completed export, or a part of it.

The address may end in the name of the file, `…/download/{name}`, for clients that name a file after its address.
"""

from __future__ import annotations

import base64
import email.utils
import os
from urllib.parse import quote

from aiohttp import web

from server.errors import InvalidRequest
from server.events import emit
from server.http.addresses import SAVED_PREFIX, refuse_parameters_of_saved_exports
from server.http.byte_ranges import Selection, select
from server.http.events import SavedExportSent, SavedFileTooShort
from server.http.file_headers import file_headers
from server.http.keys import DOWNLOADS, ENGINE, RUNNER, SETTINGS
from server.http.problems import Problem, problem_response
from server.http.sendfile import FilePart, FileTooShort, send_file
from server.query.file_names import file_name
from server.query.plan import file_stem
from server.query.request import ExportRequest, parse_export_request
from server.saved.errors import ExportFailed, ExportNotFinished, ExportNotFound, ExportUnreadable
from server.saved.manifest import Manifest
from server.saved.status import Entry, eta_seconds
from server.threads import in_thread

# Bounds of Retry-After, in seconds, for a file that is not finished.
_SOONEST, _LATEST = 1, 60


async def download(request: web.Request) -> web.StreamResponse:
    """Send the file, or the part that the request selects (RFC 9110, 13 and 14)."""
    refuse_parameters_of_saved_exports(request)
    files, store = request.app[ENGINE].threads.files, request.app[RUNNER].queue.store
    entry = await in_thread(files, store.get, request.match_info["id"])
    if entry.manifest.status != "completed":
        raise _no_file(request, entry)

    def close(opened: tuple[Manifest, int]) -> None:
        # In the pool, since close() may wait for a disk (close(2), NFS). Nothing waits for it, so that no cancellation
        # can prevent it.
        files.submit(os.close, opened[1])

    opened = await in_thread(files, store.open_data, entry.manifest.id, discard=close)
    try:
        return await _answer(request, *opened)
    finally:
        close(opened)


async def _answer(request: web.Request, manifest: Manifest, file: int) -> web.StreamResponse:
    assert manifest.bytes is not None
    assert manifest.completed_at is not None
    wanted, etag = _request_of(manifest), f'"{manifest.sha256}"'
    _check_name(request, manifest, wanted)
    selection = select(request.method, request.headers, size=manifest.bytes, etag=etag, modified=manifest.completed_at)
    headers = _validators(manifest, etag)
    if selection.status == 304:
        return web.Response(status=304, headers=headers)
    if selection.status in (412, 416):
        return _refused(request, selection, manifest.bytes)
    headers |= file_headers(file_stem(wanted), wanted.full_format, wanted.dialect)
    if selection.status == 206:
        last = selection.first + selection.length - 1
        headers["Content-Range"] = f"bytes {selection.first}-{last}/{manifest.bytes}"
    response = web.StreamResponse(status=selection.status, headers=headers)
    response.content_length = selection.length
    if request.method == "HEAD" or not selection.length:
        await response.prepare(request)
        await response.write_eof()
        return response
    await _send(request, response, manifest.id, FilePart(file, selection.first, selection.length))
    return response


async def _send(request: web.Request, response: web.StreamResponse, id: str, part: FilePart) -> None:
    try:
        with request.app[DOWNLOADS].transfer(request, request.app[SETTINGS].stall_timeout) as transfer:
            async with transfer.sending():
                await transfer.start(response)
                try:
                    await send_file(transfer, part)
                    await response.write_eof()
                except FileTooShort:
                    emit(SavedFileTooShort(export_id=id))
    finally:
        emit(SavedExportSent(export_id=id, outcome=transfer.outcome, bytes=transfer.bytes, seconds=transfer.seconds))


def _request_of(manifest: Manifest) -> ExportRequest:
    try:
        return parse_export_request(manifest.target, manifest.query)
    except InvalidRequest:  # it was valid when it was saved, so it is not the fault of this client
        raise ExportUnreadable(
            "The request in the manifest of this export is not valid.",
            hint="Delete the export and save it again.",
        ) from None


def _check_name(request: web.Request, manifest: Manifest, wanted: ExportRequest) -> None:
    name = file_name(file_stem(wanted), wanted.full_format)
    if request.match_info.get("name", name) != name:
        raise ExportNotFound(
            "The file of this export has another name.",
            hint=f"GET {SAVED_PREFIX}/{manifest.id}/download/{quote(name, safe='')}",
            code="file_not_found",
        )


def _validators(manifest: Manifest, etag: str) -> dict[str, str]:
    assert manifest.sha256 is not None
    assert manifest.completed_at is not None
    return {
        "ETag": etag,
        "Last-Modified": email.utils.format_datetime(manifest.completed_at, usegmt=True),
        "Accept-Ranges": "bytes",
        # Of the whole file, also when a part is sent (RFC 9530, 3).
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(manifest.sha256)).decode()}:",
        "Cache-Control": "private, no-cache",
    }


def _refused(request: web.Request, selection: Selection, size: int) -> web.Response:
    if selection.status == 412:
        detail = "The file is not the one that the preconditions of the request name."
        return problem_response(request, Problem(412, "precondition_failed", detail))
    detail, hint = f"The file has {size} bytes.", "Request a range within the file."
    response = problem_response(request, Problem(416, "range_not_satisfiable", detail, hint))
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
    left = eta_seconds(manifest, entry.progress)
    unfinished = ExportNotFinished(
        "This export is not finished yet.", hint=f"GET {SAVED_PREFIX}/{manifest.id} shows its progress."
    )
    unfinished.retry_after = min(max(left or _SOONEST, _SOONEST), _LATEST)
    return unfinished


def setup(app: web.Application) -> None:
    """Add this resource's routes. The name is matched whole: it may hold braces."""
    app.router.add_get(SAVED_PREFIX + "/{id}/download", download)
    app.router.add_get(SAVED_PREFIX + "/{id}/download/{name:(?s:.*)}", download)

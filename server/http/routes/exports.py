"""`/exports`, `/exports/{id}` and its events: saved exports as JSON; DELETE cancels or removes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from aiohttp import web

from server.errors import ExportError, ExportNotFound, InvalidRequest
from server.http.keys import RUNNER, SETTINGS
from server.saved.status import status_json
from server.saved.store import Entry

PREFIX = "/exports"
NO_STORE = {"Cache-Control": "no-store"}
# Seconds between two looks at an export that somebody is watching: twice what a steady bar needs.
EVENT_SECONDS = 0.5
# Events of the same content after which a comment shows that the connection still lives.
QUIET_LOOKS = 10


async def list_exports(request: web.Request) -> web.Response:
    """All saved exports, newest first."""
    _no_parameters(request)
    queue, retention = request.app[RUNNER].queue, request.app[SETTINGS].export_retention

    def body() -> str:
        entries = queue.store.newest_first()
        return json.dumps({"exports": [status_json(each.manifest, each.progress, retention) for each in entries]})

    text = await asyncio.to_thread(body)
    return web.Response(text=text, content_type="application/json", headers=NO_STORE)


async def one_export(request: web.Request) -> web.Response:
    """The status of one."""
    _no_parameters(request)
    entry = await asyncio.to_thread(request.app[RUNNER].queue.store.get, request.match_info["id"])
    return answer_status(request, entry)


def answer_status(request: web.Request, entry: Entry, *, status: int = 200) -> web.Response:
    """The status document as an answer."""
    return web.json_response(_status(request, entry), status=status, headers=NO_STORE)


async def events(request: web.Request) -> web.StreamResponse:
    """The status as server-sent events (WHATWG HTML, 9.2), until the export has ended. `data:` is the document.

    When it is removed meanwhile, the last event is called `removed`.
    """
    _no_parameters(request)
    exports, id = request.app[RUNNER], request.match_info["id"]
    stall_timeout = request.app[SETTINGS].stall_timeout or None
    entry = await asyncio.to_thread(exports.queue.store.get, id)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **NO_STORE})
    await response.prepare(request)
    shown, looks = None, 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while True:
            looks += 1
            text = json.dumps(_status(request, entry))
            if text != shown or entry.manifest.status == "processing":
                await _send(response, f"data: {text}\n\n", stall_timeout)
                shown = text
            elif looks % QUIET_LOOKS == 0:
                await _send(response, ": waiting\n\n", stall_timeout)
            if entry.manifest.finished:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(exports.stopping.wait(), EVENT_SECONDS)
                break  # the browser comes again, and finds the next process
            try:
                entry = await asyncio.to_thread(exports.queue.store.get, id)
            except ExportNotFound:
                await _send(response, f"event: removed\ndata: {json.dumps({'exportId': id})}\n\n", stall_timeout)
                break
            except ExportError:
                continue  # too late for a status; the folder may come back
        await response.write_eof()
    return response


async def _send(response: web.StreamResponse, text: str, stall_timeout: float | None) -> None:
    async with asyncio.timeout(stall_timeout):
        await response.write(text.encode())


async def delete(request: web.Request) -> web.Response:
    """Cancel it, or remove it if it has ended."""
    _no_parameters(request)
    await request.app[RUNNER].delete(request.match_info["id"])
    return web.Response(status=204, headers=NO_STORE)


def _status(request: web.Request, entry: Entry) -> dict[str, Any]:
    return status_json(entry.manifest, entry.progress, request.app[SETTINGS].export_retention)


def _no_parameters(request: web.Request) -> None:
    if request.query_string:
        raise InvalidRequest("Saved exports take no parameters.", code="unknown_parameter")


def setup(app: web.Application) -> None:
    """Add these resources' routes."""
    app.router.add_get(PREFIX, list_exports)
    app.router.add_get(PREFIX + "/{id}", one_export)
    app.router.add_delete(PREFIX + "/{id}", delete)
    app.router.add_get(PREFIX + "/{id}/events", events, allow_head=False)

"""`/exports`, `/exports/{id}` and its events: saved exports as JSON. DELETE cancels or removes one."""

from __future__ import annotations

import asyncio
import contextlib
import json

from aiohttp import web

from server.errors import ExportError, ExportNotFound
from server.http.addresses import SAVED_PREFIX, refuse_parameters_of_saved_exports
from server.http.caching import NO_STORE
from server.http.keys import ENGINE, RUNNER, SETTINGS
from server.http.responses import status_document, status_response
from server.http.stall import StallLimit
from server.saved.store import Entry
from server.threads import in_thread

# Seconds between two looks at an export that is watched. A progress bar that moves twice a second looks steady.
EVENT_SECONDS = 0.5
# Looks without a new event after which a comment keeps the connection alive: 5 seconds.
QUIET_LOOKS = 10


async def list_exports(request: web.Request) -> web.Response:
    """Return all saved exports, newest first."""
    refuse_parameters_of_saved_exports(request)
    store = request.app[RUNNER].queue.store

    def body() -> str:
        return json.dumps({"exports": [status_document(request, entry) for entry in store.newest_first()]})

    text = await in_thread(request.app[ENGINE].threads.files, body)
    return web.Response(text=text, content_type="application/json", headers=NO_STORE)


async def one_export(request: web.Request) -> web.Response:
    """Return the status of one saved export."""
    refuse_parameters_of_saved_exports(request)
    return status_response(request, await _entry(request))


async def events(request: web.Request) -> web.StreamResponse:
    """Send the status as server-sent events (WHATWG HTML, 9.2) until the export has ended. `data:` is the document.

    If the export is removed meanwhile, the last event has the name `removed`.
    """
    refuse_parameters_of_saved_exports(request)
    stopping = request.app[RUNNER].stopping
    entry = await _entry(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **NO_STORE})
    await response.prepare(request)
    shown, looks = None, 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while True:
            looks += 1
            text = json.dumps(status_document(request, entry))
            if text != shown or entry.manifest.status == "processing":
                await _send(request, response, f"data: {text}\n\n")
                shown = text
            elif looks % QUIET_LOOKS == 0:
                await _send(request, response, ": waiting\n\n")
            if entry.manifest.finished:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), EVENT_SECONDS)
                break  # the browser connects again, to the next process
            try:
                entry = await _entry(request)
            except ExportNotFound:
                removed = json.dumps({"exportId": request.match_info["id"]})
                await _send(request, response, f"event: removed\ndata: {removed}\n\n")
                break
            except ExportError:
                continue  # too late for a status; the folder may be readable again later
        await response.write_eof()
    return response


async def delete(request: web.Request) -> web.Response:
    """Cancel a saved export, or remove it if it has ended."""
    refuse_parameters_of_saved_exports(request)
    await request.app[RUNNER].delete(request.match_info["id"])
    return web.Response(status=204, headers=NO_STORE)


async def _entry(request: web.Request) -> Entry:
    return await in_thread(
        request.app[ENGINE].threads.files, request.app[RUNNER].queue.store.get, request.match_info["id"]
    )


async def _send(request: web.Request, response: web.StreamResponse, text: str) -> None:
    async with StallLimit(request.transport, request.app[SETTINGS].stall_timeout):
        await response.write(text.encode())


def setup(app: web.Application) -> None:
    """Add these resources' routes."""
    app.router.add_get(SAVED_PREFIX, list_exports)
    app.router.add_get(SAVED_PREFIX + "/{id}", one_export)
    app.router.add_delete(SAVED_PREFIX + "/{id}", delete)
    app.router.add_get(SAVED_PREFIX + "/{id}/events", events, allow_head=False)

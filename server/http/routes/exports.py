"""`/exports`, `/exports/{id}` and its events: saved exports as JSON. DELETE cancels or removes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from aiohttp import web

from server.http.addresses import SAVED_PREFIX, refuse_parameters_of_saved_exports
from server.http.caching import NO_STORE
from server.http.forwarded import client_address
from server.http.keys import CONNECTIONS, ENGINE, RUNNER, SETTINGS, WATCH
from server.http.paging import parse_page, write_place
from server.http.responses import long_json_response, status_document
from server.http.stall import Backlog, StallLimit
from server.saved.watch import Seen
from server.threads import in_thread

# Looks without a new event after which a comment keeps the connection alive: 5 seconds.
QUIET_LOOKS = 10


async def list_exports(request: web.Request) -> web.Response:
    """Return a page of the saved exports, newest first. The header Link has the address of the next page."""
    page = parse_page(request.query)
    store, files = request.app[RUNNER].queue.store, request.app[ENGINE].threads.files
    found = await in_thread(files, store.page, page.after, page.limit)

    def document() -> dict[str, Any]:
        return {"exports": [status_document(request, entry) for entry in found.entries], "total": found.total}

    response = await long_json_response(request, document)
    if found.next is not None:
        address = f"{SAVED_PREFIX}?limit={page.limit}&after={write_place(found.next)}"
        response.headers["Link"] = f'<{address}>; rel="next"'
    return response


async def one_export(request: web.Request) -> web.Response:
    """Return the status of one saved export."""
    refuse_parameters_of_saved_exports(request)
    seen = await request.app[WATCH].look(request.match_info["id"])
    return web.Response(text=seen.document, content_type="application/json", headers=NO_STORE)


async def events(request: web.Request) -> web.StreamResponse:
    """Send the status as server-sent events (WHATWG HTML, 9.2) until the export has ended. `data:` is the document.

    If the export is removed meanwhile, the last event has the name `removed`.
    """
    refuse_parameters_of_saved_exports(request)
    connections = request.app[CONNECTIONS]
    with connections.stream(connections.client_of(client_address(request))):
        seen = await request.app[WATCH].look(request.match_info["id"])
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **NO_STORE}
        )
        await response.prepare(request)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await _send_events(request, response, seen)
            await response.write_eof()
    return response


async def _send_events(request: web.Request, response: web.StreamResponse, seen: Seen) -> None:
    """Send an event for each change. Raise ConnectionError if the client has left, TimeoutError if it reads nothing."""
    id, stall_timeout = request.match_info["id"], request.app[SETTINGS].stall_timeout
    backlog = Backlog(request.transport, stall_timeout)

    async def send(text: str) -> None:
        if backlog.is_stuck(len(text), asyncio.get_running_loop().time()):
            if request.transport is not None:
                request.transport.abort()
            raise TimeoutError
        async with StallLimit(request.transport, stall_timeout):
            await response.write(text.encode())

    await send(f"data: {seen.document}\n\n")
    if seen.finished:
        return
    shown, looks = seen.document, 0
    # It ends when the server stops: the browser connects again, to the next process.
    async with contextlib.aclosing(request.app[WATCH].looks(id)) as found:
        async for seen_now in found:
            looks += 1
            if seen_now is None:
                await send(f"event: removed\ndata: {json.dumps({'exportId': id})}\n\n")
                return
            if seen_now.document != shown or seen_now.status == "processing":
                shown = seen_now.document
                await send(f"data: {shown}\n\n")
            elif looks % QUIET_LOOKS == 0:
                await send(": waiting\n\n")
            if seen_now.finished:
                return


async def delete(request: web.Request) -> web.Response:
    """Cancel a saved export, or remove it if it has ended."""
    refuse_parameters_of_saved_exports(request)
    await request.app[RUNNER].delete(request.match_info["id"])
    return web.Response(status=204, headers=NO_STORE)


def setup(app: web.Application) -> None:
    """Add these resources' routes."""
    app.router.add_get(SAVED_PREFIX, list_exports)
    app.router.add_get(SAVED_PREFIX + "/{id}", one_export)
    app.router.add_delete(SAVED_PREFIX + "/{id}", delete)
    app.router.add_get(SAVED_PREFIX + "/{id}/events", events, allow_head=False)

"""Responses that several routes give: JSON that is never stored, and the status of a saved export."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from server.http.caching import NO_STORE
from server.http.keys import ENGINE, SETTINGS
from server.saved.status import Entry, status_json
from server.threads import in_thread


def json_response(document: Mapping[str, Any], *, status: int = 200) -> web.Response:
    """Return the document as JSON that no cache stores."""
    return web.json_response(document, status=status, headers=NO_STORE)


async def long_json_response(request: web.Request, document: Callable[[], Mapping[str, Any]]) -> web.Response:
    """Return a document that may have megabytes as JSON that no cache stores. document: makes it, in a thread."""
    threads = request.app[ENGINE].threads
    body = await in_thread(threads.pages, lambda: json.dumps(document()).encode())
    return web.Response(body=body, content_type="application/json", charset="utf-8", headers=NO_STORE)


def status_document(request: web.Request, entry: Entry) -> dict[str, Any]:
    """Return the status of a saved export as the API shows it."""
    return status_json(entry, request.app[SETTINGS].export_retention)


def status_response(request: web.Request, entry: Entry, *, status: int = 200) -> web.Response:
    """Return a response with the status of a saved export. status: the HTTP status."""
    return json_response(status_document(request, entry), status=status)

"""The address of a request → what it asks for, in a thread if the query string is long."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from server.http.addresses import raw_target
from server.http.keys import ENGINE
from server.query.request import ExportRequest, parse_export_request, parse_relation_request
from server.threads import in_thread

# Characters of a query string that the event loop reads itself, in a few milliseconds at most.
SHORT_QUERY = 4096


async def requested_export(request: web.Request) -> ExportRequest:
    """Parse the address of an export: see `parse_export_request`."""
    return await _parsed(request, parse_export_request, raw_target(request), request.rel_url.raw_query_string)


async def requested_relation(request: web.Request, target: str, query: str) -> ExportRequest:
    """Parse the address of a part of a relation: see `parse_relation_request`."""
    return await _parsed(request, parse_relation_request, target, query)


async def _parsed(
    request: web.Request, parse: Callable[[str, str], ExportRequest], target: str, query: str
) -> ExportRequest:
    if len(query) <= SHORT_QUERY:
        return parse(target, query)
    return await in_thread(request.app[ENGINE].threads.pages, parse, target, query)

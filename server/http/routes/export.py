"""`GET` and `HEAD /export/{relation}.{format}`: a streamed download. `export` is its whole path, stage by stage."""

from __future__ import annotations

import contextlib

from aiohttp import web

from server.events import emit
from server.export.pipeline import open_export, plan_headers, with_retries
from server.http.addresses import EXPORT_PREFIX
from server.http.events import ExportStreamed
from server.http.file_headers import make_response
from server.http.keys import DOWNLOADS, ENGINE, SETTINGS
from server.http.negotiation import accepts_gzip
from server.http.parsing import requested_export
from server.http.problems import LOGGED
from server.http.transfer import Transfer
from server.query.catalogue import LONGEST_RELATION_NAME
from server.query.request import ExportRequest


async def export(request: web.Request) -> web.StreamResponse:
    """Stream a relation as a file.

    An error before the first byte is raised and becomes a status; some errors are worth another attempt. An error after
    the first byte resets the connection.
    """
    wanted = await requested_export(request)
    compressed = not wanted.gzip and accepts_gzip(request.headers)

    async def attempt() -> web.StreamResponse:
        async with contextlib.AsyncExitStack() as opened:
            export = await opened.enter_async_context(open_export(request.app[ENGINE], wanted))
            strategy = await export.strategy()
            transfer.scan, transfer.ranges = strategy.name, len(strategy.ranges) or None
            chunks = await opened.enter_async_context(contextlib.aclosing(export.chunks(compressed=compressed)))
            first = await anext(chunks)
            response = make_response(export.plan, compressed=compressed)
            async with transfer.sending():
                await transfer.start(response)
                await transfer.write(first)
                async for chunk in chunks:
                    await transfer.write(chunk)
                # A client that has the end may ask for the next file at once: the session has to be free before that.
                await opened.aclose()
                await transfer.finish()
            return response

    request[LOGGED] = True
    try:
        with request.app[DOWNLOADS].transfer(request, request.app[SETTINGS].stall_timeout) as transfer:
            return await with_retries(attempt)
    finally:
        emit(_ended(wanted, transfer))


async def headers_only(request: web.Request) -> web.StreamResponse:
    """Answer HEAD with the headers of GET. Run no query on the relation."""
    wanted = await requested_export(request)
    compressed = not wanted.gzip and accepts_gzip(request.headers)

    async def attempt() -> web.StreamResponse:
        return make_response(await plan_headers(request.app[ENGINE], wanted), compressed=compressed)

    return await with_retries(attempt)


def _ended(wanted: ExportRequest, transfer: Transfer) -> ExportStreamed:
    return ExportStreamed(
        relation=str(wanted.relation)[:LONGEST_RELATION_NAME],
        format=wanted.full_format,
        outcome=transfer.outcome,
        rows=transfer.rows,
        bytes=transfer.bytes,
        scan=transfer.scan,
        ranges=transfer.ranges,
        seconds=transfer.seconds,
        status=None if transfer.error is None else transfer.error.status,
        code=None if transfer.error is None else transfer.error.code,
        sqlstate=None if transfer.error is None else transfer.error.sqlstate,
        reason=None if transfer.error is None else transfer.error.detail,
    )


def setup(app: web.Application) -> None:
    """Add this resource's routes. The path is matched whole: a name may hold slashes and line breaks."""
    resource = app.router.add_resource(EXPORT_PREFIX + "{target:(?s:.*)}")
    resource.add_route("GET", export)
    resource.add_route("HEAD", headers_only)

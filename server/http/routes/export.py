"""`GET` and `HEAD /export/{relation}.{format}`: the whole way of an export, stage by stage."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog
from aiohttp import web

from server.errors import ExportError
from server.export.compress import accepts_gzip
from server.export.pipeline import open_export, with_retries
from server.http.keys import DATABASE, DOWNLOADS, ENGINE, SETTINGS
from server.http.streaming import Tally, make_response, send
from server.query.plan import make_plan
from server.query.request import ExportRequest, parse_export_request

log = structlog.stdlib.get_logger("sluice.export")

PREFIX = "/export/"


async def export(request: web.Request) -> web.StreamResponse:
    """Stream a relation as a file. HEAD gives the same headers and runs no query on the relation."""
    target = request.rel_url.raw_path.split("/", 2)[2]  # still percent-encoded, unlike match_info
    wanted = parse_export_request(target, request.rel_url.raw_query_string)
    tally = Tally()
    started = time.monotonic()
    downloads = request.app[DOWNLOADS]
    try:
        with downloads.running():
            return await with_retries(lambda: _answer(request, wanted, tally))
    except asyncio.CancelledError:
        if tally.outcome == "rejected":
            tally.outcome = "shutdown" if downloads.cutting else "client_left"
        raise
    except ExportError as error:
        tally.error = error
        raise
    finally:
        if request.method != "HEAD":
            _log_export(wanted, tally, time.monotonic() - started)


async def _answer(request: web.Request, wanted: ExportRequest, tally: Tally) -> web.StreamResponse:
    app = request.app
    encoded = not wanted.gzip and accepts_gzip(",".join(request.headers.getall("Accept-Encoding", [])))
    if request.method == "HEAD":
        async with app[DATABASE].control_session() as session:
            relation = await session.relation(wanted.relation, exact=False)
        return make_response(make_plan(wanted, relation), encoded=encoded)
    async with contextlib.AsyncExitStack() as opened:
        export = await opened.enter_async_context(open_export(app[ENGINE], wanted))
        tally.scan = (await export.strategy()).name
        chunks = export.chunks(encoded=encoded)
        return await send(
            request,
            export.plan,
            await opened.enter_async_context(contextlib.aclosing(chunks)),
            encoded=encoded,
            give_back=opened.aclose,
            tally=tally,
            downloads=app[DOWNLOADS],
            stall_timeout=app[SETTINGS].stall_timeout,
        )


def _log_export(wanted: ExportRequest, tally: Tally, seconds: float) -> None:
    fields = {
        "relation": str(wanted.relation)[:130],
        "format": wanted.format + (".gz" if wanted.gzip else ""),
        "outcome": tally.outcome,
        "rows": tally.rows,
        "bytes": tally.bytes,
        "scan": tally.scan,
        "seconds": round(seconds, 3),
    }
    if tally.error is not None:
        fields |= {"code": tally.error.code, "reason": tally.error.detail}
    log.info("export", **fields)


def setup(app: web.Application) -> None:
    """Add this resource's routes. The path is matched whole: a name may hold slashes and newlines."""
    resource = app.router.add_resource(PREFIX + "{target:(?s:.*)}")
    resource.add_route("GET", export)
    resource.add_route("HEAD", export)

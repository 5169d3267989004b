"""The composition root: which objects there are, who shares them, which routes are served.

Start here to find your way: an export's whole path is `routes/export.py`. Nothing imports this module but
`serve.py` and the tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog
from aiohttp import web

from server.encode import encoders
from server.errors import ExportError
from server.http.csrf import origin_middleware
from server.http.keys import DATABASE, DOWNLOADS, NATIVE_ENCODER, RUNNER, SETTINGS
from server.http.problems import ProblemServer, add_common_headers, problem_middleware
from server.http.routes import export, exports, health, relations, save, saved_file
from server.http.streaming import Downloads
from server.pages import listing, saved, site, table
from server.postgres.database import Database
from server.postgres.libpq import LIBPQ
from server.query.parameters import timezones
from server.saved.queue import Queue
from server.saved.runner import Runner
from server.settings import Settings

log = structlog.stdlib.get_logger("sluice.app")

# Longest request line, in bytes: long enough for a list of thousands of values.
MAX_REQUEST_LINE = 128 << 10


class ShutdownRequest:
    """Whether a shutdown is in a hurry (Ctrl-C), so that running downloads are cut at once."""

    wanted = False


def create_app(settings: Settings, request: ShutdownRequest | None = None) -> web.Application:
    """The application; it opens its connections when it starts, after the fork."""
    timezones()  # from the disk, before requests come
    app = web.Application(middlewares=[problem_middleware, origin_middleware])
    app[SETTINGS] = settings
    app[DATABASE] = Database(settings)
    app[DOWNLOADS] = Downloads()
    app[NATIVE_ENCODER] = encoders.bind_libpq(LIBPQ) and not settings.pure_python
    app[RUNNER] = Runner(Queue(settings), app[DATABASE], native_encoder=app[NATIVE_ENCODER])
    for routes in (export, save, exports, saved_file, health, relations, site, listing, table, saved):
        routes.setup(app)
    app.on_response_prepare.append(add_common_headers)
    app.cleanup_ctx.extend([_database, _exports])

    async def drain(app: web.Application) -> None:
        await app[RUNNER].stop()  # at once: the next start goes on with them, so nobody needs to wait
        await app[DOWNLOADS].drain(0 if request and request.wanted else settings.shutdown_timeout)

    app.on_shutdown.append(drain)
    return app


def create_runner(settings: Settings, request: ShutdownRequest | None = None) -> web.AppRunner:
    """A runner that cancels a handler whose client has left; gunicorn's worker would not without it."""
    return _Runner(
        create_app(settings, request),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=75,
        # The drain above has waited for the downloads already.
        shutdown_timeout=2,
        max_line_size=MAX_REQUEST_LINE,
    )


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return ProblemServer(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )


async def _database(app: web.Application) -> AsyncIterator[None]:
    asyncio.get_running_loop().set_exception_handler(_on_loop_error)
    async with app[DATABASE] as database:
        if not app[NATIVE_ENCODER]:
            log.warning("the pure-Python encoder is in use: the same bytes, more slowly")
        try:
            await database.ping()
        except ExportError:
            log.warning("the database cannot be reached yet; exports begin as soon as it is there")
        yield


async def _exports(app: web.Application) -> AsyncIterator[None]:
    async with app[RUNNER]:
        yield


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """aiopg reports each cancelled statement here besides raising; the export's own line says it better."""
    if "future" in context and getattr(context.get("exception"), "pgcode", None) == "57014":
        return
    loop.default_exception_handler(context)

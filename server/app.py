"""The composition root: creates the objects that requests share and adds the routes.

Start here: the whole path of an export is `http/routes/export.py`. Nothing imports this module but `__main__.py` and
the tests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from server.encode.encoders import choose_encoders
from server.errors import ExportError
from server.events import emit
from server.export.engine import Engine
from server.export.events import PureEncoderInUse
from server.http.aiohttp_internals import ProblemRunner, limit_paths
from server.http.bodies import body_middleware
from server.http.connections import Connections, Limits, room_for_connections
from server.http.cross_site import cors_headers, cross_site_middleware
from server.http.events import LoopError
from server.http.forwarded import PROXIES, TrustedProxies
from server.http.hosts import AllowedHosts, host_middleware
from server.http.keys import CONNECTIONS, DOWNLOADS, ENGINE, RUNNER, SETTINGS, WATCH
from server.http.problems import add_common_headers, problem_middleware
from server.http.routes import export, exports, health, relations, save, saved_file
from server.http.transfer import Downloads
from server.memory import Memory
from server.pages import listing, saved, site, static_files, table
from server.postgres.database import Database, reading_connections
from server.postgres.events import DatabaseNotReady
from server.postgres.portal import PortalReader
from server.postgres.sessions_of_workers import SessionsOfWorkers
from server.postgres.tls import addresses
from server.query.parameters import timezones
from server.saved.queue import Queue
from server.saved.runner import Runner
from server.saved.watch import Watch
from server.settings import Settings
from server.shutdown import GIVE_BACK_SECONDS, HTTP_SECONDS, Shutdown
from server.threads import Threads

# Longest request line in bytes: long enough for a list of thousands of values.
MAX_REQUEST_LINE = 128 << 10
# Bytes and number of the headers of a request. Cookies and headers of proxies take a few thousand bytes.
MAX_HEADER_BYTES, MAX_HEADERS = 32 << 10, 64
# Bytes of a body that are held until the handler takes them. They may be as many chunks, which it takes all at once.
BODY_BUFFER = 8 << 10
# Seconds between two requests on a connection. Longer than a proxy keeps an idle connection (nginx: 60).
IDLE_SECONDS = 75.0
# Seconds in which the rest of a body that nobody reads is taken, so that its client reads the answer.
LINGERING_SECONDS = 2.0


def create_app(
    settings: Settings, shutdown: Shutdown | None = None, workers: SessionsOfWorkers | None = None
) -> web.Application:
    """Return the application. It opens its connections when it starts, after the fork.

    shutdown: tells, when the process stops, whether to stop at once. workers: None if there is only this one.
    """
    timezones()  # reads them from the disk, before there are requests
    hosts = AllowedHosts([*settings.allowed_hosts, settings.api_host.lower()])
    app = web.Application(
        middlewares=[
            problem_middleware,
            host_middleware(hosts),
            cross_site_middleware(settings.cors_origins),
            body_middleware,
        ]
    )
    app[SETTINGS] = settings
    app[PROXIES] = proxies = TrustedProxies(settings.forwarded_allow_ips)
    threads = Threads(readers=reading_connections(settings), exports=settings.max_concurrent_exports)
    app[ENGINE] = Engine(
        Database(settings, threads, workers),
        choose_encoders(addresses(), PortalReader, pure_python=settings.pure_python),
        threads,
        Memory(settings.most_memory),
        settings.regular_expressions,
    )
    app[DOWNLOADS] = Downloads()
    app[RUNNER] = runner = Runner(Queue(settings), app[ENGINE])
    app[WATCH] = Watch(runner.queue.store, threads.files, runner.stopping, settings.export_retention)
    app[CONNECTIONS] = Connections(
        Limits(
            most=min(settings.max_connections, room_for_connections(reading_connections(settings))),
            most_per_client=settings.max_connections_per_client,
            head_bytes=MAX_REQUEST_LINE + MAX_HEADER_BYTES,
            stall_timeout=settings.stall_timeout,
        ),
        proxies.trusts,
    )
    for routes in (export, save, exports, saved_file, health, relations, site, static_files, listing, table, saved):
        routes.setup(app)
    limit_paths(app.router)
    app.on_response_prepare.append(add_common_headers)
    if settings.cors_origins:
        app.on_response_prepare.append(cors_headers(settings.cors_origins))
    app.cleanup_ctx.extend([_loop_errors, _threads, _database, _exports, _connections])

    async def stop(app: web.Application) -> None:
        immediate = shutdown is not None and shutdown.immediate
        # Both at once: a slow disk must not take the time that downloads have.
        await asyncio.gather(
            app[RUNNER].stop(GIVE_BACK_SECONDS),
            app[DOWNLOADS].drain(0 if immediate else settings.shutdown_timeout),
        )

    app.on_shutdown.append(stop)
    return app


def create_app_runner(
    settings: Settings, shutdown: Shutdown | None = None, workers: SessionsOfWorkers | None = None
) -> web.AppRunner:
    """Return a runner that cancels the handler of a client that disconnects. Gunicorn's worker needs one for that."""
    app = create_app(settings, shutdown, workers)
    return ProblemRunner(
        app,
        connections=app[CONNECTIONS],
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGERING_SECONDS,
        auto_decompress=False,  # no body is compressed, and a small one could become a large one
        # The application has waited for downloads before.
        shutdown_timeout=HTTP_SECONDS,
        read_bufsize=BODY_BUFFER,
        max_line_size=MAX_REQUEST_LINE,
        max_headers=MAX_HEADERS,
    )


async def _loop_errors(app: web.Application) -> AsyncIterator[None]:
    """Log what the event loop reports as events. Its own text repeats arguments of callbacks: bytes of requests."""

    def log(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        words = re.split(r"[^A-Za-z_. ]", context["message"].replace("()", ""), maxsplit=1)[0]
        emit(LoopError(what=words.rstrip(), error=context.get("exception")))

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(log)
    yield
    loop.set_exception_handler(before)


async def _threads(app: web.Application) -> AsyncIterator[None]:
    yield
    app[ENGINE].threads.close()


async def _database(app: web.Application) -> AsyncIterator[None]:
    async with app[ENGINE].database as database:
        if not app[ENGINE].encoders.native:
            emit(PureEncoderInUse())
        try:
            await database.ping()
        except ExportError:
            emit(DatabaseNotReady())
        yield


async def _exports(app: web.Application) -> AsyncIterator[None]:
    async with app[RUNNER]:
        yield


async def _connections(app: web.Application) -> AsyncIterator[None]:
    async with app[CONNECTIONS].watched():
        yield

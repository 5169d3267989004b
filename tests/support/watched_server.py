"""The server, which also tells for how long its event loop was kept: `python -m tests.support.watched_server serve`.

`GET /test/longest-pause` answers with the most CPU time, in seconds, that the thread of the event loop has needed
between two passes since the last such request.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

import server.app
from server.__main__ import main
from tests.support.live_server import LiveServer

ADDRESS = "/test/longest-pause"
LONGEST = web.AppKey("longest", list[float])


async def _tell(request: web.Request) -> web.Response:
    longest, request.app[LONGEST][0] = request.app[LONGEST][0], 0.0
    return web.Response(text=str(longest))


async def _watch(app: web.Application) -> AsyncIterator[None]:
    async def tick() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            app[LONGEST][0] = max(app[LONGEST][0], now - last)
            last = now

    ticker = asyncio.create_task(tick())
    yield
    ticker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticker


class WatchedServer(LiveServer):
    """A running server that watches its event loop."""

    module = "tests.support.watched_server"

    def __enter__(self) -> WatchedServer:
        super().__enter__()
        return self


if __name__ == "__main__":
    make_runner = server.app.create_app_runner

    def make_watched_runner(*arguments: Any) -> web.AppRunner:
        runner = make_runner(*arguments)
        runner.app[LONGEST] = [0.0]
        runner.app.router.add_get(ADDRESS, _tell)
        runner.app.cleanup_ctx.append(_watch)
        return runner

    server.app.create_app_runner = make_watched_runner  # type: ignore[assignment]
    sys.exit(main())

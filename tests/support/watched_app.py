"""Sluice in this process, with each callback of its event loop measured. The client runs in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from server.app import create_app_runner
from server.settings import Settings
from tests.support.cpu import LONGEST_CALLBACK, Callbacks, most_seconds, watched_callbacks
from tests.support.raw_http import Answer, Client

# Requests of a kind, of which one has to keep within the limit: a busy machine makes a callback look slow now and then.
ATTEMPTS = 3


class WatchedApp:
    """A running application. longest: the callback that took the most CPU time."""

    def __init__(self, port: int, longest: Callbacks) -> None:
        self._port = port
        self.longest = longest

    async def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send a request on a connection of its own and return the answer."""
        chunked = "Transfer-Encoding" in (headers or {})
        length = {"Content-Length": str(len(body))} if method == "POST" and not chunked else {}

        def ask() -> Answer:
            with Client(socket.create_connection(("127.0.0.1", self._port), timeout=60)) as client:
                with contextlib.suppress(ConnectionError):  # refused before the body was sent
                    client.send(path, method=method, headers={**length, **(headers or {})}, body=body)
                return client.read(method=method)

        return await asyncio.to_thread(ask)

    async def ask_watched(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Do as `ask` does, and fail if a callback of the event loop takes longer than LONGEST_CALLBACK."""
        seen = []
        for _ in range(ATTEMPTS):
            self.longest.reset()
            answer = await self.ask(path, method=method, headers=headers, body=body)
            if self.longest.seconds < most_seconds(LONGEST_CALLBACK):
                return answer
            seen.append(f"{self.longest.seconds:.3f} s {self.longest.which}")
        raise AssertionError("a callback kept the event loop:\n" + "\n".join(seen))


@contextlib.asynccontextmanager
async def watched_app(settings: Settings) -> AsyncIterator[WatchedApp]:
    """Run an application with these settings on a free port."""
    runner = create_app_runner(settings)
    await runner.setup()
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        with watched_callbacks() as longest:
            yield WatchedApp(listener.getsockname()[1], longest)
    finally:
        await runner.cleanup()

"""The only module that uses private parts of aiohttp. tests/http/test_aiohttp_internals.py fails if they change.

Private are `AppRunner._make_server`, `Server._loop` and `Server._kwargs`, which are needed to answer bytes that are not
HTTP with a problem document, and `BaseProtocol._drain_helper`, which waits for the event loop's write buffer.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from server.http.problems import Problem, common_headers, problem_response, status_code


class ProblemRunner(web.AppRunner):
    """aiohttp's runner, but bytes that are not HTTP are answered with a problem document too."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _ProblemServer(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )


class _ProblemServer(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _ProblemHandler(self, loop=self._loop, **self._kwargs)


class _ProblemHandler(web.RequestHandler):
    """The protocol of one connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # aiohttp's own logs the error, and raises ConnectionError if a part of a response has been sent already.
        super().handle_error(request, status, exc, message)
        detail = "The server does not understand this as an HTTP request."
        response = problem_response(request, Problem(status, status_code(status), detail))
        response.headers.update(common_headers(request))
        response.force_close()
        return response


async def wait_for_write_buffer(request: web.Request, transport: asyncio.Transport) -> None:
    """Wait until the socket has taken everything that was written to the transport of this request.

    Raise ConnectionError if the connection is lost meanwhile.
    """
    transport.set_write_buffer_limits(high=0)
    try:
        while transport.get_write_buffer_size():
            await request.protocol._drain_helper()
    finally:
        transport.set_write_buffer_limits()

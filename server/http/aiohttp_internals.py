"""What uses private parts of aiohttp, with `aiohttp_connections.py`. tests/http/test_aiohttp_internals.py fails if they
change.

Private are `AppRunner._make_server`, `Server._loop` and `Server._kwargs`, which are needed to answer bytes that are not
HTTP with a problem document, and `BaseProtocol._drain_helper`, which waits for the event loop's write buffer.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_urldispatcher import MatchInfoError

from server.events import emit, set_context
from server.http.aiohttp_connections import CountedHandler
from server.http.events import RequestCrashed, RequestMalformed
from server.http.forwarded import peer_address
from server.http.malformed import describe
from server.http.problems import Problem, common_headers, problem_response, request_id, status_code

# Characters of a path, percent-encoded: enough for two names of 63 bytes, or for the name of a file.
LONGEST_PATH = 2048


class ProblemRunner(web.AppRunner):
    """aiohttp's runner, but what it answers without the application is a problem document too.

    That is the answer to bytes that are not HTTP and to an unknown Expect header.
    """

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await server.request_handler(request)
            except web.HTTPExpectationFailed:
                detail = "The only expectation that this server knows is 100-continue."
                return problem_response(request, Problem(417, status_code(417), detail))

        return _ProblemServer(
            handle,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )


class _ProblemServer(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _ProblemHandler(self, loop=self._loop, **self._kwargs)


class _ProblemHandler(CountedHandler):
    """The protocol of one connection."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception:  # the parser of URLs has raised an error that aiohttp does not expect
            # The parser of HTTP is now in a state of error, which it reports as for any malformed request.
            super().data_received(b"\r\n\r\n")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # aiohttp's own logs the bytes of the request.
        set_context(request_id=request_id(request), client=peer_address(request))
        if isinstance(exc, HttpProcessingError):
            fault = describe(exc)
            emit(RequestMalformed(kind=fault.kind, reason=fault.reason, position=fault.position))
            detail = f"The server does not understand this as an HTTP request: {fault}."
        else:
            emit(RequestCrashed(method=request.method, path="", error=exc))
            detail = "The server failed unexpectedly. Its log names the error under the id of this request."
        if request.writer.output_size > 0:
            raise ConnectionError("a part of a response has been sent already")
        response = problem_response(request, Problem(status, status_code(status), detail))
        response.headers.update(common_headers(request))
        response.force_close()
        return response


def limit_paths(router: web.UrlDispatcher) -> None:
    """Answer 414 to a path of more than LONGEST_PATH characters, before a route is looked for.

    aiohttp looks for a route of each beginning of the path that ends before a slash, in a time that grows with the
    square of its length: two seconds for 100 kB of slashes.
    """
    resolve = router.resolve

    async def limited(request: web.Request) -> web.UrlMappingMatchInfo:
        if len(request.rel_url.raw_path) > LONGEST_PATH:
            reason = f"The path is longer than {LONGEST_PATH:,} characters"
            return MatchInfoError(web.HTTPRequestURITooLong(reason=reason))
        return await resolve(request)

    router.resolve = limited  # type: ignore[method-assign]


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

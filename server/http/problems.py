"""Errors → `application/problem+json` (RFC 9457), in one place, and the id that every request carries.

The only place that turns an error into a response. Sends nothing of an error but what an ExportError says.
"""

from __future__ import annotations

import re
import uuid
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import ExportError

log = structlog.stdlib.get_logger("sluice.http")

REQUEST_ID = web.RequestKey("request_id", str)

_CALLERS_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(request: web.BaseRequest) -> str:
    """The caller's X-Request-Id where it is a plain token, else a new one; the same for the whole request."""
    known = request.get(REQUEST_ID)
    if known is None:
        given = request.headers.get("X-Request-Id", "")
        known = given if _CALLERS_ID.fullmatch(given) else uuid.uuid4().hex
        request[REQUEST_ID] = known
    return known


def problem(
    request: web.BaseRequest,
    status: int,
    code: str,
    detail: str,
    hint: str | None = None,
    retry_after: int | None = None,
) -> web.Response:
    """A problem document. type is about:blank, so title is the status's own phrase (RFC 9457, 4.2.1)."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "requestId": request_id(request),
    }
    if hint is not None:
        body["hint"] = hint
    response = web.json_response(body, status=status, content_type="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error that a handler raises before it has sent anything becomes a problem document."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(requestId=request_id(request))
    try:
        return await handler(request)
    except ExportError as error:
        return problem(request, error.status, error.code, error.detail, error.hint, error.retry_after)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = problem(request, error.status, _code(error.status), _detail(error, request))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        log.exception("a request failed", method=request.method, path=request.path)
        return problem(request, 500, "internal", "Something went wrong in the server; its log has the request's id.")


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: the headers of every response."""
    response.headers["X-Request-Id"] = request_id(request)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "sluice"


class ProblemServer(web.Server):
    """aiohttp's server, but what is not HTTP at all is answered with a problem document too."""

    def __call__(self) -> web.RequestHandler:
        """The protocol of one connection."""
        return _ProblemHandler(self, loop=self._loop, **self._kwargs)


class _ProblemHandler(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # aiohttp's own logs, and raises where something has been sent already.
        super().handle_error(request, status, exc, message)
        response = problem(request, status, _code(status), "This is not an HTTP request that can be understood.")
        response.headers["X-Request-Id"] = request_id(request)
        response.headers["Server"] = "sluice"
        response.force_close()
        return response


def _code(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_")


def _detail(error: web.HTTPException, request: web.Request) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method[:20]} is not possible here; possible: {', '.join(sorted(error.allowed_methods))}."
    if error.status == 404:
        return "There is nothing at this address. Runner are at /export/{relation}.csv."
    return f"{error.reason}."

"""Errors → `application/problem+json` (RFC 9457), and the id that every request carries.

The only module that turns an error into a response. Of an unexpected error it sends nothing: that is for the log.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from server.errors import ExportError
from server.events import emit, set_context
from server.http.caching import NO_STORE
from server.http.events import RequestCrashed, RequestFailed
from server.http.forwarded import client_address

REQUEST_ID = web.RequestKey("request_id", str)
# Whether an event has the outcome of the request, errors included.
LOGGED = web.RequestKey("logged", bool)

# What is copied from X-Request-Id into the response and the log.
_PLAIN_TOKEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Characters of a method that an error repeats, and of a path in the log.
_METHOD_CHARACTERS = 20
_PATH_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """What a problem document says. code: for programs, stable. detail, hint: for people. retry_after: in seconds.

    similar: relations that may have been meant, as they are written in an address.
    """

    status: int
    code: str
    detail: str
    hint: str | None = None
    retry_after: int | None = None
    similar: tuple[str, ...] = ()


def request_id(request: web.BaseRequest) -> str:
    """Return the caller's X-Request-Id if it is a plain token, else a new id. A request keeps its id."""
    known = request.get(REQUEST_ID)
    if known is None:
        given = request.headers.get("X-Request-Id", "")
        known = given if _PLAIN_TOKEN.fullmatch(given) else uuid.uuid4().hex
        request[REQUEST_ID] = known
    return known


def problem_response(request: web.BaseRequest, problem: Problem) -> web.Response:
    """Return the problem as a document. Its type is about:blank, so title is the status's phrase (RFC 9457, 4.2.1)."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "requestId": request_id(request),
    }
    if problem.hint is not None:
        body["hint"] = problem.hint
    if problem.similar:
        body["similar"] = problem.similar
    response = web.json_response(body, status=problem.status, content_type="application/problem+json")
    response.headers.update(NO_STORE)
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    return response


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with a problem document if the handler raises an error before it has sent anything."""
    set_context(request_id=request_id(request), client=client_address(request))
    try:
        return await handler(request)
    except ExportError as error:
        if not request.get(LOGGED):
            log_failure(request, error)
        problem = Problem(error.status, error.code, error.detail, error.hint, error.retry_after, error.similar)
        return problem_response(request, problem)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = problem_response(request, _problem_of_aiohttp(error, request))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except web.RequestPayloadError:
        # Its text repeats bytes of the request. What follows them on the connection is unknown.
        response = problem_response(request, Problem(400, "bad_request", "The body of the request cannot be read."))
        response.force_close()
        return response
    except Exception as error:
        emit(RequestCrashed(method=request.method, path=request.path[:_PATH_CHARACTERS], error=error))
        detail = "The server failed unexpectedly. Its log names the error under the id of this request."
        return problem_response(request, Problem(500, "internal", detail))


def log_failure(request: web.BaseRequest, error: ExportError) -> None:
    """Log an error unless the request is the cause."""
    if error.status >= 500:
        emit(
            RequestFailed(
                method=request.method,
                path=request.path[:_PATH_CHARACTERS],
                status=error.status,
                code=error.code,
                sqlstate=error.sqlstate,
                reason=error.detail,
            )
        )


async def add_common_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add the headers that every response has. A handler of the signal `on_response_prepare`."""
    response.headers.update(common_headers(request))


def common_headers(request: web.BaseRequest) -> dict[str, str]:
    """Return the headers that every response has.

    Cross-Origin-Resource-Policy: no page of another site may embed a response. It does not bind the pages of
    CORS_ORIGINS, which read responses by CORS (WHATWG Fetch, 3.7).
    """
    return {
        "X-Request-Id": request_id(request),
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Server": "sluice",
    }


def status_code(status: int) -> str:
    """Return the `code` of an error that has none of its own: not_found for 404."""
    return HTTPStatus(status).phrase.lower().replace(" ", "_")


def _problem_of_aiohttp(error: web.HTTPException, request: web.Request) -> Problem:
    detail = f"{error.reason}."
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"The method {request.method[:_METHOD_CHARACTERS]} is not allowed here. Allowed: {allowed}."
    elif error.status == 404:
        detail = "There is nothing at this address. Exports are at /export/{relation}.csv."
    elif error.status == 414:
        return Problem(error.status, "path_too_long", detail, "The name of a relation has at most 63 bytes.")
    return Problem(error.status, status_code(error.status), detail)

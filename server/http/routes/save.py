"""`POST /export/{relation}.{format}`: the request of a download, saved on the disk in the background."""

from __future__ import annotations

import re

from aiohttp import web

from server.errors import InvalidRequest
from server.http.addresses import EXPORT_PREFIX, SAVED_PREFIX, raw_target
from server.http.keys import ENGINE, RUNNER
from server.http.parsing import requested_export
from server.http.responses import status_response
from server.http.saving import accept
from server.threads import in_thread

# The draft "The Idempotency-Key HTTP Header Field" allows any text. Sluice takes up to 255 printable characters.
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


async def save(request: web.Request) -> web.Response:
    """Answer 202 with the status of a new export, once its manifest is on the disk.

    The same Idempotency-Key gives the same export again, with 200 if it has ended.
    """
    target = raw_target(request)
    query = request.rel_url.raw_query_string
    wanted = await requested_export(request)
    key = _key(request)
    if request.body_exists:
        raise InvalidRequest("The request must have no body: the address says what to export.", code="unexpected_body")
    queue, files = request.app[RUNNER].queue, request.app[ENGINE].threads.files
    headers: dict[str, str] = {}
    entry = None if key is None else await in_thread(files, queue.find, key, target, query)
    if entry is None:
        entry, headers = await accept(request, wanted, target, query, key)
    response = status_response(request, entry, status=200 if entry.manifest.finished else 202)
    response.headers.update(headers)
    response.headers["Location"] = f"{SAVED_PREFIX}/{entry.manifest.id}"
    return response


def _key(request: web.Request) -> str | None:
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidRequest(
            "The Idempotency-Key is not valid.",
            code="invalid_idempotency_key",
            hint="Send it once, with 1 to 255 printable ASCII characters.",
        )
    return given[0]


def setup(app: web.Application) -> None:
    """Add this method to the resource of downloads."""
    app.router.add_resource(EXPORT_PREFIX + "{target:(?s:.*)}").add_route("POST", save)

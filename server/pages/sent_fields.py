"""The fields that a browser sends: in the address of a page, or in the body of a form."""

from __future__ import annotations

from urllib.parse import parse_qsl

from aiohttp import web

from server.errors import InvalidRequest, RequestTooLarge
from server.http.bodies import read_body
from server.http.keys import ENGINE
from server.threads import in_thread

# How a browser sends a form.
FORM_TYPE = "application/x-www-form-urlencoded"
# Fields of a form: three for each column of a table, of which PostgreSQL allows 1,600, four for each of hundreds of
# filters, and one for each label of an enum that is ticked.
MOST_FIELDS = 10_000
# Fields of an address that filters a list: a few, and those that other programs add.
MOST_FIELDS_OF_A_LIST = 50

Fields = list[tuple[str, str]]


def fields_of(text: str, most: int = MOST_FIELDS) -> Fields:
    """Return the fields of a query string or a body (WHATWG URL, "application/x-www-form-urlencoded parsing").

    Raise RequestTooLarge if there are more than `most`, before any is read.
    """
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=most)
    except ValueError:
        raise RequestTooLarge(f"There are more than {most:,} fields.", code="too_many_fields") from None


def fields_of_list(request: web.Request) -> dict[str, str]:
    """Return the fields of an address that filters a list; of a field that is repeated, the first one."""
    return dict(reversed(fields_of(request.rel_url.raw_query_string, MOST_FIELDS_OF_A_LIST)))


async def read_form(request: web.Request) -> Fields:
    """Return the fields of the form in the body, none without a body.

    Raise InvalidRequest if it is of another type, RequestTooLarge, SlowRequest. Not by aiohttp's `post()`: it takes
    seconds for some Content-Type headers, and fails for an unknown charset.
    """
    try:
        body = await read_body(request)
    except web.RequestPayloadError:  # not what its Content-Encoding or Transfer-Encoding says
        raise InvalidRequest("The body of the form cannot be read.", code="invalid_form") from None
    if not body:
        return []
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise InvalidRequest(f"The fields of the form must be sent as {FORM_TYPE}.", code="invalid_form")
    return await in_thread(request.app[ENGINE].threads.pages, lambda: fields_of(body.decode(errors="replace")))

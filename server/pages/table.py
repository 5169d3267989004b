"""`GET /table/{relation}?…`: the page of one relation with its form, a preview and the buttons of the download.

The query string of the page is that of the export, plus `format=csv.gz`, so that the page can be bookmarked and shared.
A browser sends the form as fields to `/shape/{relation}`: what is downloaded or saved is always what the form shows.

- GET redirects to the page with the equivalent query string, or to the file if the button "Download" was pressed and
  PostgreSQL takes the query.
- GET by the page's script answers with the parts of the page that change: with the links alone, which depend on no row,
  or with the preview too.
- POST saves the export in the background.

`GET /timezones` lists the names that the form takes as a time zone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web

from server.errors import (
    DatabaseUnavailable,
    ExportError,
    Forbidden,
    InvalidRequest,
    QueryTimeout,
    RelationFailed,
    RelationLocked,
    RequestTooLarge,
    ServerBusy,
)
from server.export.pipeline import describe_with_timezone, open_export, with_retries
from server.export.preview import Preview, first_rows
from server.http.addresses import EXPORT_PREFIX, raw_target
from server.http.keys import ENGINE, SETTINGS
from server.http.parsing import SHORT_QUERY
from server.http.problems import log_failure
from server.http.responses import json_response
from server.http.saving import accept
from server.pages.controls import COMPARISONS_BY_KIND, WITHOUT_REGULAR_EXPRESSIONS, fits_picker, kind_of
from server.pages.faults import fault_of
from server.pages.form_reader import check_size, form_of_fields, form_of_query
from server.pages.notes import columns_note, notes_of
from server.pages.result import bytes_of_export, bytes_of_relation, field_label, rows_of_export, rows_of_relation
from server.pages.sent_fields import Fields, fields_of, read_form
from server.pages.shown_form import FORM_ACTION, TABLE, Download, ShownForm, shown_form, shown_schema
from server.pages.site import SAVED_PAGE, render
from server.query.catalogue import Relation
from server.query.parameters import timezones
from server.query.plan import PREVIEW_ROWS
from server.query.request import ExportRequest, parse_export_request, parse_relation_request, relation_path
from server.query.selection import LONGEST_NAME
from server.query.tally import LONGEST_QUERY
from server.threads import in_thread

Result = TypeVar("Result")

TIMEZONES = "/timezones"
# The header by which the page's script asks only for the parts of the page that change.
PARTIAL_HEADER = "X-Sluice-Live"
# Its value for the links without the preview.
LINKS_ONLY = "links"
# The field that the button "Download" adds to the form.
DOWNLOAD_FIELD = ("do", "download")
# Seconds that a page waits for its preview before it is sent without one. Its script then asks again, with more time.
FIRST_PREVIEW_SECONDS = 1.0
# Columns that are in sight without scrolling. A form with more has a search.
MOST_UNSEARCHED = 12
# The modifiers of a sort key, with their names in the form.
DIRECTIONS = {
    "": "ascending",
    "desc": "descending",
    "nullsfirst": "ascending, NULL first",
    "desc.nullslast": "descending, NULL last",
}
# Errors that the page of the relation shows, at the field where there is one.
_SHOWN_ON_THE_PAGE = (InvalidRequest, Forbidden, RelationFailed)
# Errors of a preview after which the page's script asks again, with more time.
_ASKED_AGAIN = (QueryTimeout, RelationLocked, ServerBusy)
# What the templates need of every relation.
_FIXED = {
    "directions": DIRECTIONS,
    "preview_rows": PREVIEW_ROWS,
    "longest_alias": LONGEST_NAME,
    "most_unsearched": MOST_UNSEARCHED,
    "kind_of": kind_of,
    "fits_picker": fits_picker,
}


async def table(request: web.Request) -> web.Response:
    """Show the page of one relation."""
    query = request.rel_url.raw_query_string
    if len(query) > SHORT_QUERY:  # before the database is asked for anything
        await _in_thread(request, lambda: check_size(query))
    relation, timezone = await _relation(request)
    shown = await _in_thread(request, lambda: shown_form(request, form_of_query(relation, query)))
    return await _answer(request, shown, timezone, "table.html", seconds=FIRST_PREVIEW_SECONDS)


async def submit(request: web.Request) -> web.Response:
    """Redirect to the page with the query string of the submitted form or to its file, or answer the page's script."""
    relation, timezone = await _relation(request)
    query = request.rel_url.raw_query_string
    shown, fields = await _in_thread(request, lambda: _sent(request, relation, fields_of(query)))
    if PARTIAL_HEADER in request.headers:
        links_only = request.headers[PARTIAL_HEADER] == LINKS_ONLY
        return await _answer(request, shown, timezone, "changes.html", links_only=links_only)
    page = _address(shown.paths.page)
    if DOWNLOAD_FIELD not in fields:
        raise web.HTTPSeeOther(page)
    try:
        wanted = shown.export.request
        await with_retries(lambda: _check(request, wanted))
    except _SHOWN_ON_THE_PAGE:
        raise web.HTTPSeeOther(page) from None
    raise web.HTTPSeeOther(_address(shown.paths.export))


async def save(request: web.Request) -> web.Response:
    """Save the export of the submitted form in the background."""
    fields = await read_form(request)
    relation, _ = await _relation(request)
    shown, _ = await _in_thread(request, lambda: _sent(request, relation, fields))
    page = _address(shown.paths.page)
    target, _, query = shown.paths.export.removeprefix(EXPORT_PREFIX).partition("?")
    try:
        _ = shown.export  # raises the fault of the form
        wanted = await _in_thread(request, lambda: parse_export_request(target, query))
        await accept(request, wanted, target, query)
    except _SHOWN_ON_THE_PAGE:
        raise web.HTTPSeeOther(page) from None
    raise web.HTTPSeeOther(SAVED_PAGE)


async def _check(request: web.Request, wanted: ExportRequest) -> None:
    """Raise what this export would raise before its first row, unless it is an error that may pass by itself."""
    with contextlib.suppress(RelationLocked, QueryTimeout):
        async with open_export(request.app[ENGINE], wanted, control=True) as export:
            await export.check()


async def list_timezones(_: web.Request) -> web.Response:
    """Return the names that the form takes as a time zone, in alphabetical order."""
    response = json_response({"timezones": sorted(timezones())})
    response.headers["Cache-Control"] = "max-age=86400"
    return response


async def _relation(request: web.Request) -> tuple[Relation, str]:
    """Return the relation of this address, and the time zone of an export that chooses none."""
    wanted = parse_relation_request(raw_target(request), "").relation
    return await describe_with_timezone(request.app[ENGINE], wanted)


async def _answer(
    request: web.Request,
    shown: ShownForm,
    timezone: str,
    template: str,
    *,
    links_only: bool = False,
    seconds: float | None = None,
) -> web.Response:
    """Show the form.

    timezone: of an export that chooses none. template: of the whole page, or of the parts of it that change.
    links_only: without a preview. seconds: the time for the preview, for a page that asks for it again; None for as
    much as a preview may take.
    """
    preview: Preview | None = None
    fault: ExportError | None = None
    try:
        # What is wrong with the form is shown even if there can be no preview.
        wanted = shown.export.request
        if not links_only:
            preview = await first_rows(request.app[ENGINE], wanted, estimate=True, seconds=seconds)
    except DatabaseUnavailable:
        raise
    except ExportError as error:
        if not isinstance(error, _ASKED_AGAIN):
            log_failure(request, error)
        fault = error

    def context() -> dict[str, Any]:
        return {
            **_context(request, shown, preview, fault, timezone),
            "links_only": links_only,
            "slow": isinstance(fault, _ASKED_AGAIN) and seconds is not None,
        }

    return await render(request, template, context)


def _context(
    request: web.Request, shown: ShownForm, preview: Preview | None, error: ExportError | None, timezone: str
) -> dict[str, Any]:
    """Return the values for the templates. error: of the form or of its preview."""
    form = shown.form
    fault = None if error is None else fault_of(error, form)
    return {
        **_numbers(form.relation, preview, shown.download),
        "form": form,
        "columns": {column.name: column for column in form.relation.columns},
        "paths": shown.paths,
        "schema": form.relation.schema if form.relation.also_in else shown_schema(request, form.relation),
        "also_in": {schema: TABLE + relation_path(schema, form.relation.name) for schema in form.relation.also_in},
        "download": shown.download,
        "preview": preview,
        "fault": fault,
        "notes": notes_of(form, timezone),
        "columns_note": columns_note(form),
        "comparisons": (
            COMPARISONS_BY_KIND if request.app[SETTINGS].regular_expressions else WITHOUT_REGULAR_EXPRESSIONS
        ),
        "default_timezone": timezone,
        "faulty_field": field_label(fault.field, form) if fault is not None else "",
        "correctable": isinstance(error, InvalidRequest | Forbidden),
        # Other errors leave the link: the export itself may still succeed.
        "usable": not isinstance(error, InvalidRequest | Forbidden | RelationFailed),
        **_FIXED,
    }


def _numbers(relation: Relation, preview: Preview | None, download: Download | None) -> dict[str, Any]:
    """Return the numbers of rows and bytes for the templates."""
    rows = rows_of_export(preview, relation)
    return {
        "rows": rows,
        "file_bytes": bytes_of_export(preview, rows),
        "relation_rows": rows_of_relation(preview, None if download is None else download.request, relation),
        "relation_bytes": bytes_of_relation(preview, relation),
    }


def _sent(request: web.Request, relation: Relation, fields: Fields) -> tuple[ShownForm, Fields]:
    """Return what the page shows of these fields of its form, and the fields."""
    return shown_form(request, form_of_fields(relation, fields)), fields


def _address(path: str) -> str:
    """Return the path of a redirection. Raise RequestTooLarge if no browser could ask for it."""
    if len(path) > LONGEST_QUERY:
        raise RequestTooLarge("The form describes an address that is too long.", code="too_long")
    return path


async def _in_thread(request: web.Request, work: Callable[[], Result]) -> Result:
    return await in_thread(request.app[ENGINE].threads.pages, work)


def setup(app: web.Application) -> None:
    """Add this page's routes. The pattern matches slashes, which a name may contain."""
    app.router.add_get(TABLE + "{target:(?s:.+)}", table)
    form = app.router.add_resource(FORM_ACTION + "{target:(?s:.+)}")
    form.add_route("GET", submit)
    form.add_route("POST", save)
    app.router.add_get(TIMEZONES, list_timezones)

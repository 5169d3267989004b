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
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from server.errors import (
    DatabaseUnavailable,
    ExportError,
    Forbidden,
    InvalidRequest,
    QueryTimeout,
    RelationFailed,
    RelationLocked,
)
from server.export.pipeline import describe_with_timezone, open_export, with_retries
from server.export.preview import Preview, first_rows
from server.http.addresses import EXPORT_PREFIX, raw_target
from server.http.forwarded import own_origin
from server.http.keys import ENGINE, SETTINGS
from server.http.problems import log_failure
from server.http.responses import json_response
from server.http.saving import accept
from server.pages.controls import COMPARISONS_BY_KIND, fits_picker, kind_of
from server.pages.faults import Fault, fault_of
from server.pages.form import Form, parse_form
from server.pages.form_reader import form_of_fields, form_of_query
from server.pages.notes import columns_note, notes_of
from server.pages.result import bytes_of_export, bytes_of_relation, field_label, rows_of_export, rows_of_relation
from server.pages.site import SAVED_PAGE, render
from server.pages.snippets import Snippet, snippets
from server.query.catalogue import Relation
from server.query.file_names import file_name
from server.query.parameters import timezones
from server.query.plan import PREVIEW_ROWS, file_stem, make_plan
from server.query.request import (
    ExportRequest,
    export_path,
    parse_export_request,
    parse_relation_request,
    relation_path,
    schema_in_path,
)
from server.query.selection import LONGEST_NAME

TABLE = "/table/"
FORM_ACTION = "/shape/"
TIMEZONES = "/timezones"
# The header by which the page's script asks only for the parts of the page that change.
PARTIAL_HEADER = "X-Sluice-Live"
# Its value for the links without the preview.
LINKS_ONLY = "links"
# The field that the button "Download" adds to the form.
DOWNLOAD_FIELD = ("do", "download")
# How a browser sends a form.
FORM_TYPE = "application/x-www-form-urlencoded"
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
# What the templates need of every relation.
_FIXED = {
    "comparisons": COMPARISONS_BY_KIND,
    "directions": DIRECTIONS,
    "preview_rows": PREVIEW_ROWS,
    "longest_alias": LONGEST_NAME,
    "most_unsearched": MOST_UNSEARCHED,
    "kind_of": kind_of,
    "fits_picker": fits_picker,
}


@dataclass(frozen=True, slots=True)
class Paths:
    """The percent-encoded paths of a form: of its export, of its page, of its fields, and of the page without query."""

    export: str
    page: str
    action: str
    reset: str


@dataclass(frozen=True, slots=True)
class Download:
    """The export of a form without faults. filename: with its suffix."""

    request: ExportRequest
    filename: str
    snippets: tuple[Snippet, ...]


async def table(request: web.Request) -> web.Response:
    """Show the page of one relation."""
    relation, timezone = await _relation(request)
    form = form_of_query(relation, request.rel_url.raw_query_string)
    return await _answer(request, form, timezone, "table.html", seconds=FIRST_PREVIEW_SECONDS)


async def submit(request: web.Request) -> web.Response:
    """Redirect to the page with the query string of the submitted form or to its file, or answer the page's script."""
    relation, timezone = await _relation(request)
    fields = parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True)
    form = form_of_fields(relation, fields)
    if PARTIAL_HEADER in request.headers:
        links_only = request.headers[PARTIAL_HEADER] == LINKS_ONLY
        return await _answer(request, form, timezone, "changes.html", links_only=links_only)
    paths = _paths(request, form)
    if DOWNLOAD_FIELD not in fields:
        raise web.HTTPSeeOther(paths.page)
    try:
        wanted = _download(request, form, paths).request
        await with_retries(lambda: _check(request, wanted))
    except _SHOWN_ON_THE_PAGE:
        raise web.HTTPSeeOther(paths.page) from None
    raise web.HTTPSeeOther(paths.export)


async def save(request: web.Request) -> web.Response:
    """Save the export of the submitted form in the background."""
    if request.content_type != FORM_TYPE:
        raise InvalidRequest(f"The fields of the form must be sent as {FORM_TYPE}.", code="invalid_form")
    relation, _ = await _relation(request)
    body = (await request.read()).decode(errors="replace")
    form = form_of_fields(relation, parse_qsl(body, keep_blank_values=True))
    paths = _paths(request, form)
    target, _, query = paths.export.removeprefix(EXPORT_PREFIX).partition("?")
    try:
        _download(request, form, paths)
        await accept(request, parse_export_request(target, query), target, query)
    except _SHOWN_ON_THE_PAGE:
        raise web.HTTPSeeOther(paths.page) from None
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
    form: Form,
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
    paths = _paths(request, form)
    download: Download | None = None
    preview: Preview | None = None
    fault: Fault | None = None
    try:
        # What is wrong with the form is shown even if no export slot is free.
        download = _download(request, form, paths)
        if not links_only:
            preview = await first_rows(request.app[ENGINE], download.request, estimate=True, seconds=seconds)
    except DatabaseUnavailable:
        raise
    except ExportError as error:
        if not isinstance(error, QueryTimeout | RelationLocked):  # the page's script asks again
            log_failure(request, error)
        fault = fault_of(error, form)
    context = {
        **_numbers(form.relation, preview, download),
        "form": form,
        "columns": {column.name: column for column in form.relation.columns},
        "paths": paths,
        "schema": form.relation.schema if form.relation.also_in else _schema(request, form.relation),
        "also_in": {schema: TABLE + relation_path(schema, form.relation.name) for schema in form.relation.also_in},
        "links_only": links_only,
        "download": download,
        "preview": preview,
        "fault": fault,
        "notes": notes_of(form, timezone),
        "columns_note": columns_note(form),
        "default_timezone": timezone,
        "faulty_field": field_label(fault.field, form) if fault is not None else "",
        "correctable": fault is not None and isinstance(fault.error, InvalidRequest | Forbidden),
        # Other errors leave the link: the export itself may still succeed.
        "usable": fault is None or not isinstance(fault.error, InvalidRequest | Forbidden | RelationFailed),
        "slow": fault is not None and isinstance(fault.error, QueryTimeout | RelationLocked) and seconds is not None,
        **_FIXED,
    }
    return render(request, template, context)


def _numbers(relation: Relation, preview: Preview | None, download: Download | None) -> dict[str, Any]:
    """Return the numbers of rows and bytes for the templates."""
    rows = rows_of_export(preview, relation)
    return {
        "rows": rows,
        "file_bytes": bytes_of_export(preview, rows),
        "relation_rows": rows_of_relation(preview, None if download is None else download.request, relation),
        "relation_bytes": bytes_of_relation(preview, relation),
    }


def _download(request: web.Request, form: Form, paths: Paths) -> Download:
    """Return the export that the form describes, from the text of its fields and the names of the columns alone.

    Raise InvalidRequest or Forbidden if it describes none.
    """
    wanted = parse_form(form)
    plan = make_plan(wanted, form.relation)
    filename = file_name(file_stem(wanted), wanted.full_format)
    return Download(wanted, filename, snippets(own_origin(request) + paths.export, filename, plan))


def _paths(request: web.Request, form: Form) -> Paths:
    schema, name = _schema(request, form.relation), form.relation.name
    relation = relation_path(schema, name)
    return Paths(
        export=export_path(schema, name, form.full_format) + (f"?{form.query}" if form.query else ""),
        page=TABLE + relation + (f"?{form.page_query}" if form.page_query else ""),
        action=FORM_ACTION + relation,
        reset=TABLE + relation,
    )


def _schema(request: web.Request, relation: Relation) -> str | None:
    return schema_in_path(relation.schema, request.app[SETTINGS].export_schemas)


def setup(app: web.Application) -> None:
    """Add this page's routes. The pattern matches slashes, which a name may contain."""
    app.router.add_get(TABLE + "{target:(?s:.+)}", table)
    form = app.router.add_resource(FORM_ACTION + "{target:(?s:.+)}")
    form.add_route("GET", submit)
    form.add_route("POST", save)
    app.router.add_get(TIMEZONES, list_timezones)

"""`GET /table/{relation}?…`: the page of one relation with its form, a preview and the download link.

The query string of the page is that of the export, plus `format=csv.gz`, so that the page can be bookmarked and shared.
A browser sends the form as fields to `GET /shape/{relation}`, which redirects to the page with the equivalent query
string. For the page's script it answers with the parts of the page that change. `GET /timezones` lists the names that
the form takes as a time zone.
"""

from __future__ import annotations

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
from server.export.pipeline import describe_with_timezone
from server.export.preview import Preview, first_rows
from server.http.addresses import raw_target
from server.http.keys import ENGINE, SETTINGS
from server.http.problems import log_failure
from server.http.responses import json_response
from server.pages.controls import COMPARISONS_BY_KIND, fits_picker, kind_of
from server.pages.faults import Fault, fault_of
from server.pages.form import Form, parse_form
from server.pages.form_reader import form_of_fields, form_of_query
from server.pages.notes import notes_of
from server.pages.site import origin, render
from server.pages.snippets import snippets
from server.query.catalogue import Relation
from server.query.file_names import file_name
from server.query.parameters import timezones
from server.query.plan import PREVIEW_ROWS, file_stem, make_plan
from server.query.request import export_path, parse_relation_request, relation_path, schema_in_path
from server.query.selection import LONGEST_NAME

TABLE = "/table/"
FORM_ACTION = "/shape/"
TIMEZONES = "/timezones"
# The header by which the page's script asks only for the parts of the page that change.
PARTIAL_HEADER = "X-Sluice-Live"
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


@dataclass(frozen=True, slots=True)
class Paths:
    """The percent-encoded paths of a form: of its export, of its page, of its fields, and of the page without query."""

    export: str
    page: str
    action: str
    reset: str


async def table(request: web.Request) -> web.Response:
    """Show the page of one relation."""
    relation, timezone = await _relation(request)
    form = form_of_query(relation, request.rel_url.raw_query_string)
    return await _answer(request, form, timezone, partial=False)


async def submit(request: web.Request) -> web.Response:
    """Redirect to the page with the query string of the submitted form, or answer the page's script."""
    relation, timezone = await _relation(request)
    fields = parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True)
    form = form_of_fields(relation, fields)
    if PARTIAL_HEADER in request.headers:
        return await _answer(request, form, timezone, partial=True)
    raise web.HTTPSeeOther(_paths(request, form).page)


async def list_timezones(_: web.Request) -> web.Response:
    """Return the names that the form takes as a time zone, in alphabetical order."""
    response = json_response({"timezones": sorted(timezones())})
    response.headers["Cache-Control"] = "max-age=86400"
    return response


async def _relation(request: web.Request) -> tuple[Relation, str]:
    """Return the relation of this address, and the time zone of an export that chooses none."""
    wanted = parse_relation_request(raw_target(request), "").relation
    return await describe_with_timezone(request.app[ENGINE], wanted)


async def _answer(request: web.Request, form: Form, timezone: str, *, partial: bool) -> web.Response:
    """Show the form.

    timezone: of an export that chooses none. partial: only the parts that change, with as much time for the preview as
    it needs.
    """
    paths = _paths(request, form)
    preview: Preview | None = None
    fault: Fault | None = None
    context: dict[str, Any] = {}
    try:
        wanted = parse_form(form)
        plan = make_plan(wanted, form.relation)  # what is wrong with the form is shown even if no export slot is free
        filename = file_name(file_stem(wanted), wanted.full_format)
        context = {"snippets": snippets(origin(request) + paths.export, filename, plan), "filename": filename}
        seconds = None if partial else FIRST_PREVIEW_SECONDS
        preview = await first_rows(request.app[ENGINE], wanted, estimate=True, seconds=seconds)
    except DatabaseUnavailable:
        raise
    except ExportError as error:
        if not isinstance(error, QueryTimeout | RelationLocked):  # the page's script asks again
            log_failure(request, error)
        fault = fault_of(error, form)
    context |= {
        "form": form,
        "columns": {column.name: column for column in form.relation.columns},
        "paths": paths,
        "schema": form.relation.schema if form.relation.also_in else _schema(request, form.relation),
        "also_in": {schema: TABLE + relation_path(schema, form.relation.name) for schema in form.relation.also_in},
        "preview": preview,
        "fault": fault,
        "notes": notes_of(form, timezone),
        "default_timezone": timezone,
        # Other errors leave the link: the export itself may still succeed.
        "usable": fault is None or not isinstance(fault.error, InvalidRequest | Forbidden | RelationFailed),
        "slow": fault is not None and isinstance(fault.error, QueryTimeout | RelationLocked) and not partial,
        "comparisons": COMPARISONS_BY_KIND,
        "directions": DIRECTIONS,
        "preview_rows": PREVIEW_ROWS,
        "longest_alias": LONGEST_NAME,
        "most_unsearched": MOST_UNSEARCHED,
        "kind_of": kind_of,
        "fits_picker": fits_picker,
    }
    return render(request, "changes.html" if partial else "table.html", context)


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
    app.router.add_get(FORM_ACTION + "{target:(?s:.+)}", submit)
    app.router.add_get(TIMEZONES, list_timezones)

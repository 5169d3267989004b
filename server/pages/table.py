"""`GET /table/{relation}?…`: one relation, its form, a preview, and the link. `/shape/…` is where the form goes.

The page's query string is that of the export, and `format=csv.gz` beside it, so that it can be kept and shared. A
form can only send fields: `/shape/{relation}` turns them into that address, or, for the script, into what changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from server.errors import DatabaseUnavailable, ExportError, Forbidden, InvalidRequest, QueryTimeout
from server.export.preview import Preview, first_rows
from server.http.addresses import raw_target
from server.http.file_headers import safe_filename
from server.http.keys import DATABASE, ENGINE, SETTINGS
from server.pages.controls import CHOICES, has_picker, kind_of
from server.pages.form import Form, field_of
from server.pages.form_reader import form_of_fields, form_of_query
from server.pages.site import origin, render
from server.pages.snippets import snippets
from server.query.catalogue import Relation
from server.query.plan import make_plan
from server.query.request import export_path, parse_export_request, parse_relation_request, relation_path

TABLE = "/table/"
SHAPE = "/shape/"
# The header with which the page's script asks for what has changed only.
LIVE = "X-Sluice-Live"
# Seconds that the page itself waits for its preview; the script then asks again and waits longer.
FIRST_PREVIEW_SECONDS = 1.0
DIRECTIONS = {
    "": "ascending",
    "desc": "descending",
    "nullsfirst": "ascending, empty first",
    "desc.nullslast": "descending, empty last",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and the field it belongs to; "" for none of them."""

    field: str
    error: ExportError


async def table(request: web.Request) -> web.Response:
    """The page of one relation."""
    relation = await _relation(request)
    return await _answer(request, form_of_query(relation, request.rel_url.raw_query_string), live=False)


async def shape(request: web.Request) -> web.Response:
    """The form was sent: on to the address that says the same, or for the page's script what changes with it."""
    relation = await _relation(request)
    fields = parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True)
    form = form_of_fields(relation, fields)
    if LIVE in request.headers:
        return await _answer(request, form, live=True)
    raise web.HTTPSeeOther(_page(request, form))


async def _relation(request: web.Request) -> Relation:
    async with request.app[DATABASE].control_session() as session:
        return await session.relation(parse_relation_request(raw_target(request), "").relation, exact=False)


async def _answer(request: web.Request, form: Form, *, live: bool) -> web.Response:
    address = export_path(_schema(request, form.relation), form.relation.name, form.suffix)
    address += f"?{form.query}" if form.query else ""
    preview: Preview | None = None
    fault: Fault | None = None
    context: dict[str, Any] = {}
    try:
        wanted = parse_export_request(*address.removeprefix("/export/").partition("?")[::2])
        plan = make_plan(wanted, form.relation)
        filename = safe_filename(plan.filename) + plan.suffix
        context = {"snippets": snippets(origin(request) + address, filename, wanted), "filename": filename}
        seconds = None if live else FIRST_PREVIEW_SECONDS
        preview = await first_rows(request.app[ENGINE], wanted, estimate=True, seconds=seconds)
    except DatabaseUnavailable:
        raise
    except ExportError as error:
        fault = Fault(field_of(error, form), error)
    context |= {
        "form": form,
        "columns": {column.name: column for column in form.relation.columns},
        "address": address,
        "page": _page(request, form),
        "action": SHAPE + relation_path(_schema(request, form.relation), form.relation.name),
        "schema": _schema(request, form.relation),
        "preview": preview,
        "fault": fault,
        # A query that PostgreSQL may still run: the link stays.
        "usable": fault is None or not isinstance(fault.error, InvalidRequest | Forbidden),
        "slow": fault is not None and isinstance(fault.error, QueryTimeout) and not live,
        "choices": CHOICES,
        "directions": DIRECTIONS,
        "kind_of": kind_of,
        "has_picker": has_picker,
    }
    return render(request, "live.html" if live else "table.html", context)


def _page(request: web.Request, form: Form) -> str:
    path = TABLE + relation_path(_schema(request, form.relation), form.relation.name)
    return f"{path}?{form.page_query}" if form.page_query else path


def _schema(request: web.Request, relation: Relation) -> str | None:
    return None if relation.schema == request.app[SETTINGS].export_schemas[0] else relation.schema


def setup(app: web.Application) -> None:
    """Add this page's routes. The path is matched whole: a name may hold encoded slashes."""
    app.router.add_get(TABLE + "{target:(?s:.+)}", table)
    app.router.add_get(SHAPE + "{target:(?s:.+)}", shape)

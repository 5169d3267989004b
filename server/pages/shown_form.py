"""What the page shows of a form besides its fields: addresses, the export that it describes, and lines to copy.

Takes long for a form of thousands of values, so it is called in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from server.errors import ExportError, Forbidden, InvalidRequest
from server.http.forwarded import own_origin
from server.http.keys import SETTINGS
from server.pages.form import Form, parse_form
from server.pages.snippets import Snippet, snippets
from server.query.catalogue import Relation
from server.query.file_names import file_name
from server.query.plan import file_stem, make_plan
from server.query.request import ExportRequest, export_path, relation_path, schema_in_path
from server.query.switches import refuse_switched_off

TABLE = "/table/"
FORM_ACTION = "/shape/"


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


@dataclass(frozen=True, slots=True)
class ShownForm:
    """What the page shows of a form. download: None if the form has a fault. fault: the error of it."""

    form: Form
    paths: Paths
    download: Download | None
    fault: ExportError | None = None

    @property
    def export(self) -> Download:
        """The export of the form. Raise its fault if it has one."""
        if self.fault is not None:
            raise self.fault
        assert self.download is not None
        return self.download


def shown_form(request: web.Request, form: Form) -> ShownForm:
    """Return what the page shows of this form."""
    paths = _paths(request, form)
    try:
        return ShownForm(form, paths, _download(request, form, paths))
    except (InvalidRequest, Forbidden) as error:
        return ShownForm(form, paths, None, error)


def _download(request: web.Request, form: Form, paths: Paths) -> Download:
    """Return the export that the form describes, from the text of its fields and the names of the columns alone.

    Raise InvalidRequest or Forbidden if it describes none.
    """
    wanted = parse_form(form)
    refuse_switched_off(wanted, regular_expressions=request.app[SETTINGS].regular_expressions)
    plan = make_plan(wanted, form.relation)
    filename = file_name(file_stem(wanted), wanted.full_format)
    return Download(wanted, filename, snippets(own_origin(request) + paths.export, filename, plan))


def _paths(request: web.Request, form: Form) -> Paths:
    schema, name = shown_schema(request, form.relation), form.relation.name
    relation = relation_path(schema, name)
    query, page_query = form.query, form.page_query
    return Paths(
        export=export_path(schema, name, form.full_format) + (f"?{query}" if query else ""),
        page=TABLE + relation + (f"?{page_query}" if page_query else ""),
        action=FORM_ACTION + relation,
        reset=TABLE + relation,
    )


def shown_schema(request: web.Request, relation: Relation) -> str | None:
    """Return the schema of this relation as paths and pages name it."""
    return schema_in_path(relation.schema, request.app[SETTINGS].export_schemas)

"""`GET /`: the list of relations. `?q=` and `?schema=` filter it; with JavaScript it is filtered while typing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from server.errors import DatabaseUnavailable
from server.http.keys import ENGINE, SETTINGS
from server.pages.site import render_with_error
from server.query.catalogue import Relation
from server.query.request import relation_path, schema_in_path

# Relations on the page: 1,000 make about 90 kB of HTML, which a browser lays out without noticeable delay.
MOST_RELATIONS = 1000
# Characters of the text to search for.
LONGEST_SEARCH = 200


@dataclass(frozen=True, slots=True)
class ListedRelation:
    """A relation of the list. path: the last segment of its address. label: with its schema, unless that is the first
    of EXPORT_SCHEMAS."""

    path: str
    label: str
    relation: Relation


async def index(request: web.Request) -> web.Response:
    """Show the relations that match, with kind, estimated rows and size."""
    schemas = request.app[SETTINGS].export_schemas
    searched = request.query.get("q", "").strip()[:LONGEST_SEARCH]
    schema = request.query.get("schema", "")
    unavailable: DatabaseUnavailable | None = None
    relations: list[Relation] = []
    try:
        relations = await request.app[ENGINE].database.relations(columns=False)
    except DatabaseUnavailable as error:
        unavailable = error
    listed = [_listed(relation, schemas) for relation in relations]
    found = [one for one in listed if searched.lower() in one.label.lower() and schema in ("", one.relation.schema)]
    context = {
        "listed": found[:MOST_RELATIONS],
        "matching": len(found),
        "total": len(listed),
        "whole": len(found) == len(listed) <= MOST_RELATIONS,
        "searched": searched,
        "longest_search": LONGEST_SEARCH,
        "schema": schema,
        "schemas": list(dict.fromkeys(relation.schema for relation in relations)),
        "export_schemas": schemas,
    }
    return render_with_error(request, "index.html", context, unavailable)


def _listed(relation: Relation, export_schemas: Sequence[str]) -> ListedRelation:
    schema = schema_in_path(relation.schema, export_schemas)
    label = relation.name if schema is None else f"{schema}.{relation.name}"
    return ListedRelation(relation_path(schema, relation.name), label, relation)


def setup(app: web.Application) -> None:
    """Add this page's route."""
    app.router.add_get("/", index)

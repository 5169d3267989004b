"""`GET /`: the list of relations. `?q=` and `?schema=` filter it and `?sort=` sorts it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from server.errors import DatabaseUnavailable
from server.http.keys import ENGINE, SETTINGS
from server.pages.relation_list import LONGEST_SEARCH, MatchingColumns, arrange, first, parse_list_query
from server.pages.sent_fields import fields_of_list
from server.pages.site import render_with_error
from server.query.catalogue import Relation

# Relations on the page: 1,000 make about 90 kB of HTML, which a browser lays out without noticeable delay.
MOST_RELATIONS = 1000


async def index(request: web.Request) -> web.Response:
    """Show the relations that match, with comment, kind, estimated rows and size."""
    query = parse_list_query(fields_of_list(request))
    schemas = request.app[SETTINGS].export_schemas
    database = request.app[ENGINE].database
    unavailable: DatabaseUnavailable | None = None
    relations: list[Relation] = []
    columns: MatchingColumns = {}
    try:
        relations = await database.relations(columns=False)
        if query.words:
            columns = await database.matching_columns(query.words)
    except DatabaseUnavailable as error:
        unavailable = error

    def context() -> dict[str, Any]:
        groups = arrange(relations, columns, query, schemas)
        return {
            "groups": first(groups, MOST_RELATIONS),
            "matching": sum(len(group.listed) for group in groups),
            "most": MOST_RELATIONS,
            "total": len(relations),
            "query": query,
            "longest_search": LONGEST_SEARCH,
            "schemas": list(dict.fromkeys(relation.schema for relation in relations)),
            "export_schemas": schemas,
        }

    return await render_with_error(request, "index.html", context, unavailable)


def setup(app: web.Application) -> None:
    """Add this page's route."""
    app.router.add_get("/", index)

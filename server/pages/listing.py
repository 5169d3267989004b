"""`GET /`: what can be exported. `?q=` and `?schema=` search it, with JavaScript while typing."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from server.errors import DatabaseUnavailable
from server.http.keys import DATABASE, SETTINGS
from server.pages.site import render
from server.query.catalogue import LIST_WITHOUT_COLUMNS, Relation, relation_from_row
from server.query.request import relation_path

# Rows of one page: a thousand weigh about 90 kB, and a browser lays them out in an instant.
MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """One relation of the list. label: with its schema, unless that is the first of EXPORT_SCHEMAS."""

    path: str
    label: str
    relation: Relation


async def index(request: web.Request) -> web.Response:
    """The relations that match, with kind, estimated rows and size."""
    schemas = request.app[SETTINGS].export_schemas
    words = request.query.get("q", "").strip()[:200]
    schema = request.query.get("schema", "")
    status, reason = 200, None
    relations: list[Relation] = []
    try:
        async with request.app[DATABASE].control_session() as session:
            rows = await session.query(LIST_WITHOUT_COLUMNS, {"schemas": list(schemas)})
        relations = [relation_from_row(row) for row in rows]
    except DatabaseUnavailable as error:
        status, reason = error.status, error.detail
    lines = [_line(relation, schemas[0]) for relation in relations]
    found = [line for line in lines if words.lower() in line.label.lower() and schema in ("", line.relation.schema)]
    context = {
        "lines": found[:MOST_ROWS],
        "matching": len(found),
        "every": len(lines),
        "whole": len(found) == len(lines) <= MOST_ROWS,
        "words": words,
        "schema": schema,
        "present": list(dict.fromkeys(relation.schema for relation in relations)),
        "schemas": schemas,
        "reason": reason,
    }
    response = render(request, "index.html", context, status)
    if status != 200:
        response.headers["Retry-After"] = str(DatabaseUnavailable.retry_after)
    return response


def _line(relation: Relation, default: str) -> Line:
    schema = None if relation.schema == default else relation.schema
    label = relation.name if schema is None else f"{schema}.{relation.name}"
    return Line(relation_path(schema, relation.name), label, relation)


def setup(app: web.Application) -> None:
    """Add this page's route."""
    app.router.add_get("/", index)

"""`GET /relations`, `/relations/{relation}` and `/relations/{relation}/preview`: the catalogue as JSON."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from server.export.pipeline import describe, open_export, with_retries
from server.export.preview import first_rows
from server.export.strategy import Outline
from server.http.addresses import raw_target, refuse_parameters
from server.http.keys import ENGINE, SETTINGS
from server.http.parsing import requested_relation
from server.http.responses import json_response, long_json_response
from server.query.catalogue import Relation
from server.query.request import FORMATS, export_path, parse_relation_request, schema_in_path

PREFIX = "/relations"
PREVIEW = "/preview"
EXPLAIN = "explain"


async def list_relations(request: web.Request) -> web.Response:
    """Return all relations that may be exported."""
    refuse_parameters(request, "The list of relations takes no parameters.")
    relations = await request.app[ENGINE].database.relations()
    return await long_json_response(
        request, lambda: {"relations": [_as_json(request, relation) for relation in relations]}
    )


async def one_relation(request: web.Request) -> web.Response:
    """Return one relation; with /preview after it the first rows, with ?explain how an export would be read.

    A preview and an explanation take the query string of an export.
    """
    target = raw_target(request)
    query = request.rel_url.raw_query_string
    if target.endswith(PREVIEW):
        return await _preview(request, target.removesuffix(PREVIEW), query)
    pairs = query.split("&")
    if EXPLAIN in pairs:
        return await _explanation(request, target, "&".join(pair for pair in pairs if pair != EXPLAIN))
    refuse_parameters(
        request,
        "A relation's description takes no parameters.",
        hint=f"Write ?{EXPLAIN}& before the parameters of an export to see how it would be read.",
    )
    relation = await describe(request.app[ENGINE], parse_relation_request(target, "").relation)
    return json_response(_as_json(request, relation))


async def _explanation(request: web.Request, target: str, query: str) -> web.Response:
    wanted = await requested_relation(request, target, query)

    async def attempt() -> tuple[Relation, Outline]:
        async with open_export(request.app[ENGINE], wanted, control=True, told=True) as export:
            return export.plan.relation, await export.outline()

    relation, outline = await with_retries(attempt)
    document = {
        "schema": relation.schema,
        "name": relation.name,
        "alsoIn": relation.also_in,
        "scan": outline.name,
        "readers": outline.readers,
        "reason": outline.reason or None,
        "ranges": outline.ranges,
        "estimatedRows": outline.estimated_rows,
    }
    return json_response(document)


async def _preview(request: web.Request, target: str, query: str) -> web.Response:
    wanted = await requested_relation(request, target, query)
    preview = await first_rows(request.app[ENGINE], wanted)

    def document() -> dict[str, Any]:
        columns = zip(preview.names, preview.columns, strict=True)
        return {
            "columns": [{"name": name, "type": output.column.type} for name, output in columns],
            "rows": preview.rows,
        }

    return await long_json_response(request, document)


def _as_json(request: web.Request, relation: Relation) -> dict[str, Any]:
    schema = schema_in_path(relation.schema, request.app[SETTINGS].export_schemas)
    return {
        "schema": relation.schema,
        "name": relation.name,
        "kind": relation.kind,
        "isPartition": relation.is_partition,
        "estimatedRows": relation.estimated_rows,
        "bytes": relation.bytes,
        "comment": relation.comment,
        "columns": [
            {"name": column.name, "type": column.type, "nullable": column.nullable, "indexed": column.indexed}
            | ({} if column.values is None else {"values": column.values})
            for column in relation.columns
            if column.readable
        ],
        "exportUrl": export_path(schema, relation.name, FORMATS[0]),
    }


def setup(app: web.Application) -> None:
    """Add this resource's routes. The path is matched whole: a name may hold encoded slashes."""
    app.router.add_get(PREFIX, list_relations)
    app.router.add_get(PREFIX + "/{target:(?s:.+)}", one_relation)

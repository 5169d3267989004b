"""A request that is to be saved on the disk in the background → a new export in the queue.

The API and the page of a relation accept requests with the same function.
"""

from __future__ import annotations

from aiohttp import web

from server.errors import RelationLocked
from server.export.pipeline import open_export, with_retries
from server.http.addresses import relation_headers
from server.http.keys import ENGINE, RUNNER
from server.query.catalogue import Relation, RelationName
from server.query.request import ExportRequest
from server.saved.manifest import NewExport
from server.saved.status import Entry
from server.threads import in_thread


async def accept(
    request: web.Request, wanted: ExportRequest, target: str, query: str, key: str | None = None
) -> tuple[Entry, dict[str, str]]:
    """Return the new export, once its manifest is on the disk, and the headers that say which relation was found.

    target, query: the address after EXPORT_PREFIX that asks for it, percent-encoded. wanted: the same, parsed. key: its
    Idempotency-Key. Raise what the export itself would raise before its first row.
    """
    relation, total_rows = await with_retries(lambda: _estimated_rows(request, wanted))
    name = RelationName(relation.name, relation.schema) if relation.also_in else wanted.relation
    runner = request.app[RUNNER]
    new = NewExport(target=target, query=query, relation=str(name), format=wanted.full_format, total_rows=total_rows)
    entry = await in_thread(request.app[ENGINE].threads.files, runner.queue.create, new, key)
    runner.wake()
    return entry, relation_headers(relation)


async def _estimated_rows(request: web.Request, wanted: ExportRequest) -> tuple[Relation, int | None]:
    """Return the relation, and PostgreSQL's estimate of the rows, None if the user must not be told.

    Raise what the export itself would raise, before it is accepted. There is no estimate while the relation is locked:
    the export then waits in the queue until it is not.
    """
    async with open_export(request.app[ENGINE], wanted, control=True, told=True) as export:
        try:
            await export.check()
            return export.plan.relation, await export.estimated_rows()
        except RelationLocked:
            return export.plan.relation, None

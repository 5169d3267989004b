"""`GET /saved`: the page of saved exports. Its buttons use the same objects as the API."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from server.errors import ExportError, ExportNotFound
from server.http.addresses import EXPORT_PREFIX
from server.http.keys import ENGINE, RUNNER, SETTINGS
from server.http.responses import status_document
from server.pages.form import FORMAT_PARAMETER
from server.pages.form_reader import readable_query
from server.pages.site import SAVED_PAGE, render_with_error
from server.pages.table import TABLE
from server.saved.store import Entry
from server.threads import in_thread

# Saved exports on the page, newest first. /exports lists all of them.
MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Card:
    """A saved export. status: its document in the API. query: its query string, decoded for a reader.

    again: the path that saves the same export again. page: the path of its form.
    """

    status: dict[str, Any]
    query: str
    again: str
    page: str


async def saved(request: web.Request) -> web.Response:
    """Show the newest saved exports."""
    store = request.app[RUNNER].queue.store

    def read() -> tuple[list[Card], int]:
        entries = store.newest_first()
        return [_card(request, entry) for entry in entries[:MOST_SHOWN]], len(entries)

    unavailable: ExportError | None = None
    cards: list[Card] = []
    every = 0
    try:
        cards, every = await in_thread(request.app[ENGINE].threads.files, read)
    except ExportError as error:
        unavailable = error
    context = {"cards": cards, "every": every, "retention": request.app[SETTINGS].export_retention}
    return render_with_error(request, "saved.html", context, unavailable)


def _card(request: web.Request, entry: Entry) -> Card:
    manifest = entry.manifest
    query = f"?{manifest.query}" if manifest.query else ""
    relation = manifest.target.removesuffix(f".{manifest.format}")
    page = TABLE + relation + (query + "&" if query else "?") + f"{FORMAT_PARAMETER}={manifest.format}"
    return Card(
        status_document(request, entry),
        readable_query(manifest.query),
        f"{EXPORT_PREFIX}{manifest.target}{query}",
        page,
    )


async def delete(request: web.Request) -> web.Response:
    """Cancel or delete a saved export, then show the page again."""
    with contextlib.suppress(ExportNotFound):  # it was deleted meanwhile
        await request.app[RUNNER].delete(request.match_info["id"])
    raise web.HTTPSeeOther(SAVED_PAGE)


def setup(app: web.Application) -> None:
    """Add this page's routes."""
    app.router.add_get(SAVED_PAGE, saved)
    app.router.add_post(SAVED_PAGE + "/{id}/delete", delete)

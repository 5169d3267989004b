"""`GET /saved`: the page of saved exports. Its buttons use the same objects as the API."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from server.errors import ExportError, ExportNotFound
from server.http.keys import ENGINE, RUNNER, SETTINGS
from server.pages.form import FORMAT
from server.pages.form_reader import readable_query
from server.pages.site import render
from server.pages.table import TABLE
from server.saved.status import status_json
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
    store, retention = request.app[RUNNER].queue.store, request.app[SETTINGS].export_retention

    def read() -> tuple[list[Card], int]:
        entries = store.newest_first()
        return [_card(entry, retention) for entry in entries[:MOST_SHOWN]], len(entries)

    reason = None
    cards: list[Card] = []
    every = 0
    try:
        cards, every = await in_thread(request.app[ENGINE].threads.files, read)
    except ExportError as error:
        reason = error.detail
    context = {"cards": cards, "every": every, "reason": reason, "retention": retention}
    return render(request, "saved.html", context, 200 if reason is None else 503)


def _card(entry: Entry, retention: float) -> Card:
    manifest = entry.manifest
    query = f"?{manifest.query}" if manifest.query else ""
    relation = manifest.target.removesuffix(f".{manifest.format}")
    page = TABLE + relation + (query + "&" if query else "?") + f"{FORMAT}={manifest.format}"
    return Card(
        status_json(manifest, entry.progress, retention),
        readable_query(manifest.query),
        f"/export/{manifest.target}{query}",
        page,
    )


async def delete(request: web.Request) -> web.Response:
    """Cancel or delete a saved export, then show the page again."""
    with contextlib.suppress(ExportNotFound):  # it was deleted meanwhile
        await request.app[RUNNER].delete(request.match_info["id"])
    raise web.HTTPSeeOther("/saved")


def setup(app: web.Application) -> None:
    """Add this page's routes."""
    app.router.add_get("/saved", saved)
    app.router.add_post("/saved/{id}/delete", delete)

"""`GET /saved`: the page of saved exports, filtered by `?q=` and `?status=`.

Its buttons use the same objects as the API.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from server.errors import ExportError, ExportNotFound, InvalidRequest
from server.http.addresses import EXPORT_PREFIX
from server.http.keys import ENGINE, RUNNER, SETTINGS
from server.http.responses import status_document
from server.pages.form import FORMAT_PARAMETER
from server.pages.form_reader import readable_query
from server.pages.sent_fields import fields_of_list, read_form
from server.pages.shown_form import TABLE
from server.pages.site import SAVED_PAGE, render, render_with_error
from server.saved.manifest import Status
from server.saved.runner import Runner
from server.saved.store import Entry
from server.threads import in_thread

# Saved exports on the page, newest first. /exports lists all of them.
MOST_SHOWN = 200
# Characters of the text to search for.
LONGEST_SEARCH = 200
# Characters of a query string on the page: as many as a reader may want to see. It may be 128 kB long.
LONGEST_QUERY = 300
# The words for a status, in the order in which the page offers them.
STATUSES = {
    "processing": "running",
    "pending": "waiting",
    "completed": "ready",
    "failed": "failed",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class SavedExport:
    """A saved export on the page.

    status: its document in the API. query: its query string, decoded and shortened for a reader. again: the path that
    saves the same export again. page: the path of its form.
    """

    status: dict[str, Any]
    query: str
    again: str
    page: str


@dataclass(frozen=True, slots=True)
class SavedFilter:
    """Which exports the page shows. searched: as typed. status: one of STATUSES, "" for all."""

    searched: str = ""
    status: str = ""

    def address(self, status: str | None = None) -> str:
        """Return the address of the page with this filter. status: another one."""
        fields = {"q": self.searched, "status": self.status if status is None else status}
        given = urlencode({name: text for name, text in fields.items() if text})
        return f"{SAVED_PAGE}?{given}" if given else SAVED_PAGE

    def finds(self, text: str) -> bool:
        """Return whether each word of the search is in this text."""
        return all(word in text.lower() for word in self.searched.lower().split())


def parse_filter(fields: Mapping[str, str]) -> SavedFilter:
    """Return the filter of the parameters q and status. Raise InvalidRequest for an unknown status."""
    status = fields.get("status", "")
    if status and status not in STATUSES:
        raise InvalidRequest(
            f'No saved export has the status "{status[:LONGEST_SEARCH]}".', hint=f"Use one of {', '.join(STATUSES)}."
        )
    return SavedFilter(fields.get("q", "").strip()[:LONGEST_SEARCH], status)


def matching(entries: Sequence[Entry], wanted: SavedFilter) -> tuple[list[Entry], Counter[Status]]:
    """Return the exports that match, and how many of each status the search alone finds."""
    found = [entry for entry in entries if wanted.finds(_searchable(entry))]
    counts = Counter(entry.manifest.status for entry in found)
    return [entry for entry in found if wanted.status in ("", entry.manifest.status)], counts


def _searchable(entry: Entry) -> str:
    manifest = entry.manifest
    return f"{manifest.relation} {manifest.format} {readable_query(manifest.query)}"


async def saved(request: web.Request) -> web.Response:
    """Show the newest saved exports that match the filter."""
    wanted = parse_filter(fields_of_list(request))

    def read() -> dict[str, Any]:
        entries = request.app[RUNNER].queue.store.newest_first()
        found, counts = matching(entries, wanted)
        shown = [_shown(request, entry) for entry in found[:MOST_SHOWN]]
        return {"exports": shown, "matching": len(found), "total": len(entries), "counts": counts}

    unavailable: ExportError | None = None
    context: dict[str, Any] = {"exports": (), "matching": 0, "total": 0}
    try:
        context = await in_thread(request.app[ENGINE].threads.files, read)
    except ExportError as error:
        unavailable = error
    context |= {
        "filter": wanted,
        "statuses": STATUSES,
        "longest_search": LONGEST_SEARCH,
        "retention": request.app[SETTINGS].export_retention,
    }
    return await render_with_error(request, "saved.html", lambda: context, unavailable)


async def _entries(request: web.Request) -> list[Entry]:
    return await in_thread(request.app[ENGINE].threads.files, request.app[RUNNER].queue.store.newest_first)


def _shown(request: web.Request, entry: Entry) -> SavedExport:
    manifest = entry.manifest
    query = f"?{manifest.query}" if manifest.query else ""
    relation = manifest.target.removesuffix(f".{manifest.format}")
    page = TABLE + relation + (query + "&" if query else "?") + f"{FORMAT_PARAMETER}={manifest.format}"
    text = readable_query(manifest.query)
    return SavedExport(
        status_document(request, entry),
        text if len(text) <= LONGEST_QUERY else text[: LONGEST_QUERY - 1] + "…",
        f"{EXPORT_PREFIX}{manifest.target}{query}",
        page,
    )


async def cancel(request: web.Request) -> web.Response:
    """Cancel a saved export, then show the page again. One that has ended meanwhile stays as it is."""
    back = parse_filter(dict(reversed(await read_form(request)))).address()
    id = request.match_info["id"]
    if any(entry.manifest.id == id and not entry.manifest.finished for entry in await _entries(request)):
        with contextlib.suppress(ExportNotFound):  # deleted meanwhile
            await request.app[RUNNER].delete(id)
    raise web.HTTPSeeOther(back)


async def delete(request: web.Request) -> web.Response:
    """Delete the exports of the fields `id`, then show the page again.

    Without the field `sure`, a deletion that removes a file or stops an export is answered with a page that asks first.
    """
    sent = await read_form(request)
    fields = dict(reversed(sent))
    wanted = parse_filter(fields)
    ids = {value for name, value in sent if name == "id"}
    chosen = [entry for entry in await _entries(request) if entry.manifest.id in ids]
    if "sure" not in fields and any(entry.manifest.status not in ("failed", "cancelled") for entry in chosen):
        shown = [_shown(request, entry) for entry in chosen]
        return await render(request, "delete.html", {"exports": shown, "filter": wanted, "statuses": STATUSES})
    outcomes = await asyncio.gather(*(_delete(request.app[RUNNER], entry) for entry in chosen), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
    raise web.HTTPSeeOther(wanted.address())


async def _delete(runner: Runner, entry: Entry) -> None:
    with contextlib.suppress(ExportNotFound):  # deleted meanwhile
        await runner.delete(entry.manifest.id)
        if not entry.manifest.finished:  # it has only been cancelled
            await runner.delete(entry.manifest.id)


def setup(app: web.Application) -> None:
    """Add this page's routes."""
    app.router.add_get(SAVED_PAGE, saved)
    app.router.add_post(SAVED_PAGE + "/delete", delete)
    app.router.add_post(SAVED_PAGE + "/{id}/cancel", cancel)

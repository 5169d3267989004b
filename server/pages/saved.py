"""`GET /saved`: the saved exports, filtered by `?q=` and `?status=`, a page of them at a time, which `?after=` chooses.

Its buttons use the same objects as the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from server.errors import ExportError, InvalidRequest
from server.http.addresses import EXPORT_PREFIX
from server.http.keys import ENGINE, RUNNER, SETTINGS
from server.http.paging import DEFAULT_LIMIT, MOST_LIMIT, parse_place, write_place
from server.http.responses import status_document
from server.http.saving import accept
from server.pages.form import FORMAT_PARAMETER
from server.pages.form_reader import readable_query
from server.pages.sent_fields import fields_of_list, read_form
from server.pages.shown_form import TABLE
from server.pages.site import SAVED_PAGE, render, render_with_error
from server.query.request import parse_export_request
from server.saved.errors import ExportNotFound
from server.saved.known import Place
from server.saved.manifest import Manifest, Status
from server.saved.runner import Runner
from server.saved.status import Entry
from server.saved.store import MOST_KNOWN
from server.threads import FILE_THREADS, in_thread

# Characters of the text to search for.
LONGEST_SEARCH = 200
# Characters of a query string on the page: as many as a reader may want to see. They are what the search looks at.
LONGEST_QUERY = 300
# Exports that one request may delete.
MOST_CHOSEN = MOST_LIMIT
# Exports that one request deletes at the same time: half of the threads stay free for others.
DELETED_AT_ONCE = FILE_THREADS // 2
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


@dataclass(frozen=True)
class SavedFilter:
    """Which exports the page shows. searched: as typed. status: one of STATUSES, "" for all.

    after: those that were created before this place, as of `write_place`; "" for the newest.
    """

    searched: str = ""
    status: str = ""
    after: str = ""

    def address(self, status: str | None = None, after: str | None = None) -> str:
        """Return the address of the page with this filter. status: another one, from the newest on. after: as well."""
        fields = {"q": self.searched, "status": self.status if status is None else status}
        fields["after"] = after if after is not None else self.after if status is None else ""
        given = urlencode({name: text for name, text in fields.items() if text})
        return f"{SAVED_PAGE}?{given}" if given else SAVED_PAGE

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the search in lower case, each once."""
        return tuple(dict.fromkeys(self.searched.lower().split()))

    def finds(self, text: str) -> bool:
        """Return whether each word of the search is in this text, which is in lower case."""
        return all(word in text for word in self.words)


def parse_filter(fields: Mapping[str, str]) -> SavedFilter:
    """Return the filter of the parameters q, status and after. Raise InvalidRequest for a wrong status or place."""
    status = fields.get("status", "")
    if status and status not in STATUSES:
        raise InvalidRequest(
            f'No saved export has the status "{status[:LONGEST_SEARCH]}".', hint=f"Use one of {', '.join(STATUSES)}."
        )
    after = write_place(parse_place(fields.get("after", "")))
    return SavedFilter(fields.get("q", "").strip()[:LONGEST_SEARCH], status, after)


def matching(entries: Sequence[Entry], wanted: SavedFilter) -> tuple[list[Entry], Counter[Status]]:
    """Return the exports that match, and how many of each status the search alone finds. Ignores `after`."""
    found = [entry for entry in entries if wanted.finds(_searchable(entry.manifest))] if wanted.searched else entries
    counts = Counter(entry.manifest.status for entry in found)
    return [entry for entry in found if wanted.status in ("", entry.manifest.status)], counts


def page_of(entries: Sequence[Entry], wanted: SavedFilter) -> tuple[list[Entry], str]:
    """Return the exports of the page, and the place after which the next ones come, "" if there are none.

    entries: those that match, newest first.
    """
    after = parse_place(wanted.after)
    first = 0 if after is None else len(entries) - bisect_left(entries[::-1], after, key=_place)
    shown = list(entries[first : first + DEFAULT_LIMIT])
    return shown, write_place(_place(shown[-1])) if len(entries) > first + DEFAULT_LIMIT else ""


def _place(entry: Entry) -> Place:
    return entry.manifest.created_at, entry.manifest.id


def _searchable(manifest: Manifest) -> str:
    return _searchable_text(manifest.relation, manifest.format, manifest.query)


@functools.lru_cache(MOST_KNOWN)
def _searchable_text(relation: str, format: str, query: str) -> str:
    return f"{relation} {format} {_readable(query)}".lower()


def _readable(query: str) -> str:
    """Return the beginning of a query string, decoded for a reader, with a mark at its end if there is more."""
    # A character is at most twelve of a query string: four bytes, each percent-encoded.
    text = readable_query(query[: 12 * LONGEST_QUERY])
    return text if len(text) <= LONGEST_QUERY else text[: LONGEST_QUERY - 1] + "…"


async def saved(request: web.Request) -> web.Response:
    """Show a page of the saved exports that match the filter."""
    wanted = parse_filter(fields_of_list(request))
    store, threads = request.app[RUNNER].queue.store, request.app[ENGINE].threads

    def choose(entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, Any]]:
        found, counts = matching(entries, wanted)
        on_page, older = page_of(found, wanted)
        return on_page, {"matching": len(found), "total": len(entries), "counts": counts, "older": older}

    unavailable: ExportError | None = None
    context: dict[str, Any] = {"matching": 0, "total": 0, "older": ""}
    now: dict[str, Entry | None] = {}
    try:
        # What may wait for the disk and what computes have threads of their own.
        entries = await in_thread(threads.files, store.newest_first)
        on_page, context = await in_thread(threads.pages, choose, entries)
        now = await in_thread(threads.files, store.current, [entry.manifest.id for entry in on_page])
    except ExportError as error:
        unavailable = error
    context |= {
        "filter": wanted,
        "statuses": STATUSES,
        "longest_search": LONGEST_SEARCH,
        "retention": request.app[SETTINGS].export_retention,
    }

    def shown() -> dict[str, Any]:
        return context | {"exports": [_shown(request, entry) for entry in now.values() if entry is not None]}

    return await render_with_error(request, "saved.html", shown, unavailable)


def _shown(request: web.Request, entry: Entry) -> SavedExport:
    manifest = entry.manifest
    status = status_document(request, entry)
    here = f"{SAVED_PAGE}/{manifest.id}"
    return SavedExport(
        status,
        _readable(manifest.query),
        # A long query is not repeated on the page: these addresses find it in the manifest.
        f"{here}/again" if status["queryTruncated"] else EXPORT_PREFIX + _address(manifest),
        f"{here}/form" if status["queryTruncated"] else _form_address(manifest),
    )


def _address(manifest: Manifest) -> str:
    return f"{manifest.target}?{manifest.query}" if manifest.query else manifest.target


def _form_address(manifest: Manifest) -> str:
    relation = manifest.target.removesuffix(f".{manifest.format}")
    query = f"?{manifest.query}&" if manifest.query else "?"
    return f"{TABLE}{relation}{query}{FORMAT_PARAMETER}={manifest.format}"


async def _manifest(request: web.Request) -> Manifest:
    """Return the whole manifest of the export in the address. Raise ExportNotFound and others."""
    store = request.app[RUNNER].queue.store
    return (await in_thread(request.app[ENGINE].threads.files, store.get, request.match_info["id"])).manifest


async def form(request: web.Request) -> web.Response:
    """Redirect to the page of the relation, with the choices of this export."""
    raise web.HTTPSeeOther(_form_address(await _manifest(request)))


async def again(request: web.Request) -> web.Response:
    """Save this export once more, then show the page."""
    manifest = await _manifest(request)
    threads = request.app[ENGINE].threads
    wanted = await in_thread(threads.pages, parse_export_request, manifest.target, manifest.query)
    await accept(request, wanted, manifest.target, manifest.query)
    raise web.HTTPSeeOther(SAVED_PAGE)


async def cancel(request: web.Request) -> web.Response:
    """Cancel a saved export, then show the page again. One that has ended meanwhile stays as it is."""
    back = parse_filter(dict(reversed(await read_form(request)))).address()
    with contextlib.suppress(ExportNotFound):  # deleted meanwhile
        if not (await _manifest(request)).finished:
            await request.app[RUNNER].delete(request.match_info["id"])
    raise web.HTTPSeeOther(back)


async def delete(request: web.Request) -> web.Response:
    """Delete the exports of the fields `id`, then show the page again.

    Without the field `sure`, a deletion that removes a file or stops an export is answered with a page that asks first.
    """
    sent = await read_form(request)
    fields = dict(reversed(sent))
    wanted = parse_filter(fields)
    ids = dict.fromkeys(value for name, value in sent if name == "id")
    if len(ids) > MOST_CHOSEN:
        raise InvalidRequest(f"At most {MOST_CHOSEN} saved exports can be deleted at once.", code="too_many_exports")
    store = request.app[RUNNER].queue.store
    found = await in_thread(request.app[ENGINE].threads.files, store.current, ids)
    chosen = [entry for entry in found.values() if entry is not None]
    if "sure" not in fields and any(entry.manifest.status not in ("failed", "cancelled") for entry in chosen):

        def question() -> dict[str, Any]:
            shown = [_shown(request, entry) for entry in chosen]
            return {"exports": shown, "filter": wanted, "statuses": STATUSES}

        return await render(request, "delete.html", question)
    await _delete_all(request.app[RUNNER], chosen)
    raise web.HTTPSeeOther(wanted.address())


async def _delete_all(runner: Runner, chosen: Sequence[Entry]) -> None:
    """Delete these exports, a few at a time. Raise the first error when all others are deleted."""
    waiting, errors = iter(chosen), list[Exception]()

    async def delete_next() -> None:
        for entry in waiting:
            try:
                await _delete(runner, entry)
            except Exception as error:
                errors.append(error)

    await asyncio.gather(*(delete_next() for _ in range(DELETED_AT_ONCE)))
    if errors:
        raise errors[0]


async def _delete(runner: Runner, entry: Entry) -> None:
    with contextlib.suppress(ExportNotFound):  # deleted meanwhile
        await runner.delete(entry.manifest.id)
        if not entry.manifest.finished:  # it has only been cancelled
            await runner.delete(entry.manifest.id)


def setup(app: web.Application) -> None:
    """Add this page's routes."""
    app.router.add_get(SAVED_PAGE, saved)
    app.router.add_post(SAVED_PAGE + "/delete", delete)
    app.router.add_get(SAVED_PAGE + "/{id}/form", form)
    app.router.add_post(SAVED_PAGE + "/{id}/again", again)
    app.router.add_post(SAVED_PAGE + "/{id}/cancel", cancel)

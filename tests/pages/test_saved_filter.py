"""The filter of the saved exports as a value: which exports it finds, how many of each status, its addresses."""

from __future__ import annotations

import datetime
import time
from dataclasses import replace

import pytest

from server.errors import InvalidRequest
from server.pages.saved import SavedFilter, matching, parse_filter
from server.saved.manifest import Manifest, Status
from server.saved.status import Entry, Progress

ASKED: list[tuple[str, str, str, Status]] = [
    ("users", "csv.gz", "name=eq.M%C3%BCller", "completed"),
    ("users", "csv", "", "processing"),
    ("sales.orders", "ndjson", "select=id,user_id", "failed"),
    ("Orders", "csv", "order=id", "completed"),
]
ENTRIES = [
    Entry(
        Manifest(
            id=str(number).zfill(22),
            target=f"{relation}.{format}",
            query=query,
            relation=relation,
            format=format,
            status=status,
            created_at=datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC),
        ),
        Progress(),
    )
    for number, (relation, format, query, status) in enumerate(ASKED)
]


@pytest.mark.parametrize(
    ("wanted", "found", "counts"),
    [
        (SavedFilter(), [0, 1, 2, 3], {"completed": 2, "processing": 1, "failed": 1}),
        (SavedFilter("USER"), [0, 1, 2], {"completed": 1, "processing": 1, "failed": 1}),
        (SavedFilter("users csv.gz"), [0], {"completed": 1}),
        (SavedFilter("orders csv"), [3], {"completed": 1}),
        # The query is searched as the page shows it.
        (SavedFilter("müller"), [0], {"completed": 1}),
        (SavedFilter("%C3"), [], {}),
        # The counts tell what another status would show.
        (SavedFilter("", "failed"), [2], {"completed": 2, "processing": 1, "failed": 1}),
        (SavedFilter("users", "failed"), [], {"completed": 1, "processing": 1}),
        (SavedFilter("users", "completed"), [0], {"completed": 1, "processing": 1}),
    ],
)
def test_the_exports_of_a_filter(wanted: SavedFilter, found: list[int], counts: dict[str, int]) -> None:
    shown, counted = matching(ENTRIES, wanted)
    assert [ENTRIES.index(entry) for entry in shown] == found
    assert counted == counts


def test_a_search_of_many_words_takes_little_time() -> None:
    long = "%C3%84" * 100
    entries = [Entry(replace(ENTRIES[0].manifest, query=f"name=eq.{n}{long}"), Progress()) for n in range(5000)]
    matching(entries, SavedFilter("a"))
    started = time.thread_time()
    found, _ = matching(entries, SavedFilter("a " * 100))
    assert len(found) == len(entries)
    assert time.thread_time() - started < 0.25


@pytest.mark.parametrize(
    ("fields", "wanted", "address"),
    [
        ({}, SavedFilter(), "/saved"),
        ({"q": " a&b ", "status": ""}, SavedFilter("a&b"), "/saved?q=a%26b"),
        ({"q": "ü", "status": "failed"}, SavedFilter("ü", "failed"), "/saved?q=%C3%BC&status=failed"),
    ],
)
def test_a_filter_and_its_address(fields: dict[str, str], wanted: SavedFilter, address: str) -> None:
    assert parse_filter(fields) == wanted
    assert wanted.address() == address


def test_the_address_of_another_status() -> None:
    assert SavedFilter("a", "failed").address("completed") == "/saved?q=a&status=completed"
    assert SavedFilter("a", "failed").address("") == "/saved?q=a"


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="done"):
        parse_filter({"status": "done"})

"""Manifests and progress as values: round trips, and files that were changed by others."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.saved.manifest import STATUSES, Manifest, ManifestError, read_manifest, write_manifest
from server.saved.status import (
    MOST_UNFINISHED_PERCENTAGE,
    Entry,
    Progress,
    eta_seconds,
    read_progress,
    status_json,
    write_progress,
)

ID = "AbC-_0123456789abcdefg"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
PENDING = Manifest(
    id=ID,
    target="users.csv",
    query="id=gt.7",
    relation="users",
    format="csv",
    status="pending",
    created_at=NOW,
    total_rows=1000,
)
COMPLETED = replace(
    PENDING,
    status="completed",
    started_at=NOW,
    completed_at=NOW,
    rows=1,
    bytes=10,
    sha256="ab" * 32,
    snapshot_at=NOW,
    scan="cursor, block ranges",
    ranges=3,
    attempts=1,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TIMES = st.datetimes(timezones=st.just(datetime.UTC))
COUNTS = st.integers(0, 2**63 - 1)
MANIFESTS = st.builds(
    Manifest,
    id=st.just(ID),
    target=TEXT,
    query=TEXT,
    relation=TEXT,
    format=st.sampled_from(["csv", "tsv", "ndjson", "csv.gz", "tsv.gz", "ndjson.gz"]),
    status=st.sampled_from(STATUSES),
    created_at=TIMES,
    started_at=st.none() | TIMES,
    completed_at=TIMES,
    not_before=st.none() | TIMES,
    attempts=COUNTS,
    setbacks=COUNTS,
    total_rows=st.none() | COUNTS,
    error_code=st.none() | TEXT,
    error_detail=st.none() | TEXT,
    rows=COUNTS,
    bytes=COUNTS,
    sha256=st.just("0f" * 32),
    snapshot_at=st.none() | TIMES,
    scan=st.none() | TEXT,
    ranges=st.none() | COUNTS,
)


@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert read_manifest(ID, write_manifest(manifest)) == manifest
    json.dumps(status_json(Entry(manifest, Progress()), 3600))


def changed(**values: Any) -> bytes:
    document = json.loads(write_manifest(COMPLETED))
    for name, value in values.items():
        document[name] = value
        if value is ...:
            del document[name]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (write_manifest(COMPLETED)[:-20], "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "no version"),
        (changed(version="1"), "no version"),
        (changed(version=True), "no version"),
        (changed(version=0), "no version"),
        (changed(version=2), "version 2"),
        (changed(id="B" * 22), "another export"),
        (changed(id="../../etc"), '"id"'),
        (changed(format="csv/../../x"), '"format"'),
        (changed(format="csv\n"), '"format"'),
        (changed(status="done"), '"status"'),
        (changed(status=["completed"]), '"status"'),
        (changed(target=...), '"target"'),
        (changed(query=None), '"query"'),
        (changed(query="\ud800"), '"query"'),
        (changed(created_at="yesterday"), '"created_at"'),
        (changed(created_at="2026-01-02T03:04:05"), '"created_at"'),
        (changed(created_at=7), '"created_at"'),
        (changed(attempts=-1), '"attempts"'),
        (changed(attempts=1.5), '"attempts"'),
        (changed(attempts=True), '"attempts"'),
        (changed(bytes=2**63), '"bytes"'),
        (changed(sha256="AB" * 32), '"sha256"'),
        (changed(sha256="ab"), '"sha256"'),
        (changed(scan=1), '"scan"'),
        (changed(scan="\0"), '"scan"'),
        (changed(ranges="3"), '"ranges"'),
        (changed(ranges=-1), '"ranges"'),
        (changed(sha256=None), "completed without"),
        (changed(rows=None), "completed without"),
        (changed(completed_at=None), "without a time"),
        (changed(status="failed", completed_at=None), "without a time"),
    ],
)
def test_an_invalid_manifest_is_rejected(text: bytes, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        read_manifest(ID, text)


def test_a_manifest_of_an_older_version_is_read() -> None:
    """Version 1 without the fields that were added to it since."""
    manifest = replace(COMPLETED, scan=None, ranges=None)
    assert read_manifest(ID, changed(scan=..., ranges=...)) == manifest
    document = status_json(Entry(manifest, Progress()), 0)
    assert (document["scan"], document["ranges"]) == (None, None)


@pytest.mark.parametrize("value", [None, 1, "x", ["x"], {"status": "failed"}])
def test_a_field_that_a_newer_version_has_added_is_ignored(value: object) -> None:
    assert read_manifest(ID, changed(more=value, Status=value)) == COMPLETED


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_text_can_be_read(text: bytes) -> None:
    with pytest.raises(ManifestError):
        read_manifest(ID, text)
    assert read_progress(text) == Progress()


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.none() | st.floats(), st.booleans()),
        max_size=30,
    ),
    st.none() | st.integers(0, 5000),
)
def test_a_percentage_never_falls_and_ends_below_a_hundred(
    steps: list[tuple[int, float | None, bool]], total_rows: int | None
) -> None:
    progress, rows, shown = Progress(), 0, 0.0
    for more, done, again in steps:
        if again:
            progress, rows = progress.restarted(), 0
        rows += more
        progress = progress.advanced(rows=rows, bytes=rows, seconds=1.0, done=done, total_rows=total_rows)
        progress = read_progress(write_progress(progress))
        assert progress.rows == rows
        percentage = status_json(Entry(replace(PENDING, status="processing"), progress), 0)["progress"]["percentage"]
        assert shown <= percentage <= MOST_UNFINISHED_PERCENTAGE
        shown = percentage
    assert status_json(Entry(COMPLETED, progress), 0)["progress"]["percentage"] == 100


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (Progress(500, 5000, 50.0, 10.0, 50.0), {"percentage": 50.0, "rate": 50, "etaSeconds": 10}),
        (Progress(0, 0, None, 0.0), {"percentage": 0.0, "rate": None, "etaSeconds": None}),
        (Progress(10, 100, 0.0, 5.0, 0.0), {"percentage": 0.0, "rate": 2, "etaSeconds": None}),
        (Progress(10, 100, 99.0, 99.0, 99.0), {"percentage": 99.0, "rate": 0, "etaSeconds": 1}),
        # Another attempt: the highest percentage is shown, and the time left is that of this attempt.
        (Progress(10, 100, 90.0, 10.0, 10.0), {"percentage": 90.0, "rate": 1, "etaSeconds": 90}),
        (Progress(0, 0, 90.0, 10.0), {"percentage": 90.0, "rate": 0, "etaSeconds": None}),
    ],
)
def test_rate_and_eta(progress: Progress, shown: dict[str, Any]) -> None:
    manifest = replace(PENDING, status="processing")
    found = status_json(Entry(manifest, progress), 0)["progress"]
    assert {name: found[name] for name in shown} == shown
    assert eta_seconds(manifest, progress) == shown["etaSeconds"]
    assert eta_seconds(PENDING, progress) is None
    assert eta_seconds(COMPLETED, progress) == 0


def test_the_share_of_the_relation_takes_precedence_over_the_estimate() -> None:
    progress = Progress().advanced(rows=10, bytes=10, seconds=1, done=0.255, total_rows=20)
    assert progress.percentage == 25.5


@pytest.mark.parametrize(("retention", "expires"), [(0, None), (60, "2026-01-02T03:05:05.678Z"), (3.2e9 * 100, None)])
def test_the_time_of_expiry(retention: float, expires: str | None) -> None:
    assert status_json(Entry(COMPLETED, Progress()), retention)["expiresAt"] == expires
    assert status_json(Entry(PENDING, Progress()), retention)["expiresAt"] is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"rows": 1, "bytes": 1, "percentage": 100, "seconds": 1, "share": null}',
        b'{"rows": 1, "bytes": 1, "percentage": NaN, "seconds": 1, "share": null}',
        b'{"rows": 1, "bytes": 1, "percentage": 5, "seconds": Infinity, "share": null}',
        b'{"rows": -1, "bytes": 1, "percentage": 5, "seconds": 1, "share": null}',
        b'{"rows": 1.5, "bytes": 1, "percentage": 5, "seconds": 1, "share": null}',
        b'{"rows": 1, "bytes": 1, "percentage": "x", "seconds": 1, "share": null}',
        b'{"rows": 1, "bytes": 1, "percentage": 5, "seconds": 1, "share": 100}',
        b'{"rows": 1}',
    ],
)
def test_invalid_progress_counts_as_none(text: bytes) -> None:
    assert read_progress(text) == Progress()


@pytest.mark.parametrize(
    ("target", "query", "end"),
    [
        ("users.csv", "id=gt.7", "/users.csv"),
        ("users.csv", "filename=gr%C3%B6%C3%9Fe%20%231&id=gt.7", "/gr%C3%B6%C3%9Fe%20%231.csv"),
        ("aux.csv.gz", "", "/_aux.csv.gz"),
        # Written by another version: the address without the name is still there.
        ("users", "", ""),
        ("users.csv", "filename=a&filename=b", ""),
        ("users.csv", "filename=", ""),
    ],
)
def test_the_address_of_the_file_ends_in_its_name(target: str, query: str, end: str) -> None:
    document = status_json(Entry(replace(COMPLETED, target=target, query=query), Progress()), 3600)
    assert document["downloadUrl"] == f"/exports/{ID}/download{end}"


def test_only_a_completed_export_has_the_address_of_a_file() -> None:
    assert status_json(Entry(PENDING, Progress()), 3600)["downloadUrl"] is None

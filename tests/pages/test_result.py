"""What the page says about an export never contradicts the rows in sight, and names every field in words."""

from __future__ import annotations

import pytest

from server.export.preview import Preview
from server.pages.form import OPTIONS, Form
from server.pages.form_reader import form_of_query
from server.pages.result import (
    FIELD_LABELS,
    RowCount,
    bytes_of_export,
    bytes_of_relation,
    field_label,
    rows_of_export,
    rows_of_relation,
)
from server.query.catalogue import Column, Relation
from server.query.request import parse_export_request


def relation(rows: int | None, size: int | None = None, kind: str = "table") -> Relation:
    return Relation(1, "public", "t", kind, False, (Column("id", "bigint", True, True, False),), rows, size)


def preview(shown: int, *, exact: bool = False, estimate: int | None = None) -> Preview:
    return Preview((), (), [["1"]] * shown, [], shown if exact else None, estimate, 10.0 if shown else 0.0)


@pytest.mark.parametrize(
    ("shown", "counted", "expected", "size"),
    [
        (None, relation(1000), None, None),
        # All rows are in sight. The estimate of the planner does not count.
        (preview(0, exact=True, estimate=229), relation(1000), RowCount(0), None),
        (preview(6, exact=True, estimate=280), relation(None), RowCount(6), 60.0),
        (preview(20, exact=True, estimate=20), relation(1000), RowCount(20), 200.0),
        # Never analysed: the planner assumes ten pages.
        (preview(20, estimate=280), relation(None), RowCount(20, "at least"), None),
        (preview(20, estimate=280), relation(None, kind="materialized view"), RowCount(20, "at least"), None),
        # Of these, PostgreSQL never has a count of their own.
        (preview(20, estimate=280), relation(None, kind="view"), RowCount(280, "about"), 2800.0),
        (preview(20, estimate=280), relation(None, kind="partitioned table"), RowCount(280, "about"), 2800.0),
        (preview(20, estimate=5000), relation(100), RowCount(5000, "about"), 50000.0),
        # No fewer than are in sight.
        (preview(20, estimate=20), relation(3), RowCount(20, "at least"), None),
        (preview(20), relation(1000), RowCount(20, "at least"), None),
    ],
)
def test_rows_of_an_export(
    shown: Preview | None, counted: Relation, expected: RowCount | None, size: float | None
) -> None:
    assert rows_of_export(shown, counted) == expected
    assert bytes_of_export(shown, expected) == size


@pytest.mark.parametrize(
    ("shown", "query", "counted", "expected"),
    [
        (None, "", relation(1000), RowCount(1000, "about")),
        (None, "", relation(None), None),
        # The export has all rows of the relation.
        (preview(6, exact=True, estimate=280), "", relation(None), RowCount(6)),
        (preview(6, exact=True, estimate=280), "select=id&order=id", relation(3), RowCount(6)),
        (preview(20, estimate=5000), "", relation(100), RowCount(5000, "about")),
        # It has some of them: no fewer than the whole.
        (preview(6, exact=True, estimate=280), "id=gt.3", relation(1000), RowCount(1000, "about")),
        (preview(6, exact=True, estimate=280), "id=gt.3", relation(5), None),
        (preview(20, estimate=5000), "limit=9000", relation(1000), None),
        (preview(2, exact=True, estimate=2), "offset=4", relation(1), None),
        (preview(2, exact=True, estimate=2), "offset=4", relation(None), None),
    ],
)
def test_rows_of_a_relation(shown: Preview | None, query: str, counted: Relation, expected: RowCount | None) -> None:
    request = None if shown is None else parse_export_request("t.csv", query)
    assert rows_of_relation(shown, request, counted) == expected


@pytest.mark.parametrize(
    ("shown", "counted", "expected"),
    [
        (preview(6, exact=True), relation(0, 0), None),  # filled after the last ANALYZE
        (preview(0, exact=True), relation(0, 0), 0),
        (None, relation(0, 0), 0),
        (preview(6, exact=True), relation(6, 8192), 8192),
        (preview(6, exact=True), relation(None, None), None),
    ],
)
def test_bytes_of_a_relation(shown: Preview | None, counted: Relation, expected: int | None) -> None:
    assert bytes_of_relation(shown, counted) == expected


def test_every_field_has_a_name_in_words() -> None:
    form = form_of_query(relation(1), "id=gt.3&id=lt.9")
    assert [field_label(f"f{row.number}", form) for row in form.filters] == ["the filter on id"] * 2
    assert set(OPTIONS) | {"", "columns", "sort", "more"} <= set(FIELD_LABELS)
    assert field_label("limit", Form(relation(1))) == "Maximum rows"

"""How a plan is read: tables of EXPLAIN documents and catalogue facts, and the strategy for each. No database.

The EXPLAIN documents are those of PostgreSQL 18, reduced to the fields that are used.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from server.export.strategy import (
    FEWEST_BLOCKS,
    MOST_BYTES_OF_VALUES,
    MOST_TABLES,
    RANGE_BLOCKS,
    Candidates,
    Limits,
    Outline,
    Strategy,
    candidate_tables,
    make_strategy,
    outline,
    reads_in_order,
)
from server.postgres.explained import Explained, top_node
from server.postgres.reader import BATCH_ROWS
from server.query.catalogue import Column, Relation
from server.query.plan import ExportPlan, make_plan
from server.query.request import parse_export_request
from server.query.sql import Blocks

USERS = Relation(
    7,
    "public",
    "users",
    "table",
    False,
    (
        Column("id", "bigint", nullable=False, readable=True, indexed=True),
        Column("name", "text", nullable=True, readable=True, indexed=False),
        Column("at", "timestamp without time zone", nullable=True, readable=True, indexed=False),
        Column("data", "jsonb", nullable=True, readable=True, indexed=False),
        Column("said", "date_as_text", nullable=True, readable=True, indexed=False, base="text"),
    ),
    1000,
    8192,
)
Document = dict[str, Any]


def plan(query: str = "", kind: str = "table") -> ExportPlan:
    return make_plan(parse_export_request("users.csv", query), replace(USERS, kind=kind))


def seq_scan(name: str = "users", schema: str = "public", rows: int = 1000) -> Document:
    return {"Node Type": "Seq Scan", "Relation Name": name, "Schema": schema, "Alias": "source", "Plan Rows": rows}


def node(kind: str, *below: Document, **more: Any) -> Document:
    return {"Node Type": kind, "Plan Rows": 1000, **({"Plans": list(below)} if below else {}), **more}


# --- which tables are read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explained", "tables"),
    [
        (seq_scan(), [("public", "users")]),
        (seq_scan('odd, "name"', "and.schema"), [("and.schema", 'odd, "name"')]),
        # A filter stays in its scan.
        ({**seq_scan(), "Filter": "(source.id > 3)"}, [("public", "users")]),
        # ndjson: row_to_json is worked out above the scan, or in it.
        (node("Subquery Scan", seq_scan()), [("public", "users")]),
        (node("Subquery Scan", node("Subquery Scan", seq_scan())), [("public", "users")]),
        (node("Append", seq_scan("leaf_2"), seq_scan("leaf_1")), [("public", "leaf_2"), ("public", "leaf_1")]),
        (node("Subquery Scan", node("Append", seq_scan("a"), seq_scan("b"))), [("public", "a"), ("public", "b")]),
        # One leaf left by a filter: no Append above it.
        (seq_scan("leaf_2"), [("public", "leaf_2")]),
        (node("Append", *(seq_scan(f"leaf_{n}") for n in range(MOST_TABLES))), None),
    ],
)
@pytest.mark.parametrize("kind", ["table", "partitioned table", "materialized view"])
def test_sequential_scans_are_the_tables_in_their_order(
    explained: Document, tables: list[tuple[str, str]] | None, kind: str
) -> None:
    found = candidate_tables(plan(kind=kind), Explained(explained, FEWEST_BLOCKS))
    assert found == Candidates(tuple(tables or [("public", f"leaf_{n}") for n in range(MOST_TABLES)]))


@pytest.mark.parametrize(
    "select",
    [
        "id::text",
        "name::int",
        "data->a->>b",
        "data->>n::numeric",
        "at::date",
        "at::timestamptz",
        "name::interval",
        "*,name",
    ],
)
def test_parts_of_json_and_casts_are_read_by_ranges(select: str) -> None:
    made = plan(f"select={select}&data->>a=eq.b")
    assert candidate_tables(made, Explained(seq_scan(), FEWEST_BLOCKS)).tables == (("public", "users"),)


@pytest.mark.parametrize(
    "select", ["name::date", "id,x:name::timestamptz", "data->>a::timestamp", "name::time", "said::date"]
)
def test_text_that_is_cast_to_a_time_is_read_by_one_reader(select: str) -> None:
    """It may be `now` or `today`, which depend on when the transaction of the reader began."""
    found = candidate_tables(plan(f"select={select}"), Explained(seq_scan(), FEWEST_BLOCKS))
    assert found == Candidates(reason="a cast that may depend on the time")


REASONS: dict[str, tuple[ExportPlan, Document, str]] = {
    "one reader": (plan("parallel=1"), seq_scan(), "one reader was asked for"),
    "a sort": (plan("order=name"), node("Sort", seq_scan()), "sorted"),
    "a sort by an index": (plan("order=id"), node("Index Scan"), "sorted"),
    "a limit": (plan("limit=10"), node("Limit", seq_scan()), "limit or offset"),
    "no rows": (plan("limit=0"), node("Limit", seq_scan()), "limit or offset"),
    "an offset": (plan("offset=10"), node("Limit", seq_scan()), "limit or offset"),
    "a view": (plan(kind="view"), seq_scan(), "a view"),
    "a foreign table": (plan(kind="foreign table"), node("Foreign Scan"), "a foreign table"),
    "an index": (plan("id=eq.1"), node("Index Scan"), "PostgreSQL plans Index Scan"),
    "a bitmap": (
        plan("id=lt.9"),
        node("Bitmap Heap Scan", node("Bitmap Index Scan")),
        "PostgreSQL plans Bitmap Heap Scan",
    ),
    "an index on one leaf": (
        plan("id=eq.1", kind="partitioned table"),
        node("Append", seq_scan("a"), node("Index Scan"), seq_scan("c")),
        "PostgreSQL plans Index Scan",
    ),
    "a foreign leaf": (
        plan(kind="partitioned table"),
        node("Append", seq_scan("a"), node("Foreign Scan")),
        "PostgreSQL plans Foreign Scan",
    ),
    "no leaf": (plan(kind="partitioned table"), node("Result"), "PostgreSQL plans Result"),
    "a filter that is never true": (plan("id=in.()"), node("Result"), "PostgreSQL plans Result"),
    "a policy with a subquery": (
        plan(),
        node("Hash Join", seq_scan(), node("Hash", seq_scan("owners"))),
        "PostgreSQL plans Hash Join",
    ),
    "several processes": (plan(), node("Gather", seq_scan()), "PostgreSQL plans Gather"),
    "too many leaves": (
        plan(kind="partitioned table"),
        node("Append", *(seq_scan(f"leaf_{n}") for n in range(MOST_TABLES + 1))),
        f"more than {MOST_TABLES} tables",
    ),
}


@pytest.mark.parametrize(("wanted", "explained", "reason"), REASONS.values(), ids=REASONS)
def test_what_cannot_be_read_by_ranges_says_why(wanted: ExportPlan, explained: Document, reason: str) -> None:
    refused = candidate_tables(wanted, Explained(explained, FEWEST_BLOCKS))
    assert refused == Candidates(reason=reason)
    strategy = make_strategy(wanted, Explained(explained, FEWEST_BLOCKS), refused, [], Limits(4, 100))
    assert (len(strategy.ranges), strategy.readers, strategy.reason) == (0, 1, reason)
    assert strategy.name == ("cursor, parallel plan" if explained["Node Type"] == "Gather" else "cursor")


@pytest.mark.parametrize(("blocks", "found"), [(FEWEST_BLOCKS - 1, False), (FEWEST_BLOCKS, True)])
def test_facts_are_not_asked_for_about_small_tables(blocks: int, found: bool) -> None:
    candidates = candidate_tables(plan(), Explained(seq_scan(), blocks))
    assert candidates == (Candidates((("public", "users"),)) if found else Candidates(reason="small"))


@pytest.mark.parametrize(
    ("wanted", "in_order"),
    [
        (plan(), True),
        (plan("id=gt.1&limit=3"), True),
        (plan(kind="partitioned table"), True),
        (plan(kind="materialized view"), True),
        (plan(kind="view"), False),
        (plan(kind="foreign table"), False),
        (plan("order=id"), False),
    ],
)
def test_what_comes_as_it_lies_in_the_table(wanted: ExportPlan, in_order: bool) -> None:
    assert reads_in_order(wanted) is in_order


# --- the ranges --------------------------------------------------------------------------------------------------


def table(blocks: int, name: str = "users", **changes: Any) -> Document:
    """A row of the answer to FACTS: by default one that may be read by ranges."""
    row: Document = {
        "schema": "public",
        "name": name,
        "blocks": blocks,
        "heap": True,
        "readable": True,
        "row_security": False,
        "virtual": False,
        "shareable": True,
        "other_role": False,
    }
    assert changes.keys() <= row.keys()
    return row | changes


def strategy_of(*tables: Document, query: str = "", most_readers: int = 4, length: int = 100) -> Strategy:
    found = Candidates(tuple((table["schema"], table["name"]) for table in tables))
    return make_strategy(plan(query), Explained(seq_scan()), found, tables, Limits(most_readers, length))


@pytest.mark.parametrize(
    "sizes",
    [
        [FEWEST_BLOCKS],
        [FEWEST_BLOCKS + 1],
        [FEWEST_BLOCKS + RANGE_BLOCKS - 1],
        [FEWEST_BLOCKS, 1],
        [0, FEWEST_BLOCKS, 0],
        [1] * FEWEST_BLOCKS,
        [RANGE_BLOCKS + 1, 3 * FEWEST_BLOCKS - 7, RANGE_BLOCKS],
    ],
)
def test_the_ranges_are_every_block_once_and_in_order(sizes: list[int]) -> None:
    strategy = strategy_of(*(table(blocks, f"leaf {number}") for number, blocks in enumerate(sizes)))
    assert (strategy.name, strategy.reason) == ("cursor, block ranges", "")
    blocks = [(part.schema, part.name, block) for part in strategy.ranges for block in range(part.first, part.end)]
    assert blocks == [("public", f"leaf {number}", block) for number, size in enumerate(sizes) for block in range(size)]
    assert {part.end - part.first for part in strategy.ranges} <= set(range(1, RANGE_BLOCKS + 1))


def test_ranges_are_whole_but_for_the_last() -> None:
    assert list(strategy_of(table(FEWEST_BLOCKS + 1)).ranges) == [
        Blocks("public", "users", first, min(first + RANGE_BLOCKS, FEWEST_BLOCKS + 1))
        for first in range(0, FEWEST_BLOCKS + 1, RANGE_BLOCKS)
    ]


LARGE = 10 * FEWEST_BLOCKS


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ([table(FEWEST_BLOCKS - 1)], "small"),
        ([table(0)], "small"),
        ([], "small"),
        ([table(FEWEST_BLOCKS // 2, "a"), table(FEWEST_BLOCKS // 2 - 1, "b")], "small"),
        ([table(LARGE, heap=False)], "not a plain heap table"),
        # Gone since it was planned: nothing is known of it.
        ([table(LARGE), table(0, "gone", heap=None, readable=None)], "not a plain heap table"),
        ([table(LARGE, "a"), table(LARGE, "b", heap=False)], "not a plain heap table"),
        ([table(LARGE, row_security=True)], "row-level security"),
        ([table(LARGE, "a"), table(LARGE, "b", row_security=True)], "row-level security"),
        ([table(LARGE, other_role=True)], "another role than the one that connected"),
        ([table(LARGE, readable=False)], "a partition or column that the role may not read by itself"),
        (
            [table(LARGE, "a"), table(1, "b", readable=False)],
            "a partition or column that the role may not read by itself",
        ),
    ],
)
def test_tables_that_are_not_read_by_ranges(tables: list[Document], reason: str) -> None:
    strategy = strategy_of(*tables)
    assert (strategy.name, strategy.readers, strategy.reason) == ("cursor", 1, reason)


def test_many_values_are_not_sent_for_each_range() -> None:
    assert strategy_of(table(LARGE), length=MOST_BYTES_OF_VALUES).reason == ""
    assert strategy_of(table(LARGE), length=MOST_BYTES_OF_VALUES + 1).reason == "a long query"


@pytest.mark.parametrize(
    ("most", "asked", "blocks", "readers"),
    [
        (4, "", LARGE, 4),
        (2, "", LARGE, 2),
        (4, "parallel=2", LARGE, 2),
        (2, "parallel=64", LARGE, 2),
        (3, "parallel=3", LARGE, 3),
        # No more than there are ranges.
        (64, "", FEWEST_BLOCKS, FEWEST_BLOCKS // RANGE_BLOCKS),
        (64, "parallel=64", FEWEST_BLOCKS + 1, FEWEST_BLOCKS // RANGE_BLOCKS + 1),
    ],
)
def test_as_many_readers_as_asked_for_and_allowed(most: int, asked: str, blocks: int, readers: int) -> None:
    strategy = strategy_of(table(blocks), query=asked, most_readers=most)
    assert (strategy.name, strategy.readers) == ("cursor, block ranges", readers)


def test_a_server_of_one_reader_reads_no_ranges() -> None:
    strategy = strategy_of(table(LARGE), most_readers=1)
    assert (len(strategy.ranges), strategy.readers, strategy.reason) == (0, 1, "PARALLEL_READERS is 1")


def test_the_pure_python_encoder_reads_no_ranges() -> None:
    found = Candidates((("public", "users"),))
    strategy = make_strategy(plan(), Explained(seq_scan()), found, [table(LARGE)], Limits(4, 100, native=False))
    assert (len(strategy.ranges), strategy.readers) == (0, 1)
    assert strategy.reason == "the pure-Python encoder is in use"


@pytest.mark.parametrize("rows", [0, 1, 10**12])
def test_the_estimate_is_the_planner_s(rows: int) -> None:
    strategy = make_strategy(plan(), Explained(seq_scan(rows=rows)), Candidates(reason="small"), [], Limits(4, 1))
    assert strategy.estimated_rows == rows


# --- what a user is told ------------------------------------------------------------------------------------------


def outlined(plan: ExportPlan, withheld: str, explained: Document | None = None, *, ranges: bool = False) -> Outline:
    """Return the outline of a plan of 1,000 rows that is read by ranges, or not since the table is small."""
    found = Explained(seq_scan() if explained is None else explained, withheld=withheld)
    candidates = Candidates((("public", "users"),)) if ranges else Candidates(reason="small")
    return outline(plan, found, make_strategy(plan, found, candidates, [table(LARGE)] if ranges else [], Limits(4, 1)))


def some_readable(query: str = "select=id") -> ExportPlan:
    """Return a plan of a relation of which the role may not read all columns."""
    hidden = Column("secret", "", nullable=True, readable=False, indexed=False)
    return make_plan(parse_export_request("users.csv", query), replace(USERS, columns=(*USERS.columns, hidden)))


def test_a_strategy_that_may_be_told_is_told() -> None:
    assert outlined(plan(), "") == Outline("cursor", 1, 0, "small", 1000)
    ranges = -(-LARGE // RANGE_BLOCKS)
    assert outlined(plan(), "", ranges=True) == Outline("cursor, block ranges", min(4, ranges), ranges, "", 1000)
    parallel = node("Gather", seq_scan())
    assert outlined(plan(kind="view"), "", parallel) == Outline("cursor, parallel plan", 1, 0, "small", 1000)


@pytest.mark.parametrize(
    ("query", "kind", "reason"),
    [
        ("", "table", "row-level security"),
        ("", "view", "a view"),
        ("order=id", "table", "sorted"),
        ("limit=3", "table", "limit or offset"),
        ("parallel=1", "table", "one reader was asked for"),
    ],
)
@pytest.mark.parametrize("explained", [seq_scan(), node("Gather", seq_scan()), node("Index Scan")])
def test_what_is_withheld_depends_on_the_request_alone(query: str, kind: str, reason: str, explained: Document) -> None:
    told = outlined(plan(query, kind), "row-level security", explained)
    assert told == Outline("cursor", 1, 0, reason, None)


def test_nothing_is_told_of_a_plan_of_which_nobody_has_asked() -> None:
    explained = Explained(seq_scan())
    strategy = make_strategy(plan(), explained, Candidates(reason="small"), [], Limits(4, 1))
    assert outline(plan(), explained, strategy).estimated_rows is None


def test_a_choice_that_depends_on_unreadable_columns_is_not_told_but_the_rows_are() -> None:
    unreadable = "a partition or column that the role may not read by itself"
    for explained in (seq_scan(), node("Gather", seq_scan())):
        assert outlined(some_readable(), "", explained) == Outline("cursor", 1, 0, unreadable, 1000)
        assert outlined(some_readable("select=id&order=id"), "", explained).reason == "sorted"
    # The partitions themselves are readable whole.
    assert outlined(some_readable(), "", ranges=True).name == "cursor, block ranges"


# --- batches of the whole query ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explained", "name", "batches"),
    [
        (seq_scan(rows=0), "cursor", 1),
        (seq_scan(rows=BATCH_ROWS - 1), "cursor", 1),
        # One ahead, so that the server does not wait for a round trip after the first.
        (seq_scan(rows=BATCH_ROWS), "cursor", 2),
        (seq_scan(rows=10**12), "cursor", 2),
        # With a row limit PostgreSQL would run these plans without workers.
        (node("Gather", seq_scan()), "cursor, parallel plan", 0),
        (node("Gather Merge", node("Sort", seq_scan())), "cursor, parallel plan", 0),
        (node("Aggregate", node("Gather", node("Aggregate", seq_scan()))), "cursor, parallel plan", 0),
        (node("Append", seq_scan("a"), node("Gather", seq_scan("b"))), "cursor, parallel plan", 0),
    ],
)
def test_a_parallel_plan_is_executed_as_a_whole_and_any_other_in_batches(
    explained: Document, name: str, batches: int
) -> None:
    strategy = make_strategy(plan(kind="view"), Explained(explained), Candidates(reason="a view"), [], Limits(4, 1))
    assert (strategy.name, strategy.batches) == (name, batches)


def test_nothing_that_grows_with_the_filters_is_kept_of_a_plan() -> None:
    kept = {"Node Type": "Seq Scan", "Relation Name": "users", "Schema": "public", "Plan Rows": 5}
    part = kept | {"Filter": "(t <> ALL ('{a,b}'::text[]))", "Output": ["t"]}
    node = {"Node Type": "Append", "Plan Rows": 10, "Plans": [part, part], "Subplans Removed": 3}
    text = json.dumps([{"Plan": node, "Settings": {}}])
    assert top_node(text) == {"Node Type": "Append", "Plan Rows": 10, "Plans": [kept, kept]}

"""How a plan is read: by one reader, or by several readers that each take ranges of a table's blocks.

Decides from PostgreSQL's plan of the whole query and from facts about the tables that it would scan. Pure: runs
nothing and knows no connection.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from server.postgres.explained import Explained
from server.postgres.reader import BATCH_ROWS
from server.query.columns import casts_to_time
from server.query.filters import conditions_of
from server.query.plan import ExportPlan
from server.query.sql import Blocks

# Blocks of one range: 2 MB with blocks of 8 kB. Measured in docs/performance.md.
RANGE_BLOCKS = 256
# Blocks of all tables together, 8 MB. One reader reads fewer of them before others have connected.
FEWEST_BLOCKS = 1024
# Tables of one export. Each reader locks all of them, and the server's lock table is limited.
MOST_TABLES = 256
# Bytes of the values, which are sent and planned again for each range.
MOST_BYTES_OF_VALUES = 8 << 10

# Date and time values that depend on the transaction's start, which differs between readers (PostgreSQL manual,
# "Date/Time Types", "Special Values"). They may stand in arrays and ranges too. Text that merely contains such a word
# costs only time. The text of a row that is cast may hold such a word too.
_RELATIVE = re.compile("now|today|tomorrow|yesterday", re.IGNORECASE)

# The name of the strategy of one reader without a parallel plan.
_CURSOR = "cursor"
# Why a table is not read by ranges, where the role may read only some of it.
_UNREADABLE = "a partition or column that the role may not read by itself"

# Facts about each table that the whole query would scan, in the order of the scans. Parameters: the schemas and the
# names of the tables, the OID of the requested relation. They are as of now, so later than the snapshot: no row in the
# snapshot lies beyond `blocks`. If the requested relation is the parent of these tables, its policies and the
# expressions of its virtual columns apply, and not theirs.
FACTS = """
SELECT
    wanted.schema,
    wanted.name,
    pg_catalog.pg_relation_size(c.oid)
        OPERATOR(pg_catalog./) pg_catalog.current_setting('block_size')::bigint AS blocks,
    c.relkind OPERATOR(pg_catalog.=) ANY ('{r,m}') AND am.amname OPERATOR(pg_catalog.=) 'heap' AS heap,
    pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS readable,
    pg_catalog.row_security_active(c.oid) OR pg_catalog.row_security_active($3::pg_catalog.oid) AS row_security,
    c.oid OPERATOR(pg_catalog.<>) $3::pg_catalog.oid AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attgenerated OPERATOR(pg_catalog.=) 'v'
          AND NOT a.attisdropped
    ) AS virtual,
    current_user OPERATOR(pg_catalog.<>) session_user AS other_role,
    pg_catalog.has_function_privilege('pg_catalog.pg_export_snapshot()', 'EXECUTE') AS shareable
FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]))
    WITH ORDINALITY AS wanted (schema, name, position)
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname OPERATOR(pg_catalog.=) wanted.schema
LEFT JOIN pg_catalog.pg_class AS c
    ON c.relnamespace OPERATOR(pg_catalog.=) n.oid AND c.relname OPERATOR(pg_catalog.=) wanted.name
LEFT JOIN pg_catalog.pg_am AS am ON am.oid OPERATOR(pg_catalog.=) c.relam
ORDER BY wanted.position
"""


class BlockRanges(Sequence[Blocks]):
    """The ranges of some tables, in the order of the tables. Made on access: there may be a million."""

    def __init__(self, tables: Sequence[tuple[str, str, int]] = ()) -> None:
        """tables: schema, name and number of blocks of each."""
        self._tables = tables
        self._ends = list(itertools.accumulate(-(-blocks // RANGE_BLOCKS) for _, _, blocks in tables))

    @property
    def tables(self) -> list[tuple[str, str]]:
        """Schema and name of each table."""
        return [(schema, name) for schema, name, _ in self._tables]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> Blocks: ...

    @overload
    def __getitem__(self, number: slice) -> list[Blocks]: ...

    def __getitem__(self, number: int | slice) -> Blocks | list[Blocks]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(number)
        at = bisect.bisect_right(self._ends, number)
        schema, name, blocks = self._tables[at]
        first = (number - (self._ends[at - 1] if at else 0)) * RANGE_BLOCKS
        return Blocks(schema, name, first, min(first + RANGE_BLOCKS, blocks))


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a plan is read. ranges: in the order of the file; empty if one reader runs the whole query.

    readers: the most that are useful. estimated_rows: the planner's estimate. parallel_plan: whether workers of
    PostgreSQL take part. reason: why the plan is not read by ranges; the empty string if it is.
    """

    ranges: BlockRanges
    readers: int
    estimated_rows: int
    parallel_plan: bool
    reason: str

    @property
    def name(self) -> str:
        """The name of the strategy in the log and the API."""
        if self.ranges:
            return "cursor, block ranges"
        return "cursor, parallel plan" if self.parallel_plan else _CURSOR

    @property
    def batches(self) -> int:
        """How many batches of the whole query to ask for at once, 0 to execute it as a whole: see `rows.Select`.

        With a row limit PostgreSQL would run a parallel plan without its workers.
        """
        if self.parallel_plan:
            return 0
        return 1 if self.estimated_rows < BATCH_ROWS else 2


@dataclass(frozen=True, slots=True)
class Outline:
    """What a user may be told of a strategy. The fields are those of Strategy. ranges: how many.

    estimated_rows: None if it would tell about rows that the role may not see.
    """

    name: str
    readers: int
    ranges: int
    reason: str
    estimated_rows: int | None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tables, by schema and name, that may be read by ranges of blocks.

    reason: why there are none; the empty string if there are some.
    """

    tables: tuple[tuple[str, str], ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a strategy.

    readers: the most for one export. bytes_of_values: of the parameters of the whole query. native: whether the native
    encoder reads; threads of the pure-Python encoder would only wait for one another.
    """

    readers: int
    bytes_of_values: int
    native: bool = True


def reads_in_order(plan: ExportPlan) -> bool:
    """Return whether the whole query returns rows in the table's physical order, if no parallel worker reads them."""
    return plan.relation.kind in ("table", "partitioned table", "materialized view") and not plan.order


def candidate_tables(plan: ExportPlan, explained: Explained) -> Candidates:
    """Return the tables whose blocks hold all rows of the plan, or why its rows cannot be read by ranges of blocks."""
    reason = _reason_in_plan(plan)
    if reason:
        return Candidates(reason=reason)
    scans = explained.scans()
    others = {scan["Node Type"] for scan in scans} - {"Seq Scan"}
    if others:
        return Candidates(reason=f"PostgreSQL plans {min(others)}")
    if len(scans) > MOST_TABLES:
        return Candidates(reason=f"more than {MOST_TABLES} tables")
    if explained.blocks < FEWEST_BLOCKS:
        return Candidates(reason="small")
    return Candidates(tuple((scan["Schema"], scan["Relation Name"]) for scan in scans))


def _reason_in_plan(plan: ExportPlan) -> str:
    if plan.parallel == 1:
        return "one reader was asked for"
    if not reads_in_order(plan):
        return "sorted" if plan.order else f"a {plan.relation.kind}"
    if plan.limit is not None or plan.offset:
        return "limit or offset"
    if any(_RELATIVE.search(value) for condition in conditions_of(plan.filters) for value in condition.values):
        return "a value that may depend on the time"
    if any(casts_to_time(output.field, plan.relation) for output in plan.columns):
        return "a cast that may depend on the time"
    return ""


def make_strategy(
    plan: ExportPlan,
    explained: Explained,
    candidates: Candidates,
    facts: Sequence[Mapping[str, Any]],
    limits: Limits,
) -> Strategy:
    """Return the strategy for this plan. facts: the rows of FACTS for the candidates, none without candidates."""
    reason = candidates.reason or _reason_in_facts(facts, limits)
    ranges = BlockRanges()
    if not reason:
        ranges = BlockRanges([(table["schema"], table["name"], table["blocks"]) for table in facts])
    readers = min(limits.readers, plan.parallel or limits.readers, len(ranges)) if ranges else 1
    return Strategy(ranges, readers, explained.rows, explained.parallel, reason)


def outline(plan: ExportPlan, explained: Explained, strategy: Strategy) -> Outline:
    """Return what the user may be told.

    Where the role may not read everything that PostgreSQL's choice rests on, that depends on the request alone.
    """
    hidden = explained.withheld
    if not (hidden or strategy.ranges or all(column.readable for column in plan.relation.columns)):
        hidden = _UNREADABLE
    estimated = None if explained.withheld else strategy.estimated_rows
    if hidden:
        return Outline(_CURSOR, 1, 0, _reason_in_plan(plan) or hidden, estimated)
    return Outline(strategy.name, strategy.readers, len(strategy.ranges), strategy.reason, estimated)


def _reason_in_facts(tables: Sequence[Mapping[str, Any]], limits: Limits) -> str:
    if not limits.native:
        return "the pure-Python encoder is in use"
    if limits.readers == 1:
        return "PARALLEL_READERS is 1"
    if any(not table["heap"] for table in tables):
        return "not a plain heap table"
    if any(table["row_security"] for table in tables):
        return "row-level security"
    if any(table["virtual"] for table in tables):
        return "virtual generated columns"
    if any(table["other_role"] for table in tables):
        return "another role than the one that connected"
    if any(not table["shareable"] for table in tables):
        return "the role may not export a snapshot"
    if any(not table["readable"] for table in tables):
        return _UNREADABLE
    if sum(table["blocks"] for table in tables) < FEWEST_BLOCKS:
        return "small"
    if limits.bytes_of_values > MOST_BYTES_OF_VALUES:
        return "a long query"
    return ""

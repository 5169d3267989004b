"""What there is to export: relations and columns that the database role may SELECT, read from pg_catalog.

Holds the catalogue's query and turns its rows into values. Nothing is cached: every export asks anew inside
its own transaction, so a change by DDL is seen at once. Runs no query itself and knows nothing of HTTP.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import RelationNotFound

# PostgreSQL manual, "pg_class", relkind.
KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
}


@dataclass(frozen=True, slots=True)
class RelationName:
    """A relation as a user writes it; without a schema, the first of EXPORT_SCHEMAS that has it."""

    name: str
    schema: str | None = None

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column in table order. type: as format_type gives it.

    readable: the role may SELECT it; None where the relation has just gone. indexed: it leads an index, so that a
    filter or sort on it may be quick. values: the labels of an enum in their order, None for other types.
    """

    name: str
    type: str
    nullable: bool
    readable: bool | None
    indexed: bool
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation that may be exported. estimated_rows, bytes: as of the last ANALYZE or VACUUM, in its storage.

    toast_bytes: values kept out of line. All three are None where unknown: views, foreign tables.
    """

    oid: int
    schema: str
    name: str
    kind: str
    is_partition: bool
    columns: tuple[Column, ...]
    estimated_rows: int | None
    bytes: int | None
    toast_bytes: int | None


# One row a relation; its columns travel as one JSON document. Sizes come from pg_class, summed over the
# partitions and children that a SELECT reads: the size functions wait for locks, and a list must not hang
# behind somebody's ALTER TABLE. The privilege functions see the role of this session.
_RELATIONS = """
SELECT
    c.oid::bigint AS oid,
    n.nspname::text AS schema,
    c.relname::text AS name,
    c.relkind::text AS kind,
    c.relispartition AS is_partition,
    storage.estimated_rows,
    storage.bytes,
    storage.toast_bytes,
    {columns} AS columns
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    -- Two ways, since the planner takes any tree for a hundred relations, and reads all of pg_class for each.
    SELECT {storage}
    FROM pg_class AS leaf
    LEFT JOIN pg_class AS toast ON toast.oid = leaf.reltoastrelid
    WHERE NOT c.relhassubclass AND leaf.oid = c.oid AND leaf.relkind IN ('r', 'm')
    HAVING NOT c.relhassubclass
    UNION ALL
    (WITH RECURSIVE tree (relid) AS (
        SELECT c.oid WHERE c.relhassubclass
        UNION ALL
        SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = relid
    )
    SELECT {storage}
    FROM tree
    JOIN pg_class AS leaf ON leaf.oid = tree.relid AND leaf.relkind IN ('r', 'm')
    LEFT JOIN pg_class AS toast ON toast.oid = leaf.reltoastrelid
    WHERE c.relhassubclass
    HAVING c.relhassubclass)
) AS storage
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname = ANY (%(schemas)s)
  AND has_schema_privilege(n.oid, 'USAGE')
  AND (has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT'))
"""

_STORAGE = """
        CASE WHEN bool_and(leaf.reltuples >= 0) THEN sum(leaf.reltuples) END::float8 AS estimated_rows,
        sum((leaf.relpages + coalesce(toast.relpages, 0))::bigint * current_setting('block_size')::bigint)::bigint
            AS bytes,
        sum({toast_bytes})::bigint AS toast_bytes
"""
_COLUMNS = """(SELECT coalesce(json_agg(json_build_array(
                a.attname,
                format_type(a.atttypid, a.atttypmod),
                NOT a.attnotnull,
                has_column_privilege(c.oid, a.attnum, 'SELECT'),
                EXISTS (SELECT FROM pg_index AS i
                        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indkey[0] = a.attnum),
                (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder)
                 FROM pg_enum AS e WHERE e.enumtypid = a.atttypid)) ORDER BY a.attnum), '[]')
     FROM pg_attribute AS a
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)::text"""
_IN_CATALOGUE = _STORAGE.format(
    toast_bytes="coalesce(toast.relpages, 0)::bigint * current_setting('block_size')::bigint"
)
# Without the cast to text a name of more than 63 bytes would be cut and find a shorter one.
_BY_NAME = "AND c.relname = %(name)s::text ORDER BY array_position(%(schemas)s, n.nspname::text) LIMIT 1"
# Partitions last: there may be hundreds, and most people want their parent.
_IN_ORDER = "ORDER BY c.relispartition, array_position(%(schemas)s, n.nspname::text), c.relname"

LIST_RELATIONS = _RELATIONS.format(columns=_COLUMNS, storage=_IN_CATALOGUE) + _IN_ORDER
# Of a thousand relations their columns take four fifths of the time, and a list of names shows none.
LIST_WITHOUT_COLUMNS = _RELATIONS.format(columns="'[]'::text", storage=_IN_CATALOGUE) + _IN_ORDER
DESCRIBE_RELATION = _RELATIONS.format(columns=_COLUMNS, storage=_IN_CATALOGUE) + _BY_NAME
# The size that counts for memory is the true one; an export is about to wait for the same lock anyway.
FIND_RELATION = (
    _RELATIONS.format(columns=_COLUMNS, storage=_STORAGE.format(toast_bytes="coalesce(pg_relation_size(toast.oid), 0)"))
    + _BY_NAME
)

# The names alone, to suggest one where a name was misspelt; few enough to compare while others wait.
LIST_NAMES = """
SELECT c.relname::text AS name
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname = ANY (%(schemas)s)
  AND has_schema_privilege(n.oid, 'USAGE')
  AND has_table_privilege(c.oid, 'SELECT')
LIMIT 300
"""


def schemas_to_search(wanted: RelationName, export_schemas: Sequence[str]) -> list[str]:
    """The schemas, in order, in which this name may be looked up; none where it names one not exported."""
    if wanted.schema is None:
        return list(export_schemas)
    return [wanted.schema] if wanted.schema in export_schemas else []


def relation_from_row(row: Mapping[str, Any]) -> Relation:
    """A row of LIST_RELATIONS or FIND_RELATION as a value."""
    estimated = row["estimated_rows"]
    return Relation(
        oid=row["oid"],
        schema=row["schema"],
        name=row["name"],
        kind=KINDS[row["kind"]],
        is_partition=row["is_partition"],
        columns=tuple(
            Column(*column[:5], *(tuple(values) for values in column[5:] if values is not None))
            for column in json.loads(row["columns"])
        ),
        estimated_rows=None if estimated is None else int(estimated),
        bytes=row["bytes"],
        toast_bytes=row["toast_bytes"],
    )


def relation_not_found(wanted: RelationName, known_names: Sequence[str]) -> RelationNotFound:
    """The error for a relation that is not there or may not be read, with the nearest names as a hint."""
    near = difflib.get_close_matches(wanted.name[:64], known_names, n=3)
    hint = "Did you mean " + " or ".join(near) + "?" if near else "The page at / lists the relations there are."
    return RelationNotFound(f'There is no relation "{str(wanted)[:130]}" that may be exported.', hint=hint)

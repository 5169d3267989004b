"""The relations and columns that the database role may SELECT: queries on pg_catalog, and their rows as values.

Nothing is cached: every export looks its relation up inside its own transaction and so sees DDL at once. Runs no query
itself and knows nothing of HTTP. Every function, operator, type and table is named with its schema: see `sql.py`.
Sources: PostgreSQL manual, "System Catalogs", "Access Privilege Inquiry Functions".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.query.operators import FIRST_OF_OTHERS, OtherType

# PostgreSQL manual, "pg_class", relkind.
KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
}
# Characters of a relation's name in a message or the log: two names of 63 bytes, a dot and some quotes.
LONGEST_RELATION_NAME = 130
# Characters of a comment. PostgreSQL takes a gigabyte, and the list of relations holds all comments.
LONGEST_COMMENT = 5_000


@dataclass(frozen=True, slots=True)
class RelationName:
    """A relation as a user names it. schema: None for the first of EXPORT_SCHEMAS that has such a relation."""

    name: str
    schema: str | None = None

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a relation.

    type: as format_type() writes it. readable: whether the role may SELECT it; None if the relation was dropped
    meanwhile. indexed: whether it is the first column of an index, so that filtering or sorting by it may be fast.
    values: the labels of an enum in sort order, None for other types. base: the type under a domain, as format_type()
    writes it, None for other types. built_in: whether the type is PostgreSQL's own. other: what filters need of it, or
    of the base, if it is not; None if no filter is on the column. Of a column that the role may not read, only the name
    is kept.
    """

    name: str
    type: str
    nullable: bool
    readable: bool | None
    indexed: bool
    values: tuple[str, ...] | None = None
    base: str | None = None
    built_in: bool = True
    other: OtherType | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation that may be exported.

    kind: one of the values of KINDS. columns: in table order. estimated_rows, bytes: rows and size on disk as of the
    last VACUUM or ANALYZE, partitions included. Both are None where PostgreSQL does not know them: for views, foreign
    tables, and tables not yet analyzed. They are None too where they cover rows that a policy hides from the role, and
    the size where it covers columns that the role may not read. They and the comment are None where only the columns
    were asked for. also_in: the further schemas that were searched and have a relation of this name, in search order;
    empty unless it was looked up by its name alone. comment: of COMMENT ON, its first LONGEST_COMMENT characters.
    """

    oid: int
    schema: str
    name: str
    kind: str
    is_partition: bool
    columns: tuple[Column, ...]
    estimated_rows: int | None
    bytes: int | None
    also_in: tuple[str, ...] = ()
    comment: str | None = None


# One row per relation, with its columns as one JSON document. The privilege functions check the role of the session.
_RELATIONS = """
SELECT
    c.oid::bigint AS oid,
    n.nspname::pg_catalog.text AS schema,
    c.relname::pg_catalog.text AS name,
    c.relkind::pg_catalog.text AS kind,
    c.relispartition AS is_partition,
    {statistics},
    {columns} AS columns, {also_in} AS also_in, {has_domains} AS has_domains
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
{storage}
WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{{r,p,v,m,f}}')
  AND n.nspname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[])
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND (pg_catalog.has_table_privilege(c.oid, 'SELECT') OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT'))
"""

# A table that was never vacuumed or analyzed has -1 rows and 0 pages, whatever its size. If a tree also has tables that
# were, its size is theirs: the others are mostly partitions for a time to come.
_SIZES = """
        CASE WHEN pg_catalog.bool_and(leaf.reltuples OPERATOR(pg_catalog.>=) 0)
            THEN pg_catalog.sum(leaf.reltuples)
        END::pg_catalog.float8 AS estimated_rows,
        CASE WHEN pg_catalog.bool_or(leaf.reltuples OPERATOR(pg_catalog.>=) 0) THEN
            pg_catalog.sum((leaf.relpages OPERATOR(pg_catalog.+) coalesce(toast.relpages, 0))::bigint
                OPERATOR(pg_catalog.*) pg_catalog.current_setting('block_size')::bigint)
        END::bigint AS bytes
"""
# Sizes come from pg_class, summed over the partitions and children that a SELECT reads: the size functions wait for
# locks, and a list must not wait for an ALTER TABLE.
# They cover the rows that a policy hides from the role, and the size also the columns that it may not read.
_STATISTICS = f"""CASE WHEN NOT pg_catalog.row_security_active(c.oid) THEN storage.estimated_rows END AS estimated_rows,
    CASE WHEN NOT pg_catalog.row_security_active(c.oid)
        AND pg_catalog.has_table_privilege(c.oid, 'SELECT'::pg_catalog.text) THEN storage.bytes END AS bytes,
    pg_catalog.left(d.description, {LONGEST_COMMENT}) AS comment"""
_NO_STATISTICS = "NULL::pg_catalog.float8 AS estimated_rows, NULL::bigint AS bytes, NULL::pg_catalog.text AS comment"
_STORAGE = f"""
LEFT JOIN pg_catalog.pg_description AS d ON d.objoid OPERATOR(pg_catalog.=) c.oid
    AND d.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
    AND d.objsubid OPERATOR(pg_catalog.=) 0
CROSS JOIN LATERAL (
    -- Two branches, because the planner expects a hundred relations in any tree and would scan pg_class for each.
    SELECT {_SIZES.strip()}
    FROM pg_catalog.pg_class AS leaf
    LEFT JOIN pg_catalog.pg_class AS toast ON toast.oid OPERATOR(pg_catalog.=) leaf.reltoastrelid
    WHERE NOT c.relhassubclass AND leaf.oid OPERATOR(pg_catalog.=) c.oid
      AND leaf.relkind OPERATOR(pg_catalog.=) ANY ('{{r,m}}')
    HAVING NOT c.relhassubclass
    UNION ALL
    (WITH RECURSIVE tree (relid) AS (
        SELECT c.oid WHERE c.relhassubclass
        UNION ALL
        SELECT inhrelid FROM pg_catalog.pg_inherits JOIN tree ON inhparent OPERATOR(pg_catalog.=) relid
    )
    SELECT {_SIZES.strip()}
    FROM tree
    JOIN pg_catalog.pg_class AS leaf ON leaf.oid OPERATOR(pg_catalog.=) tree.relid
        AND leaf.relkind OPERATOR(pg_catalog.=) ANY ('{{r,m}}')
    LEFT JOIN pg_catalog.pg_class AS toast ON toast.oid OPERATOR(pg_catalog.=) leaf.reltoastrelid
    WHERE c.relhassubclass
    HAVING c.relhassubclass)
) AS storage"""
# The type under a domain, or under a domain of domains. PostgreSQL's own types with lower OIDs are no domains, and to
# look them up would only take time.
_BASE = f"""CASE WHEN a.atttypid OPERATOR(pg_catalog.>=) {FIRST_OF_OTHERS} THEN (
                    WITH RECURSIVE layer (type, modifier, is_domain) AS (
                        SELECT oid, NULL::integer, true
                        FROM pg_catalog.pg_type
                        WHERE oid OPERATOR(pg_catalog.=) a.atttypid AND typtype OPERATOR(pg_catalog.=) 'd'
                        UNION ALL
                        SELECT b.oid, d.typtypmod, b.typtype OPERATOR(pg_catalog.=) 'd'
                        FROM layer
                        JOIN pg_catalog.pg_type AS d ON d.oid OPERATOR(pg_catalog.=) type
                        JOIN pg_catalog.pg_type AS b ON b.oid OPERATOR(pg_catalog.=) d.typbasetype
                        WHERE is_domain
                    )
                    SELECT pg_catalog.format_type(type, modifier) FROM layer WHERE NOT is_domain
                ) END"""
_COLUMNS = f"""(SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(
                a.attname,
                pg_catalog.format_type(a.atttypid, a.atttypmod),
                NOT a.attnotnull,
                pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'),
                EXISTS (SELECT FROM pg_catalog.pg_index AS i
                        WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisvalid
                          AND i.indkey[0] OPERATOR(pg_catalog.=) a.attnum),
                (SELECT pg_catalog.json_agg(e.enumlabel ORDER BY e.enumsortorder)
                 FROM pg_catalog.pg_enum AS e WHERE e.enumtypid OPERATOR(pg_catalog.=) a.atttypid),
                {{base}},
                a.atttypid OPERATOR(pg_catalog.>=) {FIRST_OF_OTHERS}) ORDER BY a.attnum), '[]')
     FROM pg_catalog.pg_attribute AS a
     WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
     )::pg_catalog.text"""
# The place of a schema among those that are searched.
_PLACE = "pg_catalog.array_position($1::pg_catalog.text[], {schema}.nspname::pg_catalog.text)"
# The other schemas that have such a relation, only if it could be exported, in search order.
_ALSO_IN = f"""(SELECT coalesce(pg_catalog.json_agg(o.nspname ORDER BY {_PLACE.format(schema="o")}), '[]')
     FROM pg_catalog.pg_class AS same
     JOIN pg_catalog.pg_namespace AS o ON o.oid OPERATOR(pg_catalog.=) same.relnamespace
     WHERE same.relname OPERATOR(pg_catalog.=) c.relname
       AND same.oid OPERATOR(pg_catalog.<>) c.oid
       AND same.relkind OPERATOR(pg_catalog.=) ANY ('{{r,p,v,m,f}}')
       AND o.nspname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[])
       AND pg_catalog.has_schema_privilege(o.oid, 'USAGE')
       AND (pg_catalog.has_table_privilege(same.oid, 'SELECT')
            OR pg_catalog.has_any_column_privilege(same.oid, 'SELECT')))::pg_catalog.text"""
# Without the cast to text, a name of more than 63 bytes would be truncated and match a shorter one.
_BY_NAME = f"AND c.relname OPERATOR(pg_catalog.=) $2::pg_catalog.text ORDER BY {_PLACE.format(schema='n')} LIMIT 1"
# Partitions come last: there may be hundreds, and most users want the parent.
_IN_ORDER = f"ORDER BY c.relispartition, {_PLACE.format(schema='n')}, c.relname"

# Whether a column has a domain, so that its base type has to be looked up.
_HAS_DOMAINS = f"""EXISTS (SELECT
     FROM pg_catalog.pg_attribute AS a
     JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
     WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0
       AND a.atttypid OPERATOR(pg_catalog.>=) {FIRST_OF_OTHERS} AND t.typtype OPERATOR(pg_catalog.=) 'd')"""


def _relations(
    *, columns: str = _COLUMNS.format(base=_BASE), statistics: bool = True, also_in: bool = False, domains: bool = False
) -> str:
    return _RELATIONS.format(
        columns=columns,
        statistics=_STATISTICS if statistics else _NO_STATISTICS,
        storage=_STORAGE if statistics else "",
        also_in=_ALSO_IN if also_in else "'[]'::pg_catalog.text",
        has_domains=_HAS_DOMAINS if domains else "NULL::boolean",
    )


# Parameter: $1, the schemas.
LIST_RELATIONS = _relations() + _IN_ORDER
# Columns take four fifths of the query's time (measured with 1,000 relations), and a list of names shows none.
LIST_WITHOUT_COLUMNS = _relations(columns="'[]'::pg_catalog.text") + _IN_ORDER
# Parameters: $1, the schemas in search order; $2, the name. By whether there are several schemas: to look for the name
# in others takes a tenth of the query's time.
DESCRIBE_RELATION = {several: _relations(also_in=several) + _BY_NAME for several in (False, True)}
# The same in half the time, without the statistics and the comment, and without the base types of domains: if
# `has_domains`, DESCRIBE_RELATION has them.
FIND_RELATION = {
    several: _relations(columns=_COLUMNS.format(base="NULL"), statistics=False, also_in=several, domains=True)
    + _BY_NAME
    for several in (False, True)
}

# The columns whose names contain a word, three of each relation and word. Partitions are left out: they have the
# columns of their parent. Parameters: $1, the schemas; $2, the words in lower case.
MATCHING_COLUMNS = """
SELECT
    c.oid::bigint AS oid,
    word.word,
    pg_catalog.to_json((pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY a.attnum))[1:3]) AS columns
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
JOIN pg_catalog.unnest($2::pg_catalog.text[]) AS word (word)
    ON pg_catalog.strpos(pg_catalog.lower(a.attname::pg_catalog.text), word.word) OPERATOR(pg_catalog.>) 0
WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
  AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f}') AND NOT c.relispartition
  AND n.nspname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[])
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND (pg_catalog.has_table_privilege(c.oid, 'SELECT')
       OR pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'))
GROUP BY c.oid, word.word
"""


def schemas_to_search(wanted: RelationName, export_schemas: Sequence[str]) -> list[str]:
    """Return the schemas in which to look this name up, in order. The list is empty if its schema is not exported.

    export_schemas: the setting EXPORT_SCHEMAS.
    """
    if wanted.schema is None:
        return list(export_schemas)
    return [wanted.schema] if wanted.schema in export_schemas else []


def with_types(relation: Relation, types: Mapping[str, OtherType]) -> Relation:
    """Return the relation with these types of its columns. types: by the name of the column."""
    columns = tuple(replace(column, other=types.get(column.name)) for column in relation.columns)
    return replace(relation, columns=columns)


def relation_from_row(row: Mapping[str, Any]) -> Relation:
    """Return the relation that a row of these queries describes."""
    return Relation(
        oid=row["oid"],
        schema=row["schema"],
        name=row["name"],
        kind=KINDS[row["kind"]],
        is_partition=row["is_partition"],
        columns=tuple(map(_column, json.loads(row["columns"]))),
        estimated_rows=None if row["estimated_rows"] is None else int(row["estimated_rows"]),
        bytes=row["bytes"],
        also_in=tuple(json.loads(row["also_in"])),
        comment=row["comment"],
    )


def _column(described: Sequence[Any]) -> Column:
    name, type, nullable, readable, indexed, labels, base, other = described
    if not readable:
        return Column(name, "", nullable=True, readable=readable, indexed=False)
    # format_type() writes the schema before a type of PostgreSQL that a type of another schema hides.
    type, base = type.removeprefix("pg_catalog."), base and base.removeprefix("pg_catalog.")
    return Column(name, type, nullable, readable, indexed, None if labels is None else tuple(labels), base, not other)

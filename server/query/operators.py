"""The operators of types that are not PostgreSQL's own, from the catalogue: a query, and its rows as values.

PostgreSQL looks an operator up in the schemas of the search path and takes the one that fits the types best, whoever
made it. Whoever may create objects in one of these schemas could so run a function of theirs. Filters name the schema
of each operator instead. The operators of PostgreSQL's own types, and of enums, arrays, ranges and composite types, are
in pg_catalog, in which only a superuser can create any. Those of an extension's type are found here:

- the operators of the type's default operator class, which only a superuser can create;
- for a base type, which only a superuser can create too, the operators of its owner that have it on their left side.

Sources: PostgreSQL manual, "Operator Type Resolution", "CREATE OPERATOR CLASS", "CREATE TYPE", "pg_amop".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.query.filters import COMPARISONS
from server.query.quoting import qualified, quote_identifier

# Types with lower OIDs are PostgreSQL's own and in pg_catalog (source code, access/transam.h: FirstGenbkiObjectId).
FIRST_OF_OTHERS = 10000

# PostgreSQL manual, "CREATE OPERATOR". Anything else would not be an operator in SQL.
_SYMBOL = re.compile(r"[-+*/<>=~!@#%^&|`?]+")

# The OIDs of the access methods btree and hash, their strategy numbers, and what they mean (PostgreSQL manual,
# "Interfacing Extensions to Indexes").
_STRATEGIES = "(403, 1, '<'), (403, 2, '<='), (403, 3, '='), (403, 4, '>='), (403, 5, '>'), (405, 1, '=')"

_SCHEMA = """(
        SELECT n.nspname::pg_catalog.text FROM pg_catalog.pg_namespace AS n
        WHERE n.oid OPERATOR(pg_catalog.=) {oid} AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    )"""

# One row for each column whose type, or the type under its domain, is not PostgreSQL's own. `operators` are arrays of:
# the symbol that is looked for, the schema and symbol of the operator, the schema and name of the type on its right
# side; those of operator classes first, and of these first the ones of btree. A schema that the role may not use is
# NULL, since the role cannot name what is in it.
# Parameters: $1, the OID of the relation; $2, the names of columns; $3, the symbols to look for.
FIND_OPERATORS = f"""
WITH RECURSIVE layer (column_name, type) AS (
    SELECT a.attname, a.atttypid
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid OPERATOR(pg_catalog.=) $1::pg_catalog.oid
      AND a.attname OPERATOR(pg_catalog.=) ANY ($2::pg_catalog.text[])
      AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
    UNION ALL
    SELECT layer.column_name, d.typbasetype
    FROM layer
    JOIN pg_catalog.pg_type AS d ON d.oid OPERATOR(pg_catalog.=) layer.type
    WHERE d.typtype OPERATOR(pg_catalog.=) 'd'
)
SELECT
    layer.column_name::pg_catalog.text AS column_name,
    {_SCHEMA.format(oid="t.typnamespace")} AS schema,
    t.typname::pg_catalog.text AS name,
    t.typtype OPERATOR(pg_catalog.=) 'c' AS composite,
    t.typdelim::pg_catalog.text AS delimiter,
    (
        SELECT coalesce(pg_catalog.json_agg(
            pg_catalog.json_build_array(
                found.symbol, {_SCHEMA.format(oid="o.oprnamespace")}, o.oprname,
                {_SCHEMA.format(oid="r.typnamespace")}, r.typname
            ) ORDER BY found.place
        ), '[]')
        FROM (
            SELECT strategy.symbol, member.amopopr AS operator, strategy.method AS place
            FROM pg_catalog.pg_opclass AS class
            JOIN pg_catalog.pg_amop AS member ON member.amopfamily OPERATOR(pg_catalog.=) class.opcfamily
                AND member.amoplefttype OPERATOR(pg_catalog.=) class.opcintype
                AND member.amoprighttype OPERATOR(pg_catalog.=) class.opcintype
            JOIN (VALUES {_STRATEGIES}) AS strategy (method, number, symbol)
                ON member.amopmethod OPERATOR(pg_catalog.=) strategy.method::pg_catalog.oid
                AND member.amopstrategy OPERATOR(pg_catalog.=) strategy.number
            WHERE class.opcintype OPERATOR(pg_catalog.=) t.oid AND class.opcdefault
            UNION ALL
            SELECT own.oprname::pg_catalog.text, own.oid, 1000
            FROM pg_catalog.pg_operator AS own
            WHERE own.oprname OPERATOR(pg_catalog.=) ANY ($3::pg_catalog.text[])
              AND own.oprleft OPERATOR(pg_catalog.=) t.oid
              AND own.oprowner OPERATOR(pg_catalog.=) t.typowner
              AND t.typtype OPERATOR(pg_catalog.=) 'b'
              -- Whoever makes a composite type owns its array type too.
              AND NOT EXISTS (
                  SELECT FROM pg_catalog.pg_type AS element
                  WHERE element.oid OPERATOR(pg_catalog.=) t.typelem AND element.typtype OPERATOR(pg_catalog.<>) 'b'
              )
        ) AS found
        JOIN pg_catalog.pg_operator AS o ON o.oid OPERATOR(pg_catalog.=) found.operator
        JOIN pg_catalog.pg_type AS r ON r.oid OPERATOR(pg_catalog.=) o.oprright
        WHERE o.oprresult OPERATOR(pg_catalog.=) 'pg_catalog.bool'::pg_catalog.regtype
    ) AS operators
FROM layer
JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) layer.type
WHERE t.typtype OPERATOR(pg_catalog.<>) 'd' AND t.oid OPERATOR(pg_catalog.>=) {FIRST_OF_OTHERS}
"""
# The third parameter of FIND_OPERATORS.
SYMBOLS = sorted(set(COMPARISONS.values()))


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of a type: as SQL names it, and the type on its right side as SQL names it."""

    text: str
    right: str


@dataclass(frozen=True, slots=True)
class OtherType:
    """A type that is not PostgreSQL's own, as filters need it.

    text: as SQL names it. composite: whether its values are rows. delimiter: between the elements in the text form of
    its arrays. operators: its own, by the symbol of COMPARISONS that each stands for.
    """

    text: str
    composite: bool
    delimiter: str
    operators: Mapping[str, Operator]


def types_from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, OtherType]:
    """Return the types by column, from the rows of FIND_OPERATORS."""
    found = {}
    for row in rows:
        if row["schema"] is None:
            continue
        text = qualified(row["schema"], row["name"])
        candidates: dict[str, list[Operator]] = {}
        for wanted, schema, symbol, *right in row["operators"]:
            if _SYMBOL.fullmatch(symbol) and None not in (schema, *right):
                operator = Operator(f"OPERATOR({quote_identifier(schema)}.{symbol})", qualified(*right))
                candidates.setdefault(wanted, []).append(operator)
        chosen = {wanted: _choose(each, text) for wanted, each in candidates.items()}
        operators = {wanted: operator for wanted, operator in chosen.items() if operator is not None}
        found[row["column_name"]] = OtherType(text, row["composite"], row["delimiter"], operators)
    return found


def _choose(candidates: Sequence[Operator], type: str) -> Operator | None:
    """Return the operator for a value of no known type, which PostgreSQL first takes for one of the type on the left.

    Else text is preferred. candidates: at least one. Return None if it is not clear which one is meant.
    """
    for right in (type, qualified("pg_catalog", "text")):
        for candidate in candidates:
            if candidate.right == right:
                return candidate
    return candidates[0] if len(candidates) == 1 else None

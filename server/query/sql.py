"""ExportPlan → SQL text and bound values. Pure: runs nothing.

No value of a user is in the text: identifiers get there only through `quote_identifier`, values only as parameters of
the protocol. PostgreSQL gives a parameter the type of the column that it is compared with (manual, "Type Conversion",
"Operators"), so that the column's indexes can be used.

Every function, operator, type and table in SQL of Sluice is named with its schema. PostgreSQL would look other names up
in all schemas of the search path and prefer what fits the types best, whoever made it, and run it with the rights of
the database role. IN, LIKE, BETWEEN, NULLIF, IS DISTINCT FROM, CASE with a value and USING hold an operator that cannot
be named so, and are not used. The search path itself stays as it is: the text of some values depends on it.

`source.name` is a call of a function `name` if there is no such column (manual, "Using Composite Types in Queries"). A
relation may lose one after it was looked up, while the statement waits for a lock. So `source` is a subquery, and the
names of the relation's columns stand alone in it: such a name is never a function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from server.query.catalogue import Column
from server.query.columns import base_type, is_json, type_of
from server.query.comparisons import Operand, bind, comparison, regular_expression_check
from server.query.fields import Field
from server.query.filters import FULL_TEXT, PATTERNS, REGULAR_EXPRESSIONS, Condition, Filter, conditions_of
from server.query.plan import ExportPlan
from server.query.quoting import qualified, quote_identifier


@dataclass(slots=True)
class Statement:
    """SQL text with the parameters $1, $2, …, and their values in text form."""

    text: str
    values: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A range of blocks of a table: from block number `first` up to, but not including, `end`."""

    schema: str
    name: str
    first: int
    end: int


def select_statement(plan: ExportPlan, blocks: Blocks | None = None) -> Statement:
    """Return the SELECT whose rows are the rows of the file, or for ndjson its lines.

    blocks: return only the rows in these blocks, by a TID range scan (PostgreSQL, release notes of 14). All ranges of a
    table have the same text.
    """
    statement = Statement("")
    by_name = _columns_by_name(plan)
    named = plan.format == "ndjson"
    columns = ", ".join(
        _operand(output.field, by_name, statement.values) + (f" AS {quote_identifier(output.name)}" if named else "")
        for output in plan.columns
    )
    conditions = []
    used = [output.field.column for output in plan.columns]
    used += [condition.column for condition in conditions_of(plan.filters)] + [key.column for key in plan.order]
    text = f"SELECT {columns} FROM {_source(plan, used, blocks)}"
    if blocks is not None:
        first, end = (bind(f"({block},0)", statement.values) for block in (blocks.first, blocks.end))
        conditions.append(f"source.ctid OPERATOR(pg_catalog.>=) {first} AND source.ctid OPERATOR(pg_catalog.<) {end}")
    conditions += [_filter(item, by_name, statement.values) for item in plan.filters]
    if conditions:
        text += " WHERE " + " AND ".join(conditions)
    if plan.order:
        keys = []
        for key in plan.order:
            nulls = {None: "", True: " NULLS FIRST", False: " NULLS LAST"}[key.nulls_first]
            operand = _operand(key.field, by_name, statement.values)
            keys.append(f"{operand}{' DESC' if key.descending else ''}{nulls}")
        text += " ORDER BY " + ", ".join(keys)
    if plan.limit is not None:
        text += f" LIMIT {plan.limit}"
    if plan.offset:
        text += f" OFFSET {plan.offset}"
    # line.* is the whole row even if a column is named line.
    statement.text = f"SELECT pg_catalog.row_to_json(line.*) FROM ({text}) AS line" if named else text
    return statement


def lock_statements(tables: Iterable[tuple[str, str]]) -> list[str]:
    """Return the statements that take the locks for reading these tables, or fail within a second.

    tables: (schema, name) of each. A session that waits for a stronger lock blocks all later readers of the table,
    and itself waits for the export's first reader. A second reader of the same export that waited behind that session
    would wait forever (PostgreSQL manual, "Explicit Locking").
    """
    selects = [f"SELECT FROM ONLY {qualified(schema, name)} LIMIT 0" for schema, name in tables]
    return ["SET LOCAL lock_timeout = '1s'", *selects]


@dataclass(frozen=True, slots=True)
class Probe:
    """A query that reads no row and fails if one part of a plan is wrong.

    part: what it is. field: that the part is about. operator: of a condition, None for the other parts. hint: how a
    value of the operator is written, None if it has no form of its own. names_relation: whether the statement names the
    relation, so that PostgreSQL's message may hold a value of a row.
    """

    part: Literal["condition", "sort key", "column"]
    field: Field
    operator: str | None
    statement: Statement
    hint: str | None = None
    names_relation: bool = True


def probes(plan: ExportPlan) -> list[Probe]:
    """Return probes for each condition, then each sort key, then each part and cast of a column, in their order."""
    found = []
    by_name = _columns_by_name(plan)
    for condition in conditions_of(plan.filters):
        if not condition.values:  # an empty list, which cannot fail
            continue
        statement = Statement("")
        # A NULL from the relation itself has the column's type, and no domain constraint rejects it.
        operand = _null(condition.field, plan, by_name, statement.values)
        compared = _compared(operand, condition.field, by_name)
        # WHERE, since some operators give no boolean: << shifts the bits of an integer.
        statement.text = f"SELECT 1 WHERE {comparison(compared, condition, statement.values)}"
        hint = _hint(condition, compared.type)
        found.append(Probe("condition", condition.field, condition.operator_text, statement, hint))
        if condition.operator in REGULAR_EXPRESSIONS:
            statement = Statement("")
            statement.text = regular_expression_check(condition, statement.values)
            probe = Probe("condition", condition.field, condition.operator_text, statement, names_relation=False)
            found.append(probe)
    for key in plan.order:
        statement = Statement("")
        operand = _operand(key.field, by_name, statement.values)
        statement.text = f"SELECT 1 FROM {_source(plan, [key.column])} ORDER BY {operand} LIMIT 0"
        found.append(Probe("sort key", key.field, None, statement))
    for selected in dict.fromkeys(output.field for output in plan.columns if not output.field.plain):
        statement = Statement("")
        statement.text = f"SELECT {_null(selected, plan, by_name, statement.values)}"
        found.append(Probe("column", selected, None, statement))
    return found


def has_parts(plan: ExportPlan) -> bool:
    """Return whether the plan has parts for `probes`."""
    return bool(plan.filters or plan.order) or not all(output.field.plain for output in plan.columns)


def value_probes(plan: ExportPlan) -> list[Probe]:
    """Return a probe for each condition that compares a value with itself: the condition's own, as one of the column.

    PostgreSQL rejects some operators only when there is a value: equality in an array of JSON, a pattern under a
    nondeterministic collation. The value may fit the operator and not the column, so other errors than that of the
    export prove nothing.
    """
    found = []
    by_name = _columns_by_name(plan)
    for condition in conditions_of(plan.filters):
        if condition.operator in ("is", *FULL_TEXT) or not condition.values:
            continue
        statement = Statement("")
        operand = _null(condition.field, plan, by_name, statement.values)
        if condition.operator in (*PATTERNS, *REGULAR_EXPRESSIONS):  # the empty text, with the collation of the column
            operand = f"pg_catalog.concat({operand})"
        else:
            operand = f"coalesce({operand}, {bind(condition.values[0], statement.values)})"
        compared = _compared(operand, condition.field, by_name)
        statement.text = f"SELECT {comparison(compared, condition, statement.values)}"
        found.append(Probe("condition", condition.field, condition.operator_text, statement))
    return found


def _hint(condition: Condition, type: str) -> str | None:
    """Return how a value of this condition is written, or None if it has no form of its own.

    type: of what is compared.
    """
    if condition.operator in FULL_TEXT:
        return (
            "fts takes words joined by & | and !, as to_tsquery() does; plfts, phfts and wfts take plain words. "
            "The name in brackets is that of a text search configuration, for example wfts(english)."
        )
    if condition.modifier is not None and type.endswith("[]"):
        return "PostgreSQL has no array of arrays. Write several conditions in or=(…) instead."
    if condition.modifier is not None:
        return f"{condition.operator_text} takes an array in braces, for example {condition.operator_text}.{{1,2}}"
    return None


def _null(field: Field, plan: ExportPlan, by_name: Mapping[str, Column], values: list[str]) -> str:
    return f"(SELECT {_operand(field, by_name, values)} FROM {_source(plan, [field.column])} LIMIT 0)"


def count_without_casts(plan: ExportPlan) -> Statement:
    """Return a query that reads every row and computes every column of the plan but its casts, and gives no value."""
    columns = tuple(replace(output, field=replace(output.field, cast=None)) for output in plan.columns)
    statement = select_statement(replace(plan, columns=columns, format="csv"))
    statement.text = f"SELECT pg_catalog.count(line.*) FROM ({statement.text}) AS line"
    return statement


def empty_statement(plan: ExportPlan) -> Statement:
    """Return a query for the columns that `probes` are about.

    It reads no row, and fails only if the relation itself cannot be read.
    """
    names = [condition.column for condition in conditions_of(plan.filters)] + [key.column for key in plan.order]
    names += [output.field.column for output in plan.columns if not output.field.plain]
    columns = ", ".join(_column(name) for name in dict.fromkeys(names))
    return Statement(f"SELECT {columns} FROM {_source(plan, names)} LIMIT 0")


def _source(plan: ExportPlan, names: Iterable[str], blocks: Blocks | None = None) -> str:
    """Return the relation with these columns, or one of its tables, of which blocks are read, also with `ctid`."""
    names = dict.fromkeys(names)
    columns = [quote_identifier(name) for name in names]
    # PostgreSQL takes a name that is no column for the whole row of the table of that name.
    alias = "relation"
    while alias in names:
        alias += "_"
    table = qualified(plan.relation.schema, plan.relation.name)
    if blocks is not None:
        columns.insert(0, "ctid")
        table = f"ONLY {qualified(blocks.schema, blocks.name)}"
    return f"(SELECT {', '.join(columns)} FROM {table} AS {alias}) AS source"


def _column(name: str) -> str:
    # Qualified, because ORDER BY prefers the alias of an output column to a column of the relation.
    return f"source.{quote_identifier(name)}"


def _columns_by_name(plan: ExportPlan) -> dict[str, Column]:
    return {column.name: column for column in plan.relation.columns}


def _compared(operand: str, field: Field, by_name: Mapping[str, Column]) -> Operand:
    """Return what a condition compares. operand: the SQL of the field."""
    column = by_name[field.column]
    return (
        Operand(operand, base_type(column), column.other) if field.plain else Operand(operand, type_of(field, column))
    )


def _operand(field: Field, by_name: Mapping[str, Column], values: list[str]) -> str:
    """Return the expression of a field."""
    text = _column(field.column)
    if field.path:
        if not is_json(by_name[field.column]):
            text = f"pg_catalog.to_jsonb({text})"
        for step in field.path:
            arrow, type = "->>" if step.as_text else "->", "int4" if isinstance(step.key, int) else "text"
            text += f" OPERATOR(pg_catalog.{arrow}) {bind(str(step.key), values)}::pg_catalog.{type}"
        text = f"({text})"
    # The name of the type is one of CASTS.
    return text if field.cast is None else f"CAST({text} AS pg_catalog.{field.cast})"


def _filter(item: Filter, by_name: Mapping[str, Column], values: list[str]) -> str:
    if isinstance(item, Condition):
        # The text for an empty list names no operand, so none of its keys may be bound.
        operand = _operand(item.field, by_name, values) if item.values else ""
        return comparison(_compared(operand, item.field, by_name), item, values)
    joined = f" {item.joined_by.upper()} ".join(_filter(member, by_name, values) for member in item.members)
    return f"NOT ({joined})" if item.negated else f"({joined})"

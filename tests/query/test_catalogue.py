"""The catalogue without a database: which schemas are searched, and rows as values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.query.catalogue import (
    KINDS,
    Column,
    Relation,
    RelationName,
    relation_from_row,
    schemas_to_search,
)


@pytest.mark.parametrize(
    ("wanted", "schemas", "searched"),
    [
        (RelationName("users"), ["public"], ["public"]),
        (RelationName("users"), ["b", "a"], ["b", "a"]),
        (RelationName("users", "a"), ["b", "a"], ["a"]),
        (RelationName("users", "public"), ["public"], ["public"]),
        # A schema that is not exported is not searched, nor is one with a similar name.
        (RelationName("pg_authid", "pg_catalog"), ["public"], []),
        (RelationName("users", "PUBLIC"), ["public"], []),
        (RelationName("users", ""), ["public"], []),
    ],
)
def test_only_exported_schemas_are_searched(wanted: RelationName, schemas: list[str], searched: list[str]) -> None:
    assert schemas_to_search(wanted, schemas) == searched


@pytest.mark.parametrize(
    ("name", "written"),
    [(RelationName("users"), "users"), (RelationName("users", "public"), "public.users")],
)
def test_a_relation_name_as_text(name: RelationName, written: str) -> None:
    assert str(name) == written


def row(**changes: Any) -> dict[str, Any]:
    columns = [
        ["id", "bigint", False, True, True, None, None, False],
        ["größe, €", "mood", True, True, False, ["sad", "ok"], None, True],
        ["zip", "code", True, True, False, None, "character varying(5)", True],
    ]
    return {
        "oid": 16384,
        "schema": "public",
        "name": "users",
        "kind": "r",
        "is_partition": False,
        "estimated_rows": 20000.0,
        "bytes": 1 << 20,
        "comment": "Those who signed up",
        "columns": json.dumps(columns),
        "also_in": "[]",
        **changes,
    }


def test_a_row_of_the_catalogue_becomes_a_relation() -> None:
    assert relation_from_row(row()) == Relation(
        oid=16384,
        schema="public",
        name="users",
        kind="table",
        is_partition=False,
        columns=(
            Column("id", "bigint", nullable=False, readable=True, indexed=True),
            Column("größe, €", "mood", True, readable=True, indexed=False, values=("sad", "ok"), built_in=False),
            Column("zip", "code", True, readable=True, indexed=False, base="character varying(5)", built_in=False),
        ),
        estimated_rows=20000,
        bytes=1 << 20,
        comment="Those who signed up",
    )


def test_only_the_name_of_a_column_is_kept_that_the_role_may_not_read() -> None:
    columns = [["ranks", "rank", False, False, True, ["high", "low"], None, True], ["gone", "x", *[None] * 6]]
    assert relation_from_row(row(columns=json.dumps(columns))).columns == (
        Column("ranks", "", nullable=True, readable=False, indexed=False),
        Column("gone", "", nullable=True, readable=None, indexed=False),
    )


def test_a_type_of_postgresql_is_named_without_its_schema_also_if_another_type_hides_it() -> None:
    columns = [
        ["a", "pg_catalog.text", True, True, False, None, None, False],
        ["b", "code", True, True, False, None, "pg_catalog.jsonb", True],
    ]
    a, b = relation_from_row(row(columns=json.dumps(columns))).columns
    assert (a.type, b.base) == ("text", "jsonb")


def test_other_schemas_with_the_name_are_known() -> None:
    assert relation_from_row(row(also_in='["sales", "größe"]')).also_in == ("sales", "größe")


def test_unknown_sizes_stay_unknown() -> None:
    relation = relation_from_row(row(estimated_rows=None, bytes=None, columns="[]"))
    assert (relation.estimated_rows, relation.bytes) == (None, None)
    assert relation.columns == ()


@pytest.mark.parametrize(("kind", "word"), KINDS.items())
def test_every_kind_of_relation_has_a_name(kind: str, word: str) -> None:
    assert relation_from_row(row(kind=kind)).kind == word

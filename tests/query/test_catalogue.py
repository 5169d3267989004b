"""The catalogue without a database: which schemas are searched, rows as values, errors with suggestions."""

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
    relation_not_found,
    schemas_to_search,
)
from tests.support.cpu import cpu_limit


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
    columns = [["id", "bigint", False, True, True, None], ["größe, €", "mood", True, False, False, ["sad", "ok"]]]
    return {
        "oid": 16384,
        "schema": "public",
        "name": "users",
        "kind": "r",
        "is_partition": False,
        "estimated_rows": 20000.0,
        "bytes": 1 << 20,
        "columns": json.dumps(columns),
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
            Column("größe, €", "mood", nullable=True, readable=False, indexed=False, values=("sad", "ok")),
        ),
        estimated_rows=20000,
        bytes=1 << 20,
    )


def test_unknown_sizes_stay_unknown() -> None:
    relation = relation_from_row(row(estimated_rows=None, bytes=None, columns="[]"))
    assert (relation.estimated_rows, relation.bytes) == (None, None)
    assert relation.columns == ()


@pytest.mark.parametrize(("kind", "word"), KINDS.items())
def test_every_kind_of_relation_has_a_name(kind: str, word: str) -> None:
    assert relation_from_row(row(kind=kind)).kind == word


KNOWN = ["users", "orders", "orders_2024_01", "revenue_by_country", "Größe"]


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("user", "Did you mean users?"),
        ("usres", "Did you mean users?"),
        ("Users", "Did you mean users?"),
        ("grösse", "The page at / lists all relations."),
        ("groesse", "The page at / lists all relations."),
        ("Grösse", "Did you mean Größe?"),
        ("order", "Did you mean orders?"),
        ("orders_2024", "Did you mean orders_2024_01 or orders?"),
        ("nothing like it", "The page at / lists all relations."),
    ],
)
def test_a_misspelt_relation_gets_similar_names_as_a_hint(wanted: str, hint: str) -> None:
    error = relation_not_found(RelationName(wanted), KNOWN)
    assert (error.status, error.code) == (404, "relation_not_found")
    assert error.detail == f'The relation "{wanted}" does not exist or cannot be exported.'
    assert error.hint == hint


def test_at_most_three_are_suggested() -> None:
    hint = relation_not_found(RelationName("orders"), [f"orders{number}" for number in range(10)]).hint
    assert hint is not None
    assert hint.count("orders") == 3


def test_the_error_names_the_schema_of_the_request() -> None:
    assert '"secret.users"' in relation_not_found(RelationName("users", "secret"), []).detail


def test_a_long_name_among_many_gets_a_short_answer_quickly() -> None:
    known = [f"table_{number:04}" + "x" * 53 for number in range(300)]
    with cpu_limit(0.5):
        error = relation_not_found(RelationName("x" * 8192), known)
    assert len(error.detail) < 500

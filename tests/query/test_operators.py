"""The operators of types that are not PostgreSQL's own, from the rows of the catalogue. No database."""

from __future__ import annotations

from typing import Any

import pytest

from server.query.operators import Operator, types_from_rows

TEXT = ("pg_catalog", "text")
ISBN = ("exts", "isbn")


def row(*operators: list[Any], **changes: Any) -> dict[str, Any]:
    described = {"column_name": "b", "schema": "exts", "name": "isbn", "composite": False, "delimiter": ","}
    return {**described, "operators": list(operators), **changes}


def test_a_type_and_its_operators_are_named_with_their_schemas() -> None:
    found = types_from_rows(
        [row(["=", 'e"x', "=", *ISBN], ["<", "exts", "#<#", *ISBN]), row(column_name="c", name='i"s', composite=True)]
    )
    assert found["b"].operators == {
        "=": Operator('OPERATOR("e""x".=)', '"exts"."isbn"'),
        "<": Operator('OPERATOR("exts".#<#)', '"exts"."isbn"'),
    }
    assert (found["b"].text, found["c"].text) == ('"exts"."isbn"', '"exts"."i""s"')
    assert (found["b"].composite, found["c"].composite) == (False, True)


@pytest.mark.parametrize(
    ("rights", "chosen"),
    [
        # That of the operator class comes first, then one for the type on both sides, then one for text.
        ([ISBN, ISBN], '"exts"."isbn"'),
        ([TEXT, ISBN], '"exts"."isbn"'),
        ([("exts", "query"), TEXT], '"pg_catalog"."text"'),
        ([("exts", "query")], '"exts"."query"'),
        ([("exts", "query"), ("exts", "other")], None),
    ],
)
def test_the_operator_for_a_value_of_no_known_type(rights: list[tuple[str, str]], chosen: str | None) -> None:
    (found,) = types_from_rows([row(*(["~", "exts", "~", *right] for right in rights))]).values()
    assert {symbol: operator.right for symbol, operator in found.operators.items()} == ({"~": chosen} if chosen else {})


def test_what_the_role_cannot_name_is_left_out() -> None:
    """The schema is NULL if the role may not use it."""
    (found,) = types_from_rows([row(["=", None, "=", *ISBN], ["<", "exts", "<", None, "isbn"])]).values()
    assert found.operators == {}
    assert types_from_rows([row(schema=None)]) == {}


@pytest.mark.parametrize("symbol", ["= 1) OR (1", "", "=)", "a"])
def test_what_is_no_operator_is_left_out(symbol: str) -> None:
    (found,) = types_from_rows([row(["=", "exts", symbol, *ISBN])]).values()
    assert found.operators == {}

"""What the error for an unknown relation suggests: names as they have to be written in an address. No database."""

from __future__ import annotations

import pytest

from server.query.catalogue import RelationName
from server.query.request import parse_export_request
from server.query.suggestions import relation_not_found
from tests.support.cpu import cpu_limit

NOTHING = "The page at / lists all relations."
DOT = " In an address, a name that contains a dot is in double quotes, written %22."


def known(*names: str) -> list[RelationName]:
    """Return relations of these names. A name of the schema sales begins with `sales/`."""
    pairs = (name.rpartition("/") for name in names)
    return [RelationName(name, schema or "public") for schema, _, name in pairs]


KNOWN = known("users", "orders", "orders_2024_01", "revenue_by_country", "Größe", "my table", "t.csv", "sales/invoices")


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("user", "Did you mean users?"),
        ("usres", "Did you mean users?"),
        ("Users", "Did you mean users?"),
        ("grösse", "Did you mean Gr%C3%B6%C3%9Fe?"),
        ("ORDERS", "Did you mean orders or orders_2024_01?"),
        ("groesse", NOTHING),
        ("Grösse", "Did you mean Gr%C3%B6%C3%9Fe?"),
        ("order", "Did you mean orders?"),
        ("orders_2024", "Did you mean orders_2024_01 or orders?"),
        ("nothing like it", NOTHING),
        ("mytable", "Did you mean my%20table?"),
        # The format was taken for the end of the name, and the name for that of a schema.
        ("t", f"Did you mean %22t.csv%22?{DOT}"),
        ("t.csv", f"Did you mean %22t.csv%22?{DOT}"),
        ("invoices", "Did you mean sales.invoices?"),
        ("public.invoices", "Did you mean sales.invoices?"),
        ("sale.invoices", "Did you mean sales.invoices?"),
        ("secret.users", "Did you mean users?"),
    ],
)
def test_similar_names_are_suggested_as_an_address_has_them(wanted: str, hint: str) -> None:
    schema, _, name = wanted.rpartition(".")
    error = relation_not_found(RelationName(name, schema or None), KNOWN, ["public", "sales"])
    assert (error.status, error.code) == (404, "relation_not_found")
    assert error.detail == f'The relation "{wanted}" does not exist or cannot be exported.'
    assert error.hint == hint


@pytest.mark.parametrize("name", ["t.csv", 'say "hi".csv', "100%.csv", "größe.csv", "a/b.csv", "%22.csv"])
@pytest.mark.parametrize("schema", ["public", "sales", "od.d"])
def test_a_suggestion_works_in_an_address(name: str, schema: str) -> None:
    wanted = RelationName("csv", name.removesuffix(".csv"))
    hint = relation_not_found(wanted, [RelationName(name, schema)], ["public", "sales"]).hint
    assert hint is not None
    written = hint.removeprefix("Did you mean ").partition("?")[0]
    found = parse_export_request(f"{written}.csv", "").relation
    assert found == RelationName(name, None if schema == "public" else schema)


def test_at_most_three_are_suggested() -> None:
    names = known(*(f"orders{number}" for number in range(10)))
    hint = relation_not_found(RelationName("orders"), names, ["public"]).hint
    assert hint is not None
    assert hint.count("orders") == 3


def test_the_same_name_in_another_schema_comes_first() -> None:
    names = known("ordered", "orders", "sales/order")
    hint = relation_not_found(RelationName("order", "public"), names, ["public", "sales"]).hint
    assert hint == "Did you mean sales.order or orders or ordered?"


def test_a_long_name_among_many_gets_a_short_answer_quickly() -> None:
    names = known(*(f"table_{number:04}" + "x" * 53 for number in range(300)))
    with cpu_limit(0.5):
        error = relation_not_found(RelationName("x" * 8192, "y" * 8192), names, ["public"])
    assert len(error.detail) < 500

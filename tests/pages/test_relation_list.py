"""The list of relations as values: what a search finds, the order, the groups."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from server.errors import InvalidRequest
from server.pages.relation_list import (
    LONGEST_COMMENT,
    MOST_WORDS,
    Group,
    ListQuery,
    MatchingColumns,
    arrange,
    first,
    parse_list_query,
)
from server.query.catalogue import Relation

SCHEMAS = ("public", "sales", "Großhandel")


def relation(
    name: str,
    schema: str = "public",
    *,
    rows: int | None = None,
    size: int | None = None,
    comment: str | None = None,
    partition: bool = False,
) -> Relation:
    """Return a relation whose OID is the sum of the characters of its name."""
    return Relation(sum(map(ord, schema + name)), schema, name, "table", partition, (), rows, size, comment=comment)


CUSTOMERS = relation("customers", rows=300, size=4_000, comment="People and firms that buy")
ORDERS = relation("orders", rows=1_000, size=9_000)
ODD = relation("a.b")
PART = relation("orders_1", rows=400, size=3_000, partition=True)
LEADS = relation("leads", "sales", rows=7, size=100_000)
OFFERS = relation("Offers", "sales", comment="What was offered to customers\nand when")
LAGER = relation("LAGER", "Großhandel")
# In the order of the catalogue.
EVERY = [ODD, CUSTOMERS, ORDERS, LEADS, OFFERS, LAGER, PART]
COLUMNS: dict[int, dict[str, list[str]]] = {
    ORDERS.oid: {"customer": ["customer_id", "customer_note"], "id": ["id", "customer_id"]},
    CUSTOMERS.oid: {"id": ["id"]},
    LEADS.oid: {"id": ["id"], "mail": ["e-mail"]},
}


def shown(
    query: ListQuery, relations: Sequence[Relation] = EVERY, columns: MatchingColumns = COLUMNS
) -> list[tuple[str | None, list[str]]]:
    """Return title and labels of each group."""
    return [
        (group.title, [each.label for each in group.listed]) for group in arrange(relations, columns, query, SCHEMAS)
    ]


OTHERS = "Found in comments and columns"


@pytest.mark.parametrize(
    ("query", "groups"),
    [
        # By name: grouped by schema, in the order of EXPORT_SCHEMAS; partitions last.
        (
            ListQuery(),
            [
                ("public", ["a.b", "customers", "orders", "orders_1"]),
                ("sales", ["leads", "Offers"]),
                ("Großhandel", ["LAGER"]),
            ],
        ),
        (
            ListQuery(descending=True),
            [
                ("public", ["orders", "customers", "a.b", "orders_1"]),
                ("sales", ["Offers", "leads"]),
                ("Großhandel", ["LAGER"]),
            ],
        ),
        (ListQuery(schema="sales"), [("sales", ["leads", "Offers"])]),
        (ListQuery(schema="nothing"), []),
        # By value: one list, the unknown last in both directions. The labels name the schema.
        (
            ListQuery(sort="rows", descending=True),
            [(None, ["orders", "orders_1", "customers", "sales.leads", "a.b", "sales.Offers", "Großhandel.LAGER"])],
        ),
        (
            ListQuery(sort="rows"),
            [(None, ["sales.leads", "customers", "orders_1", "orders", "a.b", "sales.Offers", "Großhandel.LAGER"])],
        ),
        (
            ListQuery(sort="size", descending=True, schema="public"),
            [(None, ["orders", "customers", "orders_1", "a.b"])],
        ),
        # A search: names first, then comments and columns.
        (ListQuery("customer"), [("public", ["customers"]), (OTHERS, ["orders", "sales.Offers"])]),
        (ListQuery("CUSTOMER"), [("public", ["customers"]), (OTHERS, ["orders", "sales.Offers"])]),
        (ListQuery("großhandel"), [("Großhandel", ["LAGER"])]),
        (ListQuery("sales.le"), [("sales", ["leads"])]),
        (ListQuery("when"), [(OTHERS, ["sales.Offers"])]),
        (ListQuery("id"), [(OTHERS, ["customers", "orders", "sales.leads"])]),
        (ListQuery("id", descending=True), [(OTHERS, ["sales.leads", "orders", "customers"])]),
        (ListQuery("id", sort="size", descending=True), [(None, ["sales.leads", "orders", "customers"])]),
        # Every word must be found, each of them anywhere.
        (ListQuery("lead mail"), [(OTHERS, ["sales.leads"])]),
        (ListQuery("orders customer"), [(OTHERS, ["orders"])]),
        (ListQuery("customer mail"), []),
        (ListQuery("  orders   1 "), [("public", ["orders_1"])]),
        (ListQuery("%"), []),
    ],
)
def test_the_list_is_searched_sorted_and_grouped(query: ListQuery, groups: list[tuple[str | None, list[str]]]) -> None:
    assert shown(query) == groups


def test_relations_of_one_schema_have_no_heading() -> None:
    assert shown(ListQuery(), [CUSTOMERS, ORDERS]) == [(None, ["customers", "orders"])]
    assert shown(ListQuery(), [LEADS]) == [(None, ["sales.leads"])]
    assert shown(ListQuery(), []) == []


def test_an_empty_group_is_not_shown_before_what_the_columns_match() -> None:
    assert shown(ListQuery("mail"), [LEADS]) == [(OTHERS, ["sales.leads"])]


@pytest.mark.parametrize(
    ("searched", "label", "columns"),
    [
        ("customer", "orders", ("customer_id", "customer_note")),
        ("customer id", "orders", ("customer_id", "customer_note", "id")),
        # The name says it already.
        ("orders", "orders", ()),
        ("customer", "customers", ()),
        ("customers id", "customers", ("id",)),
        ("", "orders", ()),
    ],
)
def test_the_columns_that_match_are_shown(searched: str, label: str, columns: tuple[str, ...]) -> None:
    listed = [each for group in arrange(EVERY, COLUMNS, ListQuery(searched), SCHEMAS) for each in group.listed]
    assert [each.columns for each in listed if each.label == label] == [columns]


def test_the_address_of_a_relation_does_not_depend_on_the_groups() -> None:
    for query in (ListQuery(), ListQuery(sort="size")):
        listed = [each for group in arrange(EVERY, {}, query, SCHEMAS) for each in group.listed]
        assert {each.path for each in listed} == {
            *("%22a.b%22", "customers", "orders", "orders_1", "sales.leads", "sales.Offers"),
            "Gro%C3%9Fhandel.LAGER",
        }


@pytest.mark.parametrize(
    ("comment", "line"),
    [
        (None, ""),
        ("", ""),
        ("What was offered", "What was offered"),
        ("\n  First line \nsecond", "First line"),
        ("x" * LONGEST_COMMENT, "x" * LONGEST_COMMENT),
        ("x" * (LONGEST_COMMENT - 2) + " yz", "x" * (LONGEST_COMMENT - 2) + "…"),
    ],
)
def test_a_comment_is_one_short_line(comment: str | None, line: str) -> None:
    (group,) = arrange([relation("t", comment=comment)], {}, ListQuery(), SCHEMAS)
    assert group.listed[0].comment == line


def test_a_long_list_is_cut_over_all_groups() -> None:
    groups = arrange(EVERY, {}, ListQuery(), SCHEMAS)
    kept: list[Group] = first(groups, 5)
    assert [(group.title, len(group.listed)) for group in kept] == [("public", 4), ("sales", 1)]
    assert first(groups, 7) == groups


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ({}, ListQuery()),
        ({"q": " a b ", "schema": "s", "sort": ""}, ListQuery("a b", "s")),
        ({"sort": "name.asc"}, ListQuery()),
        ({"sort": "name.desc"}, ListQuery(descending=True)),
        ({"sort": "rows"}, ListQuery(sort="rows")),
        ({"sort": "size.desc"}, ListQuery(sort="size", descending=True)),
        ({"q": "x" * 1000}, ListQuery("x" * 200)),
    ],
)
def test_an_address_of_the_list(fields: dict[str, str], query: ListQuery) -> None:
    assert parse_list_query(fields) == query


@pytest.mark.parametrize("sort", ["kind", "rows.down", "rows.desc.desc", ".desc", "<b>"])
def test_an_unknown_order_is_refused(sort: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_list_query({"sort": sort})
    assert sort in raised.value.detail
    assert "sort=rows" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("query", "sort", "address", "aria"),
    [
        (ListQuery(), "name", "/?sort=name.desc", "ascending"),
        (ListQuery(), "rows", "/?sort=rows.desc", None),
        (ListQuery(sort="rows", descending=True), "rows", "/?sort=rows", "descending"),
        (ListQuery(sort="rows"), "rows", "/?sort=rows.desc", "ascending"),
        (ListQuery(sort="rows"), "name", "/", None),
        (ListQuery("a&b", "ü", sort="rows"), "size", "/?q=a%26b&schema=%C3%BC&sort=size.desc", None),
    ],
)
def test_a_heading_sorts_the_same_list(query: ListQuery, sort: str, address: str, aria: str | None) -> None:
    assert (query.sorted_by(sort), query.aria_sort(sort)) == (address, aria)


def test_a_search_has_few_words() -> None:
    words = ListQuery(" ".join("abcdefghijkl")).words
    assert len(words) == MOST_WORDS
    assert words[-1] == "h i j k l"

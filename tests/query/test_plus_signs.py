"""Unencoded plus signs in the filters of a query string: refused where the column holds times. No database."""

from __future__ import annotations

import pytest

from server.errors import InvalidRequest
from server.query.catalogue import Column, Relation
from server.query.filters import conditions_of
from server.query.plan import make_plan
from server.query.request import parse_export_request

# The type of a column, and the type under it if it is a domain.
WITH_TIMES = [
    ("date", None),
    ("time without time zone", None),
    ("time(3) with time zone", None),
    ("timestamp without time zone", None),
    ("timestamp(0) without time zone", None),
    ("timestamp with time zone", None),
    ("timestamp with time zone[]", None),
    ("date[]", None),
    ("daterange", None),
    ("tsrange", None),
    ("tstzrange", None),
    ("tstzmultirange", None),
    ("tstzrange[]", None),
    ("birthday", "date"),
    ("moment", "timestamp(3) with time zone"),
]
WITHOUT = [
    ("text", None),
    ("character varying(9)", None),
    ("integer", None),
    ("numeric(10,2)", None),
    ("interval", None),
    ("jsonb", None),
    ("int4range", None),
    ("text[]", None),
    ("date_like", None),
    ("times", "text"),
]
# Query strings that have a plus sign where a time has one.
PLACES = [
    "x=eq.2024-01-01T12:00+02:00",
    "x=not.lt.2024-01-01+2",
    "x=in.(2024-01-01Z,2024-01-01T12:00:00+02)",
    "id=eq.1&x=ov.[2024-01-01+02,)",
    "or=(id.eq.1,and(id.lt.9,x.gte.2024-01-01+02:00))",
    "not.and=(x.isdistinct.2024-01-01+02:00,id.eq.1)",
    "x=eq(any).{2024-01-01+02:00}",
]


def relation(type: str, base: str | None) -> Relation:
    columns = (
        Column("id", "integer", nullable=True, readable=True, indexed=False),
        Column("x", type, nullable=True, readable=True, indexed=False, base=base),
    )
    return Relation(7, "public", "t", "table", False, columns, 10, 8192)


@pytest.mark.parametrize(("type", "base"), WITH_TIMES)
def test_a_time_with_an_unencoded_plus_sign_is_refused(type: str, base: str | None) -> None:
    for query in PLACES:
        with pytest.raises(InvalidRequest) as error:
            make_plan(parse_export_request("t.csv", query), relation(type, base))
        assert (error.value.status, error.value.code) == (400, "unencoded_plus")
        assert f'"x" ({type})' in error.value.detail
        assert error.value.hint is not None
        assert "%2B" in error.value.hint


@pytest.mark.parametrize(("type", "base"), WITHOUT)
def test_on_another_column_the_sign_is_a_space(type: str, base: str | None) -> None:
    for query in PLACES:
        made = make_plan(parse_export_request("t.csv", query), relation(type, base))
        values = [value for condition in conditions_of(made.filters) for value in condition.values]
        assert any(" " in value for value in values)


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("x=eq.2024-01-01T12:00%2B02:00", ["2024-01-01T12:00+02:00"]),
        ("x=eq.2024-01-01%2012:00", ["2024-01-01 12:00"]),
        ("x=eq.2024-01-01+", ["2024-01-01 "]),
        ("x=in.(2024-01-01,+2024-01-02)", ["2024-01-01", "2024-01-02"]),
        ("x=cd.[2024-01-01,+2024-01-02)", ["[2024-01-01, 2024-01-02)"]),
        ("x=eq.1+day+ago", ["1 day ago"]),
        ("or=(id.eq.1+2,+x.eq.2024-01-01+)", ["1 2", "2024-01-01"]),
    ],
)
def test_an_encoded_sign_and_other_spaces_are_read(query: str, values: list[str]) -> None:
    made = make_plan(parse_export_request("t.csv", query), relation("timestamp with time zone", None))
    assert [value for condition in conditions_of(made.filters) for value in condition.values] == values

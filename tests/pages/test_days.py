"""A date without a time in a filter on a timestamp column: the whole day, in the form and in the query string."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pages.controls import COMPARISONS_BY_KIND, FilterInput, comparison_of, write_list
from server.pages.days import days_of, filter_of
from server.pages.form import Form
from server.pages.form_reader import form_of_fields, form_of_query
from server.pages.notes import notes_of
from server.query.catalogue import Column, Relation
from server.query.filters import Condition, Filter, conditions_of
from server.query.request import parse_export_request

COLUMNS = (
    Column("at", "timestamp with time zone", True, True, False),
    Column("local", "timestamp(3) without time zone", True, True, False),
    Column("a,b.c d", "timestamp with time zone", True, True, False),
    Column("born", "date", True, True, False),
    Column("id", "bigint", True, True, False),
)
EVENTS = Relation(1, "public", "events", "table", False, COLUMNS, 1000, 8192)
DAY_KEYS = ("gte", "lt", "gt", "lte", "eq", "neq")


def written(column: str, key: str, date: str, time: str = "", **others: str) -> str:
    """Return the query string of a form with one filter, as a browser sends it."""
    fields = [("f0.column", column), ("f0.op", key), ("f0.value", date), ("f0.time", time), *others.items()]
    return form_of_fields(EVENTS, [("c", "at"), ("a", ""), ("t", "0"), *fields]).query.removeprefix("select=at&")


WRITTEN = [
    # A date alone is the whole day.
    ("gte", "2020-01-02", "", "at=gte.2020-01-02"),
    ("lt", "2020-01-02", "", "at=lt.2020-01-02"),
    ("gt", "2020-01-02", "", "at=gte.2020-01-03T00:00"),
    ("lte", "2020-01-02", "", "at=lt.2020-01-03T00:00"),
    ("eq", "2020-01-02", "", "and=(at.gte.2020-01-02,at.lt.2020-01-03)"),
    ("neq", "2020-01-02", "", "not.and=(at.gte.2020-01-02,at.lt.2020-01-03)"),
    ("in", "2020-01-02", "", "or=(and(at.gte.2020-01-02,at.lt.2020-01-03))"),
    (
        "not_in",
        "2020-02-28, 2020-03-01T12:30",
        "",
        "not.or=(and(at.gte.2020-02-28,at.lt.2020-02-29),at.eq.2020-03-01T12:30)",
    ),
    # The ends of months and years, leap years, and the date that often means "for ever".
    ("lte", "2024-02-28", "", "at=lt.2024-02-29T00:00"),
    ("lte", "2023-02-28", "", "at=lt.2023-03-01T00:00"),
    ("gt", "2023-12-31", "", "at=gte.2024-01-01T00:00"),
    ("lte", "9999-12-31", "", "at=lt.10000-01-01T00:00"),
    ("eq", "9999-12-31", "", "and=(at.gte.9999-12-31,at.lt.10000-01-01)"),
    ("eq", "0001-01-01", "", "and=(at.gte.0001-01-01,at.lt.0001-01-02)"),
    # With a time it is that moment.
    ("gte", "2020-01-02", "12:30", "at=gte.2020-01-02T12:30"),
    ("lt", "2020-01-02", "12:30:15", "at=lt.2020-01-02T12:30:15"),
    ("gt", "2020-01-02", "00:00", "at=gt.2020-01-02T00:00"),
    ("lte", "2020-01-02", "00:00", "at=lte.2020-01-02T00:00"),
    ("eq", "2020-01-02", "00:00", "at=eq.2020-01-02T00:00"),
    ("neq", "2020-01-02", "00:00", "at=neq.2020-01-02T00:00"),
    ("in", "2020-01-02T12:30, 2020-01-03T00:00", "", "at=in.(2020-01-02T12:30,2020-01-03T00:00)"),
    # "From midnight on" is the whole day.
    ("gte", "2020-01-02", "00:00", "at=gte.2020-01-02"),
    ("lt", "2020-01-02", "00:00", "at=lt.2020-01-02"),
    # What is no date is written as it is: PostgreSQL knows it, or says what is wrong.
    ("lte", "2023-02-30", "", "at=lte.2023-02-30"),
    ("lte", "infinity", "", "at=lte.infinity"),
    ("eq", "2020-01-02 12:30:15.123456+02", "", "at=eq.2020-01-02%2012:30:15.123456%2B02"),
    ("in", "2020-01-02, now", "", "or=(and(at.gte.2020-01-02,at.lt.2020-01-03),at.eq.now)"),
    ("in", '2020-01-02, "a,b"', "", 'or=(and(at.gte.2020-01-02,at.lt.2020-01-03),at.eq."a,b")'.replace('"', "%22")),
    ("null", "2020-01-02", "", "at=is.null"),
    ("lte", "", "12:30", ""),
    ("in", "", "", ""),
]


@pytest.mark.parametrize(("key", "date", "time", "query"), WRITTEN)
def test_the_form_writes(key: str, date: str, time: str, query: str) -> None:
    assert written("at", key, date, time).replace("select=at", "") == query


@pytest.mark.parametrize(("key", "date", "time", "query"), [each for each in WRITTEN if each[3]])
def test_the_form_reads_back_what_it_wrote(key: str, date: str, time: str, query: str) -> None:
    form = form_of_query(EVENTS, query)
    (row,) = form.filters
    if (key, time) not in (("gte", "00:00"), ("lt", "00:00")):
        shown = {"null": ()}.get(key, (f"{date}T{time}" if time else date,))
        assert (row.column, row.filled.comparison.key, row.filled.values) == ("at", key, shown)
    assert form.query == query
    assert not form.more


@pytest.mark.parametrize("key", DAY_KEYS)
@pytest.mark.parametrize("column", ["local", "a,b.c d"])
def test_a_column_of_any_name_and_timestamp_type_takes_whole_days(column: str, key: str) -> None:
    query = written(column, key, "2020-01-02")
    conditions = conditions_of(parse_export_request("events.csv", query).filters)
    assert {condition.column for condition in conditions} == {column}
    (row,) = form_of_query(EVENTS, query).filters
    assert (row.column, row.filled.comparison.key, row.filled.values) == (column, key, ("2020-01-02",))


@pytest.mark.parametrize("key", DAY_KEYS)
def test_a_column_of_dates_needs_no_bounds(key: str) -> None:
    assert written("born", key, "2020-01-02") == f"born={key}.2020-01-02"


def test_a_list_of_dates() -> None:
    assert written("born", "in", "2020-01-02, 2020-01-05") == "born=in.(2020-01-02,2020-01-05)"
    (row,) = form_of_query(EVENTS, "born=not.in.(2020-01-02,2020-01-05)").filters
    assert (row.filled.comparison.key, row.filled.values) == ("not_in", ("2020-01-02, 2020-01-05",))


@pytest.mark.parametrize(
    ("query", "key", "shown"),
    [
        # In a query string a date is midnight, so it is shown with its time.
        ("at=lte.2020-01-02", "lte", "2020-01-02T00:00"),
        ("at=gt.2020-01-02", "gt", "2020-01-02T00:00"),
        ("at=eq.2020-01-02", "eq", "2020-01-02T00:00"),
        ("at=neq.2020-01-02", "neq", "2020-01-02T00:00"),
        ("at=in.(2020-01-02,2020-01-03T12:00)", "in", "2020-01-02T00:00, 2020-01-03T12:00"),
        # The same as a whole day.
        ("at=gte.2020-01-02", "gte", "2020-01-02"),
        ("at=lt.2020-01-02", "lt", "2020-01-02"),
        ("at=gte.2020-03-01T00:00", "gt", "2020-02-29"),
        ("at=lt.2020-01-01T00:00", "lte", "2019-12-31"),
    ],
)
def test_a_query_string_is_shown_as_what_it_means(query: str, key: str, shown: str) -> None:
    (row,) = form_of_query(EVENTS, query).filters
    assert (row.filled.comparison.key, row.filled.values) == (key, (shown,))


@pytest.mark.parametrize(
    "query",
    [
        "and=(at.gte.2020-01-02,at.lt.2020-01-04)",
        "and=(at.gte.2020-01-02,at.lte.2020-01-03)",
        "and=(at.gt.2020-01-02,at.lt.2020-01-03)",
        "and=(at.gte.2020-01-02,local.lt.2020-01-03)",
        "and=(at.lt.2020-01-03,at.gte.2020-01-02)",
        "and=(at.gte.2020-01-02)",
        "and=(at.gte.2020-01-02,at.not.lt.2020-01-03)",
        "and=(at.gte.2020-01-02,at.lt.2020-01-03,id.eq.1)",
        "and=(and(at.gte.2020-01-02,at.lt.2020-01-03))",
        "and=(born.gte.2020-01-02,born.lt.2020-01-03)",
        "or=(at.gte.2020-01-02,at.lt.2020-01-03)",
        "or=(and(at.gte.2020-01-02,at.lt.2020-01-03),at.eq.2020-01-05)",
        "or=(and(at.gte.2020-01-02,at.lt.2020-01-03),at.is.null)",
        "or=(and(at.gte.2020-01-02,at.lt.2020-01-03),at.in.())",
        "or=(at.eq.2020-01-02T10:00,at.eq.2020-01-03T10:00)",
        "or=(or(at.gte.2020-01-02,at.lt.2020-01-03))",
        "or=(not.and(at.gte.2020-01-02,at.lt.2020-01-03))",
        "or=(and(and(at.gte.2020-01-02,at.lt.2020-01-03)))",
        "at=not.gte.2020-01-02",
        "at=like.2020-01-02",
    ],
)
def test_other_conditions_are_kept_as_text(query: str) -> None:
    form = form_of_query(EVENTS, query)
    assert (form.filters, form.more, form.query) == ((), (query,), query)


# --- What the conditions mean ---

days = st.dates(datetime.date(2, 1, 1))
times = st.one_of(st.just(""), st.times().map(lambda time: f"{time:%H:%M}"), st.just("00:00"))


def moment(text: str) -> datetime.datetime:
    """Return the moment that PostgreSQL reads in this text: midnight if it has no time."""
    if text.startswith("10000-01-01"):
        return datetime.datetime.max
    return datetime.datetime.fromisoformat(text)


def holds(item: Filter, at: datetime.datetime) -> bool:
    """Return whether a row with this timestamp passes the filter."""
    if isinstance(item, Condition):
        values = [moment(value) for value in item.values]
        found = {
            "eq": at in values,
            "neq": at not in values,
            "in": at in values,
            "gt": at > values[0],
            "gte": at >= values[0],
            "lt": at < values[0],
            "lte": at <= values[0],
        }[item.operator]
    else:
        found = (all if item.joined_by == "and" else any)(holds(member, at) for member in item.members)
    return found != item.negated


@given(st.sampled_from(DAY_KEYS), days, st.datetimes(datetime.datetime(2, 1, 1)), st.integers(-2, 2))
def test_a_day_is_the_whole_day(key: str, day: datetime.date, at: datetime.datetime, near: int) -> None:
    if near and abs(near) < 2:  # just before, and at, the bounds of the day
        edge = datetime.datetime.combine(day, datetime.time.max if near > 0 else datetime.time.min)
        at = edge
    item = filter_of("at", FilterInput(comparison_of("timestamp", key), (day.isoformat(),)))
    assert item is not None
    date = at.date()
    wanted = {"eq": date == day, "neq": date != day, "gt": date > day, "gte": date >= day, "lt": date < day}
    assert holds(item, at) == wanted.get(key, date <= day)


@given(st.booleans(), st.lists(st.tuples(days, times), min_size=1, max_size=4), st.data())
def test_a_list_holds_its_days_and_moments(
    negated: bool, items: list[tuple[datetime.date, str]], data: st.DataObject
) -> None:
    values = tuple(f"{day}T{time}" if time else day.isoformat() for day, time in items)
    item = filter_of("at", FilterInput(comparison_of("timestamp", "not_in" if negated else "in"), values))
    day, time = data.draw(st.sampled_from(items))
    at = moment(f"{day}T{time or '23:59'}")
    assert item is not None
    assert holds(item, at) != negated
    outside = datetime.datetime(1, 1, 1)
    assert holds(item, outside) == negated


keys = st.sampled_from([each.key for each in COMPARISONS_BY_KIND["timestamp"]])


@given(keys, st.lists(st.tuples(days, times), min_size=1, max_size=3))
def test_inputs_are_read_back(key: str, items: list[tuple[datetime.date, str]]) -> None:
    comparison = comparison_of("timestamp", key)
    values = tuple(f"{day}T{time}" if time else day.isoformat() for day, time in items)
    values = values if comparison.takes_list else () if comparison.fixed is not None else values[:1]
    item = filter_of("at", FilterInput(comparison, values))
    assert item is not None
    found = days_of(item)
    assert found is not None
    if key in ("gte", "lt"):  # from midnight on is the whole day
        values = (values[0].removesuffix("T00:00"),)
    assert found == FilterInput(comparison, values)
    assert filter_of("at", found) == item


awkward = st.text('ab,(){}"\\ .:-0', min_size=1, max_size=6)


@given(st.sampled_from(["at", "a,b.c d"]), st.booleans(), days, st.lists(awkward, max_size=3))
def test_a_list_of_a_day_and_any_text_is_read_back(
    column: str, negated: bool, day: datetime.date, texts: list[str]
) -> None:
    values = (*texts, day.isoformat())
    key = "not_in" if negated else "in"
    query = written(column, key, write_list(values))
    form = form_of_query(EVENTS, query)
    (row,) = form.filters
    assert (row.column, row.filled.comparison.key, row.items.values) == (column, key, values)
    assert form.query == query


# --- What the page says ---


def note(column: str, key: str, date: str, time: str = "", **options: str) -> str:
    form = form_of_query(EVENTS, written(column, key, date, time, **options))
    return notes_of(form, "Europe/Berlin")[0]


@pytest.mark.parametrize(
    ("key", "date", "time", "text"),
    [
        ("gte", "2020-01-02", "", "From 2020-01-02 00:00"),
        ("lt", "2020-01-02", "", "Before 2020-01-02 00:00"),
        ("gt", "2020-01-02", "", "From 2020-01-03 00:00"),
        ("lte", "2020-01-02", "", "Before 2020-01-03 00:00"),
        ("eq", "2020-01-02", "", "From 2020-01-02 00:00, before 2020-01-03 00:00"),
        ("neq", "2020-01-02", "", "Before 2020-01-02 00:00, or from 2020-01-03 00:00"),
        ("in", "2020-01-02, 2020-01-03T12:30", "", "A date without a time is the whole day"),
        ("eq", "2020-01-02", "12:30:15", "Exactly at 2020-01-02 12:30:15"),
        ("lte", "2020-01-02", "12:30", "Up to 2020-01-02 12:30"),
        ("gt", "2020-01-02", "00:00", "After 2020-01-02 00:00"),
    ],
)
def test_the_page_shows_the_bounds(key: str, date: str, time: str, text: str) -> None:
    assert note("at", key, date, time) == f"{text} (Europe/Berlin, the default)."
    assert note("at", key, date, time, timezone="Asia/Tokyo") == f"{text} (Asia/Tokyo)."
    assert note("local", key, date, time, timezone="Asia/Tokyo") == f"{text}."


@pytest.mark.parametrize(
    ("column", "key", "value"),
    [("at", "null", ""), ("at", "lte", "infinity"), ("born", "eq", "2020-01-02"), ("id", "eq", "1")],
)
def test_other_filters_need_no_bounds(column: str, key: str, value: str) -> None:
    assert note(column, key, value) == ""


def test_a_filter_without_a_value_is_said_to_be_unused() -> None:
    fields = [("f0.column", "at"), ("f0.op", "lte"), ("f0.value", ""), ("f3.column", "id"), ("f3.op", "in")]
    form: Form = form_of_fields(EVENTS, [*fields, ("f3.value", '"')])
    notes = notes_of(form, "UTC")
    assert re.match("This filter is not used yet", notes[0])
    assert notes[3] == ""  # the list is not valid, which its error says

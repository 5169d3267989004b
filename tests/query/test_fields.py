"""Fields: columns, parts of their JSON, and casts, as text and as values. No catalogue, no database."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.query.fields import (
    CASTS,
    MOST_INDEX,
    MOST_STEPS,
    Field,
    Step,
    read_cast,
    read_field,
    read_field_name,
    write_field,
    write_field_name,
)
from server.query.selection import ORDER_STOPS, SELECT_STOPS

# Of select, order, conditions in groups, and the name of a parameter.
STOPS = (SELECT_STOPS, ORDER_STOPS, ".,()", "")


def made(column: str, *keys: str | int, as_text: bool = False, cast: str | None = None) -> Field:
    """Return a field. as_text: whether the last key of the path comes after `->>`."""
    last = len(keys) - 1
    return Field(column, tuple(Step(key, as_text and number == last) for number, key in enumerate(keys)), cast)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a", made("a")),
        ("größe", made("größe")),
        ("a b", made("a b")),
        (" a ", made("a")),
        ("\ta\t", made("a")),
        ('" a "', made(" a ")),
        ('  "a"  ', made("a")),
        ("a-b", made("a-b")),
        ("a>b", made("a>b")),
        ("-", made("-")),
        ("1", made("1")),
        ("data->a", made("data", "a")),
        ("data->>a", made("data", "a", as_text=True)),
        ("data->a->b->>c", made("data", "a", "b", "c", as_text=True)),
        (" data -> a b ->> c ", made("data", "a b", "c", as_text=True)),
        ("data->0", made("data", 0)),
        ("data->a->>0", made("data", "a", 0, as_text=True)),
        ("data->-1->007", made("data", -1, 7)),
        ("data-> 3 ", made("data", 3)),
        ('data->"0"', made("data", "0")),
        ("data->0a", made("data", "0a")),
        ("data->+1", made("data", "+1")),
        ("data->--1", made("data", "--1")),
        ("data->\u0661", made("data", "\u0661")),
        ('data->""', made("data", "")),
        ('data->" a "', made("data", " a ")),
        ('"a->b"->"c->d"', made("a->b", "c->d")),
        ("data->a-b", made("data", "a-b")),
        ("data-->a", made("data-", "a")),
        ("a'b->c'd", made("a'b", "c'd")),
        (f"data->{MOST_INDEX}->-{MOST_INDEX}", made("data", MOST_INDEX, -MOST_INDEX)),
    ],
)
def test_a_field_is_a_column_and_a_path(text: str, read: Field) -> None:
    for stops in STOPS:
        assert read_field(text, 0, stops, "x") == (read, len(text))
        for stop in stops:
            assert read_field(f"__{text}{stop}rest", 2, stops, "x") == (read, len(text) + 2)


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("", "missing_name", "A name is missing in x at position 1."),
        (" ", "missing_name", "A name is missing in x at position 1."),
        ('""', "missing_name", "A name is missing in x at position 1."),
        ("->a", "missing_name", "A name is missing in x at position 1."),
        ("a->", "invalid_json_path", "A key is missing in x at position 4."),
        ("a->->b", "invalid_json_path", "A key is missing in x at position 4."),
        ("a->>", "invalid_json_path", "A key is missing in x at position 5."),
        ("a->> ", "invalid_json_path", "A key is missing in x at position 5."),
        ("a->>b->c", "invalid_json_path", "A step follows ->> in x at position 6, where the value is text already."),
        ("a->>b->>c", "invalid_json_path", "A step follows ->> in x at position 6, where the value is text already."),
        ('"a"b', "invalid_quotes", "Unexpected text after the closing quote in x at position 4."),
        ('a->"b"c', "invalid_quotes", "Unexpected text after the closing quote in x at position 7."),
        ('"a', "invalid_quotes", "The double quote in x at position 1 is not closed."),
        ('a->"b', "invalid_quotes", "The double quote in x at position 4 is not closed."),
        (f"a->{MOST_INDEX + 1}", "invalid_json_path", "The index 2147483648 in x is larger than 2,147,483,647."),
        ("a->-" + "9" * 100_000, "invalid_json_path", f"The index -{'9' * 99}… in x is larger than 2,147,483,647."),
        ("a" + "->b" * (MOST_STEPS + 1), "too_deep", "A path in x has more than 50 steps."),
        ("a(b", "embedding_not_supported", "Brackets in x: embedding of other tables"),
        ("a->b(c", "embedding_not_supported", "Brackets in x: embedding of other tables"),
        ("a->b.sum()", "embedding_not_supported", "Brackets in x: embedding of other tables"),
    ],
)
def test_an_invalid_field_is_refused(text: str, code: str, detail: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_field(text, 0, SELECT_STOPS, "x")
    assert caught.value.code == code
    assert caught.value.detail.startswith(detail)


@pytest.mark.parametrize("stops", [ORDER_STOPS, ".,()", ""])
def test_a_cast_after_a_path_is_not_a_key_where_nothing_can_be_cast(stops: str) -> None:
    for text in ("a->b::int", "a->>b::int"):
        with pytest.raises(InvalidRequest, match="can be cast only in select"):
            read_field(text, 0, stops, "x")
    assert read_field('a->"b::int"', 0, stops, "x") == (made("a", "b::int"), 11)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("TEXT", "text"),
        ("int", "int4"),
        ("integer", "int4"),
        ("BigInt", "int8"),
        ("decimal", "numeric"),
        ("double  precision", "float8"),
        (" date ", "date"),
        ("timestamp with time zone", "timestamptz"),
        ("timestamp without time zone", "timestamp"),
        ("boolean", "bool"),
        ("character varying", "varchar"),
    ],
)
def test_a_cast_takes_the_names_that_postgresql_takes(written: str, name: str) -> None:
    assert read_cast(f"a::{written},b", 1, SELECT_STOPS, "x") == (name, len(written) + 3)


def test_without_colons_there_is_no_cast() -> None:
    for text in ("a,b", "a:b", "a"):
        assert read_cast(text, 1, SELECT_STOPS, "x") == (None, 1)


@pytest.mark.parametrize(
    "type", ["regclass", "oid", "pg_catalog.text", "text[]", "varchar(3)", "numeric(10,2)", "name", "xml", "te xt", "1"]
)
def test_no_other_type_can_be_cast_to(type: str) -> None:
    """Some would reveal names or run code; those with a length would cut values."""
    with pytest.raises(InvalidRequest):
        read_cast(f"::{type}", 0, SELECT_STOPS, "x")


ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
AWKWARD = st.text("a1\"\\.,:()->*' \té", max_size=8)
KEYS = ANY_TEXT | AWKWARD | st.integers(-MOST_INDEX, MOST_INDEX) | st.sampled_from(["0", "-1", "->>", ">a", ""])
COLUMNS = (ANY_TEXT | AWKWARD).filter(bool) | st.sampled_from(["*", "a->b", "a-", "-", ">", "and", " a", "a::text"])


@st.composite
def fields(draw: st.DrawFn) -> Field:
    keys = draw(st.lists(KEYS, max_size=4))
    return made(draw(COLUMNS), *keys, as_text=draw(st.booleans()), cast=draw(st.none() | st.sampled_from([*CASTS])))


@given(fields(), st.sampled_from(STOPS), st.booleans())
@example(made("a-", ">", as_text=True), "", False)
@example(made("a", ">b"), SELECT_STOPS, False)
@example(made("a", "-", "->", as_text=True), ".,()", True)
def test_a_written_field_is_read_back(written: Field, stops: str, followed: bool) -> None:
    if ":" not in stops:
        written = Field(written.column, written.path)
    text = write_field(written, stops)
    rest = stops[:1] + "rest" if followed and stops else ""
    read, position = read_field(text + rest, 0, stops, "x")
    cast = None
    if ":" in stops:
        cast, position = read_cast(text + rest, position, stops, "x")
    assert (Field(read.column, read.path, cast), position) == (written, len(text))


@given(COLUMNS, st.sampled_from(STOPS))
def test_a_written_name_is_read_back(name: str, stops: str) -> None:
    text = write_field_name(name, stops)
    assert read_field_name(text, 0, stops, "x") == (name, len(text))


@given(ANY_TEXT | AWKWARD, st.sampled_from(STOPS))
def test_any_text_is_a_field_or_an_invalid_request(text: str, stops: str) -> None:
    with contextlib.suppress(InvalidRequest):
        read, position = read_field(text, 0, stops, "x")
        assert position == len(text) or text[position] in stops
        assert read.column
        assert not any(step.as_text for step in read.path[:-1])


@pytest.mark.parametrize(
    ("named", "name"),
    [
        (made("data"), "data"),
        (made("data", "a"), "a"),
        (made("data", "a", "b", as_text=True), "b"),
        (made("data", "a", 0), "a"),
        (made("data", 0, 1), "data"),
        (made("data", "a", 0, 1, cast="text"), "a"),
        (made("data", ""), ""),
    ],
)
def test_the_last_key_is_the_name(named: Field, name: str) -> None:
    assert named.name == name


def test_a_field_as_a_message_names_it() -> None:
    assert str(made("a.b")) == "a.b"
    assert str(made("data", "a", "b c", as_text=True)) == "data->a->>b c"
    assert str(made("data", "0", cast="text")) == 'data->"0"::text'

"""What the page says about an error: what its field takes, and not what the URL looks like."""

from __future__ import annotations

import pytest

from server.errors import ExportError, Forbidden, InvalidRequest
from server.pages.expected import expected
from server.pages.faults import fault_of
from server.pages.form_reader import form_of_fields, form_of_query
from server.query.catalogue import Column, Relation
from server.query.plan import make_plan
from server.query.request import parse_export_request

TYPES = {
    "id": "bigint",
    "small": "smallint",
    "name": "text",
    "price": "numeric(10,2)",
    "born": "date",
    "seen": "timestamp with time zone",
    "key": "uuid",
    "where": "point",
    "tags": "text[]",
}
COLUMNS = tuple(Column(name, type, True, True, False) for name, type in TYPES.items())
USERS = Relation(1, "public", "users", "table", False, COLUMNS, 1000, 8192)


def said(error: ExportError, query: str) -> tuple[str, str, str | None]:
    fault = fault_of(error, form_of_query(USERS, query))
    return fault.field, fault.text, fault.hint


@pytest.mark.parametrize(
    ("query", "field", "text"),
    [
        ("limit=x", "limit", "Maximum rows takes a whole number."),
        ("limit=99999999999999999999", "limit", "Maximum rows takes a whole number up to 9223372036854775807."),
        ("offset=-1", "offset", "Rows to skip cannot be less than 0."),
        ("timezone=Mars/Base", "timezone", "There is no time zone Mars/Base."),
        ("filename=%20", "filename", "A file name needs at least one visible character."),
        ("delimiter=x", "delimiter", "There is no such choice: x."),
        ("delimiter=;&format=ndjson", "delimiter", "JSON lines do not have this option."),
        ("delimiter=;&format=tsv", "delimiter", "The delimiter of TSV is the tab."),
        ("excel=true&eol=lf", "eol", "“For Excel” needs CRLF line endings."),
        ("delimiter=;&null=a;b", "null", "The text for NULL must not hold the delimiter"),
        ("null=" + "x" * 101, "null", "The text for NULL is too long."),
        ("gone=eq.1", "f0", "There is no column “gone”. Remove this filter."),
        ("select=gone", "columns", "There is no column “gone”. Untick it."),
        (f"select={'n' * 64}:id", "more", "The alias"),
        (
            "select=id,id:name&id=eq.1&format=ndjson",
            "columns",
            "JSON lines need different names, but two columns would ",
        ),
        ("select=id,id:id::text&format=ndjson", "more", 'More than one column has the name "id"'),
        ("order=gone", "sort", "There is no column “gone”. Remove this sort key."),
        ("name=like.a%5C", "more", "The pattern for"),
        ("nothing=1", "more", 'The parameter "nothing" is not known.'),
    ],
)
def test_an_error_of_the_request(query: str, field: str, text: str) -> None:
    form = form_of_query(USERS, query)
    with pytest.raises(ExportError) as caught:
        make_plan(parse_export_request(f"users.{form.full_format}", form.query), USERS)
    fault = fault_of(caught.value, form)
    assert (fault.field, fault.text[: len(text)]) == (field, text)
    if field != "more":
        assert fault.hint is None
        assert '"' not in fault.text


@pytest.mark.parametrize(
    ("query", "value", "text"),
    [
        ("id=eq.abc", "abc", "id takes whole numbers."),
        ("id=in.(1,abc,2)", "abc", "id takes whole numbers, not abc."),
        ("small=gt.70000", "70000", "small takes whole numbers from -32768 to 32767."),
        (
            "id=eq.-99999999999999999999",
            "-99999999999999999999",
            "id takes whole numbers from -9223372036854775808 to ",
        ),
        ("price=eq.cheap", "cheap", "price takes numbers."),
        ("born=eq.2024-02-30", "2024-02-30", "born takes dates, for example 2024-01-31."),
        ("seen=gt.now%20or%20never", "now or never", "seen takes dates with or without a time, for example "),
        ("key=eq.1", "1", "key takes UUIDs, for example "),
        ("where=eq.here", "here", "where takes values of the type point."),
        ("tags=cs.a", "a", "tags takes a list in braces, for example {a,b}."),
        ("name=match.(", "(", "This is not a valid regular expression."),
    ],
)
def test_a_value_that_the_column_does_not_take(query: str, value: str, text: str) -> None:
    column = query.partition("=")[0]
    detail = f'The filter on "{column}" ({TYPES[column]}) is not valid. PostgreSQL rejected a value: "{value}".'
    field, shown, hint = said(InvalidRequest(detail, code="invalid_value"), query)
    assert (field, shown[: len(text)], hint) == ("f0", text, None)


@pytest.mark.parametrize(
    ("query", "detail", "field", "text"),
    [
        (
            "where=gt.1",
            'The operator "gt" cannot be used on "where" (point).',
            "f0",
            "where (point) cannot be compared with “more than”.",
        ),
        ("order=where", '"where" (point) cannot be sorted by.', "sort", "where cannot be sorted by: "),
    ],
)
def test_an_operator_that_the_type_does_not_have(query: str, detail: str, field: str, text: str) -> None:
    shown = said(InvalidRequest(detail, code="operator_not_supported"), query)
    assert (shown[0], shown[1][: len(text)]) == (field, text)


def test_a_form_without_a_ticked_column() -> None:
    form = form_of_fields(USERS, [("c", "id"), ("a", ""), ("c", "name"), ("a", "")])
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    fault = fault_of(caught.value, form)
    assert (fault.field, fault.text, fault.hint) == ("columns", "Tick at least one column.", None)


def test_a_name_in_the_file_that_is_too_long() -> None:
    form = form_of_fields(USERS, [("c", "id"), ("a", "é" * 32), ("t", "0")])
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    fault = fault_of(caught.value, form)
    assert fault.field == "columns"
    assert fault.text == f"The name {'é' * 32} is too long: it may have 63 bytes."


def test_a_regular_expression_that_repeats_too_much() -> None:
    form = form_of_fields(USERS, [("f0.column", "name"), ("f0.op", "match"), ("f0.value", "((a?){0,40}){0,40}")])
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    fault = fault_of(caught.value, form)
    assert fault.field == "f0"
    assert "repeats too much" in fault.text
    assert "smaller counts" in (fault.hint or "")


def test_a_list_with_an_open_quote() -> None:
    fields = [("c", "id"), ("a", ""), ("t", "0"), ("f7.column", "name"), ("f7.op", "in"), ("f7.value", 'a,"b')]
    form = form_of_fields(USERS, fields)
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    fault = fault_of(caught.value, form)
    assert (fault.field, fault.text[:39]) == ("f7", "A double quote in the list is not close")


def test_a_pattern_that_ends_in_a_backslash() -> None:
    fields = [("c", "id"), ("a", ""), ("t", "0"), ("f0.column", "name"), ("f0.op", "like"), ("f0.value", "a\\")]
    form = form_of_fields(USERS, fields)
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    fault = fault_of(caught.value, form)
    assert (fault.field, fault.text[:36]) == ("f0", "The pattern ends with a single backs")


def test_a_column_that_the_role_may_not_read() -> None:
    columns = (*COLUMNS, Column("salary", "numeric", True, False, False))
    relation = Relation(1, "public", "users", "table", False, columns, 1000, 8192)
    form = form_of_query(relation, "select=id,salary")
    with pytest.raises(Forbidden) as caught:
        make_plan(parse_export_request("users.csv", form.query), relation)
    fault = fault_of(caught.value, form)
    assert fault.field == "columns"
    assert fault.text == "The database role may not read the column “salary”. Untick it."


def test_an_error_of_no_field_keeps_its_own_words() -> None:
    error = InvalidRequest("Something else.", hint="Do this.", code="other")
    assert said(error, "id=eq.1") == ("", "Something else.", "Do this.")


@pytest.mark.parametrize(
    ("type", "text"),
    [
        ("integer", "whole numbers"),
        ("bigint", "whole numbers"),
        ("double precision", "numbers"),
        ("time without time zone", "times"),
        ("timestamp(3) without time zone", "dates with or without a time"),
        ("timestamp with time zone[]", "a list in braces, for example {a,b}"),
        ("numeric(10,2)[]", "a list in braces, for example {1,2}"),
        ("tstzrange", "a range"),
        ("datemultirange", "ranges in braces"),
        ("interval", "durations"),
        ("jsonb", "JSON"),
        ("inet", "network addresses"),
        ("bit varying(8)", "the digits 0 and 1"),
        ("datestyle", "values of the type datestyle"),
    ],
)
def test_what_a_type_takes(type: str, text: str) -> None:
    assert expected(type).startswith(text)


@pytest.mark.parametrize(
    ("values", "ranged"),
    [
        (("32767",), False),
        (("-32768",), False),
        (("32768",), True),
        (("-32769",), True),
        (("1", "40000"), True),
        ((" +0000000000000000000000001 ",), False),
        (("9" * 40,), True),
        (("1.5",), False),
    ],
)
def test_a_number_out_of_range_is_told_the_range(values: tuple[str, ...], ranged: bool) -> None:
    assert (expected("smallint", values) == "whole numbers from -32768 to 32767") == ranged

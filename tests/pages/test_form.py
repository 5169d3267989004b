"""The form of the page ↔ the query string: nothing is lost, nothing changes its meaning, errors have their field."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import parse_qsl, quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ExportError, InvalidRequest, RequestTooLarge
from server.pages.controls import (
    COMPARISONS_BY_KIND,
    condition_of,
    fits_picker,
    input_of,
    kind_of,
    read_list,
    write_list,
)
from server.pages.faults import fault_of
from server.pages.form import Form, encode_pair, parse_form, readable_pair
from server.pages.form_reader import MOST_ROWS, form_of_fields, form_of_query, most_rows
from server.query.catalogue import Column, Relation
from server.query.fields import Field
from server.query.filters import IS_VALUES, OPERATORS, Condition, Filter, Group, conditions_of
from server.query.plan import make_plan
from server.query.request import ExportRequest, parse_export_request
from server.query.tally import MOST_CONDITIONS
from tests.support.cpu import cpu_limit, most_seconds


def column(name: str, type: str, values: tuple[str, ...] | None = None, *, readable: bool = True) -> Column:
    return Column(name, type, True, readable, False, values)


COLUMNS = (
    column("id", "bigint"),
    column("name", "text"),
    column("born", "date"),
    column("seen", "timestamp with time zone"),
    column("active", "boolean"),
    column("tier", "tier", ("free", "pro, yearly", 'a"b')),
    column("tags", "text[]"),
    column("where", "point"),
    column("order", "integer"),
    column("code", "character(2)"),
    column("a,b.c:d", "text"),
    column('"', "text"),
    column("*", "text"),
    column("format", "text"),
    column("ß+%&= ü", "text"),
    column("two\nlines", "text"),
    column("data", "jsonb"),
    column("a->b", "text"),
    column(" a ", "text"),
    column("rate (%)", "numeric"),
)
# What a browser sends as CR LF.
LINE_BREAK = re.compile("\r\n?|\n")
USERS = Relation(1, "public", "users", "table", False, COLUMNS, 1000, 8192)


def fields_of(form: Form) -> list[tuple[str, str]]:
    """Return the fields that a browser sends of this form, as table.html shows it."""
    fields: list[tuple[str, str]] = []
    for number, row in enumerate(form.columns):
        fields += [("c", row.column), ("a", row.alias)]
        if row.taken:
            fields.append(("t", str(number)))
    for filter in form.filters:
        prefix = f"f{filter.number}."
        fields += [(prefix + "column", filter.column), (prefix + "op", filter.filled.comparison.key)]
        if filter.kind == "timestamp" and fits_picker("timestamp", filter.filled):
            first = (filter.filled.values or ("",))[0]
            fields += [(prefix + "value", first[:10]), (prefix + "time", first[11:])]
        else:
            fields += [(prefix + "value", value) for value in filter.filled.values]
    for sort in form.sorts:
        fields += [(f"s{sort.number}.column", sort.column), (f"s{sort.number}.direction", sort.direction)]
    fields += [("format", form.format), *([("gzip", "gz")] if form.gzip else [])]
    return [*fields, *form.options.items(), ("more", "\r\n".join(form.more))]


def with_midnights(item: Filter) -> Filter:
    """Return the filter with the time of each date in a filter on a timestamp: PostgreSQL reads midnight."""
    if isinstance(item, Group):
        return replace(item, members=tuple(map(with_midnights, item.members)))
    if item.field != Field("seen"):
        return item
    return replace(item, values=tuple(re.sub(r"^\d{4}-\d\d-\d\d$", r"\g<0>T00:00", value) for value in item.values))


def meaning(query: str, suffix: str = "csv") -> tuple[object, ...]:
    """Return the plan of this query string without the order of its filters."""
    request = parse_export_request(f"users.{suffix}", query)
    plan = make_plan(request, USERS)
    filters = sorted(repr(with_midnights(item)) for item in request.filters)
    return (plan.columns, filters, plan.order, plan.limit, plan.offset, plan.dialect, plan.timezone, plan.filename)


# --- Query string → form → query string ---

KEPT = [
    "",
    "select=*",
    "select=id",
    "select=name,full%20name:name,id:name",
    'select="a,b.c:d","*"',
    "select=%22*%22",
    'select="""",id',
    "id=gt.7&id=lte.9",
    "id=in.(1,2,3)&id=not.in.(4)",
    "id=is.null&id=not.is.null",
    "name=ilike.*ada*&name=ilike.ada*&name=ilike.*ada&name=not.ilike.*ada*",
    r"name=ilike.*50\%25\_\\*&name=ilike.a_c&name=like.A*&name=ilike.**&name=ilike.*a*b*",
    "name=eq.&name=neq.&name=eq.%20a+b%2Bc%26d%23&name=match.^a|b$&name=imatch.x",
    'name=in.(a,"b,c","","d e"," f","g""h",{x,y})&name=not.in.()',
    "born=gte.2024-01-01&born=lt.infinity&born=eq.today",
    "seen=gte.2024-01-01&seen=lt.2024-01-01T12:30&seen=gt.2024-01-01T12:30:15&seen=lte.2024-01-01T12:30:15%2B02",
    "seen=gt.2024-01-01%2012:30",
    "seen=lte.2024-01-01&seen=gt.2024-01-01&seen=eq.2024-01-01&seen=neq.2024-01-01&seen=in.(2024-01-01,infinity)",
    "seen=lt.2024-01-01T00:00&seen=gte.2024-01-01T00:00&seen=lt.0001-01-01T00:00&seen=gte.10000-01-01T00:00",
    "and=(seen.gte.2024-01-01,seen.lt.2024-01-02)&not.and=(seen.gte.2024-01-01,seen.lt.2024-01-02)",
    "or=(and(seen.gte.2024-01-01,seen.lt.2024-01-02),seen.eq.now)&and=(seen.gte.2024-01-01,seen.lt.2024-01-03)",
    "select=id::text,name&order=id,tags->0&and=(seen.isdistinct.2024-01-01,id.eq(any).{1,2})",
    "select=*,id&seen=isdistinct.2024-01-01&seen=eq(any).{2024-01-01}&seen=not.is.not_null&id=gt(all).{1}",
    "select=d:data->a->>b&name=fts.a&name=wfts(english).b&name=like(any).{a*}&order=data->a.desc&data->>a=eq.1",
    "code=eq.DE&code=ilike.*D*&code=ilike.*D&code=not.in.(A,B)",
    "active=is.true&active=not.is.false&active=eq.true&active=is.unknown",
    'tier=in.(free,"pro, yearly")&tier=eq.free&tier=in.(gone)&tier=not.in.("a\\"b")',
    "tags=cs.{a,b}&tags=ov.{c}&tags=cd.{d}&where=eq.(1,2)",
    '"order"=eq.1&format=eq.csv&format=neq.x',
    "or=(id.eq.1,and(name.like.a*,born.is.null))&not.and=(id.eq.1)&or=(id.eq.2)",
    "order=id.desc,name.asc.nullsfirst,born.nullslast,seen.desc.nullslast",
    'order="a,b.c:d".desc',
    "limit=10&offset=5",
    "delimiter=;&quote=all&header=false&null=NULL&eol=crlf&bom=true&guard=formulas",
    "excel=true&timezone=Europe/Berlin&filename=my%20file",
    "text=protect&excel=true",
    "excel=false&delimiter=,&quote=minimal&header=true&eol=lf",
    "two%0Alines=eq.a&select=two%0Alines,id&order=two%0Alines&name=eq.a%0Ab&name=neq.a%0Db",
    "select=a%0Ab:id",
    # What has no inputs stays as text.
    "select=id,data->>a,x:data->b->0::text",
    "select=id::text&order=id&id=gt.7",
    "select=*,id",
    "select=id,*,x:name",
    "order=data->a.desc,id",
    "data->>a=eq.1&data->b=is.null&or=(data->>a.eq.1,id.eq.2)&data=cs.{}",
    # Names that need double quotes.
    'select="a->b"," a ","rate (%25)"&"a->b"=eq.1&" a "=neq.2&"rate (%25)"=eq.3&order="a->b","rate (%25)".desc',
    "select=%20name%20,%20id&order=%20name%20,%20id&%20id%20=gt.7",
    "%C3%9F%2B%25%26%3D%20%C3%BC=eq.%C3%9F%25&select=%C3%9F%2B%25%26%3D%20%C3%BC",
]


@pytest.mark.parametrize("query", KEPT)
def test_a_query_means_the_same_after_the_form(query: str) -> None:
    form = form_of_query(USERS, query)
    assert meaning(form.query) == meaning(query)
    assert form_of_query(USERS, form.page_query) == form  # the address of the page does not change again


@pytest.mark.parametrize("query", KEPT)
def test_a_submitted_form_means_the_same(query: str) -> None:
    form = form_of_query(USERS, query)
    assert meaning(form_of_fields(USERS, fields_of(form)).query) == meaning(query)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
awkward = st.one_of(
    texts, st.text('ab*%_\\"{}(),.: \t', max_size=8), st.sampled_from([*tier] if (tier := COLUMNS[5].values) else [])
)


@st.composite
def queries(draw: st.DrawFn) -> str:
    """Generate query strings with any filters and values, and some other parameters."""
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from([each.name for each in COLUMNS]))
        operator = draw(st.sampled_from(OPERATORS))
        if operator == "in":
            values = draw(st.lists(awkward, max_size=3))
            value = "(" + ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values) + ")"
        else:
            value = draw(st.sampled_from(IS_VALUES)) if operator == "is" else draw(awkward)
        shown = f'"{name}"' if name == "order" else name if not name.startswith('"') else '"\\""'
        pieces.append(f"{quote(shown, safe='')}={quote(draw(st.sampled_from(['', 'not.'])) + operator + '.' + value)}")
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(["id", "name", "born", "who:name"]), min_size=1, max_size=4))
        pieces.append("select=" + ",".join(names))
    if draw(st.booleans()):
        pieces.append("or=" + quote(f"(id.eq.1,name.eq.{draw(st.text('abc +%', max_size=5))})"))
    return "&".join(draw(st.permutations(pieces)))


@given(queries())
def test_any_query_means_the_same_after_a_submitted_form(query: str) -> None:
    try:
        expected = meaning(query)
    except InvalidRequest:  # a pattern that ends in a backslash
        return
    form = form_of_query(USERS, query)
    assert meaning(form.query) == expected
    fields = [(name, LINE_BREAK.sub("\r\n", value)) for name, value in fields_of(form)]
    assert not any("\r\n" in value for name, value in fields if name.endswith(".value"))  # inputs hold one line
    assert meaning(form_of_fields(USERS, fields).query) == expected


@given(st.text(max_size=40).map(lambda text: text.encode("utf-8", "ignore").decode()))
def test_any_valid_query_string_means_the_same_after_the_form(query: str) -> None:
    form = form_of_query(USERS, query)
    try:
        expected = meaning(query)
    except ExportError:
        return
    assert meaning(form.query) == expected


@given(st.lists(st.tuples(st.sampled_from(["c", "a", "t", "f0.column", "f0.op", "f1.value", "more", "move"]), texts)))
def test_any_fields_make_a_form(fields: list[tuple[str, str]]) -> None:
    form = form_of_fields(USERS, fields)
    assert form.page_query.isascii()
    assert form_of_query(USERS, form.page_query).query.isascii()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("name=ilike.*ada*", ("contains", ("ada",))),
        ("name=not.ilike.*ada*", ("not_contains", ("ada",))),
        (r"name=ilike.50\%25*", ("begins", ("50%",))),
        ("name=eq.", ("blank", ())),
        ('name=in.(a,"b,c")', ("in", ('a, "b,c"',))),
        ("id=in.(1,2)", ("in", ("1, 2",))),
        ('tier=in.(free,"pro, yearly")', ("in", ("free", "pro, yearly"))),
        ("active=not.is.true", ("not_true", ())),
        ("seen=gte.2024-01-01T12:30", ("gte", ("2024-01-01T12:30",))),
        ("gone=eq.1", ("eq", ("1",))),
        ("code=eq.DE", ("eq", ("DE",))),
    ],
)
def test_a_filter_is_shown_in_its_inputs(query: str, shown: tuple[str, tuple[str, ...]]) -> None:
    (row,) = form_of_query(USERS, query).filters
    assert (row.filled.comparison.key, row.filled.values) == shown


@pytest.mark.parametrize(
    "query",
    [
        *("or=(id.eq.1,id.eq.2)", "tier=in.(gone)", "active=eq.true", "name=ilike.a_c", "x=1", "select=id::text"),
        *("select=data->a->>b", "select=*,id", "order=data->a", "data->>a=eq.1", "name=fts.a", "id=eq(any).{1,2}"),
        *("seen=isdistinct.2024-01-01", "seen=eq(any).{2024-01-01}", "name=wfts(english).b", "seen=is.not_null"),
        *("seen=gte.2024-01-01+02:00", "born=eq.2024-01-01+02:00"),
    ],
)
def test_conditions_without_inputs_are_kept_as_text(query: str) -> None:
    form = form_of_query(USERS, query)
    assert (form.filters, form.more, unquote(form.query)) == ((), (query,), query)
    fields = [("c", "id"), ("a", ""), ("t", "0"), ("more", query)]
    assert unquote(form_of_fields(USERS, fields).query).removeprefix("select=id&") == query


@pytest.mark.parametrize(
    "query",
    [
        "seen=gte.2024-01-01+02:00",
        "or=(seen.gte.2024-01-01+02:00,id.eq.1)",
        "or=(and(seen.gte.2024-01-01,seen.lt.2024-01-02),seen.eq.2024-01-05+02:00)",
    ],
)
def test_a_plus_sign_that_the_export_refuses_is_refused_on_the_page(query: str) -> None:
    form = form_of_query(USERS, query)
    with pytest.raises(InvalidRequest) as caught:
        make_plan(parse_form(form), USERS)
    assert (caught.value.code, fault_of(caught.value, form).field) == ("unencoded_plus", "more")
    assert form_of_query(USERS, "name=eq.a+1").filters  # a space, also to the export


@pytest.mark.parametrize(
    "query",
    [
        "select=data->>a",
        "select=id,name::date",
        "select=*,id",
        "order=id,data->0.desc",
        "data->>a=eq.1",
        "data->a=in.(1)",
    ],
)
def test_parts_of_json_and_casts_have_no_inputs_and_are_kept_as_text(query: str) -> None:
    form = form_of_query(USERS, query)
    assert (form.more, form.filters, form.sorts) == ((query,), (), ())
    assert form.columns == form_of_query(USERS, "").columns


@pytest.mark.parametrize("suffix", ["csv", "tsv", "ndjson", "csv.gz", "tsv.gz", "ndjson.gz"])
def test_the_format_is_in_the_pages_address(suffix: str) -> None:
    form = form_of_query(USERS, f"id=gt.7&format={suffix}")
    assert (form.full_format, form.query) == (suffix, "id=gt.7")
    assert form_of_query(USERS, form.page_query) == form


def test_a_form_without_a_ticked_column_has_an_address() -> None:
    form = form_of_query(USERS, "select=&id=eq.1")
    assert not any(row.taken for row in form.columns)
    assert (len(form.columns), form.query, form.more) == (len(COLUMNS), "select=&id=eq.1", ())


def test_an_unreadable_column_is_left_out() -> None:
    columns = (column("id", "bigint"), column("salary", "numeric", readable=False))
    form = form_of_query(Relation(1, "public", "people", "table", False, columns, 1, 1), "")
    assert [row.column for row in form.columns] == ["id"]
    assert form.query == "select=id"


# --- Fields → form ---


def test_empty_fields_add_nothing_to_the_query() -> None:
    fields = [*fields_of(form_of_query(USERS, "")), ("f0.column", "name"), ("f0.op", "contains"), ("f0.value", "")]
    fields += [("f1.column", ""), ("f1.op", "eq"), ("f1.value", "x"), ("f2.column", "tier"), ("f2.op", "in")]
    fields += [("s0.column", ""), ("s0.direction", "desc"), ("limit", " "), ("more", "\r\n \r\n")]
    assert form_of_fields(USERS, fields).query == ""


@pytest.mark.parametrize(
    ("button", "query"),
    [
        (("move", "1.up"), "select=name,id,born"),
        (("move", "0.down"), "select=name,id,born"),
        (("move", "0.up"), "select=id,name,born"),
        (("move", "99.up"), "select=id,name,born"),
        (("move", "x"), "select=id,name,born"),
    ],
)
def test_buttons_move_columns(button: tuple[str, str], query: str) -> None:
    fields = fields_of(form_of_query(USERS, "select=id,name,born"))
    assert form_of_fields(USERS, [*fields, button]).query == query


def test_buttons_drop_filters_and_sort_keys() -> None:
    fields = fields_of(form_of_query(USERS, "id=gt.1&name=eq.a&order=id,name"))
    assert form_of_fields(USERS, [*fields, ("remove", "f0")]).query == "name=eq.a&order=id,name"
    assert form_of_fields(USERS, [*fields, ("remove", "s0")]).query == "id=gt.1&name=eq.a&order=name"


@pytest.mark.parametrize(("name", "default"), [("code", "is"), ("name", "contains"), ("id", "is"), ("seen", "from")])
def test_the_default_comparison_of_a_column(name: str, default: str) -> None:
    found = next(column for column in COLUMNS if column.name == name)
    assert COMPARISONS_BY_KIND[kind_of(found)][0].label == default


def test_a_comparison_of_another_kind_is_replaced() -> None:
    fields = [*fields_of(form_of_query(USERS, "")), ("f0.column", "id"), ("f0.op", "contains"), ("f0.value", "7")]
    assert form_of_fields(USERS, fields).query == "id=eq.7"


# --- Which field an error is about ---


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=x", "limit"),
        ("offset=-1", "offset"),
        ("timezone=Mars/Base", "timezone"),
        ("filename=%20", "filename"),
        ("delimiter=x", "delimiter"),
        ("select=id,", "more"),
        ("nothing=1", "more"),
        ("or=(id.eq.1", "more"),
        ("name=xx.1", "more"),
        ("limit=1&limit=2", "more"),
        ("excel=true&eol=lf", "eol"),
        ("text=plain", "text"),
        ("text=protect&format=ndjson", "text"),
        ("delimiter=;&null=a;b", "null"),
        ("delimiter=;&format=ndjson", "delimiter"),
        ("gone=eq.1", "f0"),
        ("id=eq.1&gone=eq.1", "f1"),
        ("select=gone", "columns"),
        ("order=gone", "sort"),
        ("or=(gone.eq.1)", "more"),
        ("select=name->a", "more"),
        ("select=gone->a", "more"),
        ("order=name->a", "more"),
        ("name->a=eq.1", "more"),
        ("select=data->>a,x:data::int&select=id", "more"),
        ("select=id,name,x:id,x:name&format=ndjson", "columns"),
        ("select=id,id::text&format=ndjson", "more"),
    ],
)
def test_an_error_of_the_request_has_its_field(query: str, field: str) -> None:
    form = form_of_query(USERS, query)
    with pytest.raises(ExportError) as caught:
        make_plan(parse_export_request(f"users.{form.full_format}", form.query), USERS)
    assert fault_of(caught.value, form).field == field


def test_a_form_without_columns_is_a_fault_of_the_columns() -> None:
    form = form_of_fields(USERS, [("c", "id"), ("a", ""), ("c", "name"), ("a", "")])
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    assert fault_of(caught.value, form).field == "columns"


def test_an_unclosed_quote_in_a_list_is_a_fault_of_its_filter() -> None:
    fields = [("c", "id"), ("a", ""), ("t", "0"), ("f7.column", "name"), ("f7.op", "in"), ("f7.value", 'a,"b')]
    form = form_of_fields(USERS, fields)
    with pytest.raises(InvalidRequest) as caught:
        parse_export_request("users.csv", form.query)
    assert fault_of(caught.value, form).field == "f7"


@pytest.mark.parametrize(
    ("query", "detail", "field"),
    [
        ("id=eq.abc", 'The filter on "id" (bigint) is not valid. invalid input syntax for type bigint: "abc".', "f0"),
        ("id=eq.1&id=lt.abc", 'The filter on "id" (bigint) is not valid. invalid input: "abc".', "f1"),
        ("where=eq.1&order=where", '"where" (point) cannot be sorted by.', "sort"),
        ("where=gt.1&order=id", 'The operator "gt" cannot be used on "where" (point).', "f0"),
        ("or=(id.eq.abc)", 'The filter on "id" (bigint) is not valid.', "more"),
        ("id=eq.1", "Something else.", ""),
    ],
)
def test_an_error_of_the_database_has_its_field(query: str, detail: str, field: str) -> None:
    assert fault_of(InvalidRequest(detail, code="invalid_value"), form_of_query(USERS, query)).field == field


# --- Lists, pairs, kinds ---


@given(st.lists(texts.filter(lambda text: "\r" not in text and "\n" not in text)))
def test_a_written_list_is_read_back(values: list[str]) -> None:
    assert read_list(write_list(tuple(values))) == tuple(values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", ()),
        ("a", ("a",)),
        (" a , b ", ("a", "b")),
        ('"a,b" , c', ("a,b", "c")),
        ("a,", ("a",)),
        ("a b,c", ("a b", "c")),
    ],
)
def test_a_list_as_a_user_writes_it(text: str, values: tuple[str, ...]) -> None:
    assert read_list(text) == values


def test_a_form_has_rows_for_the_first_filters_and_sort_keys_only() -> None:
    query = "&".join(f"id=gt.{number}" for number in range(MOST_ROWS + 2))
    form = form_of_query(USERS, query)
    assert (len(form.filters), form.more) == (MOST_ROWS, (f"id=gt.{MOST_ROWS}", f"id=gt.{MOST_ROWS + 1}"))
    assert meaning(form.query) == meaning(query)
    keys = "order=" + ",".join(["id"] * (MOST_ROWS + 1))
    form = form_of_query(USERS, keys)
    assert (form.sorts, form.more, meaning(form.query)) == ((), (keys,), meaning(keys))


@pytest.mark.parametrize(
    "query",
    [
        "&".join(["id=gt.1"] * (MOST_CONDITIONS + 1)),
        "&".join(["id=gt.1"] * 15_000),
        "&".join(["nonsense"] * 15_000),
        "nonsense&id=in.(" + "1," * 60_000 + "1)",
        "&".join(["id=in.(" + "1," * 600 + "1)"] * 17),
    ],
    ids=["conditions", "many conditions", "lines", "items", "items of several lists"],
)
def test_a_query_that_asks_for_too_much_is_refused_before_a_form_is_made(query: str) -> None:
    with cpu_limit(most_seconds(0.1)), pytest.raises(RequestTooLarge):
        form_of_query(USERS, query)


def test_a_wide_table_has_fewer_rows() -> None:
    """Each row has a list of all columns."""
    columns = tuple(replace(USERS.columns[0], name=f"c{number}") for number in range(1600))
    wide = replace(USERS, columns=columns)
    assert most_rows(USERS) == MOST_ROWS
    query = "&".join(f"c{number}=gt.1" for number in range(20))
    form = form_of_query(wide, query)
    assert (len(form.filters), len(form.more)) == (6, 14)
    assert form.query == query


@pytest.mark.parametrize("letter", ["f", "s"])
def test_a_form_of_too_many_rows_is_refused(letter: str) -> None:
    fields = [(f"{letter}{number}.column", "id") for number in range(2 * MOST_ROWS + 1)]
    form_of_fields(USERS, fields[:-1])
    with pytest.raises(InvalidRequest, match="more than 200"):
        form_of_fields(USERS, fields)


def test_a_list_as_long_as_a_request_line_is_read_quickly() -> None:
    with cpu_limit(0.3):
        assert read_list("1, " * 40_000) == ("1",) * 40_000


@given(st.sampled_from(sorted(COMPARISONS_BY_KIND)), st.sampled_from(OPERATORS), st.booleans(), awkward)
def test_inputs_write_the_condition_that_they_show(kind: str, operator: str, negated: bool, value: str) -> None:
    condition = Condition(Field("x"), operator, (value,), negated)
    found = input_of(condition, kind, ("free",))
    if found is not None:
        assert condition_of("x", found) == condition


@given(texts.filter(lambda text: "\n" not in text and "\r" not in text))
def test_a_readable_pair_is_encoded_back(text: str) -> None:
    pair = f"or=({quote(text)})"
    assert parse_qsl(encode_pair(readable_pair(pair))) == parse_qsl(pair)


@pytest.mark.parametrize(
    ("type", "kind"),
    [
        ("bigint", "number"),
        ("numeric(10,2)", "number"),
        ("character varying(20)", "text"),
        ("text", "text"),
        ("text[]", "set"),
        ("int4range", "set"),
        ("jsonb", "set"),
        ("boolean", "boolean"),
        ("date", "date"),
        ("timestamp without time zone", "timestamp"),
        ("timestamp(3) with time zone", "timestamp"),
        ("timestamp with time zone[]", "set"),
        ("character(2)", "fixed-length text"),
        ("character(2)[]", "set"),
        ("bpchar", "fixed-length text"),
        ("uuid", "other"),
        ("tsvector", "other"),
    ],
)
def test_the_kind_of_a_type(type: str, kind: str) -> None:
    assert kind_of(column("x", type)) == kind


@pytest.mark.parametrize(
    ("base", "kind"), [("timestamp with time zone", "timestamp"), ("text", "text"), (None, "other")]
)
def test_a_domain_is_of_the_kind_of_its_type(base: str | None, kind: str) -> None:
    assert kind_of(Column("x", "some_domain", True, True, False, None, base)) == kind


def test_every_comparison_has_an_operator_of_the_grammar() -> None:
    request = ExportRequest(parse_export_request("x.csv", "").relation)
    assert conditions_of(request.filters) == []
    for comparisons in COMPARISONS_BY_KIND.values():
        assert all(comparison.operator in OPERATORS for comparison in comparisons)
        assert len({comparison.key for comparison in comparisons}) == len(comparisons)

"""A request and its relation → plan: names resolved or refused. No database."""

from __future__ import annotations

import dataclasses

import pytest

from server.errors import ExportError, Forbidden, InvalidRequest
from server.query.catalogue import Column, Relation, RelationName
from server.query.dialect import Dialect
from server.query.fields import CASTS, Field
from server.query.plan import PREVIEW_ROWS, ExportPlan, make_plan, preview_of
from server.query.request import ExportRequest, parse_export_request
from server.query.selection import MOST_COLUMNS, SelectedColumn
from tests.support.cpu import cpu_limit


def column(name: str, type: str = "text", *, readable: bool = True) -> Column:
    return Column(name, type, nullable=True, readable=readable, indexed=False)


def relation(*columns: Column, name: str = "users") -> Relation:
    return Relation(7, "public", name, "table", False, columns, 10, 8192)


def plan(of: Relation, *select: str | tuple[str, str]) -> ExportPlan:
    """Return the plan of a request for these columns, each a name or (alias, name). Without any, for all columns."""
    pairs = [(None, item) if isinstance(item, str) else item for item in select]
    items = [SelectedColumn(Field(name), alias) for alias, name in pairs]
    return make_plan(ExportRequest(RelationName(of.name), select=tuple(items) or None), of)


def asked(query: str, of: Relation, target: str = "users.csv") -> ExportPlan:
    """Return the plan of this query string."""
    return make_plan(parse_export_request(target, query), of)


USERS = relation(column("id"), column("name"), column("e,mail"))


@pytest.mark.parametrize(
    ("select", "headers", "columns"),
    [
        ((), ["id", "name", "e,mail"], ["id", "name", "e,mail"]),
        (("name",), ["name"], ["name"]),
        (("name", "id"), ["name", "id"], ["name", "id"]),
        (("id", "id"), ["id", "id"], ["id", "id"]),
        ((("full name", "name"), "id"), ["full name", "id"], ["name", "id"]),
        ((("id", "name"), ("name", "id")), ["id", "name"], ["name", "id"]),
        ((("", "name"),), [""], ["name"]),
        (("e,mail",), ["e,mail"], ["e,mail"]),
    ],
)
def test_columns_have_the_order_and_names_of_the_request(
    select: tuple[str | tuple[str, str], ...], headers: list[str], columns: list[str]
) -> None:
    made = plan(USERS, *select)
    assert [output.name for output in made.columns] == headers
    assert [output.column.name for output in made.columns] == columns
    assert (made.relation, made.format, made.dialect) == (USERS, "csv", Dialect())


TYPED = relation(
    column("id", "integer"),
    column("data", "jsonb"),
    column("raw", "json"),
    column("tags", "text[]"),
    column("place", "point_on_map"),
    column("at", "timestamp with time zone"),
)


EVERY_COLUMN = "id integer, data jsonb, raw json, tags text[], place point_on_map, at timestamp with time zone"


@pytest.mark.parametrize(
    ("select", "columns"),
    [
        ("*", EVERY_COLUMN),
        ("id,*,at", f"id integer, {EVERY_COLUMN}, at timestamp with time zone"),
        # The last key names the column.
        ("data->a", "a jsonb"),
        ("data->a->>b", "b text"),
        ("raw->a->b", "b json"),
        ("data->a->0", "a jsonb"),
        ("data->0->>-1", "data text"),
        ("data->a->0->>1,x:data->>a", "a text, x text"),
        ("tags->0,tags->>0", "tags jsonb, tags text"),
        ("place->>lat", "lat text"),
        ("id::text,x:id::int8", "id text, x bigint"),
        ("data->>n::float", "n double precision"),
        ("at::date", "at date"),
    ],
)
def test_parts_and_casts_have_names_and_types(select: str, columns: str) -> None:
    made = asked(f"select={select}", TYPED)
    assert ", ".join(f"{output.name} {output.column.type}" for output in made.columns) == columns


@pytest.mark.parametrize("name", CASTS)
def test_every_cast_has_the_type_that_it_names(name: str) -> None:
    (output,) = asked(f"select=id::{name.upper()}", TYPED).columns
    assert (output.name, output.field, output.column.type) == ("id", Field("id", cast=name), CASTS[name])


@pytest.mark.parametrize(
    "type", ["text", "character varying(3)", "numeric(10,2)", "timestamp(3) with time zone", "int4range", "point"]
)
@pytest.mark.parametrize("query", ["select=v->a", "v->>a=eq.1", "or=(id.eq.1,v->0.is.null)", "order=v->>a"])
def test_a_column_without_parts_is_named(type: str, query: str) -> None:
    """PostgREST gives NULL for each row, so a typing error would give an empty column or no row."""
    with pytest.raises(InvalidRequest) as caught:
        asked(query, relation(column("id"), column("v", type)))
    assert caught.value.code == "not_json"
    assert f'The column "v" ({type}) holds no JSON' in caught.value.detail


def test_a_domain_has_the_parts_of_the_type_under_it() -> None:
    lines = dataclasses.replace(column("v", "lines"), base="text")
    with pytest.raises(InvalidRequest, match=r'"v" \(lines\) holds no JSON'):
        asked("select=v->a", relation(lines))
    (output,) = asked("select=v->a", relation(dataclasses.replace(column("v", "document"), base="json"))).columns
    assert output.column.type == "json"


def test_an_enum_has_no_parts() -> None:
    with pytest.raises(InvalidRequest):
        asked("select=mood->a", relation(dataclasses.replace(column("mood", "mood"), values=("ok",))))


@pytest.mark.parametrize(
    "type", ["text[]", "numeric(10,2)[]", "jsonb", "hstore", "name_list", "sales.date", '"date of"']
)
def test_a_column_that_may_have_parts_is_not_refused(type: str) -> None:
    asked("select=v->a", relation(column("v", type)))


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("select=*,id", '"id"'),
        ("select=id,id:name,name,x:name,x:id", '"id", "x"'),
        ("select=data->a,raw->a", '"a"'),
        ("select=*,*", '"id", "name", "data", "raw"'),
    ],
)
def test_repeated_names_are_refused_for_ndjson_alone(query: str, named: str) -> None:
    table = relation(column("id"), column("name"), column("data", "jsonb"), column("raw", "json"))
    for suffix in ("csv", "tsv", "csv.gz"):
        asked(query, table, f"users.{suffix}")
    for suffix in ("ndjson", "ndjson.gz"):
        with pytest.raises(InvalidRequest) as caught:
            asked(query, table, f"users.{suffix}")
        assert caught.value.code == "repeated_name"
        assert caught.value.detail == f"More than one column has the name {named}, which ndjson does not allow."
        assert caught.value.hint is not None
        assert "select: new_name:" in caught.value.hint


@pytest.mark.parametrize("key", ['""', "k" * 64, "é" * 32])
def test_a_key_that_cannot_be_a_name_of_ndjson_needs_an_alias(key: str) -> None:
    """PostgreSQL would cut a longer identifier silently."""
    table = relation(column("data", "jsonb"))
    assert len(asked(f"select=data->{key}", table).columns) == 1
    assert asked(f"select=x:data->{key}", table, "users.ndjson").columns[0].name == "x"
    with pytest.raises(InvalidRequest) as caught:
        asked(f"select=data->{key}", table, "users.ndjson")
    assert caught.value.code == "invalid_select"
    assert "needs a name of 1 to 63 bytes" in caught.value.detail


def test_the_number_of_columns_is_limited() -> None:
    wide = relation(*(column(f"c{number}") for number in range(1600)))
    assert len(asked("select=*," + ",".join(f"c{number}" for number in range(64)), wide).columns) == MOST_COLUMNS
    for select in ("*,*", ",".join(["c1"] * (MOST_COLUMNS + 1)), ",".join(["*"] * 60_000)):
        with pytest.raises(InvalidRequest) as caught, cpu_limit(0.2):
            asked(f"select={select}", wide)
        assert (caught.value.code, caught.value.detail) == ("too_complex", '"select" names more than 1,664 columns.')


@pytest.mark.parametrize(
    "query",
    [
        "select=orders(id,total)",
        "select=id,client:clients(id)",
        "select=id,clients(id)",
        "select=id,clients(*)",
        "select=id,clients!inner(x:name)",
        "select=id,...clients(x:data->a)",
        "select=id,clients(name::text)",
        "select=id,clients(*,orders(id))",
        "select=name,id.sum()",
        "order=clients(name).desc",
        "order=clients(a.desc",
        "clients(id)=eq.1",
        "clients(id=eq.1",
    ],
)
def test_embedding_is_refused_as_such(query: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(query, USERS)
    assert caught.value.code == "embedding_not_supported"
    assert "embedding of other tables and aggregate functions are not supported" in caught.value.detail


def test_a_name_with_brackets_is_not_embedding() -> None:
    table = relation(column("sum(x)"), column("a(b"))
    made = asked('select=total (EUR):sum(x),"a(b"&sum(x)=eq.1&order=sum(x),"a(b"', table)
    assert [output.name for output in made.columns] == ["total (EUR)", "a(b"]


@pytest.mark.parametrize("query", ["id::text=eq.1", "or=(id::text.eq.1,id.eq.2)", "order=id::text"])
def test_a_cast_outside_of_select_is_explained(query: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(query, USERS)
    assert caught.value.hint == "A value can be cast only in select, not in a filter or order."


def test_the_rest_of_the_request_is_in_the_plan() -> None:
    query = "id=eq.1&or=(name.is.null,id.gt.2)&order=name.desc,id&limit=5&offset=7&null=N&timezone=UTC&filename=f"
    request = parse_export_request("users.tsv.gz", query)
    made = make_plan(request, USERS)
    assert (made.filters, made.order) == (request.filters, request.order)
    assert (len(made.filters), len(made.order)) == (2, 2)
    assert (made.limit, made.offset, made.timezone, made.filename) == (5, 7, "UTC", "f")
    assert (made.format, made.gzip, made.full_format) == ("tsv", True, "tsv.gz")
    assert made.dialect == Dialect(delimiter=b"\t", null=b"N")


def test_the_default_file_name_is_the_relation() -> None:
    made = asked("", USERS, "users.ndjson")
    assert (made.filename, made.full_format) == ("users", "ndjson")


@pytest.mark.parametrize(
    ("query", "limit", "offset"),
    [
        ("", PREVIEW_ROWS, 0),
        ("limit=0", 0, 0),
        ("limit=3&offset=4", 3, 4),
        (f"limit={PREVIEW_ROWS}", PREVIEW_ROWS, 0),
        (f"limit={PREVIEW_ROWS + 1}", PREVIEW_ROWS, 0),
        ("offset=9223372036854775807", PREVIEW_ROWS, 2**63 - 1),
    ],
)
def test_a_preview_is_the_same_plan_with_few_rows(query: str, limit: int, offset: int) -> None:
    whole = asked(f"{query}&id=eq.1&order=name&select=name", USERS)
    preview = preview_of(whole)
    assert (preview.limit, preview.offset) == (limit, offset)
    assert dataclasses.replace(preview, limit=whole.limit) == whole


def test_a_relation_without_columns_has_a_plan() -> None:
    assert plan(relation()).columns == ()


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan(USERS).limit = 1  # type: ignore[misc]


def refused(of: Relation, *select: str | tuple[str, str]) -> ExportError:
    with pytest.raises(ExportError) as caught:
        plan(of, *select)
    return caught.value


@pytest.mark.parametrize(
    ("select", "named"),
    [
        (("nothing",), '"nothing"'),
        (("id", "nothing", "neither"), '"nothing"'),
        (("ID",), '"ID"'),  # names are compared as they are written
        ((" id",), '" id"'),
        (("*",), '"*"'),
        (("ctid",), '"ctid"'),  # a system column is not exported
        ((("id", "nothing"),), '"nothing"'),
        (('"id"',), '""id""'),
    ],
)
def test_an_unknown_column_is_reported_with_the_known_ones(
    select: tuple[str | tuple[str, str], ...], named: str
) -> None:
    error = refused(USERS, *select)
    assert isinstance(error, InvalidRequest)
    assert (error.status, error.code) == (400, "unknown_column")
    assert error.detail == f'The relation "users" has no column {named}.'
    assert error.hint == 'Its columns are "id", "name", "e,mail".'


@pytest.mark.parametrize(
    "query",
    [
        "nothing=eq.1",
        "nothing=is.null",
        "id=eq.1&nothing=in.()",
        "order=nothing",
        "order=id,nothing.desc",
        "or=(id.eq.1,nothing.eq.2)",
        "not.and=(id.eq.1,or(id.eq.2,and(id.eq.3,nothing.not.is.null)))",
        "select=id&nothing=eq.1",
    ],
)
def test_an_unknown_column_is_found_in_every_parameter(query: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(query, USERS)
    assert (caught.value.status, caught.value.code) == (400, "unknown_column")
    assert caught.value.detail == 'The relation "users" has no column "nothing".'
    assert caught.value.hint == 'Its columns are "id", "name", "e,mail".'


def test_filters_and_sort_keys_take_names_and_not_positions() -> None:
    for query in ("order=1", "1=eq.1", "order=e,mail"):
        with pytest.raises(InvalidRequest):
            asked(query, USERS)


def test_an_alias_cannot_be_filtered_or_sorted_by() -> None:
    for query in ("select=x:id&order=x", "select=x:id&x=eq.1"):
        with pytest.raises(InvalidRequest) as caught:
            asked(query, USERS)
        assert '"x"' in caught.value.detail


def test_an_unknown_column_of_a_relation_without_columns() -> None:
    assert refused(relation(), "id").hint == "It has no columns."


def test_a_message_stays_short_with_long_names() -> None:
    wide = relation(*(column(f"c{number}" + "x" * 60) for number in range(1600)))
    error = refused(wide, "y" * 8192)
    assert f'"{"y" * 100}"' in error.detail
    assert error.hint is not None
    assert error.hint.endswith(" and 1550 more.")
    assert len(error.detail) + len(error.hint) < 5000


GUARDED = relation(column("id"), column("salary", readable=False), column("name"), column("notes", readable=False))
PAID = relation(*GUARDED.columns, column("pay", "jsonb", readable=False))


@pytest.mark.parametrize(
    ("select", "named"),
    [
        ((), "all columns of the relation"),
        (("id", "salary"), 'the column "salary"'),
        ((("id", "notes"),), 'the column "notes"'),
    ],
)
def test_unreadable_columns_are_named_if_the_request_names_them(
    select: tuple[str | tuple[str, str], ...], named: str
) -> None:
    error = refused(GUARDED, *select)
    assert isinstance(error, Forbidden)
    assert (error.status, error.code) == (403, "columns_not_readable")
    assert error.detail == f"The database role may not read {named}."
    assert error.hint == "Select only the others: select=id,name"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("select=id&salary=gt.1", 'column "salary"'),
        ("select=id&order=notes", 'column "notes"'),
        ("select=id&or=(id.eq.1,not.and(salary.is.null,notes.eq.x))", 'columns "salary", "notes"'),
        ("select=id&order=notes,salary&salary=eq.1", 'columns "salary", "notes"'),
        ("select=id,x:salary::text", 'column "salary"'),
        ("select=notes,*", 'column "notes"'),
        ("select=pay->>a", 'column "pay"'),
        ("select=id&pay->>a=eq.1", 'column "pay"'),
        ("select=id&order=pay->0", 'column "pay"'),
    ],
)
def test_an_unreadable_column_cannot_be_filtered_or_sorted_by(query: str, named: str) -> None:
    """Either would reveal what is in it."""
    with pytest.raises(Forbidden) as caught:
        asked(query, PAID if "pay" in query else GUARDED)
    assert caught.value.detail == f"The database role may not read the {named}."


def test_readable_columns_of_a_guarded_relation_can_be_exported() -> None:
    assert [output.column.name for output in plan(GUARDED, "name", "id").columns] == ["name", "id"]


def test_the_hint_with_the_readable_columns_is_a_valid_query_string() -> None:
    odd = relation(column("a,b"), column("c:d"), column('"e"'), column("salary", readable=False))
    hint = refused(odd).hint
    assert hint is not None
    query = hint.removeprefix("Select only the others: ")
    select = parse_export_request("users.csv", query).select
    assert select is not None
    assert [item.field for item in select] == [Field("a,b"), Field("c:d"), Field('"e"')]


def test_a_hint_names_only_readable_columns() -> None:
    assert refused(GUARDED, "nothing").hint == 'Its columns are "id", "name".'


def test_a_hint_with_very_many_columns_is_left_out() -> None:
    wide = relation(column("salary", readable=False), *(column(f"c{number}") for number in range(51)))
    assert refused(wide).hint is None

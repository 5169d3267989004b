"""The SQL of a plan: every name quoted, every value bound, no other text of a user. No database."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.query.catalogue import Column, Relation, RelationName
from server.query.fields import Field
from server.query.filters import COMPARISONS, QUANTIFIED
from server.query.plan import ExportPlan, make_plan
from server.query.quoting import quote_identifier
from server.query.request import ExportRequest, parse_export_request
from server.query.selection import SelectedColumn
from server.query.sql import Blocks, probes, select_statement, value_probes


def described(schema: str, name: str, columns: dict[str, str]) -> Relation:
    """Return a relation with these columns. columns: type by name."""
    made = tuple(Column(column, type, nullable=True, readable=True, indexed=False) for column, type in columns.items())
    return Relation(1, schema, name, "table", False, made, None, None)


def plan(schema: str, name: str, *columns: tuple[str, str]) -> ExportPlan:
    """Return a plan that selects these columns, each (name in the header, column)."""
    select = tuple(SelectedColumn(Field(column), header) for header, column in columns)
    relation = described(schema, name, dict.fromkeys((column for _, column in columns), "text"))
    return make_plan(ExportRequest(RelationName(name), select=select or None), relation)


USERS = described(
    "public",
    "users",
    {
        "id": "integer",
        "name": "text",
        "e,mail": "character varying(80)",
        "more": "jsonb",
        "words": "tsvector",
        "tags": "text[]",
        "frame": "box",
    },
)
# With a column of a domain over tsvector.
# The operators that are written as the column, the operator and the value.
SIMPLE = {name: operator for name, operator in COMPARISONS.items() if name != "isdistinct"}
DOMAIN = Column("found", "search_words", nullable=True, readable=True, indexed=False, base="tsvector")
USERS = replace(USERS, columns=(*USERS.columns, DOMAIN))


NAME = r'"(?:[^"]|"")+"'
SOURCE = re.compile(rf"\(SELECT (?:(?:{NAME}|ctid)(?:, )?)* ?FROM ((?:ONLY )?{NAME}\.{NAME}) AS relation_*\) AS source")


def plain(text: str) -> str:
    """Return the SQL without the subquery for the relation and the schema of operators."""
    text = SOURCE.sub(r"\1", text)
    return re.sub(r"OPERATOR\(pg_catalog\.(\S+)\)", r"\1", text.replace("source.", ""))


def test_names_of_columns_stand_alone_in_a_subquery() -> None:
    text = select_statement(asked("select=id,e:more->a,id&name=eq.a&order=words,id")).text
    assert ' FROM (SELECT "id", "more", "name", "words" FROM "public"."users" AS relation) AS source WHERE ' in text
    text = select_statement(asked("select=id"), Blocks("public", "part", 0, 9)).text
    assert ' FROM (SELECT ctid, "id" FROM ONLY "public"."part" AS relation) AS source WHERE source.ctid ' in text
    # A name that is no column any more would be the whole row of the table of that name.
    named = replace(USERS, columns=tuple(replace(DOMAIN, name=name) for name in ("relation", "relation_")))
    assert select_statement(asked("", relation=named)).text.endswith(" AS relation__) AS source")


def asked(query: str, target: str = "users.csv", relation: Relation = USERS) -> ExportPlan:
    return make_plan(parse_export_request(target, query), relation)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("users", '"users"'),
        ("Users", '"Users"'),
        ("order", '"order"'),
        ("my table", '"my table"'),
        ("my.table", '"my.table"'),
        ('a"b', '"a""b"'),
        ('"', '""""'),
        ('"; DROP TABLE users; --', '"""; DROP TABLE users; --"'),
        ("a'b", '"a\'b"'),
        ("a\\b", '"a\\b"'),
        ("a\nb", '"a\nb"'),
        ("größe 🦥", '"größe 🦥"'),
        # No other character has a meaning: nothing replaces placeholders in the text.
        ("100%", '"100%"'),
        ("%(name)s", '"%(name)s"'),
        ("$1", '"$1"'),
    ],
)
def test_a_name_is_quoted_for_postgresql(name: str, quoted: str) -> None:
    assert quote_identifier(name) == quoted


@pytest.mark.parametrize("name", ["", "\0", "a\0b"])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="an identifier is not empty and holds no NUL"):
        quote_identifier(name)


@given(st.text(st.characters(exclude_characters="\0"), min_size=1) | st.text('"%s(v0)$1', min_size=1))
def test_no_name_closes_its_own_quotes(name: str) -> None:
    quoted = quote_identifier(name)
    inside = quoted[1:-1]
    assert (quoted[0], quoted[-1]) == ('"', '"')
    assert '"' not in inside.replace('""', "")
    assert inside.replace('""', '"') == name


@pytest.mark.parametrize(
    ("made", "statement"),
    [
        (plan("public", "users", ("id", "id")), 'SELECT "id" FROM "public"."users"'),
        (
            plan("public", "users", ("id", "id"), ("name", "name")),
            'SELECT "id", "name" FROM "public"."users"',
        ),
        (
            plan("public", "users", ("a", "x"), ("b", "x")),
            'SELECT "x", "x" FROM "public"."users"',
        ),
        # The alias is for the header only: it does not reach the database.
        (plan("public", "users", ('evil"; --', "id")), 'SELECT "id" FROM "public"."users"'),
        (plan('s"s', 'r"r', ("c", 'c"c')), 'SELECT "c""c" FROM "s""s"."r""r"'),
        (plan("s%s", "r$1", ("c", "%(v0)s")), 'SELECT "%(v0)s" FROM "s%s"."r$1"'),
        (plan("public", "source", ("c", "source")), 'SELECT "source" FROM "public"."source"'),
        (plan("public", "nothing"), 'SELECT  FROM "public"."nothing"'),
    ],
)
def test_a_plan_is_one_select(made: ExportPlan, statement: str) -> None:
    assert plain(select_statement(made).text) == statement
    assert select_statement(made).values == []


@pytest.mark.parametrize(
    ("query", "condition", "values"),
    [
        *((f"id={name}.7", f'"id" {operator} $1', ["7"]) for name, operator in SIMPLE.items()),
        *((f"id=not.{name}.7", f'NOT ("id" {operator} $1)', ["7"]) for name, operator in SIMPLE.items()),
        ("id=isdistinct.7", '("id" = $1) IS NOT TRUE', ["7"]),
        ("id=not.isdistinct.7", 'NOT (("id" = $1) IS NOT TRUE)', ["7"]),
        ("id=is.null", '"id" IS NULL', []),
        ("id=is.True", '"id" IS TRUE', []),
        ("id=is.false", '"id" IS FALSE', []),
        ("id=is.unknown", '"id" IS UNKNOWN', []),
        ("id=is.Not_Null", '"id" IS NOT NULL', []),
        ("id=not.is.not_null", 'NOT ("id" IS NOT NULL)', []),
        *((f"id={name}(any).7", f'"id" {COMPARISONS[name]} ANY ($1)', ["7"]) for name in QUANTIFIED),
        ("id=not.gte(all).{1,2}", 'NOT ("id" >= ALL ($1))', ["{1,2}"]),
        ("name=like(any).{a*,\\*b}", '"name" ~~ ANY ($1)', ["{a%,*b}"]),
        ("words=fts.a %26 b", '"words" @@ pg_catalog.to_tsquery($1)', ["a & b"]),
        (
            "words=wfts(german).a",
            '"words" @@ pg_catalog.websearch_to_tsquery($1::pg_catalog.regconfig, $2)',
            ["german", "a"],
        ),
        ("name=plfts.a", 'pg_catalog.to_tsvector("name") @@ pg_catalog.plainto_tsquery($1)', ["a"]),
        (
            "name=not.phfts(my $1).a&id=eq.1",
            (
                'NOT (pg_catalog.to_tsvector($1::pg_catalog.regconfig, "name") '
                '@@ pg_catalog.phraseto_tsquery($1::pg_catalog.regconfig, $2)) AND "id" = $3'
            ),
            ["my $1", "a", "1"],
        ),
        (
            "more->>a=fts(english).b",
            (
                'pg_catalog.to_tsvector($2::pg_catalog.regconfig, ("more" ->> '
                "$1::pg_catalog.text)) @@ pg_catalog.to_tsquery($2::pg_catalog.regconfig, $3)"
            ),
            ["a", "english", "b"],
        ),
        ("found=fts.a", '"found" @@ pg_catalog.to_tsquery($1)', ["a"]),
        ("id=not.is.null", 'NOT ("id" IS NULL)', []),
        ("id=in.(1)", '"id" = $1', ["1"]),
        ('id=in.(1,"2,3","\\"4","5\\\\")', '"id" = ANY ($1)', [r"""{"1","2,3","\"4","5\\"}"""]),
        ("id=not.in.(1,2)", 'NOT ("id" = ANY ($1))', ['{"1","2"}']),
        ("tags=in.({a},{b})", '("tags" = $1 OR "tags" = $2)', ["{a}", "{b}"]),
        ("tags=in.({a})", '"tags" = $1', ["{a}"]),
        ('frame=in.("(1,1)","(0,0)")', '("frame" = $1 OR "frame" = $2)', ["(1,1)", "(0,0)"]),
        ("tags=not.in.({a},{b})", 'NOT (("tags" = $1 OR "tags" = $2))', ["{a}", "{b}"]),
        ("id=in.()", "FALSE", []),
        ("id=not.in.()", "NOT (FALSE)", []),
        (
            "or=(more->a.in.(),more->b.eq.1)",
            '(FALSE OR ("more" -> $1::pg_catalog.text) = $2)',
            ["b", "1"],
        ),
        ("name=like.a*b%25", '"name" ~~ $1', ["a%b%"]),
        ("name=eq.a*b%25", '"name" = $1', ["a*b%"]),
        ("name=eq.", '"name" = $1', [""]),
        ("id=gt.1&id=lt.9", '"id" > $1 AND "id" < $2', ["1", "9"]),
        ("or=(id.eq.1,name.eq.b)", '("id" = $1 OR "name" = $2)', ["1", "b"]),
        ("and=(id.eq.1,name.eq.b)", '("id" = $1 AND "name" = $2)', ["1", "b"]),
        ("not.or=(id.eq.1,name.eq.b)", 'NOT ("id" = $1 OR "name" = $2)', ["1", "b"]),
        (
            "or=(id.in.(1,2),not.and(id.eq.3,name.not.eq.4))",
            '("id" = ANY ($1) OR NOT ("id" = $2 AND NOT ("name" = $3)))',
            ['{"1","2"}', "3", "4"],
        ),
        ('"e,mail"=eq.x', '"e,mail" = $1', ["x"]),
        ("name=eq.%25(v0)s", '"name" = $1', ["%(v0)s"]),
        ("name=eq.$1", '"name" = $1', ["$1"]),
        ("name=eq.'; DROP TABLE users; --", '"name" = $1', ["'; DROP TABLE users; --"]),
    ],
)
def test_a_filter_is_a_condition_with_bound_values(query: str, condition: str, values: list[str]) -> None:
    statement = select_statement(asked(f"select=id&{query}"))
    assert plain(statement.text) == f'SELECT "id" FROM "public"."users" WHERE {condition}'
    assert statement.values == values


@pytest.mark.parametrize(
    ("query", "tail"),
    [
        ("limit=0", " LIMIT 0"),
        ("limit=9223372036854775807&offset=9223372036854775807", f" LIMIT {2**63 - 1} OFFSET {2**63 - 1}"),
        ("offset=0", ""),
        ("offset=7", " OFFSET 7"),
        ("limit=007", " LIMIT 7"),
    ],
)
def test_limit_and_offset_are_numbers(query: str, tail: str) -> None:
    statement = select_statement(asked(f"select=id&{query}"))
    assert plain(statement.text) == f'SELECT "id" FROM "public"."users"{tail}'


@pytest.mark.parametrize(
    ("order", "keys"),
    [
        ("id", '"id"'),
        ("id.asc", '"id"'),
        ("id.desc", '"id" DESC'),
        ("id.asc.nullsfirst", '"id" NULLS FIRST'),
        ("id.desc.nullslast,name", '"id" DESC NULLS LAST, "name"'),
        ('"e,mail".nullslast', '"e,mail" NULLS LAST'),
    ],
)
def test_the_order_is_by_columns_of_the_relation(order: str, keys: str) -> None:
    statement = select_statement(asked(f"select=name:id&order={order}&limit=3&id=gt.1"))
    assert plain(statement.text) == (f'SELECT "id" FROM "public"."users" WHERE "id" > $1 ORDER BY {keys} LIMIT 3')


def test_ndjson_selects_the_same_rows_with_the_names_of_the_file() -> None:
    statement = select_statement(asked("select=x%25:id,name&name=eq.b&order=id.desc", "users.ndjson"))
    assert plain(statement.text) == (
        'SELECT pg_catalog.row_to_json(line.*) FROM (SELECT "id" AS "x%", "name" AS "name" '
        'FROM "public"."users" WHERE "name" = $1 ORDER BY "id" DESC) AS line'
    )
    assert statement.values == ["b"]


def test_other_formats_have_the_same_sql() -> None:
    query = "select=id&id=eq.1&order=id&limit=3"
    assert select_statement(asked(query, "users.tsv.gz")) == select_statement(asked(query, "users.csv"))


TYPED = described(
    "public",
    "typed",
    {"id": "integer", "name": "text", "kind": '"odd "" type%s"', "data": "json"},
)


JSON = described("public", "docs", {"id": "integer", "data": "jsonb", "tags": "text[]"})
ARROW, TEXT_ARROW = "->", "->>"


@pytest.mark.parametrize(
    ("select", "expression", "values"),
    [
        ("data->a", f'("data" {ARROW} $1::pg_catalog.text)', ["a"]),
        ("data->>0", f'("data" {TEXT_ARROW} $1::pg_catalog.int4)', ["0"]),
        ('data->>"0"', f'("data" {TEXT_ARROW} $1::pg_catalog.text)', ["0"]),
        (
            "data->a'b->-1->>$1",
            f'("data" {ARROW} $1::pg_catalog.text {ARROW} $2::pg_catalog.int4 {TEXT_ARROW} $3::pg_catalog.text)',
            ["a'b", "-1", "$1"],
        ),
        ("tags->0", f'(pg_catalog.to_jsonb("tags") {ARROW} $1::pg_catalog.int4)', ["0"]),
        ("id::text", 'CAST("id" AS pg_catalog.text)', []),
        (
            "data->>a::double precision",
            f'CAST(("data" {TEXT_ARROW} $1::pg_catalog.text) AS pg_catalog.float8)',
            ["a"],
        ),
    ],
)
def test_the_keys_of_json_are_bound_and_casts_named_with_their_schema(
    select: str, expression: str, values: list[str]
) -> None:
    statement = select_statement(asked(f"select={select}", relation=JSON))
    assert plain(statement.text) == f'SELECT {expression} FROM "public"."docs"'
    assert statement.values == values


def test_values_are_bound_in_the_order_of_the_text() -> None:
    made = asked("select=data->a,data->>b&data->>c=eq.d&or=(data->e.in.(f))&order=data->g", relation=JSON)
    statement = select_statement(made)
    assert statement.values == list("abcdefg")
    assert re.findall(r"\$(\d+)", statement.text) == list("1234567")
    block = Blocks("public", "docs", 0, 256)
    assert select_statement(made, block).values == [*"ab", "(0,0)", "(256,0)", *"cdefg"]


def test_each_regular_expression_of_an_array_is_tried() -> None:
    found = [probe.statement for probe in probes(asked("name=match(any).{a,b}"))]
    assert [plain(statement.text) for statement in found] == [
        'SELECT 1 WHERE (SELECT "name" FROM "public"."users" LIMIT 0) ~ ANY ($1)',
        "SELECT ''::pg_catalog.text ~ item FROM pg_catalog.unnest($1::pg_catalog.text[]) AS item",
    ]
    assert [statement.values for statement in found] == [["{a,b}"], ["{a,b}"]]


@pytest.mark.parametrize(
    ("query", "operator", "hint"),
    [
        ("name=eq.a", "eq", None),
        ("name=fts.a", "fts", "to_tsquery()"),
        ("name=not.wfts(english).a", "wfts(english)", "text search configuration"),
        ("id=eq(any).1", "eq(any)", "eq(any).{1,2}"),
    ],
)
def test_a_condition_is_tried_with_a_hint_on_how_its_value_is_written(
    query: str, operator: str, hint: str | None
) -> None:
    (probe,) = probes(asked(query))
    assert probe.operator == operator
    assert (probe.hint is None) if hint is None else (hint in (probe.hint or ""))


def test_every_condition_and_sort_key_is_tried_alone_in_its_order() -> None:
    query = "select=id,data->a,x:id::text,name::date,y:name::date"
    query += "&id=eq.abc&or=(kind.in.(a,b),not.and(data.is.null,name.not.match.x))&order=data.desc,id,data->b"
    made = asked(query, relation=TYPED)
    found = [(str(probe.field), probe.operator or probe.part, tuple(probe.statement.values)) for probe in probes(made)]
    assert found == [
        ("id", "eq", ("abc",)),
        ("kind", "in", ('{"a","b"}',)),
        ("data", "is", ()),
        # A regular expression is tried against the column and, so that PostgreSQL looks at it, against a text.
        ("name", "match", ("x",)),
        ("name", "match", ("x",)),
        ("data", "sort key", ()),
        ("id", "sort key", ()),
        ("data->b", "sort key", ("b",)),
        ("data->a", "column", ("a",)),
        ("id::text", "column", ()),
        ("name::date", "column", ()),
    ]


def test_a_condition_is_also_tried_with_its_own_value_as_one_of_the_column() -> None:
    """An operator may fail only on values. A text that is matched has the collation of the column."""
    made = asked("id=in.(1,2)&or=(name.not.ilike.x*,data.is.null)&kind=in.()&order=id", relation=TYPED)
    assert [(plain(probe.statement.text), probe.statement.values) for probe in value_probes(made)] == [
        ('SELECT coalesce((SELECT "id" FROM "public"."typed" LIMIT 0), $1) = ANY ($2)', ["1", '{"1","2"}']),
        ('SELECT NOT (pg_catalog.concat((SELECT "name" FROM "public"."typed" LIMIT 0)) ~~* $1)', ["x%"]),
    ]

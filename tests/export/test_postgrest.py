"""PostgREST's filters, by operator and shape, against hand-written SQL: the same rows.

docs/postgrest.md says in words what these tables say in cases. The SQL of a condition is what PostgREST's documentation
says about its operator, with the differences that the page lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from server.errors import ExportError
from server.postgres.session import Session
from server.query.catalogue import Relation, RelationName
from server.query.filters import FULL_TEXT, IS_VALUES, OPERATORS, QUANTIFIED, QUANTIFIERS
from server.query.grammar import write_quoted
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.query.sql import select_statement
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.postgres import Postgres

PAGE = Path(__file__).parents[2] / "docs" / "postgrest.md"

TABLE = r"""
CREATE TYPE grammar_mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE grammar_pair AS (a integer, b integer);
CREATE DOMAIN grammar_words AS tsvector;
CREATE TABLE grammar (
    id integer PRIMARY KEY, n integer, price numeric, name text, label varchar(60), kind char(8), flag boolean,
    born date, ts timestamp, tz timestamptz, tags text[], nums integer[], span int4range, period tstzrange,
    spans int4multirange, data jsonb, raw json, words tsvector, more_words grammar_words, feel grammar_mood,
    pair grammar_pair, host inet
);
INSERT INTO grammar
SELECT
    i, CASE WHEN i % 6 > 0 THEN i % 6 END, i * 1.5, 'name ' || i, 'label ' || i % 3, 'k' || i % 4,
    CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END, date '2024-01-01' + i,
    timestamp '2024-01-01 12:00' + i * interval '1 hour', timestamptz '2024-01-01 12:00Z' + i * interval '1 hour',
    ARRAY['t' || i % 3, 'a,b'], ARRAY[i % 4, 9], int4range(i % 7, i % 7 + 3),
    tstzrange('2024-01-01 00:00Z', timestamptz '2024-01-01 00:00Z' + i * interval '1 hour'),
    int4multirange(int4range(i, i + 2), int4range(i + 20, i + 22)),
    jsonb_build_object('a', i % 3, 'b', jsonb_build_array(i)), json_build_object('text', 'cat ' || i), NULL, NULL,
    (ARRAY['sad', 'ok', 'happy'])[1 + i % 3]::grammar_mood,
    (ARRAY['(1,2)', '(1,)', '(,)'])[1 + i % 3]::grammar_pair,
    ('10.0.0.' || i)::inet
FROM generate_series(1, 24) AS i;
INSERT INTO grammar (id, name) VALUES
    (101, ''), (102, 'a,b'), (103, 'say "hi"'), (104, 'a\b'), (105, 'ab'), (106, 'David White'), (107, ' padded '),
    (108, 'padded'), (109, 'a*b'), (110, 'aXb'), (111, '50%'), (112, '500'), (113, 'a b'), (114, 'a+b'), (115, '(x)'),
    (116, '{x}'), (117, 'under_score'), (118, 'underXscore'), (119, NULL), (120, '"'), (121, 'a.b'), (122, 'A,B'),
    (123, 'line' || chr(10) || 'break'), (124, '\*'), (125, '\'), (126, 'null');
INSERT INTO grammar (id, name, label, kind, data, raw, words, more_words)
SELECT 200 + i, said, said, left(said, 8), jsonb_build_object('said', said), json_build_object('said', said),
    to_tsvector('english', said), to_tsvector('english', said)
FROM unnest(ARRAY[
    'The fat cats ate rats', 'a fat dog', 'cats and dogs', 'rats eat cats', 'The rat', 'Das Haus und die Häuser',
    'fat', 'the'
]) WITH ORDINALITY AS given (said, i);
"""
CLEAN_UP = "DROP TABLE grammar; DROP TYPE grammar_mood, grammar_pair; DROP DOMAIN grammar_words"

# For each operator with its modifier: (column, value, the condition in SQL).
CONDITIONS: dict[str, list[tuple[str, str, str]]] = {
    "eq": [
        ("n", "3", "n = 3"),
        ("name", "", "name = ''"),
        ("name", "a,b", "name = 'a,b'"),
        ("name", 'say "hi"', "name = 'say \"hi\"'"),
        ("name", "a\\b", "name = E'a\\\\b'"),
        ("name", "null", "name = 'null'"),
        ("name", "a*b", "name = 'a*b'"),
        ("kind", "k1", "kind = 'k1'"),
        ("flag", "t", "flag"),
        ("born", "2024-01-08", "born = '2024-01-08'"),
        ("tags", '{t1,"a,b"}', "tags = '{t1,\"a,b\"}'"),
        ("span", "[1,4)", "span = '[1,4)'"),
        ("spans", "{[3,5),[23,25)}", "spans = '{[3,5),[23,25)}'"),
        ("data", '{"a": 1, "b": [4]}', 'data = \'{"a": 1, "b": [4]}\''),
        ("feel", "ok", "feel = 'ok'"),
    ],
    "eq(any)": [
        ("n", "{3,4}", "n IN (3, 4)"),
        ("n", "{}", "false AND n IS NOT NULL"),
        ("n", "{3,NULL}", "n IN (3, NULL)"),
        ("name", '{"a,b",ab,"say \\"hi\\""}', "name IN ('a,b', 'ab', 'say \"hi\"')"),
        ("label", "{label 1,label 2}", "label IN ('label 1', 'label 2')"),
        ("kind", "{k1,k2}", "kind IN ('k1', 'k2')"),
        ("feel", "{ok,sad}", "feel IN ('ok', 'sad')"),
        ("born", "{2024-01-08,2024-01-09}", "born IN ('2024-01-08', '2024-01-09')"),
        ("span", '{"[1,4)","[2,5)"}', "span IN ('[1,4)', '[2,5)')"),
        ("host", "{10.0.0.7}", "host = '10.0.0.7'"),
    ],
    "eq(all)": [("n", "{3}", "n = 3"), ("n", "{3,4}", "n = 3 AND n = 4"), ("n", "{}", "n = ALL ('{}')")],
    "neq": [("n", "3", "n <> 3"), ("name", "", "name <> ''"), ("data", '{"a": 1}', "data <> '{\"a\": 1}'")],
    "gt": [
        ("n", "3", "n > 3"),
        ("price", "1.50", "price > 1.5"),
        ("name", "name 5", "name > 'name 5'"),
        ("tz", "2024-01-02T01:00:00+02:00", "tz > '2024-01-01 23:00Z'"),
        ("nums", "{1,9}", "nums > '{1,9}'"),
        ("span", "[3,5)", "span > '[3,5)'"),
    ],
    "gt(any)": [("n", "{4,3}", "n > 4 OR n > 3")],
    "gt(all)": [("n", "{4,3}", "n > 4 AND n > 3")],
    "gte": [("n", "3", "n >= 3"), ("born", "2024-01-08", "born >= '2024-01-08'"), ("feel", "ok", "feel >= 'ok'")],
    "gte(any)": [("n", "{4,3}", "n >= 4 OR n >= 3")],
    "gte(all)": [("n", "{4,3}", "n >= 4 AND n >= 3")],
    "lt": [("n", "3", "n < 3"), ("ts", "2024-01-01 20:00", "ts < '2024-01-01 20:00'")],
    "lt(any)": [("n", "{4,3}", "n < 4 OR n < 3")],
    "lt(all)": [("n", "{4,3}", "n < 4 AND n < 3")],
    "lte": [("n", "3", "n <= 3"), ("host", "10.0.0.7", "host <= '10.0.0.7'")],
    "lte(any)": [("n", "{4,3}", "n <= 4 OR n <= 3")],
    "lte(all)": [("n", "{4,3}", "n <= 4 AND n <= 3")],
    "like": [
        ("name", "a*b", "name LIKE 'a%b'"),
        ("name", "a%b", "name LIKE 'a%b'"),
        ("name", "*1*", "name LIKE '%1%'"),
        ("name", "under_score", "name LIKE 'under_score'"),
        ("name", "under\\_score", "name = 'under_score'"),
        ("name", "50\\%", "name = '50%'"),
        ("name", "50\\%*", "name LIKE '50\\%%'"),
        ("name", "a\\*b", "name = 'a*b'"),
        ("name", "*\\**", "position('*' IN name) > 0"),
        ("name", "\\\\\\*", "name = E'\\\\*'"),
        ("name", "\\\\*", "name LIKE E'\\\\\\\\%'"),
        ("name", "a\\\\b", "name = E'a\\\\b'"),
        ("name", "", "name = ''"),
        ("label", "*1", "label LIKE '%1'"),
        ("kind", "k1*", "kind LIKE 'k1%'"),
    ],
    "like(any)": [
        ("name", "{a*,*b}", "name LIKE 'a%' OR name LIKE '%b'"),
        ("name", '{"a,*",%(x)%}', "name LIKE 'a,%' OR name LIKE '%(x)%'"),
        ("name", "{a\\*b,50*}", "name = 'a*b' OR name LIKE '50%'"),
        ("name", "{50\\\\%,x}", "name = '50%'"),
        ("name", '{a\\\\*b,"50\\\\*"}', "name = 'a*b'"),
    ],
    "like(all)": [("name", "{n*,*1}", "name LIKE 'n%' AND name LIKE '%1'")],
    "ilike": [
        ("name", "A*B", "name ILIKE 'a%b'"),
        ("name", "A\\*B", "name = 'a*b'"),
        ("name", "NAME 1*", "name ILIKE 'name 1%'"),
    ],
    "ilike(any)": [("name", "{A*,*X}", "name ILIKE 'a%' OR name ILIKE '%x'")],
    "ilike(all)": [("name", "{N*,*E 1}", "name ILIKE 'n%' AND name ILIKE '%e 1'")],
    "match": [
        ("name", "^name [12]$", "name ~ '^name [12]$'"),
        ("name", "a(,|\\*)b", "name IN ('a,b', 'a*b')"),
    ],
    "match(any)": [("name", "{^a,0$}", "name ~ '^a' OR name ~ '0$'")],
    "match(all)": [("name", "{^n,0$}", "name ~ '^n' AND name ~ '0$'")],
    "imatch": [("name", "^NAME [12]$", "name ~* '^name [12]$'")],
    "imatch(any)": [("name", "{^A,0$}", "name ~* '^a' OR name ~ '0$'")],
    "imatch(all)": [("name", "{^N,0$}", "name ~* '^n' AND name ~ '0$'")],
    "isdistinct": [
        ("n", "3", "n IS DISTINCT FROM 3"),
        ("name", "", "name IS DISTINCT FROM ''"),
        ("name", "null", "name IS DISTINCT FROM 'null'"),
        ("tags", '{t1,"a,b"}', "tags IS DISTINCT FROM '{t1,\"a,b\"}'"),
        ("span", "[1,4)", "span IS DISTINCT FROM '[1,4)'"),
    ],
    "cs": [
        ("tags", "{t1}", "tags @> '{t1}'"),
        ("tags", '{"a,b"}', "tags @> '{\"a,b\"}'"),
        ("nums", "{1, 9}", "nums @> '{1,9}'"),
        ("span", "[2,3]", "span @> '[2,3]'::int4range"),
        ("spans", "{[3,4)}", "spans @> '{[3,4)}'::int4multirange"),
        ("data", '{"a": 1}', "data @> '{\"a\": 1}'"),
    ],
    "cd": [
        ("nums", "{1,2,9}", "nums <@ '{1,2,9}'"),
        ("span", "[0,6)", "span <@ '[0,6)'::int4range"),
        ("data", '{"a": 1, "b": [4], "c": 1}', 'data <@ \'{"a": 1, "b": [4], "c": 1}\''),
    ],
    "ov": [
        ("tags", "{t1,t2}", "tags && '{t1,t2}'"),
        ("span", "(1,3)", "span && '(1,3)'::int4range"),
        ("period", "[2024-01-01 20:00Z,)", "period && '[2024-01-01 20:00Z,)'::tstzrange"),
        ("host", "10.0.0.0/29", "host && '10.0.0.0/29'"),
    ],
    "sl": [("span", "[4,10)", "span << '[4,10)'::int4range"), ("host", "10.0.0.0/29", "host << '10.0.0.0/29'")],
    "sr": [("span", "[0,3)", "span >> '[0,3)'::int4range")],
    "nxr": [("span", "[0,5)", "span &< '[0,5)'::int4range")],
    "nxl": [("span", "[3,5)", "span &> '[3,5)'::int4range")],
    "adj": [
        ("span", "[4,10)", "span -|- '[4,10)'::int4range"),
        ("period", "[2024-01-01 20:00Z,)", "period -|- '[2024-01-01 20:00Z,)'::tstzrange"),
    ],
    "fts": [
        ("words", "cat", "words @@ to_tsquery('cat')"),
        ("words", "cat & !dog", "words @@ to_tsquery('cat & !dog')"),
        ("words", "fat | rat:*", "words @@ to_tsquery('fat | rat:*')"),
        ("words", "fat <-> cat", "words @@ to_tsquery('fat <-> cat')"),
        ("words", "", "words @@ to_tsquery('')"),
        ("more_words", "cat", "more_words::tsvector @@ to_tsquery('cat')"),
        ("name", "cat", "to_tsvector(name) @@ to_tsquery('cat')"),
        ("label", "cat", "to_tsvector(label) @@ to_tsquery('cat')"),
        ("kind", "cat", "to_tsvector(kind) @@ to_tsquery('cat')"),
        ("data", "cat", "to_tsvector(data) @@ to_tsquery('cat')"),
        ("raw", "cat", "to_tsvector(raw) @@ to_tsquery('cat')"),
    ],
    "fts(english)": [
        ("words", "cats", "words @@ to_tsquery('english', 'cats')"),
        ("name", "cats & ate", "to_tsvector('english', name) @@ to_tsquery('english', 'cats & ate')"),
        ("data", "cats", "to_tsvector('english', data) @@ to_tsquery('english', 'cats')"),
        ("raw", "cats", "to_tsvector('english', raw) @@ to_tsquery('english', 'cats')"),
    ],
    "fts(simple)": [("name", "the", "to_tsvector('simple', name) @@ to_tsquery('simple', 'the')")],
    "fts(german)": [("name", "Haus", "to_tsvector('german', name) @@ to_tsquery('german', 'Haus')")],
    "plfts": [
        ("words", "The Fat Rats", "words @@ plainto_tsquery('The Fat Rats')"),
        ("name", "cats, dogs", "to_tsvector(name) @@ plainto_tsquery('cats, dogs')"),
    ],
    "plfts(english)": [
        ("words", "fat cats", "words @@ plainto_tsquery('english', 'fat cats')"),
        ("name", "fat cats", "to_tsvector('english', name) @@ plainto_tsquery('english', 'fat cats')"),
    ],
    "phfts": [
        ("words", "The Fat Cats", "words @@ phraseto_tsquery('The Fat Cats')"),
        ("name", "cats ate", "to_tsvector(name) @@ phraseto_tsquery('cats ate')"),
    ],
    "phfts(english)": [
        ("name", "the fat cat", "to_tsvector('english', name) @@ phraseto_tsquery('english', 'the fat cat')"),
    ],
    "wfts": [
        ("words", '"fat cats" or dog', "words @@ websearch_to_tsquery('\"fat cats\" or dog')"),
        ("words", "cats -dogs", "words @@ websearch_to_tsquery('cats -dogs')"),
        ("name", "rats", "to_tsvector(name) @@ websearch_to_tsquery('rats')"),
    ],
    "wfts(english)": [
        ("name", "rats -cats", "to_tsvector('english', name) @@ websearch_to_tsquery('english', 'rats -cats')"),
    ],
    "in": [
        ("n", "(3,4)", "n IN (3, 4)"),
        ("n", "()", "false"),
        ("n", "( )", "false"),
        ("n", "(3, 4)", "n IN (3, 4)"),
        ("name", '("a,b",ab,a.b)', "name IN ('a,b', 'ab', 'a.b')"),
        ("name", '( ab , "a,b" )', "name IN ('ab', 'a,b')"),
        ("name", '(" padded ")', "name = ' padded '"),
        ("name", "( padded )", "name = 'padded'"),
        ("name", '("",null)', "name IN ('', 'null')"),
        ("name", '("a\\b")', "name = 'ab'"),
        ("name", '("a\\\\b")', "name = E'a\\\\b'"),
        ("name", "(a\\b)", "name = E'a\\\\b'"),
        ("name", '("Da\\vid White")', "name = 'David White'"),
        ("name", '("\\"")', "name = '\"'"),
        ("name", '("say ""hi""")', "name = 'say \"hi\"'"),
        ("name", "({x},a*b)", "name IN ('{x}', 'a*b')"),
        ("feel", "(ok,sad)", "feel IN ('ok', 'sad')"),
        ("tags", '({t1,"a,b"})', "tags = '{t1,\"a,b\"}'"),
    ],
    "is": [
        ("flag", "null", "flag IS NULL"),
        ("flag", "not_null", "flag IS NOT NULL"),
        ("flag", "true", "flag IS TRUE"),
        ("flag", "FALSE", "flag IS FALSE"),
        ("flag", "Unknown", "flag IS UNKNOWN"),
        ("name", "NULL", "name IS NULL"),
        ("name", "Not_Null", "name IS NOT NULL"),
        # A row with one NULL is neither NULL nor not NULL (PostgreSQL manual, "Comparison Functions and Operators").
        ("pair", "null", "pair IS NULL"),
        ("pair", "not_null", "pair IS NOT NULL"),
    ],
}

# Query strings of other shapes, as they are written, and the condition in SQL.
SHAPES: list[tuple[str, str]] = [
    ("n=eq.3&name=like.name*", "n = 3 AND name LIKE 'name%'"),
    ("n=gt.1&n=lt.4", "n > 1 AND n < 4"),
    ("or=(n.eq.1,n.eq.2)", "n IN (1, 2)"),
    ("and=(n.gt.1,n.lt.4)", "n > 1 AND n < 4"),
    ("not.or=(n.eq.1,n.eq.2)", "NOT (n = 1 OR n = 2)"),
    ("not.and=(n.gt.1,n.lt.4)", "NOT (n > 1 AND n < 4)"),
    ("or=(n.eq.1,and(n.eq.2,id.gt.9))", "n = 1 OR (n = 2 AND id > 9)"),
    ("or=(n.eq.1,not.and(n.gt.2,id.gt.9),not.or(n.eq.4))", "n = 1 OR NOT (n > 2 AND id > 9) OR NOT n = 4"),
    ("or=(n.eq.1,n.eq.2)&or=(n.eq.2,n.eq.3)&and=(id.lt.9)", "n = 2 AND id < 9"),
    # Blanks around conditions, columns, brackets and items.
    ("or=(n.eq.1, n.eq.2)", "n IN (1, 2)"),
    ("or=(+n.eq.1+,+n.eq.2+)", "n IN (1, 2)"),
    ("and=( and ( n.in.( 1, 2, 3 ) , n.eq.3 ) , or ( n.eq.2 , n.eq.3 ) )", "n = 3"),
    ("or= ( n .eq.1 , not.and\t( n.gt.2 ) ) ", "n = 1 OR NOT n > 2"),
    ("or=(name.eq.ab , name.in. ( padded ) )", "name IN ('ab', 'padded')"),
    ('or=(name.eq." padded " )', "name = ' padded '"),
    ("name=eq. padded ", "name = ' padded '"),
    (" n =eq.3", "n = 3"),
    ("id=in.(1, 2)", "id IN (1, 2)"),
    # Quotes in a group: as in a list. A value that is a parameter is all text, with its quotes.
    ('or=(name.eq."a,b",name.eq."(x)")', "name IN ('a,b', '(x)')"),
    (r'or=(name.eq."D\avid White",name.eq."\"")', "name IN ('David White', '\"')"),
    (r'or=(name.in.("a\b","a,b"),"name".eq."a.b")', "name IN ('ab', 'a,b', 'a.b')"),
    (r"or=(name.eq.a\b)", r"name = 'a\b'"),
    (r'name=eq."', "name = '\"'"),
    # Braces hold the commas and brackets of an array or an object.
    ('or=(tags.cs.{t1,"a,b"},n.eq.1)', "tags @> '{t1,\"a,b\"}' OR n = 1"),
    ("or=(tags.cs.{t1},tags.ov.{t2,x} )", "tags @> '{t1}' OR tags && '{t2}'"),
    ('or=(data.cs.{"a":1},n.eq.5)', "data @> '{\"a\": 1}' OR n = 5"),
    ("or=(n.eq(any).{3,4},id.eq.1)", "n IN (3, 4) OR id = 1"),
    ("or=(name.not.like(any).{n*,a*},name.eq.ab)", "NOT (name LIKE 'n%' OR name LIKE 'a%') OR name = 'ab'"),
    (
        "or=(words.plfts(german).Fat rats, words.fts(english).dogs, n.eq.1)",
        "words @@ plainto_tsquery('german', 'Fat rats') OR words @@ to_tsquery('english', 'dogs') OR n = 1",
    ),
    ("name=fts( english ).cats", "to_tsvector('english', name) @@ to_tsquery('english', 'cats')"),
    # A raw plus sign is a space, an encoded one is one.
    ("name=eq.a+b", "name = 'a b'"),
    ("name=eq.a%2Bb", "name = 'a+b'"),
    ("name=in.(a+b,a%2Bb)", "name IN ('a b', 'a+b')"),
    ("name=eq.name+1", "name = 'name 1'"),
    ("tz=eq.2024-01-01T20:00:00%2B02:00", "tz = '2024-01-01 18:00Z'"),
    ("tz=in.(2024-01-01T20:00:00%2B02:00,+2024-01-01T20:00:00Z)", "tz IN ('2024-01-01 18:00Z', '2024-01-01 20:00Z')"),
    ("ts=eq.2024-01-01T20:00", "ts = '2024-01-01 20:00'"),
    ("born=eq.January 8,+2024", "born = '2024-01-08'"),
]


@pytest.fixture(scope="module", autouse=True)
def grammar(database_url: str) -> Iterator[Postgres]:
    """Create the table that all conditions are about."""
    postgres = Postgres(database_url)
    postgres.run(TABLE)
    yield postgres
    postgres.run(CLEAN_UP)
    postgres.connection.close()


def encoded(text: str) -> str:
    return quote(text, safe="")


def shapes(operator: str, column: str, value: str, sql: str) -> dict[str, str]:
    """Return the query strings that have this condition in each shape, with the condition in SQL."""
    inner = encoded(value if operator in ("in", "is") else write_quoted(value))
    operator = encoded(operator)
    return {
        f"{column}={operator}.{encoded(value)}": sql,
        f"{column}=not.{operator}.{encoded(value)}": f"NOT ({sql})",
        f"or=({column}.{operator}.{inner},id.eq.1)": f"({sql}) OR id = 1",
        f"not.and=(or({column}.not.{operator}.{inner}),id.gt.3)": f"NOT (NOT ({sql}) AND id > 3)",
    }


async def selected(session: Session, relation: Relation, query: str) -> list[int] | str:
    """Return the ids of the rows that this query string selects, or its error."""
    try:
        plan = make_plan(parse_export_request("grammar.csv", f"select=id&order=id&{query}"), relation)
        statement = select_statement(plan)
        await session.query("SAVEPOINT before")
        rows = await session.query(statement.text, statement.values)
    except ExportError as error:
        await session.query("ROLLBACK TO before")
        return error.detail
    return [row["id"] for row in rows]


async def differences(grammar: Postgres, cases: dict[str, str]) -> dict[str, tuple[object, object]]:
    """Return what each query string selects and what it should, where the two differ."""
    found: dict[str, tuple[object, object]] = {}
    async with open_database(Settings(database_url=grammar.dsn)) as database, database.session() as session:
        relation = await session.relation(RelationName("grammar"))
        for query, sql in cases.items():
            expected = [id for (id,) in grammar.run(f"SELECT id FROM grammar WHERE {sql} ORDER BY id")]
            answer = await selected(session, relation, query)
            if answer != expected:
                found[query] = (answer, expected)
    return found


@pytest.mark.parametrize("operator", CONDITIONS)
async def test_an_operator_selects_the_rows_of_its_sql_in_every_shape(grammar: Postgres, operator: str) -> None:
    cases: dict[str, str] = {}
    for column, value, sql in CONDITIONS[operator]:
        cases |= shapes(operator, column, value, sql)
    assert await differences(grammar, cases) == {}


async def test_a_query_string_of_any_other_shape_selects_the_rows_of_its_sql(grammar: Postgres) -> None:
    cases = {quote(query, safe="=&+%(),.:*"): sql for query, sql in SHAPES}
    assert await differences(grammar, cases) == {}


@pytest.mark.parametrize("operator", CONDITIONS)
def test_the_conditions_tell_rows_apart(grammar: Postgres, operator: str) -> None:
    """At least one condition of each operator selects some rows and not all: an operator that does nothing is seen."""
    total = len(grammar.run("SELECT id FROM grammar"))
    counts = [len(grammar.run(f"SELECT id FROM grammar WHERE {sql}")) for _, _, sql in CONDITIONS[operator]]
    assert any(0 < count < total for count in counts)


def test_every_operator_modifier_and_word_has_a_case() -> None:
    with_modifiers = {f"{operator}({modifier})" for operator in QUANTIFIED for modifier in QUANTIFIERS}
    in_a_language = {f"{operator}(english)" for operator in FULL_TEXT}
    assert {*OPERATORS, *with_modifiers, *in_a_language} <= set(CONDITIONS)
    assert {value.lower() for _, value, _ in CONDITIONS["is"]} == set(IS_VALUES)


def test_the_page_explains_every_operator_with_an_example_that_works() -> None:
    rows = re.findall(r"^\| (`[^|]*) \| (`[^|]*=[^|]*) \|", PAGE.read_text(), re.MULTILINE)
    named = {word for operators, _ in rows for word in re.findall(r"`([a-z]+)`", operators)}
    assert named == {*OPERATORS, *QUANTIFIERS, "not", "or", "and"}
    for operators, examples in rows:
        for example in re.findall(r"`([^`]+)`", examples):
            assert parse_export_request("grammar.csv", example).filters
            assert any(word.strip("`") in example for word in operators.split())

"""What a user writes stays data: in every place of a URL, values are bound and identifiers are quoted.

The first tests check the text of the SQL without a database. Then come classic payloads over HTTP, which must change
nothing, and any text as a value and as a name, which must be returned unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from yarl import URL

from server.app import create_app
from server.errors import InvalidRequest
from server.query.catalogue import Column, Relation, RelationName
from server.query.fields import CASTS, Field, Step
from server.query.filters import (
    COMPARISONS,
    FULL_TEXT,
    IS_VALUES,
    QUANTIFIED,
    QUANTIFIERS,
    Condition,
    Filter,
    Group,
    conditions_of,
)
from server.query.plan import ExportPlan, make_plan
from server.query.request import FORMATS, ExportRequest, export_path, parse_export_request
from server.query.selection import LONGEST_NAME, SelectedColumn, SortKey
from server.query.sql import Statement, probes, select_statement
from server.settings import Settings
from tests.support.postgres import Postgres

PAYLOADS = [
    "'",
    '"',
    "''",
    "\\",
    "\\'",
    "' OR '1'='1",
    "' OR 1=1 --",
    "1 OR 1=1",
    "1) OR (1=1",
    "'; DROP TABLE victims; --",
    '"; DROP TABLE victims; --',
    "\\'; DROP TABLE victims; --",
    "\\\\'; DROP TABLE victims; --",
    "1; DELETE FROM victims",
    "'); INSERT INTO victims VALUES (99, 'x'); --",
    "1; UPDATE victims SET value = 'pwned'; COMMIT",
    "'; COMMIT; BEGIN; DROP TABLE victims; --",
    "' UNION SELECT oid::int, rolname FROM pg_authid --",
    '" FROM pg_authid --',
    "1 UNION ALL SELECT 1, version()",
    "'||pg_sleep(3600)||'",
    "1; SELECT pg_sleep(3600)",
    "(SELECT pg_sleep(3600))",
    "$$; DROP TABLE victims; $$",
    "$x$'$x$",
    "/* */ OR /**/1=1",
    "value/**/=/**/value",
    "E'\\047'",
    "U&'\\0027'",
    "CAST(version() AS int)",
    "current_setting('is_superuser')",
    "pg_read_file('/etc/passwd')",
    "lo_export(1, '/tmp/x')",
    "COPY victims TO PROGRAM 'id'",
    "'; COPY victims TO PROGRAM 'touch /tmp/x'; --",
    "'; SET ROLE postgres; --",
    "%",
    "%%",
    "%s",
    "%(v0)s",
    "%(v1)s' OR '1'='1",
    "%(timezone)s",
    "%(nothing)s",
    "{0}{value}",
    ":value $1 ?",
    "$1",
    "$2' OR $1=$1 --",
    "ʼ OR ʼ1ʼ=ʼ1",  # a modifier letter that some encodings fold to a quote
    "＇ OR 1=1 －－",
    "¿'\u00a0OR\u2003'1'='1",
    "a\n'; DROP TABLE victims; --",
    "a\r\nSet-Cookie: x=y",
]

# Places for a payload in the query string: {} stands for the payload, {q} for the payload in double quotes.
PLACES = [
    "select={}",
    "select={q}",
    "select={q}:value",
    "select=id,value,{q}:id&order=id",
    "order={}",
    "order={q}.desc.nullslast",
    "select=id,data->{}",
    "select=x:data->{q}->>{q}::text",
    "select=id::{}",
    "select=id::{q}",
    "order=data->{q}.desc",
    "data->>{}=eq.1",
    "or=(data->{}.eq.1,data->{q}->>{q}.is.null)",
    "{}=eq.1",
    "{q}=eq.1",
    "or=({}.eq.1)",
    "and=(id.eq.1,or({q}.is.null))",
    *(f"value={operator}.{{}}" for operator in (*COMPARISONS, *FULL_TEXT)),
    *(f"value={operator}(any).{{}}" for operator in ("eq", "like", "match")),
    "value=eq(any).{{{q}}}",
    "value=wfts(english).{}",
    "value=fts({}).x",
    "or=(value.not.phfts({}).{q},value.gt(all).{q})",
    "value=not.eq.{}",
    "value=is.{}",
    "value=in.({})",
    "value=in.({q})",
    "value=not.in.(a,{q},b)",
    "or=(value.eq.{},id.eq.1)",
    "or=(value.eq.{q},id.eq.1)",
    "and=(id.gt.0,not.or(value.like.{q},value.in.({q},x)))",
    "id=eq.{}",
    "id=in.({q})",
    "value={}.x",
    "value={}",
    "{}",
    "or={}",
    "limit={}",
    "offset={}",
    "null={}",
    "delimiter={}",
    "quote={}",
    "eol={}",
    "header={}",
    "timezone={}",
    "filename={}",
]

# The places whose SQL differs from that of others only in an operator or the name of a function.
ALIKE = {
    f"value={operator}.{{}}"
    for operator in (
        *("neq", "gt", "gte", "lt", "lte", "ilike", "imatch", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj"),
        *("plfts", "phfts"),
    )
}

# Places in which a payload matches no row of `victims`.
NO_ROW = ("value=eq.{}", "value=in.({q})", "or=(value.eq.{q},id.eq.0)", "and=(id.gt.0,value.in.({q},x))")

# The places that PostgreSQL may refuse, and the code of the error: an integer, a regular expression, an operator that
# text does not have, …
REFUSED_BY_POSTGRESQL = {
    "id=eq.{}": "invalid_value",
    "id=in.({q})": "invalid_value",
    "value=match.{}": "invalid_value",
    "value=cs.{}": "operator_not_supported",
    # The syntax of to_tsquery(), of an array, and the name of a text search configuration.
    "value=fts.{}": "invalid_value",
    "value=eq(any).{}": "invalid_value",
    "value=like(any).{}": "invalid_value",
    "value=match(any).{}": "invalid_value",
    "value=fts({}).x": "invalid_value",
    "or=(value.not.phfts({}).{q},value.gt(all).{q})": "invalid_value",
}

# A selection of payloads for tests that need a request for each place.
WORST = [payload for payload in PAYLOADS if re.search(r"; DROP|OR '1'|sleep|UNION SELECT|%\(v|^\W$|%\(n|\$\d", payload)]

# The tokens of the SQL of a plan.
TOKENS = re.compile(
    r"""(?x) \s* (?:
        " (?: [^"] | "" )+ "                            # an identifier
      | OPERATOR\(pg_catalog\.(?: ->>? | @@ | """
    + "|".join(map(re.escape, COMPARISONS.values()))
    + r""" )\) | ::pg_catalog\.(?: text | int4 ) \b | pg_catalog\.(?: to_jsonb | row_to_json ) \b
      | CAST \b | pg_catalog\.(?: """
    + "|".join(CASTS)
    + r""" ) \b
      | \$ (?P<number> \d+ ) \b                         # a value
      | pg_catalog\.(?: to_tsvector | (?: | plain | phrase | websearch_ )to_tsquery ) \b | ::pg_catalog\.regconfig \b
      | (?: SELECT | FROM | AS | WHERE | AND | OR | NOT | IS | NULL | TRUE | FALSE | UNKNOWN
          | ORDER | BY | ASC | DESC | NULLS | FIRST | LAST | LIMIT | OFFSET
          | line | source | relation_* | \d+ | ANY | ALL
        ) \b
      | [(),.*]
    )"""
)


def quoted(text: str) -> str:
    """Return the text in the double quotes of the grammar."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def query_with(place: str, payload: str) -> str:
    """Return the query string with the payload in this place, percent-encoded."""
    return place.replace("{q}", quote(quoted(payload), safe="")).replace("{}", quote(payload, safe=""))


def described(columns: list[str], schema: str = "public", name: str = "victims") -> Relation:
    """Return a relation with these columns of text, and `data`, which holds JSON."""
    types = {**dict.fromkeys(columns, "text"), "data": "jsonb"}
    made = tuple(Column(column, type, nullable=True, readable=True, indexed=False) for column, type in types.items())
    return Relation(1, schema, name, "table", False, made, None, None)


def names_in(statement: Statement) -> set[str]:
    """Return the identifiers of the SQL. Fail if it contains anything but known tokens and a place for each value."""
    sent = statement.text
    found = set()
    numbers = set()
    position = 0
    while position < len(sent):
        token = TOKENS.match(sent, position)
        assert token is not None, f"{sent[position:]!r} in {sent!r}"
        word = token[0].strip()
        if word.startswith('"'):
            found.add(word[1:-1].replace('""', '"'))
        elif token["number"]:
            numbers.add(int(token["number"]))
        position = token.end()
    assert numbers == set(range(1, len(statement.values) + 1))
    return found


def keys_of(field: Field) -> list[str]:
    return [str(step.key) for step in field.path]


def with_other_keys(field: Field) -> Field:
    """Return the same field with `x` for each key."""
    return replace(field, path=tuple(replace(step, key="x" if step.key == str(step.key) else 1) for step in field.path))


def with_other_values(item: Filter) -> Filter:
    """Return the same filter with `x` for each value."""
    if isinstance(item, Group):
        return replace(item, members=tuple(with_other_values(member) for member in item.members))
    item = replace(item, field=with_other_keys(item.field))
    modifier = "x" if item.operator in FULL_TEXT and item.modifier is not None else item.modifier
    return item if item.operator == "is" else replace(item, values=("x",) * len(item.values), modifier=modifier)


def values_of(condition: Condition) -> list[str]:
    """Return the values that a condition binds, in their order."""
    if not condition.values:  # an empty list
        return []
    if condition.operator == "is":
        return keys_of(condition.field)
    language = [condition.modifier] if condition.operator in FULL_TEXT and condition.modifier is not None else []
    values = list(condition.values)
    if len(values) > 1:  # one array
        values = ["{" + ",".join('"' + re.sub(r'(["\\])', r"\\\1", value) + '"' for value in values) + "}"]
    return [*keys_of(condition.field), *language, *values]


def assert_nothing_but_data(plan: ExportPlan) -> None:
    """Check that every value is bound, unchanged and in its order, and that the plan names every identifier."""
    statement = select_statement(plan)
    values = [key for output in plan.columns for key in keys_of(output.field)]
    for item in conditions_of(plan.filters):
        values += values_of(item)
    assert statement.values == values + [text for key in plan.order for text in keys_of(key.field)]
    known = {plan.relation.schema, plan.relation.name, *(column.name for column in plan.relation.columns)}
    if plan.format == "ndjson":
        known |= {output.name for output in plan.columns}
    assert names_in(statement) <= known
    # The SQL does not depend on the values. Nor does the SQL of the probes that follow a refused value.
    other = replace(
        plan,
        columns=tuple(replace(output, field=with_other_keys(output.field)) for output in plan.columns),
        filters=tuple(with_other_values(item) for item in plan.filters),
        order=tuple(replace(key, field=with_other_keys(key.field)) for key in plan.order),
    )
    assert select_statement(other).text == statement.text
    assert {probe.statement.text for probe in probes(other)} == {probe.statement.text for probe in probes(plan)}


# --- The text, without a database. ---


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_payload_is_refused_or_bound_or_quoted(payload: str, format: str) -> None:
    """Also if a column, the relation and its schema have the payload as their name."""
    relations = [described(["id", "value"]), described(["id", "value", payload], schema=payload, name=payload)]
    accepted = 0
    for place in PLACES:
        for relation in relations:
            try:
                plan = make_plan(parse_export_request(f"victims.{format}", query_with(place, payload)), relation)
            except InvalidRequest:
                continue
            assert_nothing_but_data(plan)
            accepted += 1
    # A value may be any text, so at least the operators with one value accept it.
    assert accepted >= 2 * len(COMPARISONS)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
AWKWARD = st.text("'\"\\%();-$*, sv01\n\r\té🦥", max_size=12)
ANY = TEXT | AWKWARD | st.sampled_from(PAYLOADS)
NAMES = ANY.filter(bool)


def fields(columns: list[str]) -> st.SearchStrategy[Field]:
    """Generate columns of a relation and parts of the JSON of `data`."""
    steps = st.builds(Step, ANY | st.integers(-(2**31) + 1, 2**31 - 1))
    paths = st.builds(
        lambda steps, last: (*steps, last), st.lists(steps, max_size=2), st.builds(Step, ANY, st.booleans())
    )
    return st.sampled_from(columns).map(Field) | st.builds(Field, st.just("data"), paths)


def name_of(item: SelectedColumn) -> str:
    """Return the name of this column in the file."""
    return (item.field.name if item.field else "*") if item.alias is None else item.alias


@st.composite
def plans(draw: st.DrawFn) -> ExportPlan:
    """Generate any plan on any relation."""
    columns = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    relation = described(columns, schema=draw(NAMES), name=draw(NAMES))
    field = fields(columns)
    condition = st.one_of(
        st.builds(Condition, field, st.sampled_from([*COMPARISONS]), st.tuples(ANY), st.booleans()),
        st.builds(
            Condition, field, st.sampled_from(QUANTIFIED), st.tuples(ANY), st.booleans(), st.sampled_from(QUANTIFIERS)
        ),
        st.builds(Condition, field, st.sampled_from([*FULL_TEXT]), st.tuples(ANY), st.booleans(), st.none() | ANY),
        st.builds(Condition, field, st.just("in"), st.lists(ANY, max_size=3).map(tuple), st.booleans()),
        st.builds(Condition, field, st.just("is"), st.tuples(st.sampled_from(IS_VALUES)), st.booleans()),
    )
    group = st.recursive(
        condition,
        lambda members: st.builds(
            Group, st.sampled_from(["and", "or"]), st.lists(members, min_size=1, max_size=3).map(tuple), st.booleans()
        ),
        max_leaves=6,
    )
    filters: list[Filter] = draw(st.lists(group, max_size=3))
    format = draw(st.sampled_from(FORMATS))
    cast = st.none() | st.sampled_from([*CASTS])
    item = st.builds(
        lambda field, cast, alias: SelectedColumn(replace(field, cast=cast), alias), field, cast, st.none() | NAMES
    )
    unique = name_of if format == "ndjson" else None
    select = draw(st.none() | st.lists(item, min_size=1, max_size=4, unique_by=unique).map(tuple))
    if format == "ndjson":
        assume(all(0 < len(name_of(selected).encode()) <= LONGEST_NAME for selected in select or ()))
    order = draw(st.lists(st.builds(SortKey, field, st.booleans(), st.sampled_from([None, True, False])), max_size=3))
    request = ExportRequest(
        RelationName("x"),
        format,
        select=select,
        filters=tuple(filters),
        order=tuple(order),
        limit=draw(st.none() | st.integers(0, 2**63 - 1)),
        offset=draw(st.integers(0, 2**63 - 1)),
        timezone=draw(st.none() | ANY),
        filename=draw(st.none() | ANY),
    )
    return make_plan(request, relation)


@hypothesis_settings(max_examples=60)
@given(plans())
def test_every_plan_is_text_of_known_words_and_names(plan: ExportPlan) -> None:
    assert_nothing_but_data(plan)


# --- Payloads over HTTP. ---


@pytest.fixture(scope="module")
def victims(database_url: str) -> Iterator[Postgres]:
    """Create the table that the payloads attack."""
    postgres = Postgres(database_url)
    postgres.run(
        "CREATE TABLE victims (id integer PRIMARY KEY, value text, data jsonb); "
        "INSERT INTO victims VALUES (1, 'a', '{}'), (2, 'b', '[1]'), (3, NULL, NULL)"
    )
    yield postgres
    postgres.run("DROP TABLE victims")
    postgres.connection.close()


def state_of(postgres: Postgres) -> list[Any]:
    """Return what an attack would change."""
    return [
        postgres.run("SELECT * FROM victims ORDER BY id"),
        postgres.run("SELECT count(*), max(id) FROM users"),
        postgres.run(
            "SELECT oid, relname, relacl FROM pg_class WHERE relnamespace NOT IN "
            "(SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_') ORDER BY oid"
        ),
        postgres.run("SELECT oid, proname FROM pg_proc WHERE oid >= 16384 ORDER BY oid"),
        postgres.run("SELECT oid, rolname, rolsuper, rolconfig FROM pg_roles ORDER BY oid"),
        postgres.run("SELECT oid, datname FROM pg_database ORDER BY oid"),
    ]


async def answer(client: TestClient[Any, Any], target: str) -> tuple[int, str]:
    """Return status and body of this address, which is percent-encoded already."""
    async with client.get(URL(target, encoded=True)) as response:
        body: bytes = await response.read()
        assert not {"Set-Cookie"} & set(response.headers)
    return response.status, body.decode()


def is_refused(target: str, query: str = "") -> bool:
    """Return whether Sluice itself refuses this export of `victims`, before PostgreSQL sees any of it."""
    try:
        make_plan(parse_export_request(target, query), described(["id", "value"]))
    except InvalidRequest:
        return True
    return False


async def assert_nothing_changes(client: TestClient[Any, Any], postgres: Postgres, payload: str) -> None:
    before = state_of(postgres)
    for place in (*(place for place in PLACES if place not in ALIKE), *NO_ROW):
        query = query_with(place, payload)
        status, body = await answer(client, f"/export/victims.csv?{query}")
        if is_refused("victims.csv", query):
            assert status == 400, (place, body)
        elif status != 200:
            assert (status, json.loads(body)["code"]) == (400, REFUSED_BY_POSTGRESQL.get(place)), (place, body)
        assert "SQLSTATE" not in body
        if place in NO_ROW:
            # As SQL the payload would be true of every row, or return rows of other tables.
            assert body == "id,value,data\n"
    raw, plain = quote(quoted(payload), safe=""), quote(payload, safe="")
    for path, expected in (
        (f"/export/{raw}.csv", 404),
        (f"/export/{plain}.csv", 400 if is_refused(f"{plain}.csv") else 404),
        (f"/export/{raw}.victims.csv", 404),
        (f"/export/public.{raw}.csv", 404),
        (f"/export/victims.{plain}", 400),
        (f"/relations/{raw}", 404),
        (f"/relations/{raw}.victims/preview", 404),
        (f"/relations/victims/preview?value=eq.{plain}", 200),
        (f"/relations/victims/preview?{raw}=eq.1", 400),
    ):
        status, body = await answer(client, path)
        assert status == expected, (path, body)
        assert "SQLSTATE" not in body
    assert state_of(postgres) == before


@pytest.mark.parametrize("payload", WORST)
async def test_a_payload_changes_nothing(client: TestClient[Any, Any], victims: Postgres, payload: str) -> None:
    await assert_nothing_changes(client, victims, payload)


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_a_payload_as_a_value_finds_the_row_that_holds_it(
    client: TestClient[Any, Any], postgres: Postgres, payload: str
) -> None:
    postgres.run("CREATE TABLE held (id integer, value text)")
    postgres.run("INSERT INTO held VALUES (1, %s), (2, 'a'), (3, NULL)", [payload])
    for condition in (f"eq.{payload}", f"in.({quoted(payload)})", f"like.{like_pattern(payload)}"):
        status, body = await answer(client, f"/export/held.csv?select=id&value={quote(condition, safe='')}")
        assert (status, body) == (200, "id\n1\n"), condition


async def test_a_session_cannot_write(client: TestClient[Any, Any], postgres: Postgres) -> None:
    """The second line of defence: even a view that writes is not able to."""
    postgres.run(
        "CREATE TABLE written (id integer); CREATE OR REPLACE FUNCTION write() RETURNS integer LANGUAGE sql AS "
        "'INSERT INTO written VALUES (1) RETURNING id'; CREATE VIEW writing AS SELECT write() AS id"
    )
    try:
        status, body = await answer(client, "/export/writing.csv")
        assert status == 500
        assert "INSERT" not in body
        assert postgres.run("SELECT * FROM written") == []
    finally:
        postgres.run("DROP VIEW writing; DROP FUNCTION write()")


# --- Any text as a value. ---


def like_pattern(text: str) -> str:
    """Return a pattern for exactly this text."""
    return re.sub(r"([\\%_*])", r"\\\1", text)


async def ids_where(client: TestClient[Any, Any], condition: str) -> list[int]:
    status, body = await answer(client, f"/export/held.csv?select=id&order=id&{condition}")
    assert status == 200, (condition, body)
    return [int(line) for line in body.splitlines()[1:]]


async def assert_text_is_data(client: TestClient[Any, Any], postgres: Postgres, text: str) -> None:
    """Check that every way to write the text finds the row that holds it, and no other row."""
    postgres.run("CREATE TABLE IF NOT EXISTS held (id integer, value text); TRUNCATE held")
    others = [text + "x", "x" + text, text + "'", text * 2 + "\\", ""]
    rows = [text, *(other for other in others if other != text)]
    postgres.run(
        "INSERT INTO held VALUES " + ", ".join(["(%s, %s)"] * len(rows)),
        [value for pair in enumerate(rows, 1) for value in pair],
    )
    rest = list(range(2, len(rows) + 1))
    plain, in_quotes = quote(text, safe=""), quote(quoted(text), safe="")
    assert await ids_where(client, f"value=eq.{plain}") == [1]
    assert await ids_where(client, f"value=neq.{plain}") == rest
    assert await ids_where(client, f"or=(value.eq.{in_quotes},id.eq.0)") == [1]
    assert await ids_where(client, f"value=in.({in_quotes},%22never%20there%22)") == [1]
    assert await ids_where(client, f"value=not.in.({in_quotes})") == rest
    if "*" not in text:
        assert await ids_where(client, f"value=like.{quote(like_pattern(text), safe='')}") == [1]
    # ***= makes the rest of a regular expression plain text (PostgreSQL manual, "Regular Expression Metasyntax").
    holding = [number for number, row in enumerate(rows, 1) if text in row]
    assert await ids_where(client, f"value=match.{quote('***=' + text, safe='')}") == holding


VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40) | AWKWARD


@hypothesis_settings(max_examples=60)
@given(text=VALUES)
@example(text="\\'; DROP TABLE held; --")
@example(text="%(v0)s %s %% %")
@example(text="$1 $2")
@example(text='"\\"{(,)}')
@example(text="\r\n\t\x01\x7f\x85\u2028")
@example(text="🦥é\u0301\U0010ffff\ufeff")
@example(text=" leading and trailing ")
async def test_any_text_finds_the_row_that_holds_it(
    client: TestClient[Any, Any], postgres: Postgres, text: str
) -> None:
    await assert_text_is_data(client, postgres, text)


@pytest.fixture
async def old_strings(postgres: Postgres, settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """Yield a client of a server whose role has standard_conforming_strings off: a backslash escapes in a literal."""
    password = "of a test"
    postgres.run(
        f"CREATE ROLE sluice_old_strings LOGIN PASSWORD '{password}'; GRANT pg_read_all_data TO sluice_old_strings; "
        "ALTER ROLE sluice_old_strings SET standard_conforming_strings = off; "
        "CREATE VIEW literals AS SELECT current_setting('standard_conforming_strings') AS conforming"
    )
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="sluice_old_strings", password=password)
    try:
        async with TestClient(TestServer(create_app(replace(settings, database_url=dsn)))) as opened:
            yield opened
    finally:
        postgres.run("DROP OWNED BY sluice_old_strings; DROP ROLE sluice_old_strings")


@hypothesis_settings(max_examples=30)
@given(text=VALUES)
@example(text="\\'; DROP TABLE held; --")
@example(text="\\")
@example(text="\\\\''\\")
async def test_any_text_finds_its_row_if_backslashes_are_escapes(
    old_strings: TestClient[Any, Any], postgres: Postgres, text: str
) -> None:
    assert await answer(old_strings, "/export/literals.csv") == (200, "conforming\noff\n")
    await assert_text_is_data(old_strings, postgres, text)


@pytest.mark.parametrize("payload", [payload for payload in PAYLOADS if "\\" in payload])
async def test_a_payload_changes_nothing_if_backslashes_are_escapes(
    old_strings: TestClient[Any, Any], victims: Postgres, payload: str
) -> None:
    await assert_nothing_changes(old_strings, victims, payload)


# --- Any text as a name. ---


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def short(name: str) -> str:
    """Return as much of the name as an identifier holds."""
    return name.encode()[:63].decode(errors="ignore")


def objects_of(body: str) -> list[Any]:
    """Return the objects of JSON lines. A line ends with LF."""
    *lines, after = body.split("\n")
    assert after == ""
    return [json.loads(line) for line in lines]


IDENTIFIERS = (NAMES | st.sampled_from(["order", "select", "and", "not.or", "line", "*", "a.b", "ctid2"])).map(short)


async def assert_names_are_names(
    client: TestClient[Any, Any], postgres: Postgres, relation: str, columns: list[str], alias: str
) -> None:
    """Export a relation with these names as CSV and as JSON lines: all of it, filtered, sorted and renamed."""
    table, first = identifier(relation), identifier(columns[0])
    definitions = ", ".join(f"{identifier(column)} text" for column in columns)
    postgres.run(f"CREATE TABLE {table} ({definitions})")
    postgres.run(f"INSERT INTO {table} ({first}) VALUES ('b'), ('a'), (NULL), ('c')")
    path, rows = export_path(None, relation, "csv"), export_path(None, relation, "ndjson")
    name = quote(quoted(columns[0]), safe="")
    try:
        assert await answer(client, path) == (200, postgres.copy(f"SELECT * FROM {table}").decode())
        query = f"order={name}.desc&{name}=in.(a,c)&or=({name}.eq.a,{name}.eq.c)"
        expected = f"SELECT * FROM {table} WHERE {first} IN ('a', 'c') ORDER BY {first} DESC"
        assert await answer(client, f"{path}?{query}") == (200, postgres.copy(expected).decode())
        status, body = await answer(client, f"{rows}?{query}")
        assert status == 200, body
        assert objects_of(body) == [dict.fromkeys(columns) | {columns[0]: value} for value in ("c", "a")]
        # The alias is a name in the file and has no other effect.
        renamed = f"select={quote(quoted(alias), safe='')}:{name}&{query}"
        status, body = await answer(client, f"{rows}?{renamed}")
        assert (status, objects_of(body)) == (200, [{alias: "c"}, {alias: "a"}])
        expected = f"SELECT {first} AS {identifier(alias)} FROM ({expected}) AS sorted"
        assert await answer(client, f"{path}?{renamed}") == (200, postgres.copy(expected).decode())
    finally:
        postgres.run(f"DROP TABLE {table}")


@hypothesis_settings(max_examples=30)
@given(relation=IDENTIFIERS, columns=st.lists(IDENTIFIERS, min_size=1, max_size=3, unique=True), alias=IDENTIFIERS)
@example(relation='"; DROP TABLE users; --', columns=["%(v0)s", "%", "%%s"], alias="%(v0)s")
@example(relation="$1", columns=["$1", "$2", "$1::text"], alias="$1")
@example(relation="100% größe 🦥", columns=["é", "é\u0301", 'say "hi"'], alias='"')
@example(relation="it's\\", columns=["'; --", "\\", "a\r\nb"], alias="x" * 63)
async def test_any_text_is_a_name(
    client: TestClient[Any, Any], postgres: Postgres, relation: str, columns: list[str], alias: str
) -> None:
    await assert_names_are_names(client, postgres, relation, columns, alias)


@pytest.mark.parametrize("payload", [short(payload) for payload in PAYLOADS])
async def test_a_payload_is_a_name(client: TestClient[Any, Any], postgres: Postgres, payload: str) -> None:
    await assert_names_are_names(client, postgres, payload, [payload, payload[:30] + " x"], payload)


@pytest.mark.parametrize(
    ("query", "format"),
    [
        ("select=b:a,a:b&order=a", "csv"),
        ("select=b:a,a:b&order=a", "ndjson"),
        ("select=b:a&order=b", "csv"),
        ("select=b:a&order=b", "ndjson"),
        ("select=b:a,b&order=b.desc", "csv"),
        ("select=b:a,x:b&order=b.desc", "ndjson"),
        ("select=x:a,x:b&order=a", "csv"),
        ("select=a,a&order=a", "csv"),
        ("select=b:a&b=eq.1&order=a", "csv"),
        ("select=b:a&b=eq.1&order=a", "ndjson"),
    ],
)
async def test_an_alias_never_replaces_a_column(
    client: TestClient[Any, Any], postgres: Postgres, query: str, format: str
) -> None:
    """Filters and the order mean the columns of the relation in every format."""
    postgres.run("CREATE TABLE crossed (a integer, b integer); INSERT INTO crossed VALUES (1, 3), (2, 1), (3, 2)")
    key = re.search(r"order=(\w+)(\.desc)?", query)
    assert key is not None
    where = "WHERE b = 1" if "b=eq.1" in query else ""
    expected = postgres.run(f"SELECT a, b FROM crossed {where} ORDER BY {key[1]} {'DESC' if key[2] else ''}")
    status, body = await answer(client, f"/export/crossed.{format}?{query}")
    assert status == 200, body
    columns = [item.rpartition(":")[2] for item in re.findall(r"select=([^&]+)", query)[0].split(",")]
    rows = [[{"a": a, "b": b}[column] for column in columns] for a, b in expected]
    if format == "csv":
        assert [[int(value) for value in line.split(",")] for line in body.splitlines()[1:]] == rows
    else:
        found = [json.loads(line, object_pairs_hook=list) for line in body.splitlines()]
        assert [[value for _, value in pairs] for pairs in found] == rows


@pytest.mark.parametrize("select", ["line", "line,id", "line:id", "id,line:note", "*"])
async def test_a_column_may_have_the_name_that_the_query_gives_to_its_row(
    client: TestClient[Any, Any], postgres: Postgres, select: str
) -> None:
    postgres.run("CREATE TABLE poem (id integer, line text, note text); INSERT INTO poem VALUES (1, 'rose', 'red')")
    row = {"id": 1, "line": "rose", "note": "red"}
    items = [item.rpartition(":") for item in ("id,line,note" if select == "*" else select).split(",")]
    status, body = await answer(client, f"/export/poem.ndjson?select={select}")
    assert (status, json.loads(body)) == (200, {alias or column: row[column] for alias, _, column in items})

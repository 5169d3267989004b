"""Bad requests over HTTP: the answer is short, names what is wrong and shows no SQL, and the worker stays responsive.

The grammar by itself is tested in test_request.py and test_filters.py. These tests add the catalogue, the types of
PostgreSQL and the event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from server.app import MAX_REQUEST_LINE, create_app
from server.query.dialect import DELIMITERS, LINE_ENDS, QUOTE_STYLES
from server.query.filters import FULL_TEXT, MOST_NESTING, OPERATORS, QUANTIFIED
from server.query.request import FORMATS, PARAMETERS
from server.query.tally import MOST_CONDITIONS
from server.settings import Settings
from tests.support.cpu import loop_limit
from tests.support.live_server import eventually
from tests.support.postgres import Postgres

Document = dict[str, Any]

# Bytes of an error's body: enough for a list of names, too few to repeat a request.
LONGEST_BODY = 8192
# Words of SQL, the driver or a traceback. The messages of types and functions contain none of them.
INSIDES = re.compile(
    r"SELECT|DECLARE|CURSOR|FETCH|ROLLBACK|WHERE|CAST\(|row_to_json|LINE 1|%\(|Traceback|psycopg|\.py\b"
)
# Seconds of CPU time that the event loop may be busy between two passes. One callback of the server takes less (see
# tests/security/test_event_loop.py); the client of these tests reads its answers on the same loop.
LONGEST_PAUSE = 0.2

# For each type a column, a valid value, an invalid value, and PostgreSQL's message about the invalid one.
TYPES: dict[str, tuple[str, str, str, str]] = {
    "integer": ("n", "1", "abc", 'invalid input syntax for type integer: "abc"'),
    "bigint": ("big", "1", "1.5", 'invalid input syntax for type bigint: "1.5"'),
    "smallint": ("small", "1", "99999", 'value "99999" is out of range for type smallint'),
    "numeric(10,2)": ("price", "1.5", "1,5", 'invalid input syntax for type numeric: "1,5"'),
    "double precision": ("ratio", "1e3", "1e999", '"1e999" is out of range for type double precision'),
    "boolean": ("flag", "t", "maybe", 'invalid input syntax for type boolean: "maybe"'),
    "date": ("born", "2024-01-31", "2024-02-31", 'date/time field value out of range: "2024-02-31"'),
    "time without time zone": ("at", "10:00", "25:00", 'date/time field value out of range: "25:00"'),
    "timestamp without time zone": ("ts", "2024-01-01", "soon", 'invalid input syntax for type timestamp: "soon"'),
    "timestamp with time zone": ("tz", "2024-01-01Z", "2024-01-01 Mars/Moon", 'time zone "mars/moon" not recognized'),
    "interval": ("gap", "1 day", "1 fortnite", 'invalid input syntax for type interval: "1 fortnite"'),
    "uuid": ("ref", "00000000-0000-0000-0000-000000000001", "0-1", 'invalid input syntax for type uuid: "0-1"'),
    "inet": ("host", "10.0.0.1", "10.0.0.256", 'invalid input syntax for type inet: "10.0.0.256"'),
    "jsonb": ("data", "{}", "{bad}", "invalid input syntax for type json"),
    "integer[]": ("nums", "{1}", "{1,x}", 'invalid input syntax for type integer: "x"'),
    "text[]": ("tags", "{a}", "a", 'malformed array literal: "a"'),
    "int4range": ("span", "[1,5)", "[5,1)", "range lower bound must be less than or equal to range upper bound"),
    "bytea": ("blob", "\\x00", "\\x0", "invalid hexadecimal data: odd number of digits"),
    "bit(4)": ("bits", "1010", "1020", '"2" is not a valid binary digit'),
    "money": ("cash", "1", "one", 'invalid input syntax for type money: "one"'),
    "oid": ("o", "1", "-x", 'invalid input syntax for type oid: "-x"'),
    '"the ""mood"" %s"': ("feel", "ok", "meh", 'invalid input value for enum "the ""mood"" %s": "meh"'),
    "above_zero": ("pos", "1", "none", 'invalid input syntax for type integer: "none"'),
    "never_null": ("always", "1", "none", 'invalid input syntax for type integer: "none"'),
}

TABLE = f'''
CREATE TYPE "the ""mood"" %s" AS ENUM ('sad', 'ok');
CREATE DOMAIN above_zero AS integer CHECK (VALUE > 0);
CREATE DOMAIN never_null AS integer NOT NULL;
CREATE DOMAIN never_empty AS text CHECK (VALUE <> '');
CREATE DOMAIN some_time AS timestamptz;
CREATE DOMAIN moment AS some_time;
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE judged (
    id integer PRIMARY KEY, name text, raw json, label never_empty, words tsvector, search tsquery, couple pair,
    place point, "per%cent" text, "say ""hi""" text, moment moment, period tstzrange,
    {", ".join(f"{column} {type}" for type, (column, *_) in TYPES.items())}
);
INSERT INTO judged (id, name, always, "per%cent")
SELECT n, CASE n % 2 WHEN 0 THEN 'even' ELSE 'odd' END, n, '100%' FROM generate_series(1, 50) AS n;
CREATE VIEW crashing AS SELECT id, 1 / (id - 1) AS part FROM judged ORDER BY id;
CREATE VIEW hopeless AS SELECT id, 1 / 0 AS part FROM judged;
CREATE FUNCTION call_missing() RETURNS integer LANGUAGE plpgsql AS 'BEGIN RETURN secret_function(1); END';
CREATE VIEW broken AS SELECT id, call_missing() AS part FROM judged;
'''
CLEAN_UP = (
    "DROP VIEW crashing, hopeless, broken; DROP FUNCTION call_missing(); DROP TABLE judged; "
    'DROP TYPE "the ""mood"" %s", pair; DROP DOMAIN above_zero, never_null, never_empty, moment, some_time'
)


@pytest.fixture(scope="module", autouse=True)
def judged(database_url: str) -> Iterator[Postgres]:
    """Create a table with a column of each type, and views that fail without a filter."""
    postgres = Postgres(database_url)
    postgres.run(TABLE)
    yield postgres
    postgres.run(CLEAN_UP)
    postgres.connection.close()


@pytest.fixture
async def impatient(settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """Yield a client of a server with a STATEMENT_TIMEOUT of one second."""
    server = TestServer(create_app(replace(settings, statement_timeout=1)))
    await server.start_server(max_line_size=MAX_REQUEST_LINE)
    async with TestClient(server) as opened:
        yield opened


def encoded(query: str) -> str:
    """Return the query string as a browser sends it. What is percent-encoded already stays."""
    pairs = (pair.partition("=") for pair in query.split("&"))
    return "&".join(quote(name, safe="%") + equals + quote(value, safe="%+") for name, equals, value in pairs)


def filter_on(column: str, operator: str, value: str) -> str:
    return f"{quote(column, safe='')}={operator}.{quote(value, safe='')}"


def quoted(value: str) -> str:
    """Return the value in double quotes, percent-encoded."""
    return quote('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"', safe="")


async def answer(client: TestClient[Any, Any], query: str, path: str = "/export/judged.csv") -> tuple[int, bytes]:
    async with client.get(URL(f"{path}?{encoded(query)}", encoded=True)) as response:
        body: bytes = await response.read()
        if response.status != 200:
            assert response.content_type == "application/problem+json"
            assert response.headers["Cache-Control"] == "no-store"
            assert not INSIDES.search(body.decode()), body
        return response.status, body


async def refused(
    client: TestClient[Any, Any], query: str, path: str = "/export/judged.csv", status: int = 400
) -> Document:
    """Return the problem document that answers this request."""
    given, body = await answer(client, query, path)
    assert given == status, body[:500]
    assert len(body) <= LONGEST_BODY
    document: Document = json.loads(body)
    assert document["status"] == status
    return document


# --- Unknown names: the answer lists the known ones. ---


@pytest.mark.parametrize(
    ("path", "query", "code", "named", "listed"),
    [
        ("/export/judged.csv", "colour=red", "unknown_parameter", "colour", [*PARAMETERS, *OPERATORS]),
        ("/export/judged.csv", "colour", "unknown_parameter", "colour", [*PARAMETERS, *OPERATORS]),
        ("/export/judged.csv", "Limit=1", "unknown_parameter", "Limit", [*PARAMETERS, *OPERATORS]),
        ("/relations/judged/preview", "colour=red", "unknown_parameter", "colour", [*PARAMETERS, *OPERATORS]),
        *(
            ("/export/judged.csv", query, "unknown_column", "colour", ["id", "name", "per%cent", 'say "hi"'])
            for query in (
                "select=colour",
                "select=id,x:colour",
                "colour=eq.red",
                "order=colour",
                "order=id.desc,colour.asc",
                "or=(id.eq.1,colour.eq.red)",
                "and=(id.eq.1,or(id.eq.2,not.and(id.eq.3,colour.in.(red))))",
            )
        ),
        ("/export/judged.csv", "select=xmin", "unknown_column", "xmin", ["id"]),
        ("/export/judged.csv", "ctid=eq.(0,1)", "unknown_column", "ctid", ["id"]),
        ("/export/judged.csv", "ID=eq.1", "unknown_column", "ID", ["id"]),
        ("/relations/judged/preview", "colour=eq.red", "unknown_column", "colour", ["id", "name"]),
        ("/export/judged.csv", "id=equals.1", "unknown_operator", "equals", OPERATORS),
        ("/export/judged.csv", "id=EQ.1", "unknown_operator", "EQ", OPERATORS),
        ("/export/judged.csv", "id=not.is_null.1", "unknown_operator", "is_null", OPERATORS),
        ("/export/judged.csv", "or=(id.equals.1)", "unknown_operator", "equals", OPERATORS),
        ("/export/judged.csv", "id=neq(any).{1}", "unknown_operator", "any", [*QUANTIFIED, *FULL_TEXT]),
        ("/export/judged.csv", "or=(name.fts(a.b).x)", "unknown_operator", "a.b", [*QUANTIFIED, *FULL_TEXT]),
        ("/export/judged.xlsx", "", "unknown_format", "xlsx", FORMATS),
        ("/export/judged.CSV", "", "unknown_format", "CSV", FORMATS),
        ("/export/judged.csv.zip", "", "unknown_format", "zip", FORMATS),
        ("/export/judged.csv", "delimiter=:", "invalid_option", "delimiter", DELIMITERS),
        ("/export/judged.csv", "quote=never", "invalid_option", "never", QUOTE_STYLES),
        ("/export/judged.csv", "eol=cr", "invalid_option", "cr", LINE_ENDS),
        ("/export/judged.csv", "header=1", "invalid_option", "header", ["true", "false"]),
        ("/export/judged.csv", "bom=yes", "invalid_option", "yes", ["true", "false"]),
        ("/export/judged.csv", "excel=on", "invalid_option", "on", ["true", "false"]),
        ("/export/judged.csv", "guard=true", "invalid_option", "guard", ["formulas"]),
        ("/export/judged.csv", "text=plain", "invalid_option", "text", ["protect"]),
        ("/export/judged.csv", "timezone=Mars/Olympus", "unknown_timezone", "Mars/Olympus", ["Europe/Berlin"]),
        (
            "/export/judged.csv",
            "name=is.empty",
            "invalid_filter",
            "empty",
            ["null", "not_null", "true", "false", "unknown"],
        ),
        (
            "/export/judged.csv",
            "order=id.down",
            "invalid_order",
            "down",
            [".asc", ".desc", ".nullsfirst", ".nullslast"],
        ),
    ],
)
async def test_an_unknown_name_is_named_with_a_list_of_the_known_ones(
    client: TestClient[Any, Any], path: str, query: str, code: str, named: str, listed: list[str]
) -> None:
    problem = await refused(client, query, path)
    assert problem["code"] == code
    assert named in problem["detail"]
    text = problem["detail"] + " " + problem.get("hint", "")
    missing = [word for word in listed if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    assert missing == []


@pytest.mark.parametrize(
    ("path", "query", "code", "named"),
    [
        ("/export/judged.csv", "null=a,b", "contradiction", '"null"'),
        ("/export/judged.csv", "null=a;b&delimiter=;", "contradiction", '"null"'),
        ("/export/judged.csv", 'null="', "contradiction", '"null"'),
        ("/export/judged.csv", "null=%0A", "contradiction", '"null"'),
        ("/export/judged.csv", "null=%0D", "contradiction", '"null"'),
        ("/export/judged.tsv", "null=%09", "contradiction", '"null"'),
        ("/export/judged.csv", "excel=true&bom=false", "contradiction", '"bom=false"'),
        ("/export/judged.csv", "eol=lf&excel=true", "contradiction", '"eol=lf"'),
        ("/export/judged.tsv", "delimiter=tab", "contradiction", "tsv"),
        ("/export/judged.tsv.gz", "delimiter=,", "contradiction", "tsv"),
        *(
            ("/export/judged.ndjson", option, "contradiction", f'"{option.partition("=")[0]}"')
            for option in (
                "delimiter=;",
                "quote=all",
                "header=false",
                "null=x",
                "eol=crlf",
                "bom=true",
                "guard=formulas",
                "text=protect",
                "excel=false",
            )
        ),
        *(
            ("/export/judged.csv", f"{option}&{option}", "repeated_parameter", f'"{option.partition("=")[0]}"')
            for option in (
                "select=id",
                "order=id",
                "limit=1",
                "offset=1",
                "null=x",
                "bom=true",
                "timezone=UTC",
                "parallel=2",
            )
        ),
        ("/export/judged.csv", "limit=1&id=eq.1&limit=2", "repeated_parameter", '"limit"'),
        *(
            ("/export/judged.csv", f"{name}={value}", "invalid_count", f'"{name}"')
            for name in ("limit", "offset")
            for value in ("", "-1", "1.5", "1e3", "x", "9223372036854775808", "9" * 1000, "%D9%A1")
        ),
        *(
            ("/export/judged.csv", f"parallel={value}", "invalid_count", '"parallel"')
            for value in ("", "0", "-1", "1.5", "x", "65", "0000000641", "9" * 1000, "000000001" + "0" * 5000, "%D9%A1")
        ),
        ("/export/judged.csv", "filename=", "invalid_filename", '"filename"'),
        ("/export/judged.csv", "select=a:b:id", "invalid_select", '"select"'),
        ("/export/judged.csv", f"select={'x' * 64}:id", "invalid_select", '"select"'),
    ],
)
async def test_a_contradiction_or_an_invalid_option_is_refused(
    client: TestClient[Any, Any], path: str, query: str, code: str, named: str
) -> None:
    problem = await refused(client, query, path)
    assert problem["code"] == code
    assert named in problem["detail"]


async def test_the_largest_counts_are_accepted(client: TestClient[Any, Any]) -> None:
    most = 2**63 - 1
    assert (await answer(client, f"select=id&limit={most}&order=id"))[1].count(b"\n") == 51
    assert await answer(client, f"select=id&limit={most}&offset={most}&order=id") == (200, b"id\n")
    assert await answer(client, "select=id&limit=0") == (200, b"id\n")


@pytest.mark.parametrize(
    ("query", "code", "place"),
    [
        ("id=in.(1,2", "unbalanced_brackets", 'in the filter on "id" at position 4'),
        ("id=in.(1,2))", "unbalanced_brackets", 'in the filter on "id" at position 9'),
        ('name=in.(a,"b)', "invalid_quotes", 'in the filter on "name" at position 7'),
        ("or=(id.eq.1", "unbalanced_brackets", 'in "or" at position 1'),
        ("or=(id.eq.1,and(id.eq.2", "unbalanced_brackets", 'in "or" at position 13'),
        ("or=(id.eq.1))", "unbalanced_brackets", 'in "or" at position 10'),
        ("and=id.eq.1)", "invalid_filter", "at position 1"),
        ("or=(tags.cs.{a,id.eq.1)", "unbalanced_brackets", 'in "or" at position 10'),
        ('or=(name.eq."a,id.eq.1)', "invalid_quotes", 'in "or" at position 10'),
        ('select=id,"name', "invalid_quotes", 'in "select" at position 4'),
        ('order=id,"name".desc,"x', "invalid_quotes", 'in "order" at position 16'),
        ('"id=eq.1', "invalid_quotes", "in the name of a parameter at position 1"),
    ],
)
async def test_an_unclosed_bracket_or_quote_is_named_with_its_position(
    client: TestClient[Any, Any], query: str, code: str, place: str
) -> None:
    problem = await refused(client, query)
    assert problem["code"] == code
    assert place in problem["detail"]


BAD_BYTES = {
    "a byte that is not UTF-8": "%ff",
    "an overlong slash": "%c0%af",
    "an incomplete character": "%f0%9f%a6",
    "a lone surrogate": "%ed%a0%80",
    "NUL": "%00",
    "NUL at the end": "a%00",
    "an overlong NUL": "%c0%80",
}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        *(
            ("/export/judged.csv", query)
            for query in (
                "name=eq.{}",
                "name=in.(a,{})",
                'or=(name.eq."{}")',
                "{}=eq.1",
                '"{}"=eq.1',
                "or=({}.eq.1)",
                "select={}",
                "select={}:id",
                "order={}",
                "limit={}",
                "null={}",
                "timezone={}",
                "filename={}",
                "{}",
            )
        ),
        ("/relations/judged/preview", "name=eq.{}"),
        ("/export/{}.csv", ""),
        ("/export/judged.{}", ""),
        ("/relations/{}", ""),
        ("/relations/{}/preview", ""),
    ],
)
async def test_bytes_that_are_not_text_are_refused_in_every_place(
    client: TestClient[Any, Any], path: str, query: str
) -> None:
    for name, bad in BAD_BYTES.items():
        problem = await refused(client, query.format(bad), path.format(bad))
        assert problem["code"] == "invalid_encoding", name


# --- Values that do not fit their column. ---

PLACES = {
    "alone": "{column}=eq.{plain}",
    "negated": "{column}=not.neq.{plain}",
    "in a list": "{column}=in.({quoted_good},{quoted})",
    "in a negated list": "{column}=not.in.({quoted},{quoted_good})",
    "in or": "or=(id.eq.1,{column}.gt.{quoted})",
    "in brackets in brackets": "and=(id.gt.0,not.or(name.eq.x,and(id.lt.9,{column}.not.lte.{quoted})))",
    "in a list in or": "or=({column}.in.({quoted_good},{quoted}),id.eq.1)",
    "after good filters": "id=gt.0&name=not.is.null&label=is.null&order=id&{column}=neq.{plain}",
}


@pytest.mark.parametrize("type", TYPES)
async def test_a_value_that_does_not_fit_is_named_with_column_type_and_reason(
    client: TestClient[Any, Any], type: str
) -> None:
    column, good, bad, reason = TYPES[type]
    names = {"plain": quote(bad, safe=""), "quoted": quoted(bad), "quoted_good": quoted(good), "column": column}
    for place, query in PLACES.items():
        problem = await refused(client, query.format(**names))
        assert problem["code"] == "invalid_value", place
        assert f'"{column}" ({type})' in problem["detail"], place
        assert reason in problem["detail"], place


@pytest.mark.parametrize("type", TYPES)
async def test_a_value_that_fits_its_column_is_accepted(client: TestClient[Any, Any], type: str) -> None:
    column, good, _, _ = TYPES[type]
    for query in (f"{column}=eq.{quote(good, safe='')}", f"{column}=in.({quoted(good)})"):
        assert (await answer(client, f"select=id&{query}"))[0] == 200


@pytest.mark.parametrize("path", ["/export/judged.ndjson", "/export/judged.tsv.gz", "/relations/judged/preview"])
@pytest.mark.parametrize("query", ["n=eq.abc", "or=(id.eq.1,flag.in.(t,maybe))", "id=like.1*", "order=raw"])
async def test_every_format_and_the_preview_give_the_same_error(
    client: TestClient[Any, Any], path: str, query: str
) -> None:
    problem, other = await refused(client, query), await refused(client, query, path)
    assert (other["code"], other["detail"]) == (problem["code"], problem["detail"])


async def test_the_first_of_several_bad_values_is_named(client: TestClient[Any, Any]) -> None:
    problem = await refused(client, "name=eq.x&flag=eq.maybe&n=eq.abc&order=raw")
    assert '"flag" (boolean)' in problem["detail"]


async def test_a_bad_value_is_found_behind_a_column_that_is_never_null(client: TestClient[Any, Any]) -> None:
    """Conditions are tried on NULL, which such a domain does not have."""
    problem = await refused(client, "always=gt.0&n=eq.abc")
    assert '"n" (integer)' in problem["detail"]


@pytest.mark.parametrize("column", ["name", "label", "per%cent"])
@pytest.mark.parametrize("operator", ["match", "not.match", "imatch"])
async def test_a_bad_regular_expression_names_its_column(
    client: TestClient[Any, Any], column: str, operator: str
) -> None:
    for value in ("(", "[a", "*", "a{2,1}", "(?<", "\\"):
        problem = await refused(client, filter_on(column, operator, value))
        assert problem["code"] == "invalid_value"
        assert f'"{column}" (' in problem["detail"]
        assert "invalid regular expression" in problem["detail"]


@pytest.mark.parametrize(
    ("query", "subject", "reason", "hint"),
    [
        ("name=fts.two words", '"name" (text)', "", "to_tsquery()"),
        ("words=fts.a %26", '"words" (tsvector)', "", "to_tsquery()"),
        ("name=plfts(klingon).a", '"name" (text)', "", "wfts(english)"),
        ("words=fts(klingon).a", '"words" (tsvector)', "", "wfts(english)"),
        ("id=eq(any).1", '"id" (integer)', 'malformed array literal: "1"', "eq(any).{1,2}"),
        ("id=gt(all).{1,x}", '"id" (integer)', 'invalid input syntax for type integer: "x"', "gt(all).{1,2}"),
        ("tags=eq(any).{{a},{b}}", '"tags" (text[])', "", "or=("),
        ("feel=eq(any).{ok,meh}", '"feel" (', 'invalid input value for enum "the ""mood"" %s": "meh"', "eq(any)"),
        ("name=match(any).{a,(}", '"name" (text)', "invalid regular expression", None),
        ("or=(id.eq.1,name.imatch(all).{(,b})", '"name" (text)', "invalid regular expression", None),
        ("span=sl.5", '"span" (int4range)', 'malformed range literal: "5"', None),
    ],
)
async def test_a_bad_value_of_an_operator_with_a_form_of_its_own_has_a_hint(
    client: TestClient[Any, Any], query: str, subject: str, reason: str, hint: str | None
) -> None:
    problem = await refused(client, query)
    assert problem["code"] == "invalid_value"
    assert subject in problem["detail"]
    assert reason in problem["detail"]
    assert (hint or "") in problem.get("hint", "")


@pytest.mark.parametrize("column", ["born", "at", "ts", "tz", "moment", "period"])
async def test_a_plus_sign_that_is_not_encoded_is_refused_on_a_time(client: TestClient[Any, Any], column: str) -> None:
    value = "[2024-01-01+02,)" if column == "period" else "2024-01-01T12:00+02:00"
    for path in ("/export/judged.csv", "/relations/judged/preview"):
        problem = await refused(client, f"{column}=not.eq.{value}", path)
        assert problem["code"] == "unencoded_plus"
        assert f'"{column}" (' in problem["detail"]
        assert "%2B" in problem["hint"]


@pytest.mark.parametrize("pattern", ["odd\\", "*\\", "o\\", "\\"])
async def test_a_pattern_that_ends_in_a_backslash_names_its_column(client: TestClient[Any, Any], pattern: str) -> None:
    """PostgreSQL reports it only at a row that matches the rest of the pattern, if there is one."""
    for operator in ("like", "ilike", "not.like"):
        problem = await refused(client, filter_on("name", operator, pattern) + "&order=id")
        assert '"name"' in problem["detail"]
        assert "backslash" in problem["detail"]


@pytest.mark.parametrize(
    ("column", "type", "value"),
    [("words", "tsvector", "'cat"), ("search", "tsquery", "cat & & dog"), ("couple", "pair", "(1")],
)
async def test_types_whose_errors_have_other_codes_are_named_too(
    client: TestClient[Any, Any], column: str, type: str, value: str
) -> None:
    problem = await refused(client, filter_on(column, "eq", value))
    assert f'"{column}" ({type})' in problem["detail"]


@pytest.mark.parametrize("value", ["a", "9", "'", "%", "ü"])
async def test_a_long_value_is_not_repeated(client: TestClient[Any, Any], value: str) -> None:
    bad = value * (100_000 // len(quote(value)))
    for column in ("n", "flag", "ref", "feel", "tags"):
        await refused(client, filter_on(column, "eq", bad))


# --- Operators that a type does not have, and columns that cannot be sorted by. ---


@pytest.mark.parametrize(
    ("query", "operator", "subject"),
    [
        ("id=like.1*", "like", '"id" (integer)'),
        ("id=not.ilike.1*", "ilike", '"id" (integer)'),
        ("id=match.1", "match", '"id" (integer)'),
        ("id=imatch.1", "imatch", '"id" (integer)'),
        ("id=is.true", "is", '"id" (integer)'),
        ("id=not.is.unknown", "is", '"id" (integer)'),
        ("id=cs.1", "cs", '"id" (integer)'),
        ("id=cd.[1,5)", "cd", '"id" (integer)'),
        ("id=ov.1", "ov", '"id" (integer)'),
        ("name=cs.a", "cs", '"name" (text)'),
        ("name=is.false", "is", '"name" (text)'),
        ("born=like.2024*", "like", '"born" (date)'),
        ("ref=like.0*", "like", '"ref" (uuid)'),
        ("feel=like.o*", "like", '"feel" ("the ""mood"" %s")'),
        ("feel=match.o", "match", '"feel" ("the ""mood"" %s")'),
        ("pos=like.1*", "like", '"pos" (above_zero)'),
        ("raw=eq.1", "eq", '"raw" (json)'),
        ("raw=in.(1)", "in", '"raw" (json)'),
        ("raw=cs.{}", "cs", '"raw" (json)'),
        ("data=ov.{}", "ov", '"data" (jsonb)'),
        ("data=like.a", "like", '"data" (jsonb)'),
        ("tags=like.a", "like", '"tags" (text[])'),
        ("place=eq.(1,2)", "eq", '"place" (point)'),
        ("place=gt.(1,2)", "gt", '"place" (point)'),
        ("or=(id.eq.1,id.like.1*)", "like", '"id" (integer)'),
        ("id=gt.0&or=(name.eq.x,and(id.lt.9,not.or(raw.neq.1)))", "neq", '"raw" (json)'),
        ("always=gt.0&id=like.1*", "like", '"id" (integer)'),
        ("name=sl.a", "sl", '"name" (text)'),
        ("id=adj.1", "adj", '"id" (integer)'),
        ("id=sl.1", "sl", '"id" (integer)'),  # shifts its bits
        ("or=(name.eq.x,id.sr.1)", "sr", '"id" (integer)'),
        ("id=like(any).{1*}", "like(any)", '"id" (integer)'),
        ("raw=eq(any).{1}", "eq(any)", '"raw" (json)'),
        ("raw=isdistinct.1", "isdistinct", '"raw" (json)'),
        ("id=fts.1", "fts", '"id" (integer)'),
        ("tags=plfts(english).a", "plfts(english)", '"tags" (text[])'),
        ("or=(name.fts.x,born.not.wfts.2024)", "wfts", '"born" (date)'),
    ],
)
async def test_an_operator_that_a_type_does_not_have_is_named_with_the_column(
    client: TestClient[Any, Any], query: str, operator: str, subject: str
) -> None:
    problem = await refused(client, query)
    assert problem["code"] == "operator_not_supported"
    assert f'"{operator}"' in problem["detail"]
    assert subject in problem["detail"]


@pytest.mark.parametrize(
    ("query", "subject"),
    [
        ("order=raw", '"raw" (json)'),
        ("order=id,raw.desc.nullslast", '"raw" (json)'),
        ("order=place", '"place" (point)'),
        ("id=gt.0&always=gt.0&order=always,raw", '"raw" (json)'),
    ],
)
async def test_a_column_that_cannot_be_sorted_by_is_named(
    client: TestClient[Any, Any], query: str, subject: str
) -> None:
    problem = await refused(client, query)
    assert problem["code"] == "operator_not_supported"
    assert subject in problem["detail"]
    assert "sort" in problem["detail"]


async def test_more_columns_than_postgresql_allows_are_refused(client: TestClient[Any, Any]) -> None:
    for path in ("/export/judged.csv", "/export/judged.ndjson"):
        problem = await refused(client, "select=" + ",".join(["id"] * 1700), path)
        assert problem["code"] == "too_complex"


# --- Relations that fail without a filter. ---


@pytest.mark.parametrize("view", ["crashing", "hopeless"])
@pytest.mark.parametrize("query", ["", "id=gt.0", "id=gt.0&order=id", "part=neq.7&or=(id.eq.1,id.eq.2)", "order=part"])
async def test_a_view_that_divides_by_zero_keeps_its_own_error(
    client: TestClient[Any, Any], view: str, query: str
) -> None:
    """`hopeless` fails as soon as PostgreSQL plans a query that needs the column, before it reads any row."""
    problem = await refused(client, query, f"/export/{view}.csv", status=500)
    assert "divides by zero" in problem["detail"]
    assert '"id"' not in problem["detail"]
    assert '"part"' not in problem["detail"]


async def test_a_bad_value_is_named_on_such_a_view_too(client: TestClient[Any, Any]) -> None:
    problem = await refused(client, "part=eq.1&id=eq.abc", "/export/crashing.csv")
    assert '"id" (integer)' in problem["detail"]
    assert "divides" not in problem["detail"]


@pytest.mark.parametrize("query", ["", "id=gt.0", "order=id"])
async def test_a_broken_view_is_an_error_of_the_server(client: TestClient[Any, Any], query: str) -> None:
    problem = await refused(client, query, "/export/broken.csv", status=500)
    assert "secret_function" not in problem["detail"]


# --- Large requests: a short answer, and an event loop that stays responsive. ---


def nest(depth: int) -> str:
    return "or=(" + "id.gt.9,and(" * (depth - 1) + "id.gt.0" + ")" * depth


async def test_brackets_may_be_nested_to_the_limit(client: TestClient[Any, Any]) -> None:
    status, body = await answer(client, nest(MOST_NESTING).replace("and(", "or(") + "&select=id&order=id&limit=1")
    assert (status, body) == (200, b"id\n1\n")


@pytest.mark.parametrize("depth", [MOST_NESTING + 1, 100, 3000])
async def test_brackets_nested_deeper_are_refused_at_once(client: TestClient[Any, Any], depth: int) -> None:
    async with loop_limit(LONGEST_PAUSE):
        assert (await refused(client, nest(depth)))["code"] == "too_deep"


MANY = [str(number) for number in range(10_000)]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        (f"id=in.({','.join(MANY)})", 50),
        (f"id=not.in.({','.join(MANY)})", 0),
        (f"or=(id.in.({','.join(MANY)}),id.lt.0)", 50),
        (f"ratio=in.({','.join(MANY)})", 0),
        (f"price=in.({','.join(MANY)})", 0),
        ("name=in.(" + ",".join(f"%22{text}%22" for text in MANY[1:]) + ",odd)", 25),
    ],
    ids=["in", "not in", "in brackets", "double precision", "numeric", "quoted"],
)
async def test_a_list_of_ten_thousand_works(client: TestClient[Any, Any], query: str, rows: int) -> None:
    url = URL(f"/export/judged.csv?select=id&{query}", encoded=True)
    async with loop_limit(LONGEST_PAUSE), client.get(url) as response:
        body = await response.read()
    assert response.status == 200, body[:500]
    assert body.count(b"\n") == rows + 1


async def test_one_bad_value_among_ten_thousand_is_found(client: TestClient[Any, Any]) -> None:
    async with loop_limit(LONGEST_PAUSE):
        problem = await refused(client, f"id=in.({','.join(MANY[1:])},abc)")
    assert '"id" (integer)' in problem["detail"]
    assert '"abc"' in problem["detail"]


async def test_one_bad_value_among_the_most_conditions_is_found(client: TestClient[Any, Any]) -> None:
    good = ",".join(["id.eq.1"] * (MOST_CONDITIONS - 1))
    async with loop_limit(LONGEST_PAUSE):
        problem = await refused(client, f"or=({good},n.eq.abc)")
    assert '"n" (integer)' in problem["detail"]


async def test_the_most_conditions_work_and_one_more_does_not(client: TestClient[Any, Any]) -> None:
    most = ",".join(f"id.eq.{number}" for number in range(MOST_CONDITIONS))
    status, body = await answer(client, f"select=id&or=({most})")
    assert (status, body.count(b"\n")) == (200, 51)
    assert (await refused(client, f"or=({most})&id=gt.0"))["code"] == "too_many_conditions"


async def test_hundreds_of_regular_expressions_are_answered(client: TestClient[Any, Any]) -> None:
    """PostgreSQL compiles regular expressions while it plans; no two of these are the same."""
    query = "or=(" + ",".join(f'name.match."^(a|b){{{number % 9}}}.*{number}$"' for number in range(900)) + ")"
    async with loop_limit(LONGEST_PAUSE):
        status, _ = await answer(client, f"select=id&{query}")
    assert status == 200


LONG = 127 * 1024


@pytest.mark.parametrize(
    ("piece", "around", "status"),
    [
        ("1,", "id=in.({}1)", 400),
        ("x", "name=eq.{}", 200),
        ("%22", "name=eq.{}", 200),
        ("%5C", "name=eq.{}", 200),
        ("'", "name=eq.{}", 200),
        ("*", "name=like.{}", 400),
        ("id,", "select=id&order={}id", 400),
        ("id,", "select={}id", 400),
        ("x,", "select={}id", 400),
        ("x:", "select={}id", 400),
        ("x.", "order={}id", 400),
        ("(", "or={}", 400),
        ("or(", "or=({}", 400),
        ("id.eq.1,", "or=({}id.eq.1)", 400),
        ("{", "or=(tags.cs.{}", 400),
        ("%22", "name=in.({}", 400),
        ("id=eq.1&", "{}", 400),
        ("&", "{}limit=1", 200),
        ("a&", "{}", 400),
        ("=", "{}", 400),
        ("x", "{}=1", 400),
        ("9", "limit={}", 400),
        ("x", "timezone={}", 400),
        # 127 kB for every NULL would exhaust the memory of the server.
        ("x", "null={}", 400),
        ("x", "filename={}", 400),
        ("not.", "id={}eq.1", 400),
    ],
)
async def test_a_query_as_long_as_the_request_line_gets_a_quick_answer(
    client: TestClient[Any, Any], piece: str, around: str, status: int
) -> None:
    space = LONG - len("/export/judged.csv?") - len(around)
    query = around.replace("{}", piece * (space // len(piece)))
    async with (
        loop_limit(LONGEST_PAUSE),
        client.get(URL(f"/export/judged.csv?{query}", encoded=True)) as response,
    ):
        body = await response.read()
    assert response.status == status, body[:500]
    assert status == 200 or len(body) <= LONGEST_BODY


# A backtracking matcher tries very many ways to repeat these four groups, and none of them matches.
PATHOLOGICAL = r"^(a+)(a+)(a+)(a+)b\1\2\3\4$"


@pytest.mark.parametrize("path", ["/export/hostile.csv", "/export/hostile.ndjson.gz"])
async def test_a_pathological_regular_expression_is_timed_out_while_the_worker_answers(
    impatient: TestClient[Any, Any], postgres: Postgres, path: str
) -> None:
    postgres.run("CREATE TABLE hostile AS SELECT repeat('a', 400) || 'b' || repeat('a', 399) AS name")
    asked = asyncio.create_task(refused(impatient, filter_on("name", "match", PATHOLOGICAL), path, status=504))
    answers = 0
    async with loop_limit(LONGEST_PAUSE):
        while not asked.done():
            async with impatient.get("/health/live") as response:
                assert response.status == 200
            answers += 1
            await asyncio.wait([asked], timeout=0.05)
    assert (await asked)["code"] == "query_timeout"
    assert answers > 5
    # The query has ended, and the next request is answered.
    await eventually(
        "the query has ended", lambda: not [query for state, query in postgres.statements() if state == "active"]
    )
    assert (await answer(impatient, "select=name&limit=0", "/export/hostile.csv"))[0] == 200

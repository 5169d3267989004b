"""The event loop: no request keeps it for 20 ms, and what asks for too much is refused before anything is made of it.

The time is the CPU time of one callback, so other work on the machine does not count. `make test` traces the code,
which takes longer; `make test-slow` runs the same table without, on all endpoints.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from server.app import MAX_REQUEST_LINE
from server.http.aiohttp_internals import LONGEST_PATH
from server.pages.sent_fields import FORM_TYPE, MOST_FIELDS
from server.query.tally import MOST_CONDITIONS, MOST_ITEMS
from server.settings import Settings
from tests.support.cpu import watched_callbacks
from tests.support.postgres import Postgres
from tests.support.watched_app import WatchedApp, watched_app

COLUMNS = 1590
# Relations of the longest list, and partitions of the longest plan.
RELATIONS = 10_000
PARTITIONS = 1000
BROWSER = {"Accept": "text/html"}
FORM = {"Content-Type": FORM_TYPE}


def filled(around: str, piece: str) -> str:
    """Return `around` with as many pieces in place of `{}` as a request line has room for."""
    room = MAX_REQUEST_LINE - 200 - len(around)
    return around.replace("{}", piece * (room // len(piece)))


def names(pattern: str, count: int) -> str:
    return ",".join(pattern.format(number % COLUMNS, number) for number in range(count))


@dataclass(frozen=True)
class Attack:
    """A query string. status: of an export; of the page it is 400 only if `too_large`."""

    name: str
    query: str
    status: int = 200
    code: str = ""
    too_large: bool = False


def too_large(name: str, query: str, code: str = "too_complex") -> Attack:
    return Attack(name, query, 400, code, too_large=True)


ATTACKS = [
    too_large("60,000 items", filled("id=in.({}1)", "1,")),
    too_large("30,000 quoted items", filled("name=in.({}1)", "%22%22,")),
    too_large("60,000 braces", filled("or=(tags.cs.{})", "{")),
    too_large("12,000 conditions", filled("{}id=gt.1", "id=gt.1&"), "too_many_conditions"),
    too_large("12,000 conditions in brackets", filled("or=({}id.gt.1)", "id.gt.1,"), "too_many_conditions"),
    too_large("60,000 parameters", filled("{}", "a&"), "too_many_conditions"),
    too_large("40,000 steps", filled("select=id{}", ",data->a")),
    too_large("40,000 columns", filled("select={}id", "id,")),
    too_large("40,000 sort keys", filled("order={}id", "id,")),
    Attack("a pattern of 120 kB", filled("name=like.{}", "*"), 400, "too_complex"),
    Attack("patterns of 120 kB", filled("name=like(any).%7Ba{}%7D", ",*"), 400, "too_complex"),
    Attack("a regular expression of 120 kB", filled("name=match.{}", "(a?)"), 400, "too_complex"),
    Attack("a text search of 120 kB", filled("name=wfts.{}", "a%20"), 400, "too_complex"),
    Attack("repetitions within repetitions", f"name=match.{quote('((a?){0,40}){0,40}')}", 400, "too_complex"),
    Attack("a file name of 120 kB", filled("filename={}", "x"), 400, "invalid_filename"),
    Attack("an unknown column of 120 kB", filled("{}=eq.1", "x"), 400, "unknown_column"),
    Attack("quotes", filled("name=in.(%22{}%22)", "%22%22")),
    Attack("escapes", filled("name=in.(%22{}%22)", "%5C%5C")),
    Attack("percent-encoding", filled("name=eq.{}", "%41+")),
    Attack("plus signs", filled("moment=eq.{}", "a+1"), 400, "unencoded_plus"),
    Attack("blanks", filled("or=(and{}(id.eq.1))", "%20")),
    Attack("no pairs", filled("{}limit=1", "&")),
    Attack("brackets", filled("or=({}id.eq.1)", "or("), 400, "too_deep"),
    Attack("the most items", f"id=in.({','.join(map(str, range(MOST_ITEMS)))})"),
    Attack("the most quoted items", "name=in.(" + ",".join(f"%22{n}%22" for n in range(MOST_ITEMS)) + ")"),
    Attack("the most conditions", "&".join(f"id=gt.{-number}" for number in range(MOST_CONDITIONS))),
    Attack("the most columns", f"select={names('a{1}:column_{0}::text', 1600)}"),
    Attack("everything", f"select={names('column_{0}', COLUMNS)}&order={names('column_{0}.desc', 60)}"
           f"&or=({names('column_{0}.eq.{1}', MOST_CONDITIONS)})"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def wide(database_url: str) -> Iterator[Postgres]:
    """Create a table of 1,595 columns."""
    postgres = Postgres(database_url)
    columns = ", ".join(f"column_{number} integer" for number in range(COLUMNS))
    postgres.run(f"CREATE TABLE wide (id integer, name text, data jsonb, tags text[], moment timestamptz, {columns})")
    postgres.run("INSERT INTO wide (id, name) SELECT n, 'a' FROM generate_series(1, 30) AS n")
    yield postgres
    postgres.run("DROP TABLE wide")
    postgres.connection.close()


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[WatchedApp]:
    async with watched_app(settings) as running:
        await running.ask("/table/users")  # what is made once is made now
        yield running


def test_a_long_callback_is_seen() -> None:
    """The measure works: a callback that computes for longer than the limit is reported."""

    async def compute() -> None:
        sum(range(3_000_000))

    with watched_callbacks() as longest:
        asyncio.run(compute())
    assert longest.seconds > 0.02
    assert "compute" in longest.which or "Task" in longest.which


# --- Query strings. ---


async def attack(
    app: WatchedApp, before: str, attacks: Sequence[Attack] = ATTACKS, *, page: bool = False, method: str = "GET"
) -> None:
    """Attack the resource whose address begins so. page: it shows errors in its form, unless too much is asked for."""
    for one in attacks:
        answer = await app.ask_watched(f"{before}{one.query}", method=method)
        case = (one.name, answer.status, answer.body[:300])
        if one.too_large or (one.status == 400 and not page):
            problem = json.loads(answer.body)
            assert (answer.status, problem["code"]) == (400, one.code), case
            assert len(answer.body) < 8192, case
            assert not one.too_large or problem["hint"], case
        else:
            assert answer.status in (200, 202), case


async def test_no_query_string_of_an_export_keeps_the_loop(app: WatchedApp) -> None:
    await attack(app, "/export/wide.csv?")


async def test_a_page_refuses_what_is_too_large(app: WatchedApp) -> None:
    await attack(app, "/table/wide?", [one for one in ATTACKS if one.too_large])


async def test_what_is_too_large_is_refused_before_the_relation_is_looked_up(app: WatchedApp) -> None:
    for before in (
        "/export/no_such.csv?",
        "/table/no_such?",
        "/relations/no_such?explain&",
        "/relations/no_such/preview?",
    ):
        await attack(app, before, [one for one in ATTACKS if one.too_large])


@pytest.mark.slow
@pytest.mark.parametrize("before", ["/export/wide.ndjson.gz?", "/relations/wide?explain&", "/relations/wide/preview?"])
async def test_no_query_string_keeps_the_loop(app: WatchedApp, before: str) -> None:
    await attack(app, before)


@pytest.mark.slow
async def test_no_query_string_of_a_page_keeps_the_loop(app: WatchedApp) -> None:
    await attack(app, "/table/wide?", page=True)


@pytest.mark.slow
async def test_no_saved_export_keeps_the_loop(app: WatchedApp) -> None:
    await attack(app, "/export/users.csv?", [one for one in ATTACKS if one.too_large], method="POST")
    await attack(app, "/export/wide.csv?", method="POST")


async def test_the_condition_at_fault_is_found_without_keeping_the_loop(app: WatchedApp) -> None:
    query = "&".join([f"id=gt.{-number}" for number in range(MOST_CONDITIONS - 1)] + ["id=eq.abc"])
    answer = await app.ask_watched(f"/export/users.csv?{query}")
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "invalid_value")


# --- Paths and headers. ---


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE", "PUT"])
@pytest.mark.parametrize("path", ["/table/" + "/" * LONGEST_PATH, filled("/{}", "a/"), filled("/export/{}.csv", "a.")])
async def test_a_long_path_is_refused_before_a_route_is_looked_for(app: WatchedApp, path: str, method: str) -> None:
    answer = await app.ask_watched(path, method=method)
    assert answer.status == 414
    if method != "HEAD":
        problem = json.loads(answer.body)
        assert (problem["code"], problem["detail"]) == ("path_too_long", "The path is longer than 2,048 characters.")


async def test_the_longest_path_is_looked_up(app: WatchedApp) -> None:
    answer = await app.ask_watched("/" + "/" * (LONGEST_PATH - 1))
    assert answer.status == 404


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/nowhere", {"Accept": "," * 8000}, 404),
        ("/export/users.csv?limit=1", {"Accept-Encoding": "gzip;q=0.1," * 700}, 200),
        ("/shape/users", {"Content-Type": ';"' * 4000}, 400),
        ("/saved/delete", {"Content-Type": ';"' * 4000}, 400),
        ("/shape/users", {"Content-Type": f"{FORM_TYPE}; charset=nonsense"}, 303),
    ],
)
async def test_no_header_keeps_the_loop(app: WatchedApp, path: str, headers: dict[str, str], status: int) -> None:
    method, body = ("POST", b"limit=x") if "Content-Type" in headers else ("GET", b"")
    answer = await app.ask_watched(path, method=method, headers=headers, body=body)
    assert answer.status == status, answer.body[:300]


@pytest.mark.parametrize("name", ["Accept", "Accept-Encoding", "If-None-Match", "Cookie", "X-Request-Id"])
@pytest.mark.parametrize(("lines", "status"), [(18, 200), (100, 431)], ids=["as long as a head may be", "too long"])
async def test_no_long_lines_of_headers_keep_the_loop(app: WatchedApp, name: str, lines: int, status: int) -> None:
    headers = {name if number == 0 else f"X-{number}": '"a",' * 2000 for number in range(lines)}
    answer = await app.ask_watched("/export/users.csv?limit=1", headers=headers)
    assert answer.status == status


# --- Forms. ---

EVERY_COLUMN = "&".join(f"c=column_{number}&a=&t={number}" for number in range(COLUMNS)).encode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (EVERY_COLUMN, 303, ""),
        (b"a=&" * 340_000, 400, "too_many_fields"),
        (b"a&" * (MOST_FIELDS - 1), 303, ""),
        (b"more=" + b"id=gt.1%0a" * 10_000, 400, "too_complex"),
        (b"more=" + b"%c3%a4" * 170_000, 400, "too_long"),
        (b"f0.column=id&f0.op=in&f0.value=" + b"1," * 500_000, 400, "too_long"),
        (b"f0.column=id&f0.op=in&f0.value=" + b"%22%22%22%22," * 70_000, 400, "too_long"),
        (b"&".join(b"f%d.column=id&f%d.value=1" % (number, number) for number in range(3000)), 400, "too_complex"),
        (b"a=" + b"b" * (2 << 20), 413, "payload_too_large"),
    ],
    ids=["every column", "fields", "most fields", "lines", "text", "items", "quoted items", "filters", "2 MB"],
)
async def test_no_form_keeps_the_loop(app: WatchedApp, body: bytes, status: int, code: str) -> None:
    answer = await app.ask_watched("/shape/wide", method="POST", headers=FORM, body=body)
    assert answer.status == status, answer.body[:300]
    assert not code or json.loads(answer.body)["code"] in (code, "request_entity_too_large", "content_too_large")


async def test_no_form_of_saved_exports_keeps_the_loop(app: WatchedApp) -> None:
    answer = await app.ask_watched("/saved/delete", method="POST", headers=FORM, body=b"id=&" * 250_000)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "too_many_fields")


@pytest.mark.parametrize(("method", "path", "code"), [
    ("POST", "/saved/delete", "invalid_form"),
    ("POST", "/export/users.csv", "unexpected_body"),
    ("GET", "/exports", "unexpected_body"),
])  # fmt: skip
async def test_no_body_in_chunks_of_one_byte_keeps_the_loop(app: WatchedApp, method: str, path: str, code: str) -> None:
    body = b"1\r\na\r\n" * 150_000 + b"0\r\n\r\n"
    answer = await app.ask_watched(path, method=method, headers={"Transfer-Encoding": "chunked"}, body=body)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, code)


@pytest.mark.parametrize("path", ["/", "/saved"])
async def test_no_address_of_a_list_keeps_the_loop(app: WatchedApp, path: str) -> None:
    answer = await app.ask_watched(filled(f"{path}?{{}}", "a=1&"), headers=BROWSER)
    assert answer.status == 400
    answer = await app.ask_watched(filled(f"{path}?q={{}}", "%C3%A4"), headers=BROWSER)
    assert answer.status == 200


# --- Large catalogues. ---


@pytest.mark.parametrize("path", ["/table/wide", "/shape/wide", "/relations/wide", "/relations/wide/preview"])
async def test_a_table_of_1600_columns_does_not_keep_the_loop(app: WatchedApp, path: str) -> None:
    headers = {"X-Sluice-Live": "1"} if path.startswith("/shape") else {}
    answer = await app.ask_watched(path, headers=headers)
    assert answer.status == 200, answer.body[:300]


@pytest.mark.slow
async def test_ten_thousand_relations_do_not_keep_the_loop(app: WatchedApp, postgres: Postgres) -> None:
    postgres.run("CREATE SCHEMA crowd")
    create = "EXECUTE format('CREATE TABLE public.crowd_%s (id int, a text, b date, c numeric)', n)"
    for first in range(0, RELATIONS, 500):  # each statement holds a lock for each table
        postgres.run(f"DO $$ BEGIN FOR n IN {first}..{first + 499} LOOP {create}; END LOOP; END $$")
    try:
        for path, headers in (
            ("/", BROWSER),
            ("/?q=crowd", BROWSER),
            ("/?q=id", BROWSER),
            ("/?sort=size.desc", BROWSER),
            ("/relations", {}),
            ("/export/crowd_77x.csv", {}),
            (f"/table/crowd_77{'x' * 60}", BROWSER),
        ):
            answer = await app.ask_watched(path, headers=headers)
            assert answer.status == (404 if "77" in path else 200), answer.body[:300]
    finally:
        for first in range(0, RELATIONS, 500):
            tables = ", ".join(f"crowd_{number}" for number in range(first, first + 500))
            postgres.run(f"DROP TABLE {tables}")


@pytest.mark.slow
async def test_the_plan_of_a_thousand_partitions_does_not_keep_the_loop(app: WatchedApp, postgres: Postgres) -> None:
    columns = ", ".join(f"column_{number} text" for number in range(60))
    postgres.run(f"CREATE TABLE parts (id integer, {columns}) PARTITION BY LIST (id)")
    for first in range(0, PARTITIONS, 250):
        create = "EXECUTE format('CREATE TABLE public.parts_%s PARTITION OF public.parts FOR VALUES IN (%s)', n, n)"
        postgres.run(f"DO $$ BEGIN FOR n IN {first}..{first + 249} LOOP {create}; END LOOP; END $$")
    for path in ("/export/parts.csv", "/relations/parts?explain", "/table/parts"):
        answer = await app.ask_watched(path)
        assert answer.status == 200, answer.body[:300]

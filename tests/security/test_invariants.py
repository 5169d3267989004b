"""Whatever a client sends: a documented status and never `internal`, a free event loop, and no memory that stays.

In this process, where each callback of the event loop is measured, and under gunicorn, where bytes that are no HTTP
arrive too. `make test` tries a few requests and `make test-slow` many.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.app import MAX_REQUEST_LINE
from server.pages.sent_fields import FORM_TYPE
from server.query.filters import OPERATORS
from server.query.request import FORMATS, PARAMETERS
from server.settings import Settings
from tests.support import watched_server
from tests.support.cpu import LONGEST_CALLBACK, most_seconds
from tests.support.postgres import Postgres
from tests.support.raw_http import Answer, Client
from tests.support.watched_app import ATTEMPTS, WatchedApp, watched_app
from tests.support.watched_server import WatchedServer

ROOT = Path(__file__).parents[2]
# The statuses that docs/errors.md lists, and those of answers without an error.
DOCUMENTED = {
    int(found) for found in re.findall(r"^\| (\d{3}) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
}
ANSWERED = {200, 202, 204, 206, 303, 304}
# Bytes by which the memory of a process may be larger after all requests than before.
MOST_GROWTH = 32 << 20
FEW, MANY = 60, 2500


@dataclass(frozen=True)
class Sent:
    """A request. lines: of its headers, as they are sent."""

    method: str
    target: str
    lines: tuple[str, ...] = ()
    body: bytes = b""
    host: str = "localhost"

    @property
    def head(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {self.host}", "Connection: close", *self.lines]
        if self.body or self.method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


# --- What is sent. ---

# Seldom another host than that of the server.
HOSTS = st.sampled_from(
    ["localhost"] * 12 + ["127.0.0.1:80", "[::1]", "attacker.example", "", "[", "a b", "localhost:x"]
)
METHODS = ("GET", "GET", "GET", "HEAD", "POST", "POST", "DELETE", "PUT", "OPTIONS", "PATCH", "BREW")
RELATIONS = (
    "users",
    "orders",
    "wide",
    "public.users",
    "%22users%22",
    "nothing",
    "pg_catalog.pg_class",
    "revenue_by_country",
)
RESOURCES = (
    *("/", "/exports", "/exports/nothing", "/exports/nothing/events", "/exports/nothing/download", "/relations"),
    *("/saved", "/saved/delete", "/saved/nothing/cancel", "/timezones", "/health/live", "/health/ready", "/nowhere"),
    *("/exports/nothing/download/a.csv", "/static/table.js", "/static/../server/app.py", "/export/", "/table/"),
)
OF_RELATIONS = ("/export/{}.{}", "/export/{}.{}.gz", "/relations/{}", "/relations/{}/preview", "/table/{}", "/shape/{}")
# Text of which every byte is sent: percent-encoded, or as it is where a request line can hold it.
ANY_TEXT = st.text(max_size=30).map(lambda text: quote(text, safe="/.\"'()*,;:@!$~[]{}|\\^`<>", errors="replace"))
RAW = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30)
COLUMNS = ("id", "name", "country", "data", "tags", "moment", "column_7", "signup_date", "nope", '"a.b"', "data->a->>b")
VALUES = (
    *("1", "x", "", "null", "(1,2)", '("a,b",c)', "{1,2}", "{", '"', "*", "a*", "(a?){0,9}", "((a?){0,40}){0,40}"),
    *("2024-01-01", "2024-01-01T12:00+02:00", "true", "%00", "%ff", "%", "+", "\\", "(", "[a", "a|b", "fat & cat"),
    *("-1", "99999999999999999999", "NaN", "infinity", "Europe/Berlin", "tab", "crlf", "formulas", "csv", "excel"),
)
WORDS = (
    *PARAMETERS,
    *OPERATORS,
    *COLUMNS,
    *VALUES,
    *'=.,:()"{}&*%+-?#',
    "not.",
    "->",
    "->>",
    "::text",
    "or=(",
    "explain",
)
CONDITION = st.builds("{}={}{}.{}".format, st.sampled_from(COLUMNS), st.sampled_from(["", "not."]),
                      st.sampled_from(OPERATORS), st.sampled_from(VALUES) | ANY_TEXT)  # fmt: skip
OPTION = st.builds("{}={}".format, st.sampled_from(PARAMETERS), st.sampled_from([*COLUMNS, *VALUES]) | ANY_TEXT)
NONSENSE = st.lists(st.sampled_from(WORDS), max_size=15).map("".join)
PAIRS = st.lists(CONDITION | OPTION | NONSENSE | ANY_TEXT, max_size=6).map("&".join)
# As long as a request line can be, of one piece.
LONG = st.builds(
    lambda before, piece, share: before + piece * (int(share * (MAX_REQUEST_LINE - 300)) // len(piece)),
    st.sampled_from(["", "id=in.(", "name=eq.", "or=(", "select=", "order=", "name=match.", "name=like(any).{", "q="]),
    st.sampled_from([*filter(None, WORDS), "id=gt.1&", "id.eq.1,", "1,", '"",', "or(", "%41", "%C3%A4", "a+1"]),
    st.floats(0, 1),
)
QUERY = st.just("") | PAIRS | PAIRS | PAIRS | LONG
PATH = (
    st.sampled_from(RESOURCES)
    | st.builds(str.format, st.sampled_from(OF_RELATIONS), st.sampled_from(RELATIONS) | ANY_TEXT,
                st.sampled_from(FORMATS))
    | st.builds("{}{}".format, st.sampled_from(["/", "/export/", "/table/", "/relations/", "//"]), ANY_TEXT | RAW)
    | st.builds(lambda piece, count: "/table/" + piece * count, st.sampled_from(["/", "a/", ".", "%2F"]),
                st.integers(0, 30_000))
)  # fmt: skip
TARGET = st.builds(
    lambda path, query: (f"{path}?{query.replace(' ', '%20')}" if query else path)[: MAX_REQUEST_LINE - 100],
    PATH,
    QUERY,
)
NAMES = st.sampled_from((
    *("Accept", "Accept-Encoding", "Accept-Language", "Range", "If-Range", "If-None-Match", "If-Modified-Since"),
    *("Sec-Fetch-Site", "X-Request-Id", "Idempotency-Key", "X-Sluice-Live", "Cookie", "Forwarded", "X-Forwarded-Proto"),
    *("Origin", "X-Forwarded-For", "Content-Type", "Content-Encoding", "Expect", "Authorization", "Last-Event-ID"),
))  # fmt: skip
HEADER_VALUES = (
    st.sampled_from(["", "*", "text/html", "gzip;q=1, *;q=0", "bytes=0-", "bytes=-1", 'W/"a"', "null", "100-continue"])
    | st.sampled_from([FORM_TYPE, f"{FORM_TYPE}; charset=nonsense", "multipart/form-data; boundary=x"])
    | st.sampled_from(["gzip", "deflate", "br", "same-origin", "1"])
    | st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30)
    | st.builds(lambda piece, count: piece * count, st.sampled_from([",", ';"', "a;q=1,", '"a",', "x"]),
                st.integers(0, 1500))
)  # fmt: skip
LINES = st.lists(
    st.builds("{}: {}".format, NAMES, HEADER_VALUES), max_size=4, unique_by=lambda line: line.split(":")[0]
)
FIELDS = (
    "c",
    "a",
    "t",
    "more",
    "move",
    "remove",
    "do",
    "f0.column",
    "f0.op",
    "f0.value",
    "s0.column",
    "id",
    "sure",
    "limit",
)
BODY = (
    st.just(b"")
    | st.lists(st.builds("{}={}".format, st.sampled_from(FIELDS), st.sampled_from([*COLUMNS, *VALUES])), max_size=8)
    .map("&".join).map(str.encode)
    | st.binary(max_size=60)
    | st.builds(lambda piece, count: piece * count, st.sampled_from([b"a=&", b"more=", b"%41", b"c=id&", b"1,"]),
                st.integers(0, 300_000))
)  # fmt: skip
SENT = st.builds(
    lambda method, target, lines, body, host: Sent(
        method, target, tuple(lines), body if method in ("POST", "PUT") else b"", host
    ),
    st.sampled_from(METHODS), TARGET, LINES, BODY, HOSTS,
)  # fmt: skip
# Bytes that are hardly HTTP.
GARBAGE = st.binary(max_size=200) | st.builds(
    lambda sent, noise, at: (head := sent.head)[: at % len(head)] + noise + head[at % len(head) :],
    SENT, st.binary(min_size=1, max_size=5), st.integers(0, 100_000),
)  # fmt: skip


# --- What is answered. ---


def judge(sent: object, answer: Answer) -> None:
    """Fail if the answer is none that a client may expect."""
    about = (sent, answer.status, answer.body[:300])
    assert answer.status in ANSWERED | DOCUMENTED, about
    if answer.headers.get("content-type", "").startswith("application/problem+json") and answer.body:
        problem = json.loads(answer.body)
        assert problem["code"] != "internal", about
        assert problem["status"] == answer.status, about
    elif answer.status >= 400 and answer.body:
        assert answer.headers["content-type"].startswith("text/html"), about
        assert b"The server failed unexpectedly" not in answer.body, about
    assert len(answer.body) < MOST_GROWTH, about


@pytest.fixture(scope="module", autouse=True)
def wide(database_url: str) -> Iterator[None]:
    """Create a table of many columns of several types."""
    postgres = Postgres(database_url)
    columns = ", ".join(f"column_{number} integer" for number in range(300))
    postgres.run(f"CREATE TABLE wide (id integer, name text, data jsonb, tags text[], moment timestamptz, {columns})")
    postgres.run("INSERT INTO wide (id, name) SELECT n, 'a' FROM generate_series(1, 30) AS n")
    yield
    postgres.run("DROP TABLE wide")
    postgres.connection.close()


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[WatchedApp]:
    async with watched_app(settings) as running:
        for path in ("/", "/saved", "/table/wide", "/export/users.csv", "/relations/users/preview"):
            await running.ask(path)  # what is made once is made now
        yield running


async def holds_in_this_process(app: WatchedApp, sent: Sent) -> None:
    headers = {"Host": sent.host, **dict(line.split(": ", 1) for line in sent.lines)}
    try:
        answer = await app.ask_watched(sent.target, method=sent.method, headers=headers, body=sent.body)
    except ConnectionError as error:
        raise AssertionError(f"no answer to {sent}") from error
    judge(sent, answer)


EXAMPLES = [
    Sent("GET", "/table/users?" + "id=in.(" + "1," * 60_000 + "1)"),
    Sent("POST", "/shape/users", (f"Content-Type: {FORM_TYPE}; charset=nonsense",), b"limit=1"),
    Sent("POST", "/saved/delete", ("Content-Type: multipart/form-data; boundary=x",), b"--x\r\n"),
    Sent("POST", "/shape/users", (f"Content-Type: {FORM_TYPE}", "Content-Encoding: gzip"), b"no gzip"),
    Sent("GET", "/table/" + "/" * 100_000),
    Sent("GET", "/export/users.csv?select=" + "id," * 1663 + "id&order=name"),
]


def with_examples(test: Callable[..., Any]) -> Callable[..., Any]:
    for sent in EXAMPLES:
        test = example(sent=sent)(test)
    return test


@with_examples
@given(sent=SENT)
@settings(max_examples=FEW)
async def test_a_few_requests_hold_the_invariants(app: WatchedApp, sent: Sent) -> None:
    await holds_in_this_process(app, sent)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@given(sent=SENT)
@settings(max_examples=MANY)
async def test_many_requests_hold_the_invariants(app: WatchedApp, sent: Sent) -> None:
    await holds_in_this_process(app, sent)


# --- Under gunicorn. ---


@pytest.fixture(scope="module")
def watched(database_url: str) -> Iterator[WatchedServer]:
    with WatchedServer(DATABASE_URL=database_url, WEB_CONCURRENCY="1") as server:
        for _ in range(3):
            for path in ("/", "/saved", "/table/wide", "/export/users.csv", "/relations/users/preview"):
                assert receive(server, Sent("GET", path).head).status == 200
        yield server


def receive(server: WatchedServer, data: bytes, *, cut: bool = False) -> Answer:
    """Send these bytes and return the answer. cut: send nothing more, for the server may wait for more."""
    with Client(server.connect()) as client:
        with contextlib.suppress(ConnectionError):  # refused before everything was sent
            client.socket.sendall(data)
            if cut:
                client.socket.shutdown(socket.SHUT_WR)
        return client.read(method=data.partition(b" ")[0].decode("latin-1"))


def longest_pause(server: WatchedServer) -> float:
    return float(receive(server, Sent("GET", watched_server.ADDRESS).head).body)


@pytest.fixture
def memory(watched: WatchedServer) -> Iterator[None]:
    """Fail if the worker has grown by MOST_GROWTH in the test."""
    (worker,) = watched.workers()
    before = worker.memory_info().rss
    yield
    assert watched.workers() == [worker], "the worker was replaced"
    grown = worker.memory_info().rss - before
    assert grown < MOST_GROWTH, f"the worker has grown by {grown >> 20} MB"


def holds_under_gunicorn(server: WatchedServer, sent: Sent) -> None:
    seen = []
    for _ in range(ATTEMPTS):
        longest_pause(server)
        try:
            answer = receive(server, sent.head + sent.body)
        except (ConnectionError, TimeoutError) as error:
            raise AssertionError(f"no answer to {sent}") from error
        judge(sent, answer)
        seen.append(longest_pause(server))
        if seen[-1] < most_seconds(LONGEST_CALLBACK):
            return
    raise AssertionError(f"{sent} kept the event loop for {seen} s")


@pytest.mark.usefixtures("memory")
@given(sent=SENT)
@settings(max_examples=FEW)
def test_a_few_requests_hold_the_invariants_under_gunicorn(watched: WatchedServer, sent: Sent) -> None:
    holds_under_gunicorn(watched, sent)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("memory")
@given(sent=SENT)
@settings(max_examples=MANY)
def test_many_requests_hold_the_invariants_under_gunicorn(watched: WatchedServer, sent: Sent) -> None:
    holds_under_gunicorn(watched, sent)


@pytest.mark.usefixtures("memory")
@given(data=GARBAGE)
@settings(max_examples=FEW)
def test_bytes_that_are_no_http_are_refused(watched: WatchedServer, data: bytes) -> None:
    refused_or_answered(watched, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("memory")
@given(data=GARBAGE)
@settings(max_examples=MANY)
def test_many_bytes_that_are_no_http_are_refused(watched: WatchedServer, data: bytes) -> None:
    refused_or_answered(watched, data)


def refused_or_answered(server: WatchedServer, data: bytes) -> None:
    """A request may be cut off anywhere, and then nothing is answered."""
    longest_pause(server)
    try:
        answer = receive(server, data, cut=True)
    except (ConnectionError, AssertionError):  # no answer, or one to another method than the first word
        answer = None
    if answer is not None:
        judge(data, answer)
    assert longest_pause(server) < most_seconds(2 * LONGEST_CALLBACK)


def test_the_process_itself_is_measured() -> None:
    """A number of this kind is what the tests above compare."""
    assert psutil.Process().memory_info().rss > 0

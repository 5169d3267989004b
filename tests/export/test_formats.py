"""Formats and compression: JSON lines as row_to_json gives them, gzip files, compression for the transfer only, and
that compression changes nothing about how a stream begins, ends, is cut or is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import subprocess
import threading
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer
from isal import isal_zlib
from yarl import URL

from server.app import create_app
from server.chunk import Chunk
from server.export.compress import gzipped
from server.settings import Settings
from tests.support.cpu import loop_limit
from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres

# zlib's number for a gzip header and trailer.
GZIP = 31


@pytest.fixture
async def raw_client(settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """A client that returns the bytes as received, compressed or not, and sends no Accept-Encoding by itself."""
    options: dict[str, Any] = {"auto_decompress": False, "skip_auto_headers": ["Accept-Encoding"]}
    async with TestClient(TestServer(create_app(settings)), **options) as opened:
        yield opened


@pytest.fixture(params=["native", "pure"])
async def either_client(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a server with either encoder."""
    chosen = replace(settings, pure_python=request.param == "pure")
    async with TestClient(TestServer(create_app(chosen))) as opened:
        yield opened


async def body_of(client: TestClient[Any, Any], target: str, **headers: str) -> bytes:
    async with client.get(URL(f"/export/{target}", encoded=True), headers=headers) as response:
        body: bytes = await response.read()
        assert response.status == 200, body
        return body


def json_lines(postgres: Postgres, query: str) -> bytes:
    """PostgreSQL's own row_to_json for each row, as `\\copy (select row_to_json(…))` has it, line breaks as spaces."""
    rows = postgres.run(f'SELECT row_to_json("each row")::text FROM ({query}) AS "each row"')
    return "".join(line.replace("\n", " ").replace("\r", " ") + "\n" for (line,) in rows).encode()


# --- JSON lines. ---

EVERYTHING = """
CREATE TABLE everything AS
SELECT n AS id, n * 1.50 AS price, n / 7.0::float8 AS ratio, n % 2 = 0 AS even, 'say "hi", ' || n AS note,
    CASE WHEN n % 3 > 0 THEN '' END AS blank, date '2024-02-29' + n AS day, timestamptz '2024-02-29 12:00+00' AS at,
    timestamp '2024-02-29 12:00:00.5' AS plain, interval '1 day 2 hours' AS gap, ARRAY[[n, NULL], [3, 4]] AS grid,
    jsonb_build_object('n', n, 's', E'a\\nb') AS doc, convert_to('é' || n, 'UTF8') AS raw, n::text::money AS cost,
    int4range(n, n + 5) AS span, 'NaN'::float8 AS nan, '-Infinity'::numeric AS lowest, inet '10.0.0.1' AS host,
    E'tab\\t\\r\\n\\\\ 🦥 \u2028' AS odd, users AS user_of, '2e5'::json AS number
FROM generate_series(1, 3000) AS n JOIN users ON users.id = n
"""


@pytest.mark.parametrize("relation", ["users", "orders", "revenue_by_country", "everything"])
async def test_json_lines_are_what_row_to_json_gives(
    either_client: TestClient[Any, Any], postgres: Postgres, relation: str
) -> None:
    postgres.run(EVERYTHING)
    body = await body_of(either_client, f"{relation}.ndjson")
    assert body == json_lines(postgres, f"SELECT * FROM {relation}")
    assert body.count(b"\n") > 10


@pytest.mark.parametrize(
    ("query", "sql"),
    [
        ("select=id", "SELECT id FROM users"),
        ("select=number:id,full%20name:name", 'SELECT id AS number, name AS "full name" FROM users'),
        ("select=name:id,id:name", "SELECT id AS name, name AS id FROM users"),
        ("select=id,again:id", "SELECT id, id AS again FROM users"),
        ("select=*,x:id::text", "SELECT *, id::text AS x FROM users"),
        ('select="a,""b""":id', 'SELECT id AS "a,""b""" FROM users'),
        ("select=%25s:id", 'SELECT id AS "%s" FROM users'),
        ("select=Id:id,gr%C3%B6%C3%9Fe:id", 'SELECT id AS "Id", id AS größe FROM users'),
        ("id=gt.19990&order=id.desc", "SELECT * FROM users WHERE id > 19990 ORDER BY id DESC"),
        ("order=id.desc&limit=3&offset=2", "SELECT * FROM users ORDER BY id DESC LIMIT 3 OFFSET 2"),
        ("select=x:id&name=like.A*&order=name,id", "SELECT id AS x FROM users WHERE name LIKE 'A%' ORDER BY name, id"),
        # An alias that is the name of another column: filters and order mean the columns.
        (
            "select=id:name,name:id&id=lt.40&order=id.desc",
            "SELECT u.name AS id, u.id AS name FROM users AS u WHERE u.id < 40 ORDER BY u.id DESC",
        ),
        (
            "select=name,id:name&id=lt.40&order=id.desc",
            "SELECT name, name AS id FROM users WHERE id < 40 ORDER BY users.id DESC",
        ),
    ],
)
async def test_json_lines_follow_the_query(
    either_client: TestClient[Any, Any], postgres: Postgres, query: str, sql: str
) -> None:
    assert await body_of(either_client, f"users.ndjson?{query}") == json_lines(postgres, sql)


@pytest.mark.parametrize(
    "name",
    [
        "line",
        "source",
        "w",
        "users",
        "select",
        "row",
        "a b",
        'a"b',
        "a\\b",
        "a\nb",
        "%(v0)s",
        "{}",
        "größe",
        "🦥",
        "x" * 63,
    ],
)
async def test_any_column_name_is_a_key(client: TestClient[Any, Any], postgres: Postgres, name: str) -> None:
    column = '"' + name.replace('"', '""') + '"'
    postgres.run(f"CREATE TABLE keyed ({column} text, other int)")
    postgres.run("INSERT INTO keyed VALUES ('x', 1)")
    body = await body_of(client, "keyed.ndjson")
    assert json.loads(body) == {name: "x", "other": 1}
    assert body.endswith(b"\n")


async def test_a_column_that_is_a_row_is_not_taken_for_the_line(
    client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE parts (a int); CREATE TABLE wholes (line parts, source parts, a int)")
    postgres.run("INSERT INTO wholes VALUES (ROW(1), ROW(2), 3), (ROW(3), ROW(2), 1)")
    expected = b'{"line":{"a":3},"source":{"a":2},"a":1}\n{"line":{"a":1},"source":{"a":2},"a":3}\n'
    assert await body_of(client, "wholes.ndjson?order=a") == expected


DOCUMENTS = [
    '{"a": 1}',
    '{\n  "a": [1,\n 2]\n}',
    '\n[\r\n"two\\nlines", "\\r\\n", "\\u000a" ]\n\n',
    '{"a": "\t"}'.replace("\t", "\\t"),
    '"\\\\n"',
    "\r\n1.50\r\n",
    " null ",
    '{"a\\nb":\n{"a\\nb":\r"\u2028\u2029\x85"}}',
]


async def test_json_columns_stay_on_one_line_each_and_equal(
    either_client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE documents (id serial, doc json, same jsonb, several json[])")
    for document in DOCUMENTS:
        postgres.run(
            "INSERT INTO documents (doc, same, several) VALUES (%s, %s, ARRAY[%s, NULL]::json[])", [document] * 3
        )
    lines = (await body_of(either_client, "documents.ndjson")).split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(DOCUMENTS)
    for number, (line, document) in enumerate(zip(lines, DOCUMENTS, strict=True), start=1):
        value = json.loads(document)
        assert json.loads(line) == {"id": number, "doc": value, "same": value, "several": [value, None]}
    assert not any(b"\r" in line for line in lines)


async def test_json_lines_without_rows_and_without_columns(
    either_client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE no_rows (a int); CREATE TABLE no_columns ()")
    postgres.run("INSERT INTO no_columns SELECT FROM generate_series(1, 3000)")
    assert await body_of(either_client, "no_rows.ndjson") == b""
    assert await body_of(either_client, "no_columns.ndjson") == b"{}\n" * 3000


# --- gzip files. ---


def assert_is_gzip_file(file: bytes, content: bytes, path: Path) -> None:
    """Assert that Python and gzip read one whole gzip member with this content and nothing after it."""
    path.write_bytes(file)
    tested = subprocess.run(["gzip", "--test", path], capture_output=True, text=True)
    assert (tested.returncode, tested.stderr) == (0, "")
    assert gzip.decompress(file) == content
    member = zlib.decompressobj(GZIP)
    member.decompress(file)
    assert member.eof
    assert member.unused_data == b""


@pytest.mark.parametrize("accepted", ["", "gzip", "identity", "gzip;q=0", "*"])
@pytest.mark.parametrize(
    ("plain", "query"),
    [
        ("users.csv", ""),
        ("users.tsv", ""),
        ("users.ndjson", ""),
        ("users.csv", "?excel=true&quote=strings&delimiter=;&order=id.desc"),
        ("users.csv", "?limit=0"),
        ("users.csv", "?limit=0&header=false"),  # an empty file
        ("users.ndjson", "?limit=0"),
        ("users.tsv", "?limit=1&header=false"),
    ],
)
async def test_a_gz_file_holds_the_plain_download(
    raw_client: TestClient[Any, Any], tmp_path: Path, plain: str, query: str, accepted: str
) -> None:
    content = await body_of(raw_client, plain + query)
    headers = {"Accept-Encoding": accepted} if accepted else {}
    async with raw_client.get(URL(f"/export/{plain}.gz{query}", encoded=True), headers=headers) as response:
        file = await response.read()
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/gzip"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{plain}.gz"'
        # The file itself is compressed: nothing is negotiated, and nothing is compressed twice.
        assert "Content-Encoding" not in response.headers
        assert "Vary" not in response.headers
    assert_is_gzip_file(file, content, tmp_path / f"{plain}.gz")


async def test_a_large_gz_file_is_whole(raw_client: TestClient[Any, Any], postgres: Postgres, tmp_path: Path) -> None:
    postgres.run(
        "CREATE VIEW many AS SELECT n, md5(n::text) AS a, repeat('x', n % 50) AS b FROM generate_series(1, 200000) AS n"
    )
    content = await body_of(raw_client, "many.csv")
    assert len(content) > 10_000_000
    file = await body_of(raw_client, "many.csv.gz")
    assert_is_gzip_file(file, content, tmp_path / "many.csv.gz")
    assert len(file) < len(content) / 2


# --- Negotiation. ---


@pytest.mark.parametrize(
    ("headers", "coding"),
    [
        ([], None),
        ([("Accept-Encoding", "gzip")], "gzip"),
        ([("Accept-Encoding", "gzip;q=0")], None),
        ([("Accept-Encoding", "identity")], None),
        ([("accept-encoding", "br"), ("ACCEPT-ENCODING", "GZIP;q=0.1")], "gzip"),
        ([("Accept-Encoding", "br"), ("Accept-Encoding", "deflate")], None),
        ([("Accept-Encoding", "gzip;q=0.1"), ("Accept-Encoding", "identity")], None),
        ([("Accept-Encoding", "x-gzip")], "gzip"),
        ([("Accept-Encoding", "")], None),
    ],
)
@pytest.mark.parametrize("file", ["users.csv", "users.tsv", "users.ndjson"])
async def test_compression_is_negotiated_and_said(
    raw_client: TestClient[Any, Any], file: str, headers: list[tuple[str, str]], coding: str | None
) -> None:
    plain = await body_of(raw_client, f"{file}?limit=100")
    async with raw_client.get(f"/export/{file}?limit=100", headers=headers) as response:
        body = await response.read()
        assert response.headers.get("Content-Encoding") == coding
        # Both kinds of answer depend on the header, so that no cache mixes them up.
        assert response.headers["Vary"] == "Accept-Encoding"
        assert response.headers["Content-Type"].split(";")[0] != "application/gzip"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{file}"'
    assert (gzip.decompress(body) if coding else body) == plain


@pytest.mark.parametrize("query", ["limit=0", "limit=0&header=false", "limit=1", "", "excel=true"])
async def test_a_compressed_download_is_the_plain_one(raw_client: TestClient[Any, Any], query: str) -> None:
    plain = await body_of(raw_client, f"users.csv?{query}")
    compressed = await body_of(raw_client, f"users.csv?{query}", **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(compressed) == plain
    assert compressed != plain


@pytest.mark.parametrize("accepted", ["gzip", "identity", "gzip;q=0"])
@pytest.mark.parametrize(
    "target", ["users.csv", "users.csv.gz", "users.tsv", "users.ndjson.gz", "users.csv?header=false&filename=größe"]
)
async def test_head_has_the_headers_of_get(raw_client: TestClient[Any, Any], target: str, accepted: str) -> None:
    # How the body travels is only known to a response that has one (RFC 9110, 9.3.2), and some differ each time.
    ours = {"Date", "X-Request-Id", "Transfer-Encoding"}
    found = []
    for method in ("GET", "HEAD"):
        async with raw_client.request(method, f"/export/{target}", headers={"Accept-Encoding": accepted}) as response:
            body = await response.read()
            assert response.status == 200
            assert (body == b"") == (method == "HEAD")
            found.append({name.title(): value for name, value in response.headers.items() if name.title() not in ours})
    assert found[0] == found[1]
    assert "Content-Disposition" in found[1]


@pytest.mark.parametrize("accepted", ["gzip", "identity"])
async def test_a_problem_is_never_compressed(raw_client: TestClient[Any, Any], accepted: str) -> None:
    for target in ("nothing.csv", "users.csv?id=eq.abc", "nothing.csv.gz"):
        async with raw_client.get(f"/export/{target}", headers={"Accept-Encoding": accepted}) as response:
            assert response.status in (400, 404)
            assert "Content-Encoding" not in response.headers
            assert response.content_type == "application/problem+json"
            assert (await response.json())["status"] == response.status


# --- How a compressed stream begins. ---

# All rows but the first ones wait for this advisory lock, so that no test has to sleep. The first rows are as many and
# as wide as PostgreSQL buffers before it sends any (8 kB), so that some arrive before the wait.
LOCK = 7_301_301
BEFORE = 20
FIRST_ROWS = 4
WAITING = f"""
CREATE VIEW waiting AS SELECT n, repeat('x', 1000) AS filler,
CASE WHEN n > {BEFORE} THEN pg_advisory_xact_lock_shared({LOCK})::text END AS w
FROM generate_series(1, 3000) AS n
"""


@pytest.mark.parametrize("target", ["waiting.csv", "waiting.csv.gz", "waiting.ndjson"])
async def test_the_first_rows_arrive_before_the_query_ends(
    postgres: Postgres, raw_client: TestClient[Any, Any], target: str
) -> None:
    postgres.run(WAITING)
    expected = (
        postgres.copy("SELECT * FROM waiting") if "csv" in target else json_lines(postgres, "SELECT * FROM waiting")
    )
    first = b"".join(expected.splitlines(keepends=True)[: FIRST_ROWS + ("csv" in target)])
    holder = postgres.connect()
    try:
        with holder.cursor() as cursor:
            cursor.execute(f"SELECT pg_advisory_lock({LOCK})")
        member = zlib.decompressobj(GZIP)
        text = b""
        async with raw_client.get(f"/export/{target}", headers={"Accept-Encoding": "gzip"}) as response:
            while len(text) < len(first):
                text += member.decompress(await asyncio.wait_for(response.content.readany(), 30))
            assert expected.startswith(text)
            assert text.count(b"\n") <= BEFORE + 1
            holder.close()
            text += member.decompress(await response.content.read())
    finally:
        holder.close()
    assert text == expected
    assert member.eof


# --- How it ends when something fails. ---

BREAKING = (
    "CREATE VIEW breaking AS SELECT n, md5(n::text) AS a, 1 / (60000 - n) AS b FROM generate_series(1, 99999) AS n"
)


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize("file", ["breaking.csv", "breaking.csv.gz", "breaking.ndjson"])
def test_a_stream_that_fails_midway_is_not_whole(
    live: LiveServer, postgres: Postgres, tmp_path: Path, file: str
) -> None:
    postgres.run(BREAKING)
    said = len(live.log)
    path = tmp_path / "broken.gz"
    done = curl("--header", "Accept-Encoding: gzip", "--output", path, f"{live.url}/export/{file}")
    assert done.returncode in (18, 56), done.stderr  # cut short, or reset
    tested = subprocess.run(["gzip", "--test", path], capture_output=True, text=True)
    assert tested.returncode != 0
    assert "unexpected end of file" in tested.stderr
    # The received bytes are right, up to some row before the one that failed.
    member = zlib.decompressobj(GZIP)
    text = member.decompress(path.read_bytes())
    assert not member.eof
    assert text
    lines = "SELECT row_to_json(w) FROM breaking AS w" if "json" in file else "SELECT * FROM breaking"
    options = "FORMAT text" if "json" in file else "FORMAT csv, HEADER"
    whole = copied(postgres, f"COPY ({lines} WHERE n < 60000) TO STDOUT ({options})")
    assert whole.startswith(text)
    live.wait_for_log(r"outcome=failed.*code=relation_failed|code=relation_failed.*outcome=failed", after=said)


def copied(postgres: Postgres, statement: str) -> bytes:
    output = io.BytesIO()
    with postgres.connection.cursor() as cursor:
        cursor.copy_expert(statement, output)
    return output.getvalue()


def test_curl_says_so_when_it_decompresses_by_itself(live: LiveServer, postgres: Postgres, tmp_path: Path) -> None:
    postgres.run(BREAKING)
    done = curl("--compressed", "--output", tmp_path / "broken.csv", f"{live.url}/export/breaking.csv")
    assert done.returncode != 0
    postgres.run("CREATE VIEW whole AS SELECT * FROM breaking WHERE n < 60000")
    done = curl("--compressed", "--output", tmp_path / "whole.csv", f"{live.url}/export/whole.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "whole.csv").read_bytes() == postgres.copy("SELECT * FROM whole")


@pytest.mark.parametrize("file", ["endless.csv", "endless.csv.gz"])
def test_a_client_that_leaves_a_compressed_stream_stops_the_query(
    live: LiveServer, postgres: Postgres, file: str
) -> None:
    # In the SELECT list rows are made one by one. After FROM all of them would be made first.
    postgres.run("CREATE VIEW endless AS SELECT generate_series(1, 1000000000000) AS n, md5(random()::text) AS a")
    said = len(live.log)
    connection = live.request(f"/export/{file}", headers="Accept-Encoding: gzip\r\n", receive_buffer=16 << 10)
    received = 0
    while received < 500_000:
        received += len(connection.recv(65536))
    assert any("endless" in query for _, query in postgres.statements())
    connection.close()
    live.wait_for_log(r"outcome=client_left", after=said)
    wait_until(lambda: not [query for state, query in postgres.statements() if state != "idle"])
    # Compression has ended too: the worker is idle.
    (worker,) = live.workers()
    wait_until(lambda: cpu_seconds(worker, during=0.1) < 0.05)


def cpu_seconds(process: psutil.Process, *, during: float) -> float:
    """Return the CPU seconds of the process in this time."""
    before = process.cpu_times()
    time.sleep(during)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)


def wait_until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --- gzipped. ---


class Compressor:
    """A compressor of isal_zlib that records its calls and waits for `gate` before it compresses marked data."""

    def __init__(self, *arguments: Any) -> None:
        self._real = _compressobj(*arguments)

    def compress(self, data: bytes) -> bytes:
        calls.append((threading.get_ident(), len(data)))
        if data.startswith(b"wait"):
            entered.set()
            gate.wait(10)
        compressed: bytes = self._real.compress(data)
        if data.startswith(b"wait"):
            left.set()
        return compressed

    def flush(self, *arguments: int) -> bytes:
        flushed: bytes = self._real.flush(*arguments)
        return flushed


_compressobj = isal_zlib.compressobj
calls: list[tuple[int, int]] = []
entered, gate, left = threading.Event(), threading.Event(), threading.Event()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the compressor by the watched one."""
    calls.clear()
    for event in (entered, gate, left):
        event.clear()
    monkeypatch.setattr(isal_zlib, "compressobj", Compressor)
    yield
    gate.set()


THREADS = ThreadPoolExecutor(2)


async def chunks_of(*data: bytes, error: Exception | None = None) -> AsyncGenerator[Chunk, None]:
    for piece in data:
        yield Chunk(piece, 1)
    if error is not None:
        raise error


async def test_compression_keeps_bytes_and_rows() -> None:
    pieces = [b"header\n", b"", b"x" * 3_000_000, b"last"]
    out = [chunk async for chunk in gzipped(chunks_of(*pieces), THREADS)]
    assert gzip.decompress(b"".join(chunk.data for chunk in out)) == b"".join(pieces)
    assert sum(chunk.rows for chunk in out) == len(pieces)


async def test_an_error_of_the_scan_is_raised_and_does_not_end_the_member() -> None:
    out = b""
    stream = gzipped(chunks_of(b"a" * 1000, b"b" * 1000, error=ZeroDivisionError()), THREADS)
    with contextlib.suppress(ZeroDivisionError):
        async for chunk in stream:
            out += chunk.data
        pytest.fail("the error has got lost")
    member = zlib.decompressobj(GZIP)
    assert member.decompress(out).startswith(b"a" * 1000)
    assert not member.eof


async def test_an_error_before_the_first_chunk_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        await anext(gzipped(chunks_of(error=ZeroDivisionError()), THREADS))


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("place", ["first", "later"])
async def test_large_chunks_are_compressed_in_a_thread(place: str) -> None:
    large = bytes(range(256)) * 16_384  # 4 MB: takes some hundredths of a second
    pieces = [large, b"small"] if place == "first" else [b"small", large, b"small"]
    out = [chunk.data async for chunk in gzipped(chunks_of(*pieces), THREADS)]
    assert gzip.decompress(b"".join(out)) == b"".join(pieces)
    assert [length for thread, length in calls if thread == threading.get_ident() and length > 1 << 20] == []
    assert sum(length for _, length in calls) == sum(map(len, pieces))


@pytest.mark.usefixtures("watched")
async def test_closing_the_stream_waits_for_the_thread() -> None:
    stream = gzipped(chunks_of(b"first", b"second", b"wait", b"fourth", b"fifth"), THREADS)
    for _ in range(2):
        await anext(stream)
    taking = asyncio.create_task(anext(stream))
    await asyncio.to_thread(entered.wait, 10)
    gate.set()
    await taking
    await stream.aclose()
    assert left.is_set()


@pytest.mark.usefixtures("watched")
async def test_cancelling_while_a_chunk_is_compressed_waits_for_the_thread() -> None:
    """If the client leaves now, its export slot must not be free while the thread is at work."""
    stream = gzipped(chunks_of(b"first", b"wait", b"third"), THREADS)
    await anext(stream)
    taking = asyncio.create_task(anext(stream))
    await asyncio.to_thread(entered.wait, 10)
    taking.cancel()
    await asyncio.wait([taking], timeout=0.2)
    ended_early = taking.done()
    gate.set()
    with contextlib.suppress(asyncio.CancelledError):
        await taking
    await stream.aclose()
    assert taking.cancelled()
    assert not ended_early
    assert left.is_set()


async def test_a_compressed_download_does_not_block_the_event_loop(
    postgres: Postgres, raw_client: TestClient[Any, Any]
) -> None:
    postgres.run(
        "CREATE VIEW many AS SELECT n, md5(n::text) AS a, md5(n || 'x') AS b FROM generate_series(1, 300000) AS n"
    )
    received = 0
    async with (
        loop_limit(0.1),
        raw_client.get("/export/many.csv", headers={"Accept-Encoding": "gzip"}) as response,
    ):
        assert response.headers["Content-Encoding"] == "gzip"
        async for data in response.content.iter_any():
            received += len(data)
    assert received > 5_000_000

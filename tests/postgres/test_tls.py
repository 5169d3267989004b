"""Over TLS, from a PostgreSQL that accepts nothing else: the same bytes and ends, and a server that is verified."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest

from server import errors
from server.export.pipeline import open_export
from server.postgres.queries import Query
from server.query.request import parse_export_request
from server.settings import Settings
from tests.support.engines import make_engine, open_database
from tests.support.live_server import ROOT, LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Answer, Client, ask
from tests.support.saved_exports import download, saved
from tests.support.stalled import assert_stops
from tests.support.tls_postgres import PASSWORD, TlsPostgres, running_tls_postgres
from tests.support.tls_relay import Cut, Relay
from tests.support.waiting import when_at_rest

ROWS = 50_000
# Of one large export: under gunicorn, and in this process.
READERS = 4
READERS_HERE = 3
LARGE_BYTES = 5_000_000
# Bytes more than before that a worker may take while a client pauses and afterwards. Each reader runs 2 MB ahead.
MOST_GROWTH = 30_000_000

MIXED = f"""
CREATE TABLE mixed AS
SELECT n::bigint AS id, n % 3 = 0 AS flag, n * 1.25 AS amount,
  timestamptz '2026-01-01 UTC' + n * interval '1 min' AS at,
  CASE n % 5 WHEN 0 THEN 'a, "b"' WHEN 1 THEN E'two\\nlines' WHEN 2 THEN NULL WHEN 3 THEN '' ELSE 'größe' END AS name,
  int4send(n) AS data, CASE WHEN n % 7 = 0 THEN jsonb_build_object('n', n, 'x', '"') END AS document
FROM generate_series(1, {ROWS}) AS n
"""
# One row in the middle has a value of 5 MB, which does not compress.
MIXED_LARGE = f"""
UPDATE mixed SET name = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, {LARGE_BYTES // 32}) AS n)
WHERE id = {ROWS // 2}
"""
TABLES = [
    MIXED,
    MIXED_LARGE,
    # More than 8 MB of table, so that several readers read it, and 56 MB of file, which no socket holds. The value is
    # compressed once and then copied compressed.
    "CREATE TABLE one AS SELECT repeat('x', 4000) AS filler",
    "CREATE TABLE large (n int, filler text) WITH (fillfactor = 10, autovacuum_enabled = off)",
    "INSERT INTO large SELECT n, filler FROM one, generate_series(1, 14000) AS n",
    "CREATE TABLE ten AS SELECT n, 'row ' || n AS name FROM generate_series(1, 10) AS n",
    # About 12 MB. PostgreSQL makes a row when it is read.
    "CREATE VIEW long AS SELECT generate_series(1, 12000) AS n, repeat('x', 1000) AS filler",
    "CREATE VIEW asleep AS SELECT pg_sleep(60)::text AS x",
    "ANALYZE mixed, large, ten",
]


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsPostgres]:
    with running_tls_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def database_url(tls: TlsPostgres) -> str:
    """The database of all fixtures of this module."""
    return tls.url()


@pytest.fixture(scope="module")
def _postgres(database_url: str) -> Iterator[Postgres]:
    postgres = Postgres(database_url)
    for statement in TABLES:
        postgres.run(statement)
    yield postgres
    postgres.connection.close()


ENCODERS = {"native": {}, "pure": {"SLUICE_PURE_PYTHON": "1"}}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(database_url: str, encoder: str) -> Iterator[LiveServer]:
    """A server with each of the encoders."""
    with LiveServer(DATABASE_URL=database_url, PARALLEL_READERS=str(READERS), **ENCODERS[encoder]) as started:
        yield started


async def exported(settings: Settings, file: str, *, native: bool) -> bytes:
    """Return the bytes of an export in this process."""
    async with open_database(settings) as database:
        engine = make_engine(database, native=native, settings=settings)
        async with (
            open_export(engine, parse_export_request(file, "")) as export,
            contextlib.aclosing(export.chunks()) as chunks,
        ):
            return b"".join([chunk.data async for chunk in chunks])


def assert_whole(answer: Answer, right: bytes) -> None:
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == right


def assert_cut(answer: Answer, right: bytes) -> None:
    assert (answer.status, answer.ending) == (200, "reset")
    assert len(answer.body) < len(right)
    assert right.startswith(answer.body)


def in_transactions(postgres: Postgres) -> list[tuple[int, bool]]:
    """The backends in which Sluice has a transaction, and whether each waits for Sluice."""
    return [
        (pid, waits)
        for pid, waits in postgres.run(
            "SELECT pid, state = 'idle in transaction' OR coalesce(wait_event, '') = 'ClientWrite' "
            "FROM pg_stat_activity WHERE application_name = 'sluice' AND xact_start IS NOT NULL"
        )
    ]


@contextlib.contextmanager
def paused(server: LiveServer, postgres: Postgres, path: str, readers: int) -> Iterator[tuple[Client, list[int]]]:
    """A client that has sent a request and reads nothing, and its backends, as soon as they and the worker wait.

    readers: how many backends there are at least.
    """

    def find() -> list[int]:
        found = in_transactions(postgres)
        return [pid for pid, _ in found] if len(found) >= readers and all(waits for _, waits in found) else []

    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(path, headers={"X-Request-Id": "paused"})
        wait_until("the first bytes are there", client.receive)
        yield client, when_at_rest(server, find, "everything waits for the client")


def readers_of(encoder: str) -> int:
    """How many readers an export of the table `large` has at least."""
    return READERS if encoder == "native" else 1


# --- the same bytes ----------------------------------------------------------------------------------------------


def test_a_connection_without_tls_is_refused(tls: TlsPostgres) -> None:
    # Otherwise the tests of this module could pass without TLS.
    with pytest.raises(psycopg2.OperationalError, match="no encryption"):
        psycopg2.connect(tls.url(sslmode="disable"))


@pytest.mark.parametrize("relation", ["mixed", "large", "long", "ten"])
def test_the_bytes_are_those_of_copy(server: LiveServer, postgres: Postgres, relation: str) -> None:
    assert_whole(ask(server, f"/export/{relation}.csv"), postgres.copy(f"SELECT * FROM {relation}"))


def test_a_compressed_export_has_the_same_bytes(server: LiveServer, postgres: Postgres) -> None:
    answer = ask(server, "/export/mixed.csv", headers={"Accept-Encoding": "gzip"})
    assert (answer.ending, answer.headers["content-encoding"]) == ("terminator", "gzip")
    assert gzip.decompress(answer.body) == postgres.copy("SELECT * FROM mixed")


def test_a_saved_export_has_the_same_bytes(server: LiveServer, postgres: Postgres) -> None:
    document = saved(server, "mixed.csv")
    assert document["rows"] == ROWS
    assert download(server, document["exportId"]).body == postgres.copy("SELECT * FROM mixed")


def test_a_preview_has_the_first_rows(server: LiveServer, postgres: Postgres) -> None:
    answer = ask(server, "/relations/mixed/preview?select=id,name,at")
    assert answer.status == 200
    rows = postgres.run("SELECT id::text, name, (at AT TIME ZONE 'UTC')::text || '+00' FROM mixed LIMIT 20")
    assert [tuple(row) for row in json.loads(answer.body)["rows"]] == rows


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_both_versions_of_tls_work_without_verification(
    tls: TlsPostgres, postgres: Postgres, settings: Settings, encoder: str, version: str
) -> None:
    limits = {"ssl_min_protocol_version": version, "ssl_max_protocol_version": version}
    url = tls.url(sslmode="require", sslrootcert="", **limits)
    with contextlib.closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == (version,)
    chosen = replace(settings, database_url=url, parallel_readers=READERS_HERE)
    for relation in ("mixed", "large"):
        body = await exported(chosen, f"{relation}.csv", native=encoder == "native")
        assert body == postgres.copy(f"SELECT * FROM {relation}")


# --- connections that are used again -------------------------------------------------------------------------------


def test_a_connection_is_used_for_many_exports(server: LiveServer, postgres: Postgres) -> None:
    sessions = (
        "SELECT pid, backend_start, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) "
        "WHERE application_name = 'sluice' ORDER BY pid"
    )
    right = postgres.copy("SELECT * FROM ten")
    with Client(server.connect()) as client:
        assert_whole(client.ask("/export/ten.csv"), right)
        before = postgres.run(sessions)
        for _ in range(100):
            assert_whole(client.ask("/export/ten.csv"), right)
    assert postgres.run(sessions) == before
    assert 1 <= len(before) <= 10
    assert all(ssl for *_, ssl in before)


# --- rows as they come, and clients that do not --------------------------------------------------------------------

# Rows that PostgreSQL may have and not send yet: it keeps the end of a row until more of the next one is there.
ROWS_BEHIND = 1
# Bytes of the rows, one after another: a part of one of PostgreSQL's buffers of 8 kB, a whole one, and several of them,
# so that rows end at many places in a record.
ROW_BYTES = [20_000, 8_192, 8_150, 33_000, 16_384, 12_345]


def test_each_row_is_delivered_as_it_comes(server: LiveServer, postgres: Postgres) -> None:
    # The test makes PostgreSQL wait before each row. What is not delivered then stays behind for ever.
    key, rows = 4715, 24
    postgres.run(f"SELECT pg_advisory_lock({key} + n) FROM generate_series(1, {rows}) AS n")
    lengths = [ROW_BYTES[n % len(ROW_BYTES)] for n in range(1, rows + 1)]
    postgres.run(
        f"CREATE VIEW gated AS SELECT n, pg_advisory_xact_lock_shared({key} + n)::text AS gate, "
        f"repeat('x', (ARRAY{ROW_BYTES})[n % {len(ROW_BYTES)} + 1]) AS filler FROM generate_series(1, {rows}) AS n"
    )
    lines = [b'%d,"",%s\n' % (n, b"x" * length) for n, length in enumerate(lengths, 1)]
    right = b"n,gate,filler\n" + b"".join(lines)
    received = bytearray()
    try:
        with Client(server.connect()) as client:
            client.send("/export/gated.csv", http="1.0")
            for released in range(1, rows + 1):
                postgres.run(f"SELECT pg_advisory_unlock({key + released})")
                due = b"".join(lines[: max(0, released - ROWS_BEHIND)])
                while due and due not in received:
                    client.socket.settimeout(5)
                    received += client.socket.recv(1 << 16)
            while data := client.socket.recv(1 << 16):
                received += data
    finally:
        postgres.run("SELECT pg_advisory_unlock_all()")
    assert received.partition(b"\r\n\r\n")[2] == right


@pytest.mark.parametrize("relation", ["asleep", "long", "large"])
def test_a_client_that_leaves_stops_its_queries(
    server: LiveServer, postgres: Postgres, encoder: str, relation: str
) -> None:
    if relation == "asleep":
        with Client(server.connect()) as client:
            client.send("/export/asleep.csv")
            sleeping = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event = 'PgSleep'"
            wait_until("the query runs", lambda: postgres.run(sleeping))
    else:
        with paused(server, postgres, f"/export/{relation}.csv", readers_of(encoder) if relation == "large" else 1):
            pass
    assert_stops(postgres)
    assert_whole(ask(server, "/export/ten.csv"), postgres.copy("SELECT * FROM ten"))


@pytest.mark.parametrize("relation", ["long", "large"])
def test_a_client_that_pauses_pauses_postgresql(
    server: LiveServer, postgres: Postgres, encoder: str, relation: str
) -> None:
    right = postgres.copy(f"SELECT * FROM {relation}")
    # What is loaded once has been loaded then.
    assert_whole(ask(server, "/export/long.csv"), postgres.copy("SELECT * FROM long"))
    (worker,) = server.workers()
    before = worker.memory_info().rss
    readers = readers_of(encoder) if relation == "large" else 1
    with paused(server, postgres, f"/export/{relation}.csv", readers) as (client, pids):
        assert len(pids) <= READERS
        assert worker.memory_info().rss - before < MOST_GROWTH
        assert_whole(client.read(), right)
    assert worker.memory_info().rss - before < MOST_GROWTH


# --- honest ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["long", "large"])
def test_backends_that_are_terminated_cut_the_file(server: LiveServer, postgres: Postgres, relation: str) -> None:
    with paused(server, postgres, f"/export/{relation}.csv", 1) as (client, pids):
        for pid in pids:
            assert postgres.run(f"SELECT pg_terminate_backend({pid})") == [(True,)]
        assert_cut(client.read(), postgres.copy(f"SELECT * FROM {relation}"))
    assert_stops(postgres)
    assert_whole(ask(server, "/export/ten.csv"), postgres.copy("SELECT * FROM ten"))


@pytest.fixture(scope="module")
def relay(tls: TlsPostgres) -> Iterator[Relay]:
    with Relay(tls.port) as running:
        yield running


@pytest.fixture(scope="module")
def behind(tls: TlsPostgres, relay: Relay, encoder: str) -> Iterator[LiveServer]:
    """A server whose connections pass the relay."""
    with LiveServer(DATABASE_URL=tls.url(port=str(relay.port)), PARALLEL_READERS="1", **ENCODERS[encoder]) as started:
        yield started


# In the middle of the file `long`, where a record has 8 kB of PostgreSQL's messages: bytes of the record that are
# delivered.
CUTS = {"between two records": 0, "in a header": 3, "after a header": 5, "in a record": 4000, "at its end": 8192}


def assert_lost(behind: LiveServer, relay: Relay, postgres: Postgres, cut: Cut) -> None:
    """Assert that an export whose connection ends here is cut, and that the next one is whole."""
    relay.cut_next(cut)
    before = len(behind.log)
    answer = ask(behind, "/export/long.csv", headers={"X-Request-Id": "lost"})
    assert relay.cut is None
    assert_cut(answer, postgres.copy("SELECT * FROM long"))
    behind.wait_for_log("event=export .*outcome=failed .*code=database_unavailable .*requestId=lost", after=before)
    assert_stops(postgres)
    assert_whole(ask(behind, "/export/ten.csv"), postgres.copy("SELECT * FROM ten"))


@pytest.mark.parametrize("cut", CUTS)
def test_a_connection_that_ends_within_the_rows_cuts_the_file(
    behind: LiveServer, relay: Relay, postgres: Postgres, cut: str
) -> None:
    assert_lost(behind, relay, postgres, Cut(300, CUTS[cut]))


def test_a_connection_that_is_reset_within_the_rows_cuts_the_file(
    behind: LiveServer, relay: Relay, postgres: Postgres
) -> None:
    for rest in CUTS.values():
        assert_lost(behind, relay, postgres, Cut(300, rest, reset=True))


def test_a_small_export_is_whole_or_an_error_wherever_the_connection_ends(
    behind: LiveServer, relay: Relay, postgres: Postgres
) -> None:
    # In turn within the answers to the statements of a connection that is used again, and while a new one is opened.
    right = postgres.copy("SELECT * FROM ten")
    assert_whole(ask(behind, "/export/ten.csv"), right)
    cuts = 0
    for records in range(60):
        relay.cut_next(Cut(records, 7))
        answer = ask(behind, "/export/ten.csv")
        if answer.status == 503:
            assert answer.problem()["code"] == "database_unavailable"
        elif answer.ending == "reset":
            assert_cut(answer, right)
        else:
            # A connection that is lost before the first byte is replaced, or this is the answer to ROLLBACK.
            assert_whole(answer, right)
        if relay.cut is not None:  # an export has no more records than these
            break
        cuts += 1
    assert relay.cut is not None
    assert cuts >= 4
    assert_stops(postgres)


async def test_bytes_that_arrive_in_odd_pieces_are_put_together(
    tls: TlsPostgres, postgres: Postgres, settings: Settings, encoder: str
) -> None:
    postgres.run(f"CREATE TABLE few AS SELECT * FROM mixed WHERE id <= 60 OR id > {ROWS - 40}")
    with Relay(tls.port, pieces=True) as relay:
        chosen = replace(settings, database_url=tls.url(port=str(relay.port)))
        for relation in ("ten", "few"):
            body = await exported(chosen, f"{relation}.csv", native=encoder == "native")
            assert body == postgres.copy(f"SELECT * FROM {relation}")


async def test_large_queries_and_answers_in_one_pipeline_do_not_block_each_other(
    settings: Settings, tls: TlsPostgres
) -> None:
    # Both ways are full before the last query is sent.
    async with open_database(replace(settings, database_url=tls.url())) as database, database.session() as session:
        await session.open()
        large = [letter * 100_000 for letter in "abcdefghij" * 5]
        found = await session.connection.run([Query("SELECT repeat($1, 2) AS double", (value,)) for value in large])
        assert found == [[{"double": value * 2}] for value in large]
        assert session.connection.clean


# --- the server is verified ----------------------------------------------------------------------------------------


def test_a_server_of_another_authority_is_not_used(start_live: Callable[..., LiveServer], tls: TlsPostgres) -> None:
    server = start_live(DATABASE_URL=tls.url(sslrootcert=str(tls.stranger)))
    for path in ("/export/ten.csv", "/health/ready", "/relations/ten/preview"):
        answer = ask(server, path)
        assert answer.status == 503
        assert answer.problem()["code"] == "database_unavailable"
        secret = f"{PASSWORD}|{tls.port}|127\\.0\\.0\\.1|certificate|{tls.stranger.name}"
        assert not re.search(secret, answer.body.decode())
    server.wait_for_log('event="database unreachable" reason=.*certificate verify failed')
    assert PASSWORD not in "\n".join(server.log)


async def test_the_name_of_the_server_is_verified(tls: TlsPostgres, postgres: Postgres, settings: Settings) -> None:
    named = replace(settings, database_url=tls.url(host="localhost"))
    assert await exported(named, "ten.csv", native=True) == postgres.copy("SELECT * FROM ten")
    other = replace(settings, database_url=tls.url(host="db.example", hostaddr="127.0.0.1"))
    async with open_database(other) as database:
        with pytest.raises(errors.DatabaseUnavailable):
            await database.ping()
    # The name is all that is wrong with it.
    unverified = replace(settings, database_url=tls.url(host="db.example", hostaddr="127.0.0.1", sslmode="verify-ca"))
    async with open_database(unverified) as database:
        await database.ping()


# --- encryption by GSS is not supported ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"DATABASE_URL": "postgresql://reader:geheim@db.example/shop?gssencmode=require"},
        {"DATABASE_URL": "postgresql://reader:geheim@db.example/shop", "PGGSSENCMODE": "require"},
        {"DB_HOST": "db.example", "DB_PASSWORD": "geheim", "PGGSSENCMODE": "require"},
    ],
    ids=["in the URI", "in the environment", "with DB_HOST"],
)
def test_encryption_by_gss_is_refused_at_the_start(environment: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "API_PORT": "0", "EXPORT_STORAGE_PATH": str(tmp_path), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, messages = process.communicate(timeout=15)
    finally:
        process.terminate()  # if it serves
        process.communicate(timeout=30)
    assert process.returncode == 1
    assert "gssencmode" in messages
    assert "Traceback" not in messages
    assert PASSWORD not in messages

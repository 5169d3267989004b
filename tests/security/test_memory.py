"""Attacks on the memory of a worker: large values, the same column many times, many downloads at once.

The peak memory is that of a real worker, as Linux reports it.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from server.query.catalogue import LONGEST_COMMENT
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.saved_exports import save, wait_for
from tests.support.stalled import stalled

MEGABYTE = 1_000_000
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps the peak there")
NATIVE_AND_PURE = pytest.mark.parametrize("pure", ["0", "1"], ids=["native", "pure"])
# The pure-Python encoder takes a server of its own.
PURE_IS_SLOW = pytest.mark.parametrize("pure", ["0", pytest.param("1", marks=pytest.mark.slow)], ids=["native", "pure"])
# A worker may grow by this much beside what is held: chunks that wait to be sent, and threads.
BESIDE = 16 * MEGABYTE


def make_large(postgres: Postgres, name: str, megabytes: int, rows: int = 1) -> None:
    """Make a table with a value of so many megabytes in each row. Nothing in it needs quotes."""
    postgres.run(f"CREATE TABLE {name} (id int, t text); ALTER TABLE {name} ALTER t SET STORAGE EXTERNAL")
    postgres.run(
        f"INSERT INTO {name} SELECT n, repeat('0123456789', %s) FROM generate_series(1, {rows}) AS n",
        (megabytes * MEGABYTE // 10,),
    )


def digest_of(server: LiveServer, path: str) -> str:
    """Download a file and keep nothing of it. Return its digest."""
    digest = hashlib.sha256()
    with Client(server.connect()) as client:
        client.send(path, http="1.0")
        received = b""
        while b"\r\n\r\n" not in received:
            received += client.socket.recv(1 << 16)
        assert received.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")), received[:1000]
        digest.update(received.partition(b"\r\n\r\n")[2])
        while data := client.socket.recv(1 << 20):
            digest.update(data)
    return digest.hexdigest()


# --- The same column many times. ---


def test_a_column_that_is_repeated_too_often_is_refused(live: LiveServer, postgres: Postgres) -> None:
    make_large(postgres, "ones", 1, rows=3)
    repeated = ",".join(["t"] * 600)
    for path in (
        f"/export/ones.csv?limit=6&select={repeated}",
        f"/export/ones.csv?limit=6&select={','.join(['*'] * 11)}",
        f"/export/ones.csv?select={','.join(['t', 't::text', 't::varchar'] * 4)}",
        f"/relations/ones/preview?limit=6&select={repeated}",
    ):
        answer = ask(live, path)
        assert (answer.status, answer.problem()["code"]) == (400, "too_complex"), path
        assert "more than 10 times" in answer.problem()["detail"]
    page = ask(live, f"/table/ones?limit=6&select={repeated}")
    assert b"more than 10 times" in page.body
    assert ask(live, f"/export/ones.csv?limit=0&select={','.join(['t'] * 10)}").body == b",".join([b"t"] * 10) + b"\n"


# --- A value that must not be held. ---


# It may hold one value of 12 MB, which is more than the buffers on the way to a client take.
SMALL = {"MEMORY_LIMIT": "14MB", "STATEMENT_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def small(database_url: str) -> Iterator[LiveServer]:
    """Start a server that may hold little of values."""
    with LiveServer(DATABASE_URL=database_url, **SMALL) as server:
        yield server


def test_a_value_larger_than_the_limit_is_refused_before_the_first_byte(small: LiveServer, postgres: Postgres) -> None:
    make_large(postgres, "big", 16)
    make_large(postgres, "fits", 12)
    answer = ask(small, "/export/big.csv")
    problem = answer.problem()
    assert (answer.status, problem["code"]) == (400, "value_too_large")
    assert problem["detail"].startswith('A value of "t" has 16,000,000 bytes, and this server may hold 14,000,000.')
    assert "quote=all" in problem["hint"]
    # What the hint says works, and so does everything that needs no decision.
    for path in (
        "big.csv?quote=all",
        "big.csv?quote=all&guard=formulas",
        "big.ndjson",
        "big.csv?select=id",
        "fits.csv",
    ):
        assert ask(small, f"/export/{path}").status == 200, path
    postgres.run("UPDATE big SET t = 'a \"word\" in quotes ' || t")
    assert ask(small, "/export/big.csv").body == postgres.copy("SELECT * FROM big")
    # A preview holds only the beginning.
    preview = ask(small, "/relations/big/preview")
    assert json.loads(preview.body)["rows"][0][1].startswith('a "word"')


def test_a_value_larger_than_the_limit_cuts_the_file_after_the_first_byte(
    small: LiveServer, postgres: Postgres
) -> None:
    make_large(postgres, "big", 16)
    postgres.run("INSERT INTO big SELECT -n, repeat('small, ', 1000) FROM generate_series(1, 1000) AS n")
    with Client(small.connect()) as client:
        client.send("/export/big.csv?order=id", headers={"X-Request-Id": "cut"})
        answer = client.read()
    assert (answer.status, answer.ending) == (200, "reset")
    line = small.export_line("cut")
    assert (line["outcome"], line["code"]) == ("failed", "value_too_large")
    assert "16,000,000" in line["reason"]
    assert ask(small, "/export/big.csv?id=lt.0&limit=1").status == 200  # nothing is left of it


def test_a_saved_export_with_a_value_larger_than_the_limit_fails(small: LiveServer, postgres: Postgres) -> None:
    make_large(postgres, "big", 16)
    found = wait_for(small, save(small, "big.csv"), "failed")
    assert found["error"]["code"] == "value_too_large"
    assert wait_for(small, save(small, "big.csv?quote=all"), "completed")["rows"] == 1


@pytest.mark.slow
def test_a_saved_export_that_waits_too_long_for_memory_is_tried_again(small: LiveServer, postgres: Postgres) -> None:
    make_large(postgres, "big", 12)
    with stalled(small, postgres, "/export/big.csv", "holds the memory"):
        id = save(small, "big.csv")
        small.wait_for_log(rf"memory_busy.*{id}|{id}.*memory_busy")
        assert ask(small, f"/exports/{id}").status == 200
    assert wait_for(small, id, "completed")["rows"] == 1


# --- Values that wait for one another. ---


def test_a_value_waits_until_another_download_has_given_its_memory_back(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    make_large(postgres, "big", 16)
    server = start_live(MEMORY_LIMIT="20MB")
    right = postgres.copy("SELECT * FROM big")
    first = stalled(server, postgres, "/export/big.csv", "first")
    with Client(server.connect()) as second, first:
        second.send("/export/big.csv", headers={"X-Request-Id": "second"})
        wait_until("two downloads", lambda: postgres.streams_at_rest(2))
        # Others do not wait: they hold nothing.
        assert ask(server, "/export/big.csv?select=id").body == b"id\n1\n"
        assert ask(server, "/export/big.csv?quote=all").status == 200
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda client: client.read(), [first, second]))
    assert [answer.body == right for answer in answers] == [True, True]


@pytest.mark.parametrize("begun", [False, True])
def test_a_value_that_waits_too_long_is_given_up(small: LiveServer, postgres: Postgres, begun: bool) -> None:
    make_large(postgres, "big", 12)
    if begun:
        postgres.run("INSERT INTO big SELECT -n, repeat('small, ', 1000) FROM generate_series(1, 1000) AS n")
    with stalled(small, postgres, "/export/big.csv?id=gt.0", "first") as first:
        with Client(small.connect()) as second:
            second.send("/export/big.csv?order=id", headers={"X-Request-Id": f"second-{begun}"})
            answer = second.read()
        if begun:
            assert (answer.status, answer.ending) == (200, "reset")
        else:
            assert (answer.status, answer.problem()["code"]) == (503, "memory_busy")
            assert int(answer.headers["retry-after"]) > 0
        line = small.export_line(f"second-{begun}")
        assert (line["code"], line["outcome"]) == ("memory_busy", "failed" if begun else "rejected")
        assert first.read().body == postgres.copy("SELECT * FROM big WHERE id > 0")
    assert ask(small, "/export/big.csv?id=gt.0").status == 200


def test_a_client_that_leaves_gives_its_memory_back(small: LiveServer, postgres: Postgres) -> None:
    make_large(postgres, "big", 12)
    for _ in range(3):
        stalled(small, postgres, "/export/big.csv").socket.close()
        wait_until("the memory is free", lambda: ask(small, "/export/big.csv").status == 200)


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["5MB", "300MB"])
def test_readers_that_are_ahead_do_not_take_the_memory_of_the_first_one(
    start_live: Callable[..., LiveServer], postgres: Postgres, limit: str
) -> None:
    # Large values all over a table of several ranges: each needs nearly all the memory.
    postgres.run("CREATE TABLE wide (n int, filler text, t text)")
    postgres.run("ALTER TABLE wide ALTER filler SET STORAGE PLAIN, ALTER t SET STORAGE EXTERNAL")
    postgres.run(
        "INSERT INTO wide SELECT n, repeat('x', 7000), CASE WHEN n %% 100 = 7 THEN repeat('0123456789', 400000) END "
        "FROM generate_series(1, 1400) AS n",
        (),
    )
    server = start_live(MEMORY_LIMIT=limit, PARALLEL_READERS="3")
    assert json.loads(ask(server, "/relations/wide?explain").body)["readers"] == 3
    right = hashlib.sha256(postgres.copy("SELECT * FROM wide")).hexdigest()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: digest_of(server, "/export/wide.csv"), range(2))) == [right] * 2


@pytest.mark.slow
def test_a_server_stops_while_a_value_waits(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    make_large(postgres, "big", 12)
    small = start_live(MEMORY_LIMIT="14MB")
    with stalled(small, postgres, "/export/big.csv", "first"), Client(small.connect()) as second:
        second.send("/export/big.csv")
        wait_until("two downloads", lambda: postgres.streams_at_rest(2))
        assert small.stop(signal.SIGINT, seconds=10) == 0


# --- The peak memory. ---

OPTIONS = ["csv", "csv?quote=all", "csv?guard=formulas", "csv?excel=true", "csv.gz", "ndjson"]


@needs_proc
@PURE_IS_SLOW
def test_a_value_takes_its_own_size_once(start_live: Callable[..., LiveServer], postgres: Postgres, pure: str) -> None:
    make_large(postgres, "big", 30)
    server = start_live(SLUICE_PURE_PYTHON=pure)
    digest_of(server, "/export/big.csv?select=id")
    before = server.peak_memory()
    digest_of(server, "/export/big.csv?quote=all")
    digest_of(server, "/export/big.ndjson")
    for path in ("/relations/big/preview", "/table/big"):
        assert ask(server, path).status == 200
    assert server.peak_memory() - before < BESIDE
    digest_of(server, "/export/big.csv")
    assert server.peak_memory() - before < 30 * MEGABYTE + BESIDE


@needs_proc
@pytest.mark.slow
@NATIVE_AND_PURE
@pytest.mark.parametrize("options", OPTIONS)
def test_a_value_of_105_megabytes_takes_at_most_1_2_times_its_size(
    start_live: Callable[..., LiveServer], postgres: Postgres, pure: str, options: str
) -> None:
    make_large(postgres, "big", 105)
    server = start_live(SLUICE_PURE_PYTHON=pure)
    digest_of(server, "/export/big.csv?select=id")
    before = server.peak_memory()
    digest_of(server, f"/export/big.{options}")
    assert server.peak_memory() - before < 1.2 * 105 * MEGABYTE


@needs_proc
@pytest.mark.slow
@NATIVE_AND_PURE
def test_eight_downloads_of_large_values_stay_within_the_budget(
    start_live: Callable[..., LiveServer], postgres: Postgres, pure: str
) -> None:
    make_large(postgres, "big", 100, rows=3)
    right = hashlib.sha256(postgres.copy("SELECT * FROM big")).hexdigest()
    server = start_live(MEMORY_LIMIT="250MB", SLUICE_PURE_PYTHON=pure)
    digest_of(server, "/export/big.csv?select=id")
    before = server.peak_memory()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: digest_of(server, "/export/big.csv"), range(8))) == [right] * 8
    assert server.peak_memory() - before < 250 * MEGABYTE + 8 * BESIDE / 2


@needs_proc
@pytest.mark.slow
@NATIVE_AND_PURE
def test_many_large_columns_take_little_memory(
    start_live: Callable[..., LiveServer], postgres: Postgres, pure: str
) -> None:
    # As many bytes in a row as the attack with one column had, as far as PostgreSQL sends them: 600 MB.
    names = [f"t{number}" for number in range(60)]
    postgres.run("CREATE TABLE many (" + ", ".join(f"{name} text" for name in names) + ")")
    for name in names:
        postgres.run(f"ALTER TABLE many ALTER {name} SET STORAGE EXTERNAL")
    value = "repeat('x', 1000000)"
    postgres.run(f"INSERT INTO many SELECT {', '.join([value] * 60)} FROM generate_series(1, 2)")
    server = start_live(SLUICE_PURE_PYTHON=pure)
    digest_of(server, "/export/many.csv?limit=0")
    before = server.peak_memory()
    ten_times = ",".join(names * 10)
    digest_of(server, f"/export/many.csv?limit=1&select={ten_times}")
    for path in (f"/relations/many/preview?limit=1&select={ten_times}", f"/table/many?limit=1&select={ten_times}"):
        assert ask(server, path).status in (200, 504), path
    assert wait_for(server, save(server, f"many.csv.gz?limit=1&select={ten_times}"), "completed")["rows"] == 1
    assert server.peak_memory() - before < 32 * MEGABYTE


@needs_proc
def test_a_preview_of_many_columns_keeps_little_of_each(live: LiveServer, postgres: Postgres) -> None:
    columns = ", ".join(f"repeat('{number % 10}', 2000) AS c{number}" for number in range(1000))
    postgres.run(f"CREATE VIEW wide AS SELECT {columns} FROM generate_series(1, 20)")
    answer = ask(live, "/relations/wide/preview")
    assert len(answer.body) < 3 * MEGABYTE
    assert json.loads(answer.body)["rows"][0][7] == "7" * 50 + "…"


# --- What PostgreSQL says about a request. ---


@pytest.fixture
def short_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all connections that are opened from now on take only short rows of small queries."""
    monkeypatch.setattr("server.postgres.connection.LONGEST_ROW", 200_000)


async def test_a_plan_that_repeats_the_filters_for_each_partition_is_refused(
    short_plans: None, client: TestClient[Any, Any], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE parted (id int, t text) PARTITION BY RANGE (id)")
    for number in range(10):
        postgres.run(f"CREATE TABLE parted_{number} PARTITION OF parted FOR VALUES FROM ({number}) TO ({number + 1})")
    values = ",".join(f"a{number:05}" for number in range(5_000))
    for path in ("/export/parted.csv", "/relations/parted?explain&"):
        answer = await client.get(f"{path}{'' if path.endswith('&') else '?'}t=in.({values})")
        assert (answer.status, (await answer.json())["code"]) == (400, "too_complex"), path
    assert await (await client.get("/export/parted.csv")).read() == b"id,t\n"


@needs_proc
def test_a_large_comment_neither_fails_the_list_nor_fills_the_memory(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE noted (id int)")
    postgres.run("DO $$ BEGIN EXECUTE format('COMMENT ON TABLE noted IS %L', repeat('word ', 6000000)); END $$")
    server = start_live()
    digest_of(server, "/export/users.csv?limit=1")
    before = server.peak_memory()
    for path in ("/relations", "/relations/noted", "/", "/?q=word", "/table/noted"):
        assert ask(server, path).status == 200, path
    (noted,) = [each for each in json.loads(ask(server, "/relations").body)["relations"] if each["name"] == "noted"]
    assert noted["comment"] == "word " * (LONGEST_COMMENT // 5)
    assert server.peak_memory() - before < BESIDE


@pytest.mark.slow
@needs_proc
@NATIVE_AND_PURE
def test_an_error_that_repeats_a_large_value_is_not_held(
    start_live: Callable[..., LiveServer], postgres: Postgres, pure: str
) -> None:
    make_large(postgres, "big", 30)
    server = start_live(SLUICE_PURE_PYTHON=pure)
    digest_of(server, "/export/big.csv?select=id")
    before = server.peak_memory()
    for path in ("/export/big.csv?select=t::int", "/relations/big/preview?select=t::int"):
        answer = ask(server, path)
        assert (answer.status, answer.problem()["code"]) == (400, "invalid_value"), path
    assert server.peak_memory() - before < BESIDE

"""Clients that leave, stall or are cut off by a shutdown: their queries stop and their connections are returned.

Almost every test runs under gunicorn, whose worker cancels handlers only if it is told to; aiohttp's test client always
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from aiohttp import web

from server.app import create_app_runner
from server.settings import Settings
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.stalled import assert_stops, read_slowly, stalled
from tests.support.waiting import at_work

# About 12 MB and about 250 MB. PostgreSQL makes a row when it is fetched, so rows that are not read cost nothing.
LARGE = "SELECT generate_series(1, 12000) AS n, repeat('x', 1000) AS filler"
HUGE = "SELECT generate_series(1, 250000) AS n, repeat('x', 1000) AS filler"

# Views, each of which holds an export in another state.
PLACES = {
    "sorting": "SELECT n FROM generate_series(1, 5000000) AS n ORDER BY random()",
    "sleeping before the first row": "SELECT pg_sleep(60)::text AS x",
    # Wide rows: PostgreSQL sends 8 kB at a time.
    "sleeping in the middle": "SELECT n, repeat('x', 4000) AS filler, "
    "CASE WHEN n = 20 THEN pg_sleep(60)::text END AS x "
    "FROM generate_series(1, 30) AS n",
    "waiting for the reader": HUGE,
}


def held(postgres: Postgres, place: str) -> Callable[[], object]:
    """Return a condition that holds as soon as the export of this view is in its state."""
    if place == "waiting for the reader":
        return postgres.streams_at_rest
    sleeping = "AND wait_event = 'PgSleep'" if "sleeping" in place else ""
    return lambda: postgres.run(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND query LIKE 'SELECT source.%' "
        f"AND state = 'active' {sleeping} AND query_start < clock_timestamp() - interval '50 ms'"
    )


# --- a client that leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_client_that_leaves_stops_its_query(live: LiveServer, postgres: Postgres, place: str) -> None:
    postgres.run(f"CREATE VIEW left_alone AS {PLACES[place]}")
    request_id = place.replace(" ", "-")
    with Client(live.connect(receive_buffer=4096)) as client:
        client.send("/export/left_alone.csv", headers={"X-Request-Id": request_id})
        wait_until(f"the export is {place}", held(postgres, place))
    assert_stops(postgres)
    line = live.export_line(request_id)
    assert line["outcome"] == "client_left"
    assert float(line["seconds"]) < 30


def test_a_client_that_leaves_stops_a_wait_for_a_lock(live: LiveServer, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE locked (x int)")
    other = postgres.connect()
    other.autocommit = False
    with contextlib.closing(other):
        other.cursor().execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        with Client(live.connect()) as client:
            client.send("/export/locked.csv")
            wait_until("it waits for the lock", lambda: [s for s, q in at_work(postgres) if "locked" in q])
        assert_stops(postgres)


def test_a_client_that_leaves_in_the_middle_of_reading(live: LiveServer, postgres: Postgres) -> None:
    postgres.run(f"CREATE VIEW huge AS {HUGE}")
    with Client(live.connect()) as client:
        client.send("/export/huge.csv", headers={"X-Request-Id": "left-reading"})
        received = 0
        while received < 5_000_000:
            received += len(client.socket.recv(1 << 18))
    assert_stops(postgres)
    line = live.export_line("left-reading")
    assert line["outcome"] == "client_left"
    assert 0 < int(line["rows"]) < 250_000


@pytest.mark.slow
def test_no_connection_is_lost_after_thirty_rounds_of_leaving(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(MAX_CONCURRENT_EXPORTS="3")
    paths = []
    for number, view in enumerate(PLACES.values()):
        postgres.run(f"CREATE VIEW place_{number} AS {view}")
        paths.append(f"/export/place_{number}.csv")
    right = [postgres.copy("SELECT * FROM revenue_by_country")] * 3
    with ThreadPoolExecutor(3) as threads:

        def downloads() -> list[bytes]:
            return list(threads.map(lambda _: ask(server, "/export/revenue_by_country.csv").body, range(3)))

        for turn in range(30):
            with contextlib.ExitStack() as clients:
                for client in [clients.enter_context(Client(server.connect())) for _ in range(3)]:
                    client.send(paths[turn % len(paths)])
                # They leave at different moments: at once, while connections are made, and while the query runs.
                if turn % 3:
                    wait_until("three statements", lambda: len(at_work(postgres)) == 3)
            wait_until(f"three downloads at once after turn {turn}", lambda: downloads() == right)
            assert_stops(postgres)
    # A client that leaves is not an error of the server. A download may have found all slots in use, and was repeated.
    wrong = [line for line in server.log if "level=error" in line or "level=warning" in line]
    assert [line for line in wrong if "code=busy" not in line] == []


def test_clients_that_leave_after_the_last_byte_cost_no_connections(live: LiveServer, postgres: Postgres) -> None:
    backends = set()
    for _ in range(40):
        with Client(live.connect()) as client:
            client.send("/export/revenue_by_country.csv")
            client.read()
        backends |= {
            row[0] for row in postgres.run("SELECT pid FROM pg_stat_activity WHERE application_name = 'sluice'")
        }
    assert len(backends) <= 10


# --- all export slots in use ------------------------------------------------------------------------------------


def test_with_all_slots_in_use_the_answer_says_when_to_retry(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(MAX_CONCURRENT_EXPORTS="2")
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    first = stalled(server, postgres, "/export/large.csv")
    with first, stalled(server, postgres, "/export/large.csv", count=2) as second:
        answer = ask(server, "/export/users.csv", headers={"X-Request-Id": "one-too-many"})
        assert answer.status == 503
        assert answer.problem()["code"] == "busy"
        assert int(answer.headers["retry-after"]) > 0
        assert server.export_line("one-too-many")["outcome"] == "rejected"
        # The server is busy, not broken: it stays ready, so that nobody restarts it, and shows its page.
        assert [ask(server, path).status for path in ("/health/ready", "/health/live", "/")] == [200] * 3
        second.socket.close()
        wait_until("a slot is free", lambda: ask(server, "/export/users.csv").status == 200)
        # The other download is not disturbed.
        assert first.read().body == postgres.copy(LARGE)


# --- a client that does not read --------------------------------------------------------------------------------


def test_a_client_that_reads_nothing_is_cut(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(STALL_TIMEOUT="1")
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    with stalled(server, postgres, "/export/large.csv", "stalls") as client:
        line = server.export_line("stalls")
        assert_stops(postgres)
        answer = client.read()
    assert line["outcome"] == "stalled"
    assert float(line["seconds"]) >= 1
    assert answer.ending == "reset"
    assert postgres.copy(LARGE).startswith(answer.body)
    assert ask(server, "/export/users.csv").status == 200


@pytest.mark.slow
def test_a_client_that_reads_little_but_all_the_time_is_not_cut(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    """Though the send buffer, once full, accepts nothing for much longer than STALL_TIMEOUT."""
    server = start_live(STALL_TIMEOUT="0.5")
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    with stalled(server, postgres, "/export/large.csv", "little") as client:
        read_slowly(client, seconds=1.5)
        answer = client.read()
    assert answer.ending == "terminator"
    assert answer.body == postgres.copy(LARGE)
    assert server.export_line("little")["outcome"] == "complete"


@pytest.mark.slow
def test_a_client_that_reads_slowly_is_not_cut(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(STALL_TIMEOUT="1")
    postgres.run(f"CREATE VIEW large AS {LARGE} LIMIT 14000")
    with Client(server.connect(receive_buffer=65536)) as client:
        client.send("/export/large.csv", headers={"X-Request-Id": "slow"})
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += client.socket.recv(1 << 16)
            time.sleep(0.01)  # the slowness that is tested: at most 6 MB/s
    line = server.export_line("slow")
    assert line["outcome"] == "complete"
    assert float(line["seconds"]) > 1


def test_a_query_may_be_slower_than_the_stall_timeout(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    # STALL_TIMEOUT limits clients. STATEMENT_TIMEOUT limits the database.
    server = start_live(STALL_TIMEOUT="0.5")
    postgres.run("CREATE VIEW slow AS SELECT n, pg_sleep(n - 1)::text AS x FROM generate_series(1, 2) AS n")
    answer = ask(server, "/export/slow.csv")
    assert (answer.body, answer.ending) == (b'n,x\n1,""\n2,""\n', "terminator")


def test_back_pressure_reaches_postgresql(live: LiveServer, postgres: Postgres) -> None:
    postgres.run(f"CREATE VIEW huge AS {HUGE}")
    assert ask(live, "/export/users.csv").status == 200  # what is loaded once has been loaded now
    (worker,) = live.workers()
    before = worker.memory_info().rss
    with stalled(live, postgres, "/export/huge.csv") as client:
        assert len(at_work(postgres)) == 1
        assert worker.memory_info().rss - before < 12_000_000
        # Nor does the memory grow while the whole file is sent.
        answer = client.read()
    assert answer.ending == "terminator"
    assert len(answer.body) > 250_000_000
    assert worker.memory_info().rss - before < 12_000_000


# --- shutdown ---------------------------------------------------------------------------------------------------


def test_sigterm_lets_a_download_finish(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(SHUTDOWN_TIMEOUT="20")
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    with Client(server.connect()) as idle, stalled(server, postgres, "/export/large.csv", "drained") as client:
        assert idle.ask("/health/live").status == 200  # and keeps its connection, which must not delay the end
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("waiting for downloads")
        answer = client.read()
        assert server.process.wait(5) == 0
    assert answer.ending == "terminator"
    assert answer.body == postgres.copy(LARGE)
    assert server.export_line("drained")["outcome"] == "complete"


async def test_a_shutdown_waits_until_the_last_bytes_are_out(settings: Settings, postgres: Postgres) -> None:
    # In process, to give the server's socket a small buffer. The file is larger than that buffer and smaller than
    # aiohttp's own, so that it has been written as a whole when most of it has not been sent.
    small = "SELECT generate_series(1, 50) AS n, repeat('x', 1000) AS filler"
    postgres.run(f"CREATE VIEW small AS {small}")
    runner = create_app_runner(replace(settings, shutdown_timeout=20))
    await runner.setup()
    with socket.socket() as listening, socket.socket() as connected:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listening).start()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.settimeout(10)
        connected.connect(listening.getsockname())
        with Client(connected) as client:
            client.send("/export/small.csv")
            assert await asyncio.to_thread(client.receive)
            stopping = asyncio.create_task(runner.cleanup())
            done, _ = await asyncio.wait({stopping}, timeout=0.5)
            answer = await asyncio.to_thread(client.read)
            await stopping
    assert not done
    assert answer.ending == "terminator"
    assert answer.body == postgres.copy(small)


@pytest.mark.slow
def test_sigterm_lets_a_download_finish_that_has_not_sent_anything_yet(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(SHUTDOWN_TIMEOUT="20")
    postgres.run("CREATE VIEW slow AS SELECT 1 AS one, pg_sleep(2)::text AS x")
    with Client(server.connect()) as client:
        client.send("/export/slow.csv", headers={"X-Request-Id": "not-started"})
        wait_until("the query runs", held(postgres, "sleeping before the first row"))
        server.process.send_signal(signal.SIGTERM)
        answer = client.read()
        assert server.process.wait(5) == 0
    assert (answer.body, answer.ending) == (b'one,x\n1,""\n', "terminator")


@pytest.mark.slow
def test_sigterm_cuts_what_takes_longer_than_the_shutdown_timeout(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(SHUTDOWN_TIMEOUT="5")
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    with stalled(server, postgres, "/export/large.csv", "too-long") as client:
        started = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - started > 4.5
        answer = client.read()
    assert answer.ending == "reset"
    assert postgres.copy(LARGE).startswith(answer.body)
    assert server.export_line("too-long")["outcome"] == "shutdown"
    assert_stops(postgres)


@pytest.mark.parametrize(
    ("place", "to"),
    [
        ("waiting for the reader", "the arbiter"),
        ("waiting for the reader", "everybody"),
        ("sleeping in the middle", "everybody"),
        ("sleeping before the first row", "everybody"),
    ],
)
def test_ctrl_c_cuts_at_once(start_live: Callable[..., LiveServer], postgres: Postgres, place: str, to: str) -> None:
    server = start_live(SHUTDOWN_TIMEOUT="600")
    postgres.run(f"CREATE VIEW interrupted AS {PLACES[place]}")
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send("/export/interrupted.csv", headers={"X-Request-Id": "interrupted"})
        wait_until(f"the export is {place}", held(postgres, place))
        if to == "everybody":  # as a terminal does
            os.killpg(server.process.pid, signal.SIGINT)
        assert server.stop(signal.SIGINT) == 0
        if place == "sleeping before the first row":
            with contextlib.suppress(ConnectionError):
                assert client.read().status >= 500
        else:
            assert client.read().ending == "reset"
    assert server.export_line("interrupted")["outcome"] == "shutdown"
    assert_stops(postgres)


@pytest.mark.slow
def test_two_workers_serve(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(WEB_CONCURRENCY="2")
    wait_until("both run", lambda: len(server.workers()) == 2)
    right = postgres.copy("SELECT * FROM users")
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: ask(server, "/export/users.csv"), range(12)))
    assert [(answer.status, answer.ending) for answer in answers] == [(200, "terminator")] * 12
    assert all(answer.body == right for answer in answers)
    assert server.stop(signal.SIGTERM) == 0

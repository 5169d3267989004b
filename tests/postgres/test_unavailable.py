"""A database that is away when Sluice starts, restarts or stops: Sluice needs no restart, and logs what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from tests.support.folders import made_folder
from tests.support.live_server import LiveServer, wait_until
from tests.support.own_postgres import OwnPostgres
from tests.support.raw_http import Answer, Client, ask


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The data folder, created once."""
    with made_folder() as path:
        yield path


@pytest.fixture
def own_postgres(folder: Path) -> Iterator[OwnPostgres]:
    """A PostgreSQL that is not running yet."""
    postgres = OwnPostgres(folder)
    yield postgres
    postgres.stop()


def assert_away(answer: Answer) -> None:
    assert answer.status == 503
    assert answer.problem()["code"] == "database_unavailable"
    assert int(answer.headers["retry-after"]) > 0


def assert_ready_soon(server: LiveServer) -> None:
    wait_until("the server is ready", lambda: ask(server, "/health/ready").status == 200)
    answer = ask(server, "/export/here.csv")
    assert (answer.status, answer.body, answer.ending) == (200, b"one\n1\n", "terminator")


def read_to_the_end(connected: socket.socket) -> None:
    while connected.recv(1 << 18):
        pass


TABLE = "CREATE TABLE IF NOT EXISTS here AS SELECT 1 AS one"


def test_a_database_that_starts_later_is_served_without_a_restart(
    start_live: Callable[..., LiveServer], own_postgres: OwnPostgres
) -> None:
    server = start_live(DATABASE_URL=own_postgres.url.replace("postgres@", "postgres:geheim@"))
    server.wait_for_log("the database cannot be reached")
    assert ask(server, "/health/live").status == 200
    assert_away(ask(server, "/health/ready"))
    assert_away(ask(server, "/export/here.csv", headers={"X-Request-Id": "away"}))
    assert server.export_line("away")["outcome"] == "rejected"
    page = ask(server, "/")
    assert page.status == 503
    assert "cannot be reached" in page.body.decode()
    # Repeated attempts: none of them changes the state of the server.
    for path in ("/health/ready", "/export/here.csv") * 3:
        assert_away(ask(server, path))
    assert "geheim" not in "\n".join(server.log)
    own_postgres.start()
    own_postgres.run(TABLE)
    assert_ready_soon(server)
    assert ask(server, "/").status == 200


def test_the_second_address_is_tried_if_the_first_refuses(
    start_live: Callable[..., LiveServer], own_postgres: OwnPostgres
) -> None:
    # As with a name that also has an IPv6 address on which nothing listens, or with a standby server.
    own_postgres.start()
    own_postgres.run(TABLE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    server = start_live(DATABASE_URL=own_postgres.url.replace("127.0.0.1", f"127.0.0.1:{closed},127.0.0.1"))
    assert_ready_soon(server)


def test_a_database_that_restarts_is_used_again(
    start_live: Callable[..., LiveServer], own_postgres: OwnPostgres
) -> None:
    own_postgres.start()
    own_postgres.run(TABLE)
    server = start_live(DATABASE_URL=own_postgres.url)
    # More connections than one export has attempts. The restart breaks all of them.
    with Client(server.connect()) as one, Client(server.connect()) as two, Client(server.connect()) as three:
        for client in (one, two, three):
            client.send("/export/here.csv")
        assert [client.read().body for client in (one, two, three)] == [b"one\n1\n"] * 3
        own_postgres.stop()
        own_postgres.start()
        # The first request after the restart.
        assert one.ask("/export/here.csv").body == b"one\n1\n"
        own_postgres.stop()
        assert_away(two.ask("/export/here.csv"))
        assert_away(two.ask("/health/ready"))
        assert three.ask("/health/live").status == 200
    own_postgres.start()
    assert_ready_soon(server)


def test_a_database_that_stops_during_an_export_cuts_the_stream(
    start_live: Callable[..., LiveServer], own_postgres: OwnPostgres
) -> None:
    own_postgres.start()
    own_postgres.run(TABLE)
    own_postgres.run(
        "CREATE OR REPLACE VIEW endless AS SELECT generate_series(1, 100000000) AS n, repeat('x', 1000) AS filler"
    )
    server = start_live(DATABASE_URL=own_postgres.url)
    with Client(server.connect()) as client:
        client.send("/export/endless.csv", headers={"X-Request-Id": "stopped"})
        assert client.socket.recv(1 << 16)
        stopping = threading.Thread(target=own_postgres.stop)
        stopping.start()
        with pytest.raises(ConnectionResetError):
            read_to_the_end(client.socket)
        stopping.join()
    line = server.export_line("stopped")
    assert (line["outcome"], line["code"]) == ("failed", "database_unavailable")
    own_postgres.start()
    assert_ready_soon(server)


def test_a_database_that_shuts_down_says_so(start_live: Callable[..., LiveServer], own_postgres: OwnPostgres) -> None:
    own_postgres.start()
    # A session keeps the server from ending, which accepts no new ones.
    with contextlib.closing(psycopg2.connect(own_postgres.url)):
        os.kill(int((own_postgres.folder / "postmaster.pid").read_text().split()[0]), signal.SIGTERM)
        server = start_live(DATABASE_URL=own_postgres.url)
        server.wait_for_log('event="database unreachable" .*sqlstate=57P03')
        for path in ("/health/ready", "/export/here.csv", "/relations"):
            answer = ask(server, path)
            assert (answer.status, answer.problem()["code"]) == (503, "database_not_accepting")
            assert "shutting down" in answer.problem()["detail"]
            assert int(answer.headers["retry-after"]) > 0
        own_postgres.stop()
    assert_away(ask(server, "/health/ready"))


def test_a_wrong_password_is_logged_and_not_sent_to_clients(
    start_live: Callable[..., LiveServer], own_postgres: OwnPostgres
) -> None:
    own_postgres.start()
    own_postgres.run("DROP ROLE IF EXISTS guarded")
    own_postgres.run("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    own_postgres.access.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + own_postgres.access.read_text())
    own_postgres.run("SELECT pg_reload_conf()")
    server = start_live(DATABASE_URL=own_postgres.url.replace("postgres@", "guarded:wrong@"))
    reason = server.wait_for_log('event="database unreachable" reason=.*password authentication failed')
    assert "wrong" not in reason[0]
    for path in ("/health/ready", "/export/here.csv"):
        answer = ask(server, path)
        assert_away(answer)
        assert not re.search(rb"guarded|wrong|127\.0\.0\.1|password", answer.body)
    # The operator of the database corrects it; Sluice is not restarted.
    own_postgres.run("ALTER ROLE guarded PASSWORD 'wrong'; GRANT SELECT ON here TO guarded")
    assert_ready_soon(server)


def test_health_is_json(live: LiveServer) -> None:
    assert json.loads(ask(live, "/health/live").body) == {"status": "live"}
    assert json.loads(ask(live, "/health/ready").body) == {"status": "ready"}

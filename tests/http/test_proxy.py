"""Behind a real nginx with its default settings: rows arrive while the query runs, and a cut stream is seen as cut."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.proxies import running_nginx


@pytest.fixture(params=["1.0", "1.1"])
def proxy(request: pytest.FixtureRequest, live: LiveServer) -> Iterator[str]:
    """Yield the address of an nginx in front of the server, which speaks this version of HTTP to it."""
    with running_nginx(f"location / {{ proxy_pass {live.url}; proxy_http_version {request.param}; }}") as address:
        yield address


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, timeout=60, check=False)


def test_the_same_bytes_through_the_proxy(proxy: str, postgres: Postgres) -> None:
    done = curl(f"{proxy}/export/users.csv")
    assert done.returncode == 0
    assert done.stdout == postgres.copy("SELECT * FROM users")


def test_a_cut_stream_is_cut_behind_the_proxy_too(proxy: str, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW broken AS SELECT n, 1 / (20000 - n) FROM generate_series(1, 30000) AS n")
    done = curl(f"{proxy}/export/broken.csv")
    assert done.returncode in (18, 56), done.stderr
    assert done.stdout.startswith(b"n,?column?\n1,0\n")


def test_rows_arrive_before_the_query_ends(proxy: str, postgres: Postgres) -> None:
    postgres.run(
        "CREATE VIEW slow AS SELECT n, pg_sleep(CASE WHEN n > 20 THEN 0.5 ELSE 0 END) IS NULL, repeat('x', 4000) "
        "FROM generate_series(1, 23) AS n"
    )
    address, _, port = proxy.removeprefix("http://").partition(":")
    started = time.monotonic()
    with socket.create_connection((address, int(port)), 30) as raw:
        raw.sendall(b"GET /export/slow.csv HTTP/1.1\r\nHost: sluice.test\r\nConnection: close\r\n\r\n")
        received = raw.recv(65536)
        while b"\n1," not in received:
            received += raw.recv(65536)
        first = time.monotonic() - started
        while chunk := raw.recv(65536):
            received += chunk
        whole = time.monotonic() - started
    assert b"\n23," in received
    assert first < whole / 2


def test_an_error_before_the_first_byte_keeps_its_status(proxy: str) -> None:
    done = curl("-w", "%{http_code} %{content_type}", f"{proxy}/export/nothing.csv")
    assert done.stdout.endswith(b"404 application/problem+json; charset=utf-8")

"""Behind a real nginx with its defaults: a stream arrives while it is read, and a cut one is seen as cut."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["1.0", "1.1"])
def proxy(request: pytest.FixtureRequest, live: LiveServer) -> Iterator[str]:
    """The address of an nginx in front of the server, speaking this HTTP version to it."""
    if NGINX is None:
        assert not os.environ.get("CI"), "nginx is missing; .ci/run installs it"
        pytest.skip("nginx is not installed")
    folder = Path(tempfile.mkdtemp(prefix="sluice-nginx-"))
    port = free_port()
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
            uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            server {{
                listen 127.0.0.1:{port};
                location / {{ proxy_pass {live.url}; proxy_http_version {request.param}; }}
            }}
        }}
        """
    )
    process = subprocess.Popen(
        [NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


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

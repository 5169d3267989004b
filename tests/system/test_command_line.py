"""The command line: serve, dsn and seed, their messages and exit statuses."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from server.__main__ import main
from tests.support.live_server import ROOT, LiveServer


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_first_start_loads_sample_data_and_the_second_is_quick(folder: Path) -> None:
    environment = {"EMBEDDED_DATA_PATH": str(folder / "postgres"), "SEED_ROWS": "1234", "DATABASE_URL": ""}
    with LiveServer(**environment) as first:
        first.wait_for_log(r"Loaded sample data \(1,234 users\)")
        first.wait_for_log(rf"Try: curl -O {first.url}/export/users.csv")
        body = urllib.request.urlopen(f"{first.url}/export/users.csv").read()
        dsn = command("dsn", EMBEDDED_DATA_PATH=str(folder / "postgres"))
        assert dsn.returncode == 0
        with contextlib.closing(psycopg2.connect(dsn.stdout.strip())) as owner, owner.cursor() as cursor:
            cursor.execute("SELECT count(*), current_user::text FROM users")
            assert cursor.fetchone() == (1234, "postgres")
            cursor.execute("SELECT DISTINCT usename::text FROM pg_stat_activity WHERE application_name = 'sluice'")
            assert cursor.fetchall() == [("sluice_reader",)]
    assert first.process.returncode == 0
    assert not (folder / "postgres" / "postmaster.pid").exists()

    with LiveServer(**environment | {"SEED_ROWS": "99"}) as second:
        assert urllib.request.urlopen(f"{second.url}/health/ready").status == 200
        assert urllib.request.urlopen(f"{second.url}/export/users.csv").read() == body
        assert not any("sample data" in line for line in second.log)
        assert second.stop(signal.SIGTERM) == 0
    gone = command("dsn", EMBEDDED_DATA_PATH=str(folder / "postgres"))
    assert gone.returncode == 1
    assert "no embedded PostgreSQL is running" in gone.stderr


def test_seed_fills_the_embedded_database_only(folder: Path) -> None:
    done = command("seed", EMBEDDED_DATA_PATH=str(folder / "postgres"), SEED_ROWS="100")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Loaded sample data (100 users)" in done.stderr
    refused = command("seed", DATABASE_URL="postgresql://db.example/")
    assert refused.returncode == 1
    assert "psql --file seeds/init.sql" in refused.stderr


def test_dsn_of_a_configured_database() -> None:
    done = command("dsn", DB_HOST="db.example", DB_USER="reader", DB_NAME="shop")
    assert done.stdout == "postgresql://reader@/shop?host=db.example&port=5432\n"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"API_PORT": "many"}, "API_PORT='many' cannot be used"),
        ({"STALL_TIMEOUT": "3000000"}, "STALL_TIMEOUT='3000000' cannot be used"),
        ({"API_HOST": "256.0.0.1", "DB_HOST": "db.example"}, "cannot listen on 256.0.0.1"),
        ({"DATABASE_URL": "postgres//reader:secret@db.example"}, "DATABASE_URL is not a connection URI"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], message: str) -> None:
    done = command("serve", **{"API_PORT": "0"} | environment)  # another server may listen on the default port
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_a_port_in_use_is_reported_before_anything_starts(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command("serve", API_PORT=port, EMBEDDED_DATA_PATH=str(folder / "postgres"))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in done.stderr
    assert list(folder.iterdir()) == []


def test_listening_on_other_addresses_logs_a_warning(start_live: Callable[..., LiveServer]) -> None:
    server = start_live(API_HOST="0.0.0.0")
    server.wait_for_log("WARNING: listening on 0.0.0.0. There is no login yet")


def test_listening_on_this_machine_only_does_not(start_live: Callable[..., LiveServer]) -> None:
    server = start_live(API_HOST="localhost")
    assert urllib.request.urlopen(f"{server.url}/health/live").status == 200
    assert not any("WARNING" in line for line in server.log)


def test_json_log_lines(start_live: Callable[..., LiveServer]) -> None:
    server = start_live(LOG_FORMAT="json")
    urllib.request.urlopen(f"{server.url}/export/revenue_by_country.csv").read()
    server.wait_for_log(r'\{.*"relation": "revenue_by_country".*"outcome": "complete".*"requestId": "[0-9a-f]{32}"')


def test_the_pure_python_encoder_is_logged_and_writes_the_same_bytes(
    start_live: Callable[..., LiveServer], live: LiveServer
) -> None:
    server = start_live(SLUICE_PURE_PYTHON="1")
    server.wait_for_log("pure-Python encoder is in use")
    pure = urllib.request.urlopen(f"{server.url}/export/users.csv").read()
    assert pure == urllib.request.urlopen(f"{live.url}/export/users.csv").read()
    assert not any("pure-Python" in line for line in live.log)


def test_interrupting_a_command_is_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(environment: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.__main__.read_settings", interrupted)
    assert main(["dsn"]) == 130

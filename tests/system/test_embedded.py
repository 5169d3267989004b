"""The embedded PostgreSQL: created once and completely, shared, stopped by its last user; as root and as others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest

from server.process import creation, data_folder, programs, sample_data
from server.process.data_folder import Account, EmbeddedError
from server.process.embedded import EmbeddedPostgres
from server.process.sample_data import seed, show_progress
from tests.support.live_server import ROOT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL under another account")


def fetch_one(uri: str, sql: str) -> object:
    connection = psycopg2.connect(uri)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            row = cursor.fetchone()
            assert row is not None
            return row[0]
    finally:
        connection.close()


def test_it_is_created_started_and_stopped(folder: Path) -> None:
    data = folder / "not" / "there yet" / "postgres"
    postgres = EmbeddedPostgres(data)
    with pytest.raises(EmbeddedError, match="no embedded PostgreSQL is running"):
        _ = postgres.uri
    with postgres:
        assert fetch_one(postgres.uri, "SHOW server_version_num") >= "180000"  # type: ignore[operator]
        assert fetch_one(postgres.uri, "SHOW listen_addresses") == ""
        assert data.stat().st_mode & 0o777 == 0o700
    assert not (data / "postmaster.pid").exists()
    with pytest.raises(EmbeddedError):
        _ = postgres.uri
    assert [path.name for path in data.parent.iterdir() if path.name not in ("postgres", "postgres.lock")] == []


def test_the_last_user_stops_it(folder: Path) -> None:
    first, second = EmbeddedPostgres(folder / "postgres"), EmbeddedPostgres(folder / "postgres")
    with second:
        with first:
            uri = first.uri
            assert second.uri == uri
        assert fetch_one(uri, "SELECT 1") == 1
    with pytest.raises(EmbeddedError):
        _ = second.uri


def test_a_server_left_behind_by_a_killed_process_is_taken_over(folder: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from server.process.embedded import EmbeddedPostgres;"
        "EmbeddedPostgres(Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder / "postgres")], cwd=ROOT, check=False)
    assert done.returncode == 9
    with EmbeddedPostgres(folder / "postgres") as postgres:
        assert fetch_one(postgres.uri, "SELECT 1") == 1
    with pytest.raises(EmbeddedError):
        _ = postgres.uri


def test_a_stale_pid_file_does_not_count_as_running(folder: Path) -> None:
    with EmbeddedPostgres(folder / "postgres"):
        lines = (folder / "postgres" / "postmaster.pid").read_text().splitlines()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (folder / "postgres" / "postmaster.pid").write_text("\n".join([str(dead.pid), *lines[1:]]) + "\n")
    with EmbeddedPostgres(folder / "postgres") as postgres:
        assert fetch_one(postgres.uri, "SELECT 1") == 1


def test_an_interrupted_initdb_leaves_nothing_that_looks_complete(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], account: Account | None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(creation, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            EmbeddedPostgres(folder / "postgres").__enter__()
    assert [path.name for path in folder.iterdir()] == ["postgres.lock"]
    with EmbeddedPostgres(folder / "postgres") as postgres:
        assert fetch_one(postgres.uri, "SELECT 1") == 1


def test_what_a_killed_initdb_has_left_behind_is_removed(folder: Path) -> None:
    (folder / "postgres.unfinished" / "data").mkdir(parents=True)
    (folder / "postgres.unfinished" / "data" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(folder / "postgres") as postgres:
        assert fetch_one(postgres.uri, "SELECT 1") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["postgres", "postgres.lock"]


def test_data_of_another_version_is_left_alone(folder: Path) -> None:
    with EmbeddedPostgres(folder / "postgres", version=16) as postgres:
        assert str(fetch_one(postgres.uri, "SHOW server_version_num")).startswith("16")
    with pytest.raises(EmbeddedError, match="holds the data of PostgreSQL 16, but this is 18"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    assert (folder / "postgres" / "PG_VERSION").read_text().strip() == "16"


def test_the_error_of_a_server_that_cannot_start_gives_the_reason(folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        EmbeddedPostgres(folder / "postgres", settings={"no_such_setting": "1"}).__enter__()


def test_a_folder_too_long_for_a_socket_still_serves(folder: Path) -> None:
    with EmbeddedPostgres(folder / ("long" * 25) / "postgres") as postgres:
        assert fetch_one(postgres.uri, "SELECT 1") == 1
        sockets = Path(psycopg2.extensions.parse_dsn(postgres.uri)["host"])
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()


def test_an_empty_database_is_seeded_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}) as postgres:
        seed(postgres, 1000)
        assert "Loaded sample data (1,000 users)" in capsys.readouterr().err
        digest = "SELECT md5(string_agg(users::text, '' ORDER BY id)) FROM users"
        first = fetch_one(postgres.uri, digest)
        seed(postgres, 2000)
        assert capsys.readouterr().err == ""
        assert fetch_one(postgres.uri, "SELECT count(*) FROM users") == 1000
        assert fetch_one(postgres.uri, "SELECT count(*) FROM orders") == 500
        assert fetch_one(postgres.uri, "SELECT count(*) > 0 FROM revenue_by_country") is True
    with EmbeddedPostgres(folder / "again", settings={"fsync": "off", "timezone": "Asia/Tokyo"}) as postgres:
        seed(postgres, 1000)
        utc = "SET timezone = 'UTC'; " + digest
        assert fetch_one(postgres.uri, utc) == first


def test_the_seeds_contain_unusual_values(database_url: str) -> None:
    for condition in (
        "name LIKE '%\"%'",
        "name LIKE E'%\\n%'",
        "name LIKE E'%\\r\\n%'",
        "name LIKE '%,%'",
        "name LIKE '=%'",
        "name LIKE '-%'",
        "name = ''",
        "email = ''",
        "email IS NULL",
        "lifetime_value IS NULL",
        "lifetime_value < 0",
        "name ~ U&'[\\0590-\\05FF]'",
        "name ~ U&'\\+01F680'",
    ):
        assert fetch_one(database_url, f"SELECT count(*) > 0 FROM users WHERE {condition}") is True, condition


def test_broken_seeds_leave_the_database_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = folder / "broken.sql"
    broken.write_text("\\set ON_ERROR_STOP on\nBEGIN;\nCREATE TABLE half (id int);\nSELECT 1/0;\nCOMMIT;\n")
    monkeypatch.setattr(sample_data, "SEEDS", broken)
    with EmbeddedPostgres(folder / "postgres") as postgres:
        with pytest.raises(EmbeddedError, match="division by zero"):
            seed(postgres, 10)
        assert fetch_one(postgres.uri, "SELECT to_regclass('half') IS NULL") is True


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("users 50 of 100", ""),
        ("users 100 of 100", "Loading sample data: users done\n"),
        ("indexes", ""),
        ("", ""),
    ],
)
def test_progress_without_a_terminal_is_one_line_for_each_table(
    line: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_progress(line)
    assert capsys.readouterr().err == shown


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show_progress("users 50 of 100")
    shown = capsys.readouterr().err
    assert shown.startswith("\rLoading sample data: users")
    assert "█" * 15 + " " * 15 in shown
    assert "50%" in shown
    show_progress("indexes")
    assert capsys.readouterr().err.startswith("\rLoading sample data: indexes ")


@as_root
def test_root_leaves_modes_and_accounts_as_they_were(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    system = folder / "system"
    monkeypatch.setattr(programs, "SYSTEM_FOLDER", system)
    accounts = Path("/etc/passwd").read_bytes()
    with EmbeddedPostgres(home / "sluice" / ".data" / "postgres") as postgres:
        assert fetch_one(postgres.uri, "SELECT 1") == 1
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "sluice" / ".data" / "postgres").is_symlink()
    assert Path("/etc/passwd").read_bytes() == accounts
    with EmbeddedPostgres(home / "sluice" / ".data" / "postgres") as postgres:  # it is found again
        assert fetch_one(postgres.uri, "SELECT 1") == 1
    shutil.rmtree(system)
    with EmbeddedPostgres(home / "sluice" / ".data" / "postgres") as postgres:  # or made again
        assert fetch_one(postgres.uri, "SELECT 1") == 1


@as_root
def test_root_copies_programs_that_the_account_cannot_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = folder / "system"
    monkeypatch.setattr(programs, "SYSTEM_FOLDER", system)
    monkeypatch.setattr(
        "server.process.programs.reachable", lambda path: path.name != "postgres" and data_folder.reachable(path)
    )
    before = os.umask(0o077)
    try:
        with EmbeddedPostgres(folder / "data") as postgres:
            assert fetch_one(postgres.uri, "SELECT 1") == 1
    finally:
        os.umask(before)
    assert len(list(system.iterdir())) == 1


def test_without_the_wheel_the_message_names_the_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match="set DATABASE_URL"):
        EmbeddedPostgres(folder / "postgres").__enter__()

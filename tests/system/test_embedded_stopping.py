"""A first start that is interrupted: it stops all that it has started, and the next start is a clean one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg2
import pytest

from server.process.children import WATCHED, ended_by_exceptions, is_running, run, started
from server.process.data_folder import EmbeddedError
from server.process.embedded import EmbeddedPostgres
from server.process.sample_data import seed
from tests.support.live_server import ROOT, wait_until

# So many users take longer to load than any test waits.
MANY = 50_000_000


def programs_on(folder: Path) -> list[psutil.Process]:
    """Return the processes that work on this data folder, and its server: initdb, postgres, psql."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if process.info["name"] in ("initdb", "postgres", "psql", "sh") and (
            str(folder) in words or quote(str(folder), safe="") in words
        ):
            found.append(process)
    return found


def names_on(folder: Path) -> set[str]:
    return {process.info["name"] for process in programs_on(folder)}


@contextlib.contextmanager
def first_start(folder: Path, *, command: str = "serve") -> Iterator[subprocess.Popen[str]]:
    """Start `make run` on an empty folder, with so much sample data that it does not get to the end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "DATABASE_URL"))}
    settings = {"EMBEDDED_DATA_PATH": str(folder / "postgres"), "SEED_ROWS": str(MANY), "API_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "server", command],
        cwd=ROOT,
        env={**inherited, **settings, "EXPORT_STORAGE_PATH": str(folder / "exports")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def assert_nothing_is_left(folder: Path) -> None:
    wait_until("nothing runs", lambda: not programs_on(folder), seconds=20)
    assert not (folder / "postgres" / "postmaster.pid").exists()
    assert {path.name for path in folder.iterdir()} <= {"postgres", "postgres.lock"}


def wait_for_initdb(folder: Path) -> None:
    wait_until("initdb runs", (folder / "postgres.unfinished" / "data" / "PG_VERSION").exists)


def wait_for_loading(folder: Path) -> None:
    wait_until("the server runs", (folder / "postgres" / "postmaster.pid").exists)
    wait_until("the sample data is loaded", lambda: "psql" in names_on(folder))


def assert_the_next_start_is_clean(folder: Path) -> None:
    with EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}) as postgres:
        seed(postgres, 100)
        with contextlib.closing(psycopg2.connect(postgres.uri)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM users")
            assert cursor.fetchone() == (100,)
    assert_nothing_is_left(folder)


BY_SIGNAL = [
    pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    pytest.param(signal.SIGHUP, 129, id="SIGHUP", marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 130, id="SIGINT", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "status"), BY_SIGNAL)
def test_a_signal_while_the_folder_is_made_stops_initdb(folder: Path, number: signal.Signals, status: int) -> None:
    with first_start(folder) as process:
        wait_for_initdb(folder)
        process.send_signal(number)
        assert process.wait(20) == status
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert_nothing_is_left(folder)
    assert not (folder / "postgres").exists()
    assert_the_next_start_is_clean(folder)


@pytest.mark.parametrize(("number", "status"), BY_SIGNAL)
def test_a_signal_while_the_sample_data_is_loaded_stops_the_server(
    folder: Path, number: signal.Signals, status: int
) -> None:
    with first_start(folder) as process:
        wait_for_loading(folder)
        process.send_signal(number)
        assert process.wait(20) == status
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert_nothing_is_left(folder)
    assert_the_next_start_is_clean(folder)


@pytest.mark.slow
def test_a_signal_to_the_command_that_fills_the_database_stops_it_too(folder: Path) -> None:
    with first_start(folder, command="seed") as process:
        wait_for_loading(folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert_nothing_is_left(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("program", "wait"), [("psql", wait_for_loading), ("initdb", wait_for_initdb)])
def test_a_killed_first_start_loads_nothing_further(folder: Path, program: str, wait: Callable[[Path], None]) -> None:
    with first_start(folder) as process:
        wait(folder)
        process.kill()
        process.wait(20)
        # A server that is already up goes on; the next start takes it over.
        wait_until(f"{program} has ended", lambda: names_on(folder) <= {"postgres"})
    assert_the_next_start_is_clean(folder)


@pytest.mark.slow
def test_it_stops_all_whenever_the_signal_comes(folder: Path) -> None:
    delays = random.Random(13)
    for _ in range(25):
        with first_start(folder) as process:
            time.sleep(delays.uniform(0.1, 2.5))  # anywhere between the first line of Python and the sample data
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (143, -signal.SIGTERM)
        assert_nothing_is_left(folder)
    assert_the_next_start_is_clean(folder)


# --- The parts


def test_what_a_program_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.process.children._INTERRUPTED_SECONDS", 0.1)
    path = tmp_path / "output"
    # The shell ignores SIGTERM, and what it starts in the background SIGINT.
    script = "trap '' TERM; sleep 600 & sleep 600 & echo ready; wait"
    groups: list[int] = []
    with (
        path.open("w+") as output,
        contextlib.suppress(KeyError),
        started([*WATCHED, "sh", "-c", script], None, output) as program,
    ):
        groups.append(program.pid)
        wait_until("it runs", lambda: path.read_text() == "ready\n")
        assert is_running(program.pid)
        raise KeyError
    assert not is_running(groups[0])


def test_a_process_that_has_ended_does_not_count_as_running() -> None:
    with subprocess.Popen(["true"], start_new_session=True) as program:
        wait_until("it has ended", lambda: psutil.Process(program.pid).status() == psutil.STATUS_ZOMBIE)
        os.killpg(program.pid, 0)  # it is still there
        assert not is_running(program.pid)


def test_a_program_that_fails_tells_why() -> None:
    with pytest.raises(EmbeddedError, match="sh failed: no luck"):
        run(["/bin/sh", "-c", "echo no luck >&2; exit 3"], None)


def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(EmbeddedError, match="none failed: "):
        run(["/nonexistent/none"], None)


def test_signals_are_handled_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as ended, ended_by_exceptions():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_only_the_first_signal_counts() -> None:
    cleaned = []

    def end_twice() -> None:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended, ended_by_exceptions():
        end_twice()
    assert (ended.value.code, cleaned) == (129, [True])


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_exceptions():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_during_the_start_of_a_program_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    programs: list[subprocess.Popen[str]] = []

    def interrupted(*arguments: object, **options: object) -> object:
        program = real(*arguments, **options)  # type: ignore[call-overload]
        programs.append(program)
        signal.raise_signal(signal.SIGINT)
        return program

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with (
        (tmp_path / "output").open("w+") as output,
        pytest.raises(KeyboardInterrupt),
        started([*WATCHED, "sleep", "600"], None, output),
    ):
        pass
    assert programs[0].returncode is not None
    assert not is_running(programs[0].pid)


def test_a_start_that_takes_too_long_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedPostgres(folder / "postgres"):
        pass
    monkeypatch.setattr("server.process.embedded.START_SECONDS", 0)
    monkeypatch.setattr(EmbeddedPostgres, "_postmaster_lines", lambda self: [])
    with pytest.raises(EmbeddedError, match="PostgreSQL has not started within 0 s"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    monkeypatch.undo()
    assert_nothing_is_left(folder)

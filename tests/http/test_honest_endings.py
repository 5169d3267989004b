"""How a download ends under gunicorn: complete, with an error status before the first byte, or with a reset after it.

A file that is not complete must never look complete: what was received is the beginning of the right bytes, and only a
complete file ends cleanly. After each failure the same server continues to serve.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import psycopg2.errors
import pytest

from server.export.scan import FIRST_CHUNK_BYTES
from server.export.strategy import RANGE_BLOCKS
from server.pages.shown_form import FORM_ACTION
from server.pages.table import PARTIAL_HEADER
from server.postgres.reader import BATCH_ROWS
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Answer, Client, ask
from tests.support.stalled import stalled

ROWS = 2 * BATCH_ROWS + 5000


def row_after(size: int) -> int:
    """Return the first row of `divides_by_zero` that is not among those that make up this many bytes of the file."""
    ends = itertools.accumulate(len(f"{n},0,some text\n") for n in itertools.count(1))
    return 2 + sum(1 for _ in itertools.takewhile(lambda end: end < size, ends))


# Rows that PostgreSQL sends together, since it sends 8 kB at a time, so they reach the first chunk together.
FIRST_ROWS = [1, 2, 200]
# A row that is not in the first chunk of the file.
LATER = row_after(FIRST_CHUNK_BYTES)
# The first rows after the first chunk, the rows around the ends of two batches, and the last row.
LATER_ROWS = [LATER, LATER + 1, BATCH_ROWS, BATCH_ROWS + 1, 2 * BATCH_ROWS, 2 * BATCH_ROWS + 1, ROWS]

# About 12 MB, more than the sockets between server and client hold. PostgreSQL makes a row when it is fetched.
LARGE = "SELECT generate_series(1, 12000) AS n, repeat('x', 1000) AS filler"


SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event = 'PgSleep'"


def divides_by_zero(postgres: Postgres, row: int) -> bytes:
    """Create a view that fails at this row. Return the bytes of a file without the failure."""
    numbers = f"FROM generate_series(1, {ROWS}) AS n"
    postgres.run(f"CREATE VIEW failing AS SELECT n, 1 / (n - {row}) AS x, 'some text' AS text {numbers}")
    return postgres.copy(f"SELECT n, 1 / nullif(n - {row}, 0) AS x, 'some text' AS text {numbers}")


def sleeps_at_row_20(postgres: Postgres) -> bytes:
    """Create a view with wide rows, since PostgreSQL sends 8 kB at a time. Return the bytes of a complete file."""
    query = "SELECT n, repeat('x', 4000) AS filler, {} AS x FROM generate_series(1, 30) AS n"
    postgres.run("CREATE VIEW slow AS " + query.format("CASE WHEN n = 20 THEN pg_sleep(30)::text END"))
    return postgres.copy(query.format("NULL"))


def assert_cut(answer: Answer, right: bytes) -> None:
    assert answer.status == 200
    assert answer.ending == "reset"
    assert right.startswith(answer.body)
    assert len(answer.body) < len(right)


def assert_serves(server: LiveServer, postgres: Postgres) -> None:
    answer = ask(server, "/export/users.csv")
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == postgres.copy("SELECT * FROM users")


def stream_backends(postgres: Postgres, function: str) -> None:
    """Call pg_terminate_backend or pg_cancel_backend on the backend of the only stream."""
    called = postgres.run(
        f"SELECT {function}(pid) FROM pg_stat_activity WHERE application_name = 'sluice' "
        "AND query LIKE 'SELECT source.%' AND state <> 'idle'"
    )
    assert called == [(True,)]


# --- the query fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http", ["1.0", "1.1"])
@pytest.mark.parametrize("row", FIRST_ROWS)
def test_an_error_among_the_first_rows_is_a_status(live: LiveServer, postgres: Postgres, http: str, row: int) -> None:
    divides_by_zero(postgres, row)
    answer = ask(live, "/export/failing.csv", http=http)
    assert answer.status == 500
    assert answer.problem()["code"] == "relation_failed"
    assert "content-disposition" not in answer.headers
    assert_serves(live, postgres)


@pytest.mark.parametrize("http", ["1.0", "1.1"])
@pytest.mark.parametrize("row", LATER_ROWS)
def test_an_error_after_the_first_byte_cuts_and_resets(
    live: LiveServer, postgres: Postgres, row: int, http: str
) -> None:
    right = divides_by_zero(postgres, row)
    assert_cut(ask(live, "/export/failing.csv", http=http), right)
    assert_serves(live, postgres)


@pytest.mark.parametrize("option", ["--http1.1", "--http1.0"])
@pytest.mark.parametrize("row", [LATER, BATCH_ROWS, ROWS])
def test_curl_reports_that_the_transfer_failed(
    live: LiveServer, postgres: Postgres, tmp_path: Path, row: int, option: str
) -> None:
    right = divides_by_zero(postgres, row)
    file = tmp_path / "failing.csv"
    done = subprocess.run(
        ["curl", "-sS", option, "-o", str(file), f"{live.url}/export/failing.csv"], capture_output=True, text=True
    )
    # 18: partial file; 56: failure in receiving.
    assert done.returncode in (18, 56), done
    received = file.read_bytes() if file.exists() else b""
    assert right.startswith(received)
    assert len(received) < len(right)


@pytest.mark.parametrize("http", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("function", "code"),
    [("pg_terminate_backend", "database_unavailable"), ("pg_cancel_backend", "query_cancelled")],
)
def test_a_backend_ended_while_it_works_cuts_the_stream(
    live: LiveServer, postgres: Postgres, function: str, code: str, http: str
) -> None:
    right = sleeps_at_row_20(postgres)
    request_id = f"{function}-{http}"
    with Client(live.connect()) as client:
        client.send("/export/slow.csv", http=http, headers={"X-Request-Id": request_id})
        wait_until("PostgreSQL makes row 20", lambda: postgres.run(SLEEPING))
        stream_backends(postgres, function)
        answer = client.read()
    assert_cut(answer, right)
    line = live.export_line(request_id)
    assert (line["outcome"], line["code"]) == ("failed", code)
    # The last rows before the error may have been read and not sent.
    lines_received = answer.body.count(b"\n")
    assert max(1, lines_received - 1) <= int(line["rows"]) < 20
    assert_serves(live, postgres)


def test_a_backend_terminated_while_the_client_pauses_cuts_the_stream(live: LiveServer, postgres: Postgres) -> None:
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    with stalled(live, postgres, "/export/large.csv") as client:
        stream_backends(postgres, "pg_terminate_backend")
        assert_cut(client.read(), postgres.copy(LARGE))
    assert_serves(live, postgres)


def test_a_statement_timeout_after_the_first_byte_cuts_the_stream(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(STATEMENT_TIMEOUT="0.5")
    right = sleeps_at_row_20(postgres)
    assert_cut(ask(server, "/export/slow.csv", headers={"X-Request-Id": "timeout"}), right)
    assert server.export_line("timeout")["code"] == "query_timeout"
    assert_serves(server, postgres)


# --- DDL and other sessions -------------------------------------------------------------------------------------


def test_a_relation_dropped_before_the_request_is_not_found(live: LiveServer, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE brief AS SELECT 1 AS one")
    assert ask(live, "/export/brief.csv").status == 200
    postgres.run("DROP TABLE brief")
    assert ask(live, "/export/brief.csv").problem()["code"] == "relation_not_found"


RELOAD = "SELECT n, 'new ' || n AS text FROM generate_series(1, 900) AS n"


# DDL that holds the lock when the request comes, and what the export gives then: the file as it was before, the file as
# it is afterwards, or nothing.
RACES = {
    "drop": ("DROP TABLE raced", "nothing"),
    "add column": ("ALTER TABLE raced ADD COLUMN more int DEFAULT 7", "before"),
    "drop column": ("ALTER TABLE raced DROP COLUMN text", "after"),
    "rename column": ("ALTER TABLE raced RENAME COLUMN text TO words", "after"),
    "rename": ("ALTER TABLE raced RENAME TO elsewhere", "nothing"),
    "rewrite": ("ALTER TABLE raced ALTER COLUMN n TYPE bigint USING n * 2", "after"),
    "delete": ("DELETE FROM raced; ALTER TABLE raced ADD CHECK (n > 0)", "before"),
    "reload": (f"TRUNCATE raced; INSERT INTO raced {RELOAD}", "after"),
    "swap": (f"CREATE TABLE fresh AS {RELOAD}; DROP TABLE raced; ALTER TABLE fresh RENAME TO raced", "after"),
}


def ask_while_ddl_holds_the_lock(
    server: LiveServer, postgres: Postgres, ddl: str, path: str, headers: Mapping[str, str] | None = None
) -> Answer:
    """Run the DDL, commit it when the request waits for its lock, and return the response."""
    with contextlib.closing(postgres.connect()) as other, Client(server.connect()) as client:
        other.autocommit = False
        other.cursor().execute(ddl)
        client.send(path, headers=headers)
        wait_until(
            "the request waits for the lock",
            lambda: postgres.run(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event_type = 'Lock'"
            ),
        )
        other.commit()
        return client.read()


@pytest.mark.parametrize(("ddl", "expected"), RACES.values(), ids=RACES)
def test_ddl_that_holds_the_lock_first_never_gives_a_wrong_file(
    live: LiveServer, postgres: Postgres, ddl: str, expected: str
) -> None:
    postgres.run("CREATE TABLE raced AS SELECT n, 'old ' || n AS text FROM generate_series(1, 1000) AS n")
    before = postgres.copy("SELECT * FROM raced")
    answer = ask_while_ddl_holds_the_lock(live, postgres, ddl, "/export/raced.csv")
    if expected == "nothing":
        assert answer.problem()["code"] == "relation_not_found"
    else:
        assert answer.body == (before if expected == "before" else postgres.copy("SELECT * FROM raced"))
        assert answer.ending == "terminator"
    assert_serves(live, postgres)


def test_a_preview_is_repeated_if_the_table_was_changed_before_its_lock(live: LiveServer, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE raced AS SELECT n, 'old ' || n AS text FROM generate_series(1, 1000) AS n")
    answer = ask_while_ddl_holds_the_lock(live, postgres, RACES["reload"][0], "/relations/raced/preview")
    assert answer.status == 200, answer.body
    assert json.loads(answer.body)["rows"] == [[str(n), f"new {n}"] for n in range(1, 21)]


def test_the_preview_of_the_page_is_repeated_if_the_table_was_changed_before_its_lock(
    live: LiveServer, postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE raced AS SELECT n, 'old ' || n AS text FROM generate_series(1, 1000) AS n")
    partial = {PARTIAL_HEADER: "1"}
    answer = ask_while_ddl_holds_the_lock(live, postgres, RACES["reload"][0], f"{FORM_ACTION}raced?", partial)
    assert answer.status == 200
    # The rows stand there twice: in a table, and as the text of the file.
    assert re.findall(r"new \d+", answer.body.decode()) == 2 * [f"new {n}" for n in range(1, 21)]


def test_an_explanation_is_repeated_if_the_table_was_changed_before_its_lock(
    live: LiveServer, postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE raced AS SELECT n, 'old ' || n AS text FROM generate_series(1, 1000) AS n")
    ddl = RACES["reload"][0] + "; ANALYZE raced"
    answer = ask_while_ddl_holds_the_lock(live, postgres, ddl, "/relations/raced?explain")
    assert answer.status == 200, answer.body
    assert json.loads(answer.body)["estimatedRows"] == 900


@pytest.mark.parametrize(
    "ddl",
    [
        "DROP TABLE busy",
        "TRUNCATE busy",
        "ALTER TABLE busy ADD COLUMN more int",
        "ALTER TABLE busy ALTER COLUMN n TYPE bigint",
    ],
)
def test_ddl_waits_for_a_running_stream(live: LiveServer, postgres: Postgres, ddl: str) -> None:
    postgres.run(f"CREATE TABLE busy AS {LARGE}")
    right = postgres.copy("SELECT * FROM busy")
    with stalled(live, postgres, "/export/busy.csv") as client:
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            postgres.run(f"SET lock_timeout = '100ms'; {ddl}")
        answer = client.read()
    assert answer.ending == "terminator"
    assert answer.body == right
    postgres.run(f"SET lock_timeout = '5s'; {ddl}; RESET lock_timeout")


def test_a_stream_shows_one_snapshot_while_others_write(live: LiveServer, postgres: Postgres) -> None:
    postgres.run(f"CREATE TABLE busy AS {LARGE}")
    right = postgres.copy("SELECT * FROM busy")
    with stalled(live, postgres, "/export/busy.csv") as client:
        postgres.run("DELETE FROM busy WHERE n % 3 = 0")
        postgres.run("UPDATE busy SET filler = 'changed' WHERE n % 3 = 1")
        postgres.run(f"INSERT INTO busy {LARGE}")
        answer = client.read()
    assert answer.ending == "terminator"
    assert answer.body == right


# --- the server fails -------------------------------------------------------------------------------------------


def test_a_killed_worker_cuts_its_streams_and_is_replaced(
    start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live()
    postgres.run(f"CREATE VIEW large AS {LARGE}")
    with stalled(server, postgres, "/export/large.csv") as client:
        (worker,) = server.workers()
        worker.send_signal(signal.SIGKILL)
        answer = client.read()
    assert answer.ending in ("reset", "closed")
    assert postgres.copy(LARGE).startswith(answer.body)
    wait_until("another worker runs", lambda: [w for w in server.workers() if w.pid != worker.pid and is_alive(w)])
    assert_serves(server, postgres)
    wait_until("PostgreSQL has released the stream", lambda: {state for state, _ in postgres.statements()} <= {"idle"})


def is_alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


# --- the log ----------------------------------------------------------------------------------------------------


def test_the_log_line_of_a_whole_export(live: LiveServer, postgres: Postgres) -> None:
    answer = ask(live, "/export/users.csv", headers={"X-Request-Id": "log-complete"})
    line = live.export_line("log-complete")
    assert (line["level"], line["relation"], line["outcome"]) == ("info", "users", "complete")
    assert int(line["rows"]) == postgres.run("SELECT count(*) FROM users")[0][0]
    assert int(line["bytes"]) == len(answer.body)
    assert 0 < float(line["seconds"]) < 30
    assert line["scan"] == "cursor"
    assert "ranges" not in line


def test_the_log_line_of_an_export_by_block_ranges(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(PARALLEL_READERS="2")
    postgres.run(f"CREATE TABLE large AS {LARGE}")
    ((blocks,),) = postgres.run("SELECT pg_relation_size('large') / current_setting('block_size')::int")
    ask(server, "/export/large.csv", headers={"X-Request-Id": "log-ranges"})
    line = server.export_line("log-ranges")
    assert (line["scan"], line["outcome"]) == ("cursor, block ranges", "complete")
    assert int(line["ranges"]) == math.ceil(blocks / RANGE_BLOCKS) > 1


def test_the_log_line_of_a_cut_export(live: LiveServer, postgres: Postgres) -> None:
    divides_by_zero(postgres, LATER)
    ask(live, "/export/failing.csv", headers={"X-Request-Id": "log-failed"})
    line = live.export_line("log-failed")
    assert (line["relation"], line["outcome"], line["code"]) == ("failing", "failed", "relation_failed")
    assert (line["level"], line["sqlstate"]) == ("warning", "22012")
    assert int(line["rows"]) in range(1, LATER)
    assert int(line["bytes"]) > 0


@pytest.mark.parametrize(
    ("path", "relation", "code"),
    [
        ("/export/nothing_here.csv", "nothing_here", "relation_not_found"),
        ("/export/users.csv?select=nothing", "users", "unknown_column"),
        ("/export/public.nothing_here.csv", "public.nothing_here", "relation_not_found"),
    ],
)
def test_the_log_line_of_a_rejected_export(live: LiveServer, path: str, relation: str, code: str) -> None:
    request_id = f"log-{code}-{relation}"
    ask(live, path, headers={"X-Request-Id": request_id})
    line = live.export_line(request_id)
    assert (line["relation"], line["outcome"], line["code"]) == (relation, "rejected", code)
    assert (line["rows"], line["bytes"]) == ("0", "0")


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n", "\x0b", "\x1b", "\x85", "\u2028"])
def test_a_name_cannot_forge_a_line_of_the_log(live: LiveServer, character: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in character.encode())
    before = len(live.log)
    ask(live, f"/export/a{encoded}time=1970%20event=export.csv", headers={"X-Request-Id": "log-forged"})
    ask(live, "/export/after_it.csv", headers={"X-Request-Id": "log-after"})
    live.wait_for_log("log-after", after=before)
    written = "\n".join(live.log[before:])
    assert [line for line in written.splitlines() if line.startswith("time=1970")] == []
    assert not set(written) & {"\r", "\x0b", "\x1b", "\x85", "\u2028"}


def read_until_closed(raw: socket.socket) -> bytes:
    received = b""
    while part := raw.recv(1 << 16):
        received += part
    return received


def test_a_client_that_closes_its_half_never_sees_an_early_clean_end(live: LiveServer) -> None:
    # aiohttp closes the connection by itself then. With HTTP/1.0 a clean end would look like the end of the file.
    with live.connect(receive_buffer=4096) as raw:
        raw.sendall(b"GET /export/users.csv HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert raw.recv(1000)
        raw.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            read_until_closed(raw)

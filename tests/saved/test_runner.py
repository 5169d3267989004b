"""Saved exports under gunicorn, from POST to DELETE: two workers that share nothing but the folder."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.export.strategy import RANGE_BLOCKS
from tests.support.live_server import LiveServer
from tests.support.own_postgres import OwnPostgres
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.saved_exports import (
    Gate,
    answer_json,
    assert_whole,
    download,
    eventually,
    post,
    save,
    saved,
    status,
    wait_for,
)

# The fields of the documented status.
FIELDS = {
    *(
        "exportId",
        "status",
        "relation",
        "query",
        "queryTruncated",
        "format",
        "progress",
        "error",
        "createdAt",
        "startedAt",
    ),
    *("completedAt", "expiresAt", "rows", "bytes", "sha256", "snapshotAt", "scan", "ranges", "downloadUrl", "attempts"),
}
PROGRESS = {"processedRows", "totalRows", "percentage", "bytes", "rate", "etaSeconds"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage") / "made" / "at start"


@pytest.fixture(scope="module")
def server(database_url: str, storage: Path) -> Iterator[LiveServer]:
    """Two workers: one may answer while the other runs the export."""
    with LiveServer(
        DATABASE_URL=database_url, EXPORT_STORAGE_PATH=str(storage), WEB_CONCURRENCY="2", MAX_RUNNING_EXPORTS="2"
    ) as started:
        yield started


def listed(server: LiveServer) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = answer_json(ask(server, "/exports"))["exports"]
    return documents


def clear(server: LiveServer) -> None:
    """Remove all exports."""
    while documents := listed(server):
        for document in documents:
            assert ask(server, f"/exports/{document['exportId']}", method="DELETE").status in (204, 404)


# --- from POST to the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "users.csv",
        "users.tsv",
        "users.ndjson",
        "users.csv.gz",
        "users.tsv.gz",
        "users.ndjson.gz",
        "users.csv?select=id,full_name:name&id=lt.100&order=id.desc&excel=true",
        "users.csv?limit=0",
        "users.csv?limit=0&header=false",
        "revenue_by_country.csv",
        "users.csv?filename=r%C3%A9sum%C3%A9&name=ilike.*a*",
    ],
)
def test_a_saved_file_is_byte_for_byte_the_download(server: LiveServer, storage: Path, target: str) -> None:
    streamed = ask(server, f"/export/{target}")
    document = saved(server, target)
    answer = download(server, document["exportId"])
    assert answer.status == 200
    # The bytes of a gzip file depend on how the rows were cut into chunks, and that on what arrived when.
    unpack = gzip.decompress if target.partition("?")[0].endswith(".gz") else bytes
    assert unpack(answer.body) == unpack(streamed.body)
    assert len(answer.body) == document["bytes"]
    assert_whole(storage, document)
    for name in ("content-type", "content-disposition"):
        assert answer.headers[name] == streamed.headers[name]


def test_the_status_has_the_documented_fields_from_the_start(server: LiveServer, gate: Gate) -> None:
    answer = post(server, "gated.csv?order=n")
    assert answer.status == 202
    document = answer_json(answer)
    assert set(document) == FIELDS
    assert set(document["progress"]) == PROGRESS
    assert (document["status"], document["relation"], document["query"]) == ("pending", "gated", "order=n")
    assert document["downloadUrl"] is None
    running = wait_for(server, document["exportId"], "processing")
    assert set(running) == FIELDS
    assert running["startedAt"] >= running["createdAt"]
    assert (running["scan"], running["ranges"]) == ("cursor", 0)
    gate.open()
    done = wait_for(server, document["exportId"], "completed")
    assert set(done) == FIELDS
    assert set(done["progress"]) == PROGRESS
    assert done["progress"]["percentage"] == 100
    assert done["progress"]["processedRows"] == done["rows"] == 3000
    assert done["startedAt"] <= done["completedAt"] < done["expiresAt"]
    assert done["downloadUrl"] == f"/exports/{done['exportId']}/download/gated.csv"
    assert done["error"] is None


@pytest.mark.parametrize(
    ("query", "scan", "ranges"),
    [
        ("", "cursor, block ranges", 4),
        ("order=id", "cursor", 0),
        ("order=filler", "cursor, parallel plan", 0),
    ],
)
def test_the_status_and_the_manifest_say_how_the_rows_were_read(
    server: LiveServer, storage: Path, postgres: Postgres, query: str, scan: str, ranges: int
) -> None:
    """The table has one row in each block, and four times as many blocks as one range."""
    postgres.run("CREATE TABLE read (id int PRIMARY KEY, filler text); ALTER TABLE read ALTER filler SET STORAGE PLAIN")
    postgres.run(f"INSERT INTO read SELECT n, repeat('x', 7000) FROM generate_series(1, {4 * RANGE_BLOCKS}) AS n")
    postgres.run("ANALYZE read")
    accepted = answer_json(post(server, f"read.csv?{query}"))
    assert (accepted["scan"], accepted["ranges"]) == (None, None)
    done = wait_for(server, accepted["exportId"], "completed")
    assert_whole(storage, done)
    assert (done["scan"], done["ranges"], done["rows"]) == (scan, ranges, 4 * RANGE_BLOCKS)
    manifest = json.loads((storage / done["exportId"] / "manifest.json").read_text())
    assert (manifest["scan"], manifest["ranges"]) == (scan, ranges)
    explanation = answer_json(ask(server, f"/relations/read?explain&{query}"))
    assert (explanation["scan"], explanation["ranges"]) == (scan, ranges)


def test_an_accepted_export_is_on_the_disk_and_private(server: LiveServer, storage: Path, gate: Gate) -> None:
    id = save(server, "gated.csv?order=n")
    folder = storage / id
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["target"], manifest["query"]) == ("gated.csv", "order=n")
    assert "SELECT" not in (folder / "manifest.json").read_text().upper()
    wait_for(server, id, "processing")
    eventually("the file has been created", lambda: list(folder.glob("data.csv.*.part")))
    for path in [storage, *storage.rglob("*")]:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue  # a progress file that has been replaced
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    gate.open()
    wait_for(server, id, "completed")
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("target", "code", "expected"),
    [
        ("nothing_here.csv", "relation_not_found", 404),
        ("users.xlsx", "unknown_format", 400),
        ("users.csv?limitt=1", "unknown_parameter", 400),
        ("users.csv?nothing=eq.1", "unknown_column", 400),
        ("users.csv?id=eq.abc", "invalid_value", 400),
        ("users.csv?id=like.a", "operator_not_supported", 400),
        ("pg_class.csv", "relation_not_found", 404),
    ],
)
def test_a_request_that_a_download_refuses_is_not_accepted(
    server: LiveServer, target: str, code: str, expected: int
) -> None:
    before = listed(server)
    streamed, answer = ask(server, f"/export/{target}"), post(server, target)
    assert answer.status == streamed.status == expected
    for problem in (answer.problem(), streamed.problem()):
        problem.pop("requestId")
        assert problem["code"] == code
    assert answer.problem()["detail"] == streamed.problem()["detail"]
    assert listed(server) == before


def test_a_body_is_refused(server: LiveServer) -> None:
    with Client(server.connect()) as client:
        client.socket.sendall(b"POST /export/users.csv HTTP/1.1\r\nHost: sluice.test\r\nContent-Length: 2\r\n\r\n{}")
        answer = client.read()
    assert answer.status == 400
    assert answer.problem()["code"] == "unexpected_body"


def test_a_failed_export_names_the_reason_and_leaves_no_file(
    server: LiveServer, storage: Path, postgres: Postgres
) -> None:
    postgres.run("CREATE VIEW failing AS SELECT n, 1 / (n - 4000) AS x FROM generate_series(1, 5000) AS n")
    document = wait_for(server, save(server, "failing.csv"), "failed")
    assert document["error"]["code"] == "relation_failed"
    assert "divides by zero" in document["error"]["detail"]
    assert document["attempts"] == 1
    assert document["downloadUrl"] is None
    assert not list((storage / document["exportId"]).glob("data*"))
    answer = download(server, document["exportId"])
    assert answer.status == 410
    assert "divides by zero" in answer.problem()["detail"]


def test_an_export_fails_if_its_relation_was_dropped_meanwhile(
    server: LiveServer, postgres: Postgres, storage: Path
) -> None:
    gates = [Gate(postgres, f"gated{number}") for number in range(2)]
    running = [save(server, f"gated{number}.csv") for number in range(2)]
    for id in running:
        wait_for(server, id, "processing")
    postgres.run("CREATE TABLE passing AS SELECT 1 AS one")
    id = save(server, "passing.csv")
    postgres.run("DROP TABLE passing")
    for gate in gates:
        gate.open()
    assert wait_for(server, id, "failed")["error"]["code"] == "relation_not_found"
    for each in running:
        assert_whole(storage, wait_for(server, each, "completed"), gates[0].content)


# --- progress --------------------------------------------------------------------------------------------------------


def read_events(server: LiveServer, id: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, data) of every event until the stream ends."""
    answer = ask(server, f"/exports/{id}/events")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.ending == "terminator"
    found = []
    for block in answer.body.decode().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_the_percentage_of_events_never_falls_and_reaches_100(
    server: LiveServer, postgres: Postgres, gate: Gate
) -> None:
    postgres.run("CREATE TABLE steps AS SELECT n FROM generate_series(1, 200000) AS n; ANALYZE steps")
    key = gate._key
    postgres.run(
        f"CREATE VIEW slow AS SELECT n, CASE WHEN n = 150000 THEN pg_advisory_xact_lock_shared({key})::text END AS x "
        "FROM steps"
    )
    id = save(server, "slow.csv")
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read_events, server, id)
        # The export waits in the middle, and events keep coming.
        eventually("the export waits", lambda: gate.waiting(postgres))
        with Client(server.connect()) as client:
            client.send(f"/exports/{id}/events")
            eventually("three events", lambda: client.receive() and client._received.count(b"data:") >= 3)
        middle = status(server, id)
        assert middle["status"] == "processing"
        assert middle["progress"]["totalRows"] == pytest.approx(200000, rel=0.5)
        gate.open()
        events = reading.result(60)
    assert {name for name, _ in events} == {"message"}
    documents = [document for _, document in events]
    assert documents[-1]["status"] == "completed"
    percentages = [document["progress"]["percentage"] for document in documents]
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100
    assert all(percentage < 100 for percentage in percentages[:-1])
    assert "processing" in {document["status"] for document in documents}
    # A client that connects later gets the final status at once.
    assert [document["status"] for _, document in read_events(server, id)] == ["completed"]


@pytest.mark.parametrize("way", ["cancelled", "removed"])
def test_events_end_when_the_export_ends(server: LiveServer, gate: Gate, storage: Path, way: str) -> None:
    blockers = [save(server, "gated.csv") for _ in range(2)]
    for each in blockers:
        wait_for(server, each, "processing")
    id = save(server, "users.csv")
    with Client(server.connect()) as client:
        client.send(f"/exports/{id}/events")
        eventually("the first event", lambda: client.receive() and b"data:" in client._received)
        if way == "cancelled":
            assert ask(server, f"/exports/{id}", method="DELETE").status == 204
        else:
            shutil.rmtree(storage / id)
        answer = client.read()
    assert answer.ending == "terminator"
    last = answer.body.decode().strip().split("\n\n")[-1]
    assert last.startswith("event: removed\n" if way == "removed" else "data: ")
    assert way == "removed" or json.loads(last.removeprefix("data: "))["status"] == "cancelled"
    for each in blockers:
        assert ask(server, f"/exports/{each}", method="DELETE").status == 204


# --- one key, one export ---------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_export(server: LiveServer, gate: Gate) -> None:
    key = 'a key: with, any "text"'
    first = post(server, "gated.csv", Idempotency_Key=key)
    again = post(server, "gated.csv", Idempotency_Key=key)
    assert (first.status, again.status) == (202, 202)
    assert first.headers["location"] == again.headers["location"]
    gate.open()
    id = answer_json(first)["exportId"]
    wait_for(server, id, "completed")
    done = post(server, "gated.csv", Idempotency_Key=key)
    assert done.status == 200
    assert answer_json(done) == status(server, id)
    other = post(server, "users.csv", Idempotency_Key=key)
    assert other.status == 422
    assert other.problem()["code"] == "idempotency_key_reused"
    assert key not in id
    # Once the export is removed, the key can be used again.
    assert ask(server, f"/exports/{id}", method="DELETE").status == 204
    assert wait_for(server, save(server, "users.csv", Idempotency_Key=key))["status"] == "completed"


def test_concurrent_requests_with_one_key_give_one_export(server: LiveServer) -> None:
    clear(server)
    barrier = threading.Barrier(8)

    def send(number: int) -> tuple[int, str]:
        barrier.wait(30)
        answer = post(server, "users.csv?limit=10", Idempotency_Key="simultaneous")
        return answer.status, answer.headers["location"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {code for code, _ in answers} <= {200, 202}
    assert len({location for _, location in answers}) == 1
    assert len(listed(server)) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "a\tb"])
def test_an_invalid_key_is_refused(server: LiveServer, key: str) -> None:
    answer = post(server, "users.csv", Idempotency_Key=key)
    assert answer.status == 400
    assert answer.problem()["code"] == "invalid_idempotency_key"


# --- cancel and remove -----------------------------------------------------------------------------------------------


def test_delete_cancels_a_running_export_of_any_worker(
    server: LiveServer, storage: Path, postgres: Postgres, gate: Gate
) -> None:
    # Several, because either worker may accept the connection: some reach the worker that does not run the export.
    for _ in range(4):
        id = save(server, "gated.csv")
        wait_for(server, id, "processing")
        eventually("it waits", lambda: gate.waiting(postgres))
        started = time.monotonic()
        assert ask(server, f"/exports/{id}", method="DELETE").status == 204
        wait_for(server, id, "cancelled")
        assert time.monotonic() - started < 20  # ten times the documented limit
        assert not list((storage / id).glob("data*"))
        assert download(server, id).problem()["code"] == "export_cancelled"
        eventually("PostgreSQL has stopped", lambda: not gate.waiting(postgres))
        # A second DELETE removes the cancelled export.
        assert ask(server, f"/exports/{id}", method="DELETE").status == 204
        assert ask(server, f"/exports/{id}").status == 404
        assert not (storage / id).exists()


def test_delete_cancels_a_pending_export_at_once(server: LiveServer, storage: Path, gate: Gate) -> None:
    running = [save(server, "gated.csv") for _ in range(2)]
    for id in running:
        wait_for(server, id, "processing")
    waiting = save(server, "users.csv")
    assert ask(server, f"/exports/{waiting}", method="DELETE").status == 204
    assert status(server, waiting)["status"] == "cancelled"
    gate.open()
    for id in running:
        wait_for(server, id, "completed")
    assert status(server, waiting)["status"] == "cancelled"
    assert not list((storage / waiting).glob("data*"))


def test_delete_removes_a_finished_export(server: LiveServer, storage: Path) -> None:
    id = saved(server, "users.csv?limit=3")["exportId"]
    assert ask(server, f"/exports/{id}", method="DELETE").status == 204
    assert not (storage / id).exists()
    for method, path in (("GET", ""), ("GET", "/download"), ("GET", "/events"), ("DELETE", "")):
        answer = ask(server, f"/exports/{id}{path}", method=method)
        assert answer.status == 404
        assert answer.problem()["code"] == "export_not_found"


@pytest.mark.parametrize(
    "id",
    [
        "x",
        "A" * 22,
        "A" * 23,
        "..",
        "%2e%2e",
        "..%2F..%2Fetc",
        "%2e%2e%2fstorage",
        ".secret",
        ".slot-0",
        "A" * 21 + "%00",
        "A" * 21 + "%0a",
        "%F0%9F%A6%A5" * 22,
        "%D9%A0" * 22,
    ],
)
@pytest.mark.parametrize("rest", ["", "/download", "/events"])
def test_an_invalid_id_is_not_found(server: LiveServer, id: str, rest: str) -> None:
    for method in ("GET", "DELETE") if not rest else ("GET",):
        answer = ask(server, f"/exports/{id}{rest}", method=method)
        assert answer.status == 404
        assert answer.problem()["status"] == 404


def test_parameters_are_refused(server: LiveServer) -> None:
    id = saved(server, "users.csv?limit=1")["exportId"]
    for path in ("", f"/{id}", f"/{id}/events", f"/{id}/download"):
        answer = ask(server, f"/exports{path}?offset=1")
        assert answer.status == 400
        assert answer.problem()["code"] == "unknown_parameter"


# --- pages of other sites --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://sluice.test"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://sluice.test"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.test"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://sluice.test:8000"}, False),
        ({"Origin": "http://evil.test"}, False),
        ({"Origin": "http://sluice.test.evil.test"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
    ],
)
def test_a_page_of_another_site_changes_nothing(server: LiveServer, headers: dict[str, str], allowed: bool) -> None:
    id = saved(server, "users.csv?limit=1")["exportId"]
    before = len(listed(server))
    answers = [
        ask(server, "/export/users.csv?limit=2", method="POST", headers=headers),
        ask(server, f"/exports/{id}", method="DELETE", headers=headers),
    ]
    if allowed:
        assert [answer.status for answer in answers] == [202, 204]
    else:
        assert {(answer.status, answer.problem()["code"]) for answer in answers} == {(403, "foreign_page")}
        assert len(listed(server)) == before
    assert ask(server, "/exports", headers=headers).status == (200 if allowed else 403)


# --- order and slots -------------------------------------------------------------------------------------------------


def test_exports_beyond_the_slots_wait_and_run_in_order(
    start_live: Callable[..., LiveServer], tmp_path: Path, postgres: Postgres, gate: Gate
) -> None:
    shared = {"EXPORT_STORAGE_PATH": str(tmp_path), "MAX_RUNNING_EXPORTS": "1"}
    servers = [start_live(**shared, WEB_CONCURRENCY="2"), start_live(**shared)]
    ids = [save(servers[number % 2], "gated.csv") for number in range(5)]
    eventually("one waits at the gate", lambda: gate.waiting(postgres))
    for server in servers:
        assert [status(server, id)["status"] for id in ids] == ["processing", *["pending"] * 4]
        assert [document["exportId"] for document in listed(server)] == ids[::-1]
    assert len(gate.waiting(postgres)) == 1
    gate.open()
    documents = [wait_for(servers[0], id, "completed") for id in ids]
    started = [document["startedAt"] for document in documents]
    assert started == sorted(started)
    for earlier, later in itertools.pairwise(documents):
        assert later["startedAt"] >= earlier["completedAt"]
    for document in documents:
        assert document["attempts"] == 1
        assert_whole(tmp_path, document, gate.content)


def test_an_export_waits_while_downloads_use_all_connections(
    start_live: Callable[..., LiveServer], tmp_path: Path, postgres: Postgres, gate: Gate
) -> None:
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), MAX_CONCURRENT_EXPORTS="1")
    with Client(server.connect()) as client:
        client.send("/export/gated.csv")
        eventually("the download waits at the gate", lambda: gate.waiting(postgres))
        id = save(server, "users.csv")
        assert ask(server, "/export/users.csv").status == 503
        assert status(server, id)["status"] == "pending"
        gate.open()
        assert client.read().body == gate.content
    document = wait_for(server, id, "completed")
    assert document["attempts"] == 1
    assert_whole(tmp_path, document)


# --- the database becomes unavailable --------------------------------------------------------------------------------


def test_an_export_whose_backend_is_terminated_is_tried_again(
    server: LiveServer, storage: Path, postgres: Postgres, gate: Gate
) -> None:
    id = save(server, "gated.csv")
    eventually("it waits", lambda: gate.waiting(postgres))
    before = status(server, id)["progress"]["percentage"]
    postgres.run("SELECT pg_terminate_backend(%s)", (gate.waiting(postgres)[0],))
    server.wait_for_log(f"export will be tried again.*exportId={id}", seconds=30)
    assert status(server, id)["progress"]["percentage"] >= before
    gate.open()
    document = wait_for(server, id, "completed")
    assert document["attempts"] == 1  # a setback, not an attempt
    assert_whole(storage, document, gate.content)


@pytest.mark.slow
def test_an_export_that_is_cancelled_in_the_database_is_tried_a_limited_number_of_times(
    start_live: Callable[..., LiveServer], tmp_path: Path, postgres: Postgres, gate: Gate
) -> None:
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), EXPORT_MAX_ATTEMPTS="2")
    id = save(server, "gated.csv")
    for _ in range(2):
        eventually("it waits", lambda: gate.waiting(postgres), seconds=30)
        (pid,) = gate.waiting(postgres)
        postgres.run("SELECT pg_cancel_backend(%s)", (pid,))
        eventually("it has ended", functools.partial(gate.passed, postgres, pid))
    document = wait_for(server, id, "failed")
    assert document["error"]["code"] == "query_cancelled"
    assert document["attempts"] == 2


@pytest.mark.slow
def test_exports_wait_for_a_restart_of_postgres(
    start_live: Callable[..., LiveServer], folder: Path, tmp_path: Path
) -> None:
    own = OwnPostgres(folder)
    try:
        own.start()
        own.run("CREATE TABLE small AS SELECT 1 AS one")
        before = Postgres(own.url)
        gate = Gate(before)  # opened by the restart, which ends the session that holds the lock
        server = start_live(DATABASE_URL=own.url, EXPORT_STORAGE_PATH=str(tmp_path), MAX_RUNNING_EXPORTS="1")
        ids = [save(server, "gated.csv"), save(server, "small.csv")]
        eventually("it waits", lambda: gate.waiting(before))
        own.stop()
        before.connection.close()
        gate.open()
        server.wait_for_log("export will be tried again", seconds=30)
        assert ask(server, "/health/live").status == 200
        assert post(server, "small.csv").status == 503
        own.start()
        for id in ids:
            document = wait_for(server, id, "completed")
            assert document["attempts"] == 1
            assert_whole(tmp_path, document)
    finally:
        own.stop()


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_downloads_work_without_the_folder(start_live: Callable[..., LiveServer], tmp_path: Path) -> None:
    # Root may write anywhere, but not create a folder in a file or in /proc.
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/1/sluice")):
        server = start_live(EXPORT_STORAGE_PATH=str(path))
        server.wait_for_log("the folder of saved exports cannot be used")
        assert ask(server, "/export/users.csv?limit=1").status == 200
        for method, address in (("POST", "/export/users.csv"), ("GET", "/exports"), ("GET", "/exports/" + "A" * 22)):
            answer = ask(server, address, method=method)
            assert answer.status == 503
            assert answer.problem()["code"] == "storage_unavailable"
            assert "retry-after" in answer.headers
            assert str(tmp_path) not in answer.body.decode()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_unmounted_and_mounted_is_used_again(
    start_live: Callable[..., LiveServer], tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    server = start_live(EXPORT_STORAGE_PATH=str(storage))
    document = saved(server, "users.csv")
    storage.rename(tmp_path / "away")
    assert post(server, "users.csv").status == 503
    assert download(server, document["exportId"]).status == 503
    (tmp_path / "away").rename(storage)
    assert status(server, document["exportId"]) == document
    assert_whole(storage, saved(server, "users.csv"))


def test_removing_the_folder_of_a_running_export_ends_only_this_export(
    server: LiveServer, storage: Path, postgres: Postgres, gate: Gate
) -> None:
    id = save(server, "gated.csv")
    eventually("it waits", lambda: gate.waiting(postgres))
    (storage / id).rename(storage.parent / "taken away")
    gate.open()
    server.wait_for_log(f"removed by hand.*exportId={id}", seconds=30)
    assert ask(server, f"/exports/{id}").status == 404
    assert_whole(storage, saved(server, "users.csv"))


@pytest.mark.slow
def test_finished_exports_expire_and_the_oldest_are_removed_first(
    start_live: Callable[..., LiveServer], tmp_path: Path
) -> None:
    size = len(ask(start_live(EXPORT_STORAGE_PATH=str(tmp_path / "other")), "/export/users.csv").body)
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), EXPORT_STORAGE_LIMIT=str(int(size * 2.5)))
    ids = [saved(server, "users.csv")["exportId"] for _ in range(4)]
    eventually("the oldest are gone", lambda: len(listed(server)) == 2)
    assert [document["exportId"] for document in listed(server)] == [ids[3], ids[2]]
    server.stop()
    again = start_live(EXPORT_STORAGE_PATH=str(tmp_path), EXPORT_RETENTION="0.001")
    eventually("all have expired", lambda: listed(again) == [])
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".") and path.name != "other"]


def test_an_export_larger_than_the_limit_fails(
    start_live: Callable[..., LiveServer], tmp_path: Path, postgres: Postgres
) -> None:
    postgres.run("CREATE VIEW large AS SELECT generate_series(1, 400000) AS n, repeat('x', 1000) AS filler")
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), EXPORT_STORAGE_LIMIT="1MB")
    document = wait_for(server, save(server, "large.csv"), "failed")
    assert document["error"]["code"] == "no_space_left"
    assert "no space left" in document["error"]["detail"]
    assert not list((tmp_path / document["exportId"]).glob("data*"))


def test_a_disk_that_fills_up_fails_only_the_export(
    start_live: Callable[..., LiveServer], tiny: Path, postgres: Postgres
) -> None:
    postgres.run("CREATE VIEW large AS SELECT generate_series(1, 20000) AS n, repeat('x', 1000) AS filler")
    server = start_live(EXPORT_STORAGE_PATH=str(tiny / "storage"), EXPORT_MIN_FREE_SPACE="0")
    document = wait_for(server, save(server, "large.csv"), "failed")
    assert document["error"]["code"] == "no_space_left"
    assert document["attempts"] == 1
    assert not list((tiny / "storage" / document["exportId"]).glob("data*"))
    assert ask(server, "/export/large.csv?limit=1").status == 200
    assert_whole(tiny / "storage", saved(server, "large.csv?limit=10"))


def test_an_export_fails_if_it_leaves_less_than_the_minimum_of_free_space(
    start_live: Callable[..., LiveServer], tiny: Path, postgres: Postgres
) -> None:
    postgres.run("CREATE VIEW large AS SELECT generate_series(1, 20000) AS n, repeat('x', 1000) AS filler")
    server = start_live(EXPORT_STORAGE_PATH=str(tiny / "storage"), EXPORT_MIN_FREE_SPACE="300kB")
    assert wait_for(server, save(server, "large.csv"), "failed")["error"]["code"] == "no_space_left"


def test_an_export_is_refused_without_the_minimum_of_free_space(
    start_live: Callable[..., LiveServer], tmp_path: Path
) -> None:
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), EXPORT_MIN_FREE_SPACE="1000PB")
    answer = post(server, "users.csv")
    assert answer.status == 507
    assert answer.problem()["code"] == "no_space_left"
    assert listed(server) == []
    assert ask(server, "/export/users.csv").status == 200

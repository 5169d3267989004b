"""SIGKILL at every step and at random moments: every accepted export is completed, and every completed file is whole.

After each kill a new worker, or a new server, finds the folder as the killed one left it.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import ask
from tests.support.saved_exports import Gate, answer_json, assert_whole, eventually, post, save, status, wait_for

pytestmark = pytest.mark.slow

# More steps than an export and its recovery have together.
STEPS = range(1, 46)
# Kills at random moments: of the worker, and of all processes.
WORKER_KILLS, SERVER_KILLS = 14, 3
# Makes the moments repeatable, as far as the machine allows.
SEED = 5


class DyingServer(LiveServer):
    """tests/support/dying_server.py."""

    module = "tests.support.dying_server"


def try_to_save(server: LiveServer, target: str, key: str) -> str | None:
    """Save an export and return its id, or None if the server was killed before it answered."""
    try:
        answer = post(server, target, Idempotency_Key=key)
    except ConnectionError:
        return None
    if answer.ending != "length":
        return None
    assert answer.status in (200, 202), answer.body
    id: str = answer_json(answer)["exportId"]
    return id


def assert_accepted_are_completed(
    server: LiveServer, storage: Path, accepted: dict[str, str], contents: dict[str, bytes]
) -> None:
    """Check that every accepted export is completed and whole, and that the crashes have left nothing else."""
    for id, target in accepted.items():
        assert_whole(storage, wait_for(server, id, "completed"), contents[target])

    def settled() -> bool:
        documents = answer_json(ask(server, "/exports"))["exports"]
        assert accepted.keys() <= {document["exportId"] for document in documents}
        return all(document["status"] == "completed" for document in documents)

    eventually("exports whose answer was lost are completed too", settled)
    folders = [path for path in storage.iterdir() if path.is_dir() and not path.name.startswith(".new-")]
    for folder in folders:
        document = status(server, folder.name)
        assert_whole(storage, document, contents[document["relation"] + "." + document["format"]])
        assert {path.name for path in folder.iterdir()} <= {
            *("lock", "manifest.json", "progress.json", f"data.{document['format']}")
        }


@pytest.fixture
def contents(postgres: Postgres) -> dict[str, bytes]:
    """Map targets to the bytes of their files."""
    postgres.run("CREATE TABLE small AS SELECT n, md5(n::text) AS text FROM generate_series(1, 50) AS n")
    postgres.run("CREATE TABLE medium AS SELECT n, repeat('x', 90) AS text FROM generate_series(1, 60000) AS n")
    return {f"{name}.csv": postgres.copy(f"SELECT * FROM {name}") for name in ("small", "medium")}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "plan"


@pytest.fixture
def start_dying(database_url: str, plan: Path) -> Iterator[Callable[..., DyingServer]]:
    started: list[DyingServer] = []

    def start(steps: list[int], **environment: str) -> DyingServer:
        plan.write_text("\n".join(map(str, steps)))
        server = DyingServer(DATABASE_URL=database_url, DYING_PLAN=str(plan), **environment)
        started.append(server)
        server.__enter__()
        return server

    yield start
    for server in started:
        server.__exit__(None, None, None)


def test_killed_at_every_step(
    start_dying: Callable[..., DyingServer], plan: Path, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    storage = tmp_path / "storage"
    server = start_dying(
        [*STEPS, 0], EXPORT_STORAGE_PATH=str(storage), EXPORT_MAX_ATTEMPTS="1000", MAX_RUNNING_EXPORTS="2"
    )
    accepted: dict[str, str] = {}
    number = 0

    def save_another() -> bool:
        nonlocal number
        number += 1
        id = try_to_save(server, "small.csv", f"step {number}")
        if id is not None:
            accepted[id] = "small.csv"
        return not plan.read_text()

    eventually("every step has killed a worker", save_another, seconds=90)
    assert_accepted_are_completed(server, storage, accepted, contents)


def test_killed_at_any_moment(
    start_live: Callable[..., LiveServer], tmp_path: Path, contents: dict[str, bytes]
) -> None:
    settings = {"EXPORT_STORAGE_PATH": str(tmp_path), "EXPORT_MAX_ATTEMPTS": "1000", "MAX_RUNNING_EXPORTS": "3"}
    server = start_live(**settings)
    moments = random.Random(SEED)
    accepted: dict[str, str] = {}
    everything = set(moments.sample(range(WORKER_KILLS + SERVER_KILLS), SERVER_KILLS))
    for number in range(WORKER_KILLS + SERVER_KILLS):
        for each in range(3):
            target = moments.choice(list(contents))
            id = try_to_save(server, target, f"{number} {each}")
            if id is not None:
                accepted[id] = target
        time.sleep(moments.uniform(0, 0.15))  # a random moment: no assertion depends on it
        if number in everything:
            server.kill()
            server = start_live(**settings)
        else:
            workers = server.workers()
            for worker in workers:
                worker.kill()
            psutil.wait_procs(workers, timeout=10)
    assert accepted
    assert_accepted_are_completed(server, tmp_path, accepted, contents)


def test_an_export_during_which_the_server_is_killed_each_time_fails(
    start_dying: Callable[..., DyingServer], tmp_path: Path, postgres: Postgres, gate: Gate
) -> None:
    """An export that makes the worker run out of memory must not be tried without end."""
    storage = tmp_path / "storage"
    server = start_dying([], EXPORT_STORAGE_PATH=str(storage), EXPORT_MAX_ATTEMPTS="3")
    id = save(server, "gated.csv")
    for attempt in range(1, 4):
        eventually("it waits", lambda: gate.waiting(postgres))
        (pid,) = gate.waiting(postgres)
        assert status(server, id)["attempts"] == attempt
        for worker in server.workers():
            worker.kill()
        eventually("PostgreSQL has noticed", functools.partial(gate.passed, postgres, pid), seconds=30)
    document = wait_for(server, id, "failed")
    assert document["error"] == {
        "code": "interrupted",
        "detail": "The server was killed during each of 3 attempts.",
    }
    assert not list((storage / id).glob("data*"))


def test_another_server_recovers_the_export_of_a_killed_one(
    start_live: Callable[..., LiveServer], tmp_path: Path, postgres: Postgres, gate: Gate
) -> None:
    first = start_live(EXPORT_STORAGE_PATH=str(tmp_path))
    id = save(first, "gated.csv")
    eventually("it waits", lambda: gate.waiting(postgres))
    second = start_live(EXPORT_STORAGE_PATH=str(tmp_path))
    eventually("the other sees how far it is", lambda: status(second, id)["progress"]["processedRows"] > 0)
    before = status(second, id)
    assert before["status"] == "processing"
    first.kill()
    second.wait_for_log(f"export interrupted.*exportId={id}", seconds=30)
    assert status(second, id)["progress"]["percentage"] >= before["progress"]["percentage"]
    gate.open()
    document = wait_for(second, id, "completed")
    assert document["attempts"] == 2
    assert_whole(tmp_path, document, gate.content)


def test_servers_on_one_folder_run_each_export_once(
    start_live: Callable[..., LiveServer], tmp_path: Path, contents: dict[str, bytes]
) -> None:
    shared = {"EXPORT_STORAGE_PATH": str(tmp_path), "MAX_RUNNING_EXPORTS": "3"}
    servers = [start_live(**shared, WEB_CONCURRENCY="2"), start_live(**shared)]
    targets = ["small.csv", "medium.csv"] * 8
    ids = [save(servers[number % 2], target) for number, target in enumerate(targets)]
    for id, target in zip(ids, targets, strict=True):
        documents = [wait_for(server, id, "completed") for server in servers]
        assert documents[0] == documents[1]
        assert_whole(tmp_path, documents[0], contents[target])
    lines = [line for server in servers for line in server.log if 'event="export saved"' in line]
    assert sorted(line.partition("exportId=")[2].split()[0] for line in lines) == sorted(ids)

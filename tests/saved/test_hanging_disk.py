"""The disk of saved exports hangs under gunicorn: downloads, health checks, connections and the shutdown do not."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import logging
import os
import pkgutil
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import saved as package
from server.process import serve
from server.shutdown import STOP_MARGIN
from server.threads import FILE_THREADS
from tests.support.disk_modules import DISK_MODULES
from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.saved_exports import Gate, assert_whole, eventually, save, saved, wait_for

pytestmark = pytest.mark.slow

# More than the pool of files has threads.
REQUESTS = 40
assert REQUESTS > 2 * FILE_THREADS
# SHUTDOWN_TIMEOUT in seconds: the lowest possible, and one that no test waits for.
SHORT_TIMEOUT, LONG_TIMEOUT = 5, 60
# Downloads at once, each on a connection of its own: more than there have been before.
DOWNLOADS = 4

# The call that hangs, and a request that makes it. {id}: a finished export.
CALLS = [
    ("open", "GET", "/exports"),
    ("stat", "GET", "/exports"),
    ("fsync", "POST", "/export/users.csv?limit=1"),
    ("write", "POST", "/export/users.csv?limit=1"),
    ("sendfile", "GET", "/exports/{id}/download"),
]


class HangingServer(LiveServer):
    """tests/support/hanging_server.py. call: the function of os that hangs inside `hanging`."""

    module = "tests.support.hanging_server"

    def __init__(self, call: str, folder: Path, **environment: str) -> None:
        self._flag, self._calls = folder / "flag", folder / "calls"
        self._calls.touch()
        super().__init__(HANGING_CALL=call, HANGING_FLAG=str(self._flag), HANGING_CALLS=str(self._calls), **environment)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        self._flag.touch()
        try:
            yield
        finally:
            self._flag.unlink()

    @property
    def hanging_calls(self) -> int:
        """The number of calls that have hung so far."""
        return self._calls.stat().st_size


@pytest.fixture
def start_hanging(database_url: str, tmp_path: Path) -> Iterator[Callable[..., HangingServer]]:
    """Starts a server whose disk may hang. timeout: SHUTDOWN_TIMEOUT."""
    with ExitStack() as stack:

        def start(call: str, timeout: int = LONG_TIMEOUT) -> HangingServer:
            server = HangingServer(
                call,
                tmp_path,
                DATABASE_URL=database_url,
                EXPORT_STORAGE_PATH=str(tmp_path / "storage"),
                MAX_CONCURRENT_EXPORTS="8",
                SHUTDOWN_TIMEOUT=str(timeout),
            )
            stack.enter_context(server)
            return server

        yield start


def send_requests(server: LiveServer, stack: ExitStack, method: str, path: str) -> list[Client]:
    """Send REQUESTS requests, each on a connection of its own, and read no answer."""
    clients = [stack.enter_context(Client(server.connect())) for _ in range(REQUESTS)]
    for client in clients:
        client.send(path, method=method)
    return clients


def received(clients: list[Client]) -> list[bytes]:
    """Return what clients have received so far, without reading it. Leave out clients that have received nothing."""
    ready = select.select([client.socket for client in clients], [], [], 0)[0]
    return [connection.recv(1 << 16, socket.MSG_PEEK) for connection in ready]


def assert_downloads_work(server: LiveServer, postgres: Postgres) -> None:
    """Downloads are compressed and whole, the health check answers, and new connections are made."""
    expected = postgres.copy("SELECT * FROM users")
    answer = ask(server, "/export/users.csv.gz")
    assert answer.status == 200
    assert gzip.decompress(answer.body) == expected
    compressed = ask(server, "/export/users.csv", headers={"Accept-Encoding": "gzip"})
    assert gzip.decompress(compressed.body) == expected
    assert ask(server, "/health/ready").status == 200
    other = Gate(postgres, "other_gate")
    with ExitStack() as stack:
        stack.callback(other.open)
        clients = [stack.enter_context(Client(server.connect())) for _ in range(DOWNLOADS)]
        for client in clients:
            client.send("/export/other_gate.csv.gz")
        eventually("each download has a connection", lambda: len(other.waiting(postgres)) == DOWNLOADS)
        other.open()
        for client in clients:
            assert gzip.decompress(client.read().body) == other.content


@pytest.mark.parametrize(("call", "method", "path"), CALLS)
def test_a_disk_that_hangs_delays_nothing_else(
    start_hanging: Callable[..., HangingServer],
    tmp_path: Path,
    postgres: Postgres,
    gate: Gate,
    call: str,
    method: str,
    path: str,
) -> None:
    server = start_hanging(call)
    finished = saved(server, "users.csv?limit=1")["exportId"]  # the list calls stat for a finished export
    id = save(server, "gated.csv")
    eventually("the export runs", lambda: gate.waiting(postgres))
    with ExitStack() as stack:
        with server.hanging():
            gate.open()  # the next chunk goes to the disk
            clients = send_requests(server, stack, method, path.format(id=finished))
            # One thread looks at the manifests, and the others wait for what it finds.
            hanging = 1 if call == "stat" else FILE_THREADS
            eventually("calls hang in the threads", lambda: server.hanging_calls >= hanging)
            assert_downloads_work(server, postgres)
            if call == "sendfile":  # which comes after the headers
                eventually("the headers have come", lambda: len(received(clients)) >= FILE_THREADS)
                assert {data.partition(b"\r\n\r\n")[1:] for data in received(clients)} == {(b"\r\n\r\n", b"")}
            else:
                assert received(clients) == []
        for client in clients:
            answer = client.read()
            assert answer.status in (200, 202)
            assert answer.ending in ("length", "terminator")
    document = wait_for(server, id, "completed")
    assert document["attempts"] == 1
    assert_whole(tmp_path / "storage", document, gate.content)


@pytest.mark.parametrize(("call", "method", "path"), [CALLS[0], CALLS[2], CALLS[4]])
def test_a_disk_that_hangs_does_not_keep_the_server_from_stopping(
    start_hanging: Callable[..., HangingServer],
    start_live: Callable[..., LiveServer],
    tmp_path: Path,
    postgres: Postgres,
    gate: Gate,
    call: str,
    method: str,
    path: str,
) -> None:
    """It stops within its own limits: gunicorn would kill the worker only after the test has stopped waiting."""
    # Downloads drain first, and one that hangs would take the whole time.
    timeout = SHORT_TIMEOUT if call == "sendfile" else LONG_TIMEOUT
    server = start_hanging(call, timeout)
    finished = saved(server, "users.csv?limit=1")["exportId"]
    id = save(server, "gated.csv")
    eventually("the export runs", lambda: gate.waiting(postgres))
    with ExitStack() as stack:
        with server.hanging():
            send_requests(server, stack, method, path.format(id=finished))
            eventually("calls hang in all threads", lambda: server.hanging_calls >= FILE_THREADS)
            workers = server.workers()
            assert server.stop(signal.SIGTERM, seconds=min(40, timeout + STOP_MARGIN)) == 0
            assert not any(worker.is_running() for worker in workers)
            server.wait_for_log('event="saved exports did not stop in time"')
        eventually("the query has ended", lambda: not gate.waiting(postgres))
    # What was not given back in time is recovered by the next start.
    again = start_live(EXPORT_STORAGE_PATH=str(tmp_path / "storage"))
    gate.open()
    document = wait_for(again, id, "completed")
    assert_whole(tmp_path / "storage", document, gate.content)


def test_a_server_starts_although_the_disk_hangs(
    start_hanging: Callable[..., HangingServer], tmp_path: Path, postgres: Postgres
) -> None:
    (tmp_path / "flag").touch()
    server = start_hanging("open")
    eventually("it hangs", lambda: server.hanging_calls)
    assert_downloads_work(server, postgres)
    (tmp_path / "flag").unlink()
    eventually("the folder is prepared", lambda: ask(server, "/exports").status == 200)
    assert_whole(tmp_path / "storage", saved(server, "users.csv"))


def test_a_worker_process_ends_although_a_thread_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    thread = threading.Thread(target=answer.wait, args=(60,))
    exits: list[int] = []
    monkeypatch.setattr(serve, "THREAD_SECONDS", 0.05)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread(), thread])
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(os, "_exit", exits.append)
    thread.start()
    serve.abandon_hanging_threads(None, SimpleNamespace(pid=os.getppid(), exit_code=7))  # as in the main process
    assert exits == []
    serve.abandon_hanging_threads(None, SimpleNamespace(pid=os.getpid(), exit_code=7))
    assert exits == [7]
    answer.set()
    monkeypatch.setattr(serve, "THREAD_SECONDS", 60.0)
    serve.abandon_hanging_threads(None, SimpleNamespace(pid=os.getpid(), exit_code=7))
    assert exits == [7]


def test_all_modules_that_use_the_disk_are_replaced() -> None:
    """The test servers hang and die only in the modules that they know."""
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]
    assert {each for each in modules if hasattr(each, "os")} <= {*DISK_MODULES}

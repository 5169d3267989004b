"""The file of a saved export over HTTP: complete, in parts, resumed, and cut so that no part looks complete."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from server.http.keys import ENGINE, RUNNER
from server.http.routes import saved_file
from server.http.sendfile import FilePart, FileTooShort, send_piece
from server.settings import Settings
from server.threads import FILE_THREADS
from tests.support.byte_ranges import RANGES
from tests.support.engines import make_threads
from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.proxies import running_nginx
from tests.support.raw_http import Client, ask
from tests.support.saved_exports import Gate, download, save, saved, status, wait_for
from tests.support.stalled import read_slowly


@dataclass(frozen=True)
class Saved:
    """A server with a completed export of `users`. data: the file. document: the status."""

    server: LiveServer
    storage: Path
    document: dict[str, Any]
    data: bytes

    @property
    def id(self) -> str:
        id: str = self.document["exportId"]
        return id

    @property
    def etag(self) -> str:
        return f'"{self.document["sha256"]}"'

    @property
    def url(self) -> str:
        return f"{self.server.url}/exports/{self.id}/download"


@pytest.fixture(scope="module")
def users(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    storage = tmp_path_factory.mktemp("storage")
    with LiveServer(DATABASE_URL=database_url, EXPORT_STORAGE_PATH=str(storage)) as server:
        document = saved(server, "users.csv?order=id")
        yield Saved(server, storage, document, (storage / document["exportId"] / "data.csv").read_bytes())


def test_the_whole_file_has_all_its_headers(users: Saved) -> None:
    answer = download(users.server, users.id)
    assert (answer.status, answer.ending) == (200, "length")
    assert answer.body == users.data
    digest = hashlib.sha256(users.data).digest()
    assert answer.headers["etag"] == f'"{digest.hex()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert answer.headers["content-length"] == str(len(users.data))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="users.csv"'
    assert "content-range" not in answer.headers


def test_head_gives_the_same_headers_and_nothing_else(users: Saved) -> None:
    got, asked = download(users.server, users.id), download(users.server, users.id, method="HEAD")
    assert (asked.status, asked.body) == (200, b"")
    for headers in (got.headers, asked.headers):
        assert isinstance(headers, dict)
        headers.pop("date")
        headers.pop("x-request-id")
    assert asked.headers == got.headers


def expected_part(header: str, data: bytes) -> tuple[int, bytes | None]:
    """Return status and body for this Range by the table of `byte_ranges.py`, whose file has 1000 bytes."""
    selection = dict(RANGES)[header]
    if selection.status != 206:
        return selection.status, data if selection.status == 200 else None
    start, _, end = header.partition("=")[2].strip(", ").partition("-")
    if not start:
        return 206, data[-int(end) :]
    return 206, data[int(start) : len(data) if not end or len(end) > 19 else int(end) + 1]


@pytest.mark.parametrize("header", [h for h, _ in RANGES if h.isascii() and "1000-" not in h and "5000" not in h])
def test_a_range_of_the_file(users: Saved, header: str) -> None:
    if header == "bytes=-1000":
        header = "bytes=-0"
    code, body = expected_part(header, users.data)
    answer = download(users.server, users.id, {"Range": header})
    assert answer.status == code
    if code == 416:
        assert answer.problem()["code"] == "range_not_satisfiable"
        assert answer.headers["content-range"] == f"bytes */{len(users.data)}"
        return
    assert answer.body == body
    assert answer.headers["etag"] == users.etag
    assert ("content-range" in answer.headers) == (code == 206)
    if code == 206:
        first, last = answer.headers["content-range"].removeprefix("bytes ").partition("/")[0].split("-")
        assert users.data[int(first) : int(last) + 1] == answer.body
    # Of the whole file, also if a part is sent.
    assert hashlib.sha256(users.data).digest() == base64.b64decode(
        answer.headers["repr-digest"].removeprefix("sha-256=:").removesuffix(":")
    )


@pytest.fixture(scope="module")
def reference(users: Saved) -> Iterator[str]:
    """Yield the URL of the same file on an nginx."""
    folder = users.storage.parent / "nginx"
    folder.mkdir()
    shutil.copy(users.storage / users.id / "data.csv", folder / "data.csv")
    for path in (*folder.parents[:3], folder):  # the worker of nginx runs as another user
        path.chmod(path.stat().st_mode | 0o055)
    (folder / "data.csv").chmod(0o644)
    with running_nginx(f"root {folder};") as address:
        yield f"{address}/data.csv"


def curl(url: str, *options: str) -> tuple[int, str, bytes]:
    """Return status, Content-Range and body as curl receives them."""
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-D", "-", "-o", "-", *options, url], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), fields.get("content-range", ""), body


# Left out is what nginx does differently: multipart/byteranges for several ranges, and 416 for an invalid range.
@pytest.mark.parametrize(
    "header",
    [
        *("0-0", "0-499", "500-999", "17-", "0-", "990-99999999", "-1", "-500", "-99999999", "-0"),
        *("99999999-", "99999999-100000000", "99999999999999999999-"),
    ],
)
def test_a_reference_implementation_answers_the_same(users: Saved, reference: str, header: str) -> None:
    ours, theirs = (curl(url, "-H", f"Range: bytes={header}") for url in (users.url, reference))
    assert ours[:2] == theirs[:2]
    assert ours[0] == 416 or ours[2] == theirs[2]


@pytest.mark.parametrize("stale", [False, True])
def test_if_range_gives_the_rest_or_the_whole_of_another_file(users: Saved, stale: bool) -> None:
    etag = f'"{"0" * 64}"' if stale else users.etag
    answer = download(users.server, users.id, {"Range": "bytes=1000-", "If-Range": etag})
    assert (answer.status, answer.body) == ((200, users.data) if stale else (206, users.data[1000:]))


def test_a_file_that_the_client_has_is_not_sent_again(users: Saved) -> None:
    answer = download(users.server, users.id, {"If-None-Match": users.etag})
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", users.etag)
    refused = download(users.server, users.id, {"If-Match": '"other"'})
    assert refused.problem()["code"] == "precondition_failed"


def test_several_requests_on_one_connection(users: Saved) -> None:
    with Client(users.server.connect()) as client:
        path = f"/exports/{users.id}/download"
        for header in ("bytes=0-9", "bytes=-10", "bytes=0-", "bytes=99999999-", "bytes=5-6"):
            answer = client.ask(path, headers={"Range": header})
            assert answer.status == (416 if header.startswith("bytes=9") else 206)
            assert answer.ending == "length"
        assert client.ask(path).body == users.data
        assert client.ask("/health/live").status == 200
        assert client.nothing_more()


def test_http_1_0_gets_a_content_length(users: Saved) -> None:
    answer = ask(users.server, f"/exports/{users.id}/download", http="1.0")
    assert (answer.status, answer.body, answer.ending) == (200, users.data, "length")


@pytest.mark.parametrize("have", [0, 1, 100_000, -1, None])
def test_curl_resumes_where_it_was_cut(users: Saved, tmp_path: Path, have: int | None) -> None:
    file = tmp_path / "users.csv"
    file.write_bytes(users.data[:have])
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-C", "-", "-o", str(file), users.url], capture_output=True, timeout=60
    )
    # If the file is complete already, some versions of curl treat the 416 as an error.
    assert done.returncode == 0 or (have is None and done.returncode in (22, 33)), done
    assert hashlib.sha256(file.read_bytes()).hexdigest() == users.document["sha256"]


def test_a_hundred_resumed_parts_are_the_same_file(users: Saved, tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    for _ in range(100):
        have = file.stat().st_size if file.exists() else 0
        with file.open("ab") as output, Client(users.server.connect(receive_buffer=4096)) as client:
            client.send(f"/exports/{users.id}/download", headers={"Range": f"bytes={have}-", "If-Range": users.etag})
            head = body = b""
            while len(body) < min(100_000, len(users.data) - have) and client.receive():
                head, _, body = bytes(client._received).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 206")
            output.write(body)
        if file.stat().st_size == len(users.data):
            break
    assert file.read_bytes() == users.data


def test_the_download_of_an_unfinished_export_says_when_to_retry(users: Saved, postgres: Postgres) -> None:
    gate = Gate(postgres)
    try:
        id = save(users.server, "gated.csv")
        answer = download(users.server, id)
        assert answer.problem()["code"] == "export_not_finished"
        assert answer.status == 409
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    finally:
        gate.open()
    wait_for(users.server, id, "completed")
    assert download(users.server, id).body == gate.content


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "link", "folder"])
def test_a_file_that_was_changed_is_not_sent(users: Saved, tmp_path: Path, damage: str) -> None:
    document = saved(users.server, "users.csv?limit=10")
    path = users.storage / document["exportId"] / "data.csv"
    data = path.read_bytes()
    path.unlink()
    if damage in ("shorter", "longer"):
        path.write_bytes(data[:-1] if damage == "shorter" else data + b"\n")
    elif damage == "link":  # to a file of the right size
        (tmp_path / "secret").write_bytes(data)
        path.symlink_to(tmp_path / "secret")
    elif damage == "folder":
        path.mkdir()
    answer = download(users.server, document["exportId"])
    assert answer.status == 410
    assert answer.problem()["code"] == "file_damaged"
    assert status(users.server, document["exportId"]) == document


def test_an_invalid_request_in_a_manifest_is_an_error_of_the_server(users: Saved) -> None:
    document = saved(users.server, "users.csv?limit=10")
    path = users.storage / document["exportId"] / "manifest.json"
    path.write_text(path.read_text().replace("limit=10", "limit=ten"))
    answer = download(users.server, document["exportId"])
    assert answer.status == 500
    assert answer.problem()["code"] == "export_unreadable"


async def test_a_file_opened_for_a_client_that_has_left_is_closed(tmp_path: Path, settings: Settings) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(b"id\n1\n")
    opened: list[int] = []
    opening, proceed = threading.Event(), threading.Event()
    manifest = SimpleNamespace(id="x", status="completed")

    def open_data(id: str) -> tuple[Any, int]:
        opening.set()
        assert proceed.wait(60)
        opened.append(os.open(file, os.O_RDONLY))
        return manifest, opened[0]

    store = SimpleNamespace(get=lambda _: SimpleNamespace(manifest=manifest), open_data=open_data)
    threads = make_threads(settings)
    shared: Any = {
        RUNNER: SimpleNamespace(queue=SimpleNamespace(store=store)),
        ENGINE: SimpleNamespace(threads=threads),
    }
    request = make_mocked_request("GET", "/exports/x/download", match_info={"id": "x"}, app=shared)
    task = asyncio.create_task(saved_file.download(request))
    assert await asyncio.to_thread(opening.wait, 60)
    task.cancel()
    await asyncio.sleep(0)
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.files.shutdown(wait=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
    threads.close()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_file_is_closed_in_a_thread_of_its_pool(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """close() may wait for the disk. A client that leaves meanwhile, with all threads in use, must not prevent it."""
    file = os.open(tmp_path, os.O_RDONLY)
    manifest = SimpleNamespace(id="x", status="completed")
    store = SimpleNamespace(get=lambda _: SimpleNamespace(manifest=manifest), open_data=lambda _: (manifest, file))
    threads, closed_by = make_threads(settings), list[str]()
    answering, proceed = asyncio.Event(), threading.Event()
    shared: Any = {
        RUNNER: SimpleNamespace(queue=SimpleNamespace(store=store)),
        ENGINE: SimpleNamespace(threads=threads),
    }
    close = os.close

    def slowly(descriptor: int) -> None:
        if descriptor == file:
            assert proceed.wait(60)
            closed_by.append(threading.current_thread().name)
        close(descriptor)

    async def answer(*arguments: object) -> web.Response:
        for _ in range(FILE_THREADS):
            threads.files.submit(proceed.wait, 60)
        answering.set()
        if cancelled:
            await asyncio.Event().wait()
        return web.Response()

    monkeypatch.setattr("os.close", slowly)
    monkeypatch.setattr(saved_file, "_answer", answer)
    request = make_mocked_request("GET", "/exports/x/download", match_info={"id": "x"}, app=shared)
    task = asyncio.create_task(saved_file.download(request))
    await answering.wait()
    if cancelled:
        task.cancel()
    await asyncio.wait([task], timeout=60)  # although no thread is free
    assert task.done()
    assert closed_by == []
    proceed.set()
    threads.files.shutdown(wait=True)
    assert [name.partition("_")[0] for name in closed_by] == ["files"]
    threads.close()


async def test_a_piece_for_a_full_socket_or_past_the_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (1 << 20))
    ours, theirs = socket.socketpair()
    counts: list[int] = []
    ours.setblocking(False)
    with ours, theirs, (tmp_path / "file").open("rb") as file, ThreadPoolExecutor(1) as pool:
        with pytest.raises(FileTooShort):
            await send_piece(pool, ours.fileno(), FilePart(file.fileno(), 1 << 20, 1), counts.append)
        assert counts == []
        while True:
            try:
                await send_piece(pool, ours.fileno(), FilePart(file.fileno(), 0, 1 << 20), counts.append)
            except BlockingIOError:
                break
    assert counts
    assert all(counts)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_bytes_that_the_socket_takes_are_counted_also_while_the_client_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    taken, proceed, counts = threading.Event(), threading.Event(), list[int]()
    sendfile = os.sendfile

    def slowly(*arguments: int) -> int:
        count = sendfile(*arguments)
        taken.set()
        assert proceed.wait(60)
        return count

    monkeypatch.setattr("server.http.sendfile.os.sendfile", slowly)
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("rb") as file, ThreadPoolExecutor(1) as pool:
        piece = FilePart(file.fileno(), 100, 700)
        task = asyncio.create_task(send_piece(pool, ours.fileno(), piece, counts.append))
        assert await asyncio.to_thread(taken.wait, 60)
        if cancelled:
            task.cancel()
            await asyncio.sleep(0)
        proceed.set()
        if cancelled:
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task == 700
    assert counts == [700]


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.fixture
def large(start_live: Callable[..., LiveServer], postgres: Postgres, tmp_path: Path) -> tuple[LiveServer, str, int]:
    """Return a server, the id of an export that is larger than what the sockets hold, and its size in bytes."""
    postgres.run("CREATE VIEW large AS SELECT generate_series(1, 30000) AS n, repeat('x', 1000) AS filler")
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), SHUTDOWN_TIMEOUT="60")
    document = saved(server, "large.csv")
    return server, document["exportId"], document["bytes"]


def test_a_client_that_stalls_is_reset(
    large: tuple[LiveServer, str, int], start_live: Callable[..., LiveServer], tmp_path: Path
) -> None:
    patient, id, size = large
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), STALL_TIMEOUT="0.5")
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(f"/exports/{id}/download")
        server.wait_for_log("saved export sent.*outcome=stalled", seconds=30)
        answer = client.read()
    assert answer.ending == "reset"
    assert len(answer.body) < size
    assert ask(server, "/health/live").status == 200
    assert len(download(patient, id).body) == size


@pytest.mark.slow
def test_a_client_that_reads_little_but_all_the_time_gets_the_file(
    large: tuple[LiveServer, str, int], start_live: Callable[..., LiveServer], tmp_path: Path
) -> None:
    _, id, size = large
    server = start_live(EXPORT_STORAGE_PATH=str(tmp_path), STALL_TIMEOUT="0.5")
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(f"/exports/{id}/download")
        read_slowly(client, seconds=1.5)
        answer = client.read()
    assert (answer.ending, len(answer.body)) == ("length", size)
    server.wait_for_log("saved export sent.*outcome=complete")


def test_a_client_that_leaves_is_logged(large: tuple[LiveServer, str, int]) -> None:
    server, id, size = large
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(f"/exports/{id}/download")
        client.receive()
    server.wait_for_log("saved export sent.*outcome=client_left", seconds=30)
    assert len(download(server, id).body) == size


def test_a_stopping_server_waits_for_a_download(large: tuple[LiveServer, str, int]) -> None:
    server, id, size = large
    with Client(server.connect(receive_buffer=65536)) as client:
        client.send(f"/exports/{id}/download")
        client.receive()
        server.process.send_signal(signal.SIGTERM)
        answer = client.read()
    assert (answer.ending, len(answer.body)) == ("length", size)
    assert server.stop() == 0


def test_a_server_that_stops_at_once_resets_a_download(large: tuple[LiveServer, str, int]) -> None:
    server, id, size = large
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(f"/exports/{id}/download")
        client.receive()
        assert server.stop(signal.SIGINT) == 0
        answer = client.read()
    assert answer.ending == "reset"
    assert len(answer.body) < size
    server.wait_for_log("saved export sent.*outcome=shutdown")


def test_a_file_that_becomes_shorter_resets_its_download(large: tuple[LiveServer, str, int], tmp_path: Path) -> None:
    server, id, size = large
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send(f"/exports/{id}/download")
        client.receive()
        os.truncate(tmp_path / id / "data.csv", 1000)
        answer = client.read()
    assert answer.ending == "reset"
    assert len(answer.body) < size
    server.wait_for_log("shorter than it was")


def test_a_running_download_continues_after_its_file_is_removed(large: tuple[LiveServer, str, int]) -> None:
    server, id, size = large
    with Client(server.connect(receive_buffer=65536)) as client:
        client.send(f"/exports/{id}/download")
        client.receive()
        assert ask(server, f"/exports/{id}", method="DELETE").status == 204
        assert len(client.read().body) == size
    assert download(server, id).status == 404

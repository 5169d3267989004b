"""What the README says of wget, curl and psql: what resumes, what is named how, and what a cut pipe does."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.live_server import LiveServer
from tests.support.optional import skip_or_fail
from tests.support.postgres import Postgres
from tests.support.raw_http import ask
from tests.support.saved_exports import saved


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    storage = tmp_path_factory.mktemp("storage")
    with LiveServer(DATABASE_URL=database_url, EXPORT_STORAGE_PATH=str(storage)) as server:
        yield server


@pytest.fixture(scope="module")
def users(server: LiveServer) -> dict[str, Any]:
    """The status of a saved export of the users."""
    return saved(server, "users.csv?order=id")


def run(folder: Path, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the program in the folder; skip the test if there is none. CI must have it."""
    if shutil.which(command[0]) is None:
        skip_or_fail(f"{command[0]} is not installed")
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("users.csv?limit=3", "users.csv"),
        ("public.users.csv.gz?limit=3", "users.csv.gz"),
        ("users.ndjson?limit=3&filename=report", "report.ndjson"),
        ("users.csv?limit=3&filename=CON", "_CON.csv"),
        ("users.csv?limit=3&filename=my%20report%20100%25", "my report 100%.csv"),
        ("users.csv?limit=3&filename=gr%C3%B6%C3%9Fe%2F%7Bx%7D", "größe_{x}.csv"),
    ],
)
def test_the_address_of_a_saved_file_ends_in_its_name(
    server: LiveServer, tmp_path: Path, target: str, name: str
) -> None:
    document = saved(server, target)
    encoded = quote(name, safe="")
    assert document["downloadUrl"] == f"/exports/{document['exportId']}/download/{encoded}"
    done = run(tmp_path, "curl", "-sSfO", "--noproxy", "*", server.url + document["downloadUrl"])
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert file.name in (name, encoded)  # curl keeps the escapes
    assert hashlib.sha256(file.read_bytes()).hexdigest() == document["sha256"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=5-20"}, {"Range": "bytes=-1", "If-Match": "*"}])
def test_both_addresses_of_a_saved_file_answer_the_same(
    server: LiveServer, users: dict[str, Any], method: str, headers: dict[str, str]
) -> None:
    named, plain = users["downloadUrl"], f"/exports/{users['exportId']}/download"
    answers = [ask(server, address, headers=headers, method=method) for address in (named, plain)]
    shown = [
        {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
        for answer in answers
    ]
    assert shown[0] == shown[1]
    assert shown[0]["content-disposition"] == 'attachment; filename="users.csv"'
    assert [answer.body for answer in answers] == [answers[0].body] * 2
    assert [answer.status for answer in answers] == [206 if "Range" in headers and method == "GET" else 200] * 2


@pytest.mark.parametrize("name", ["other.csv", "users.csv.gz", "USERS.csv", "%2e%2e%2fusers.csv", "users.csv%00"])
def test_another_name_of_a_saved_file_is_not_found(server: LiveServer, users: dict[str, Any], name: str) -> None:
    answer = ask(server, f"/exports/{users['exportId']}/download/{name}")
    problem = answer.problem()
    assert (answer.status, problem["code"]) == (404, "file_not_found")
    assert problem["hint"] == f"GET {users['downloadUrl']}"


def test_wget_resumes_a_saved_file_under_its_name(server: LiveServer, users: dict[str, Any], tmp_path: Path) -> None:
    whole = ask(server, users["downloadUrl"]).body
    (tmp_path / "users.csv").write_bytes(whole[:1000])
    done = run(tmp_path, "wget", "-q", "-c", "--no-proxy", server.url + users["downloadUrl"])
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((tmp_path / "users.csv").read_bytes()).hexdigest() == users["sha256"]


def test_wget_keeps_old_bytes_of_a_stream_and_curl_says_that_it_cannot_resume(
    server: LiveServer, tmp_path: Path
) -> None:
    """The reason why the README warns of `wget -c`: it skips as many bytes of the new file as it has of the old one."""
    old = b"id,name\n1,old\n"
    address = f"{server.url}/export/users.csv"
    whole = ask(server, "/export/users.csv").body
    (tmp_path / "users.csv").write_bytes(old)
    assert run(tmp_path, "wget", "-q", "-c", "--no-proxy", address).returncode == 0
    assert (tmp_path / "users.csv").read_bytes() == old + whole[len(old) :]
    (tmp_path / "users.csv").write_bytes(old)
    assert run(tmp_path, "curl", "-sS", "-C", "-", "-O", "--noproxy", "*", address).returncode == 33
    assert (tmp_path / "users.csv").read_bytes() == old


def test_psql_commits_what_a_cut_pipe_has_delivered(postgres: Postgres, tmp_path: Path) -> None:
    """The reason why the README says to fetch the file first: the end of a pipe is the end of the data."""
    postgres.run("CREATE TABLE loaded (id integer, name text)")
    copy = r"\copy loaded from pstdin csv header"
    done = run(tmp_path, "psql", "-qX", "-v", "ON_ERROR_STOP=1", postgres.dsn, "-c", copy, stdin=b"id,name\n1,a\n2,b\n")
    assert done.returncode == 0, done.stderr
    assert postgres.run("SELECT count(*) FROM loaded") == [(2,)]

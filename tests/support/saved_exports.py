"""Saved exports as a client sees them, and checks of their folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Answer, ask

FINISHED = ("completed", "failed", "cancelled")


def eventually(what: str, holds: Callable[[], object], *, seconds: float = 60) -> None:
    """Call `wait_until` with a longer limit: exports wait for a slot, and machines may be slow."""
    wait_until(what, holds, seconds=seconds)


def post(server: LiveServer, target: str, **headers: str) -> Answer:
    """Send POST to the URL of an export. Underscores in the names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(server, f"/export/{target}", method="POST", headers=named)


def save(server: LiveServer, target: str, **headers: str) -> str:
    """Save an export and return its id."""
    answer = post(server, target, **headers)
    assert answer.status == 202, answer.body
    id: str = answer_json(answer)["exportId"]
    assert answer.headers["location"] == f"/exports/{id}"
    return id


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return the JSON document of an answer."""
    document: dict[str, Any] = json.loads(answer.body)
    return document


def status(server: LiveServer, id: str) -> dict[str, Any]:
    """Return the status document."""
    answer = ask(server, f"/exports/{id}")
    assert answer.status == 200, answer.body
    return answer_json(answer)


def wait_for(server: LiveServer, id: str, *wanted: str, seconds: float = 60) -> dict[str, Any]:
    """Wait until the status is one of these, by default a final one, and return the status document."""
    found: dict[str, Any] = {}

    def there() -> bool:
        found.update(status(server, id))
        assert not wanted or found["status"] not in FINISHED or found["status"] in wanted, found
        return found["status"] in (wanted or FINISHED)

    wait_until(f"{id} is {wanted or FINISHED}", there, seconds=seconds)
    return found


def saved(server: LiveServer, target: str) -> dict[str, Any]:
    """Save an export, wait until it is completed, and return its status document."""
    return wait_for(server, save(server, target), "completed")


def download(server: LiveServer, id: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
    """Request the file of an export and return the answer."""
    return ask(server, f"/exports/{id}/download", headers=headers, method=method)


def assert_whole(storage: Path, document: Mapping[str, Any], expected: bytes | None = None) -> None:
    """Check that size, rows and sha256 of a completed export are those of its file. expected: its content."""
    assert document["status"] == "completed", document
    folder = storage / document["exportId"]
    data = (folder / f"data.{document['format']}").read_bytes()
    assert len(data) == document["bytes"]
    assert hashlib.sha256(data).hexdigest() == document["sha256"]
    if expected is not None:
        assert data == expected
    if document["format"] == "csv":
        rows = sum(1 for _ in csv.reader(io.StringIO(data.decode(), newline="")))
        assert rows - ("header=false" not in document["query"]) == document["rows"]
    assert not list(folder.glob("*.part"))


class Gate:
    """A view that returns some rows and then waits until the gate is opened, so that a test controls an export."""

    def __init__(self, postgres: Postgres, name: str = "gated", *, rows: int = 3000, before: int = 2000) -> None:
        self._key = secrets.randbelow(2**31)
        self._connection = postgres.connect()
        self._run(f"SELECT pg_advisory_lock({self._key})")
        postgres.run(
            f"CREATE VIEW {name} AS SELECT n, CASE WHEN n > {before} THEN "
            f"pg_advisory_xact_lock_shared({self._key})::text ELSE '' END AS gate FROM generate_series(1, {rows}) AS n"
        )
        self.content = b"n,gate\n" + b"".join(b'%d,""\n' % n for n in range(1, rows + 1))

    def _run(self, sql: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)

    def open(self) -> None:
        """Let all queries pass, now and later."""
        if not self._connection.closed:
            self._connection.close()

    def passed(self, postgres: Postgres, pid: int) -> bool:
        """Return whether this backend does not wait at the gate."""
        return pid not in self.waiting(postgres)

    def waiting(self, postgres: Postgres) -> list[int]:
        """Return the backends that wait at the gate."""
        rows = postgres.run(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s", (self._key,)
        )
        return [pid for (pid,) in rows]

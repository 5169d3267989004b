"""Fixtures: a real PostgreSQL for everything that touches one, Sluice in process, Sluice under gunicorn.

SLUICE_TEST_DSN runs the suite against another server (a superuser's URI of a database of its own).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from server.app import MAX_REQUEST_LINE, create_app
from server.postgres.database import Database
from server.process.embedded import EmbeddedPostgres, seed
from server.settings import Settings
from tests.support.live_server import LiveServer

SEED_ROWS = 20_000

hypothesis_settings.register_profile(
    "sluice", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
hypothesis_settings.load_profile("sluice")


class Postgres:
    """The database under test, through a plain superuser connection beside Sluice's own."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = self.connect()
        self._kept: set[tuple[str, str, str]] = set()

    def connect(self) -> psycopg2.extensions.connection:
        """Another connection, each statement a transaction of its own."""
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        return connection

    def run(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Run statements; the rows of the last one."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def copy(self, query: str, options: str = "HEADER") -> bytes:
        """What the server's own COPY writes for this query: the reference for every byte."""
        output = io.BytesIO()
        with self.connection.cursor() as cursor:
            cursor.execute("SET synchronize_seqscans = off")
            cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, {options})", output)
        return output.getvalue()

    def statements(self) -> list[tuple[str, str]]:
        """(state, query) of every session that Sluice has open."""
        rows = self.run("SELECT state, query FROM pg_stat_activity WHERE application_name = 'sluice'")
        return [(state, query) for state, query in rows]

    def streams_at_rest(self, count: int = 1) -> bool:
        """Whether so many streams wait for their clients, every backend of theirs, and have for a moment."""
        for _ in range(5):
            ((backends, resting),) = self.run(
                "SELECT count(*), count(*) FILTER (WHERE query LIKE 'SELECT source.%' "
                "AND (state = 'idle in transaction' OR wait_event = 'ClientWrite')) FROM pg_stat_activity "
                "WHERE application_name = 'sluice' AND xact_start IS NOT NULL"
            )
            if backends != resting or resting < count:
                return False
            time.sleep(0.02)
        return True

    def _relations(self) -> set[tuple[str, str, str]]:
        return set(
            self.run(
                "SELECT n.nspname, c.relname, c.relkind::text "
                "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            )
        )

    def keep(self) -> None:
        """Whatever is in the schema public now stays when it is tidied: sample data, tables of a whole module."""
        self._kept = self._relations()

    def tidy(self) -> None:
        """Drop what a test has made in the schema public."""
        words = {"v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE"}
        # A failed test may leave a lock behind, in a server whose event loop this call keeps from letting go.
        self.run("SET lock_timeout = '10s'")
        for schema, name, kind in self._relations() - self._kept:
            quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
            self.run(f"DROP {words.get(kind, 'TABLE')} IF EXISTS {quoted} CASCADE")
        self.run("RESET lock_timeout")


@contextlib.contextmanager
def made_folder() -> Iterator[Path]:
    """An empty folder with a short path, for the sockets in it, that every account may enter."""
    path = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """`made_folder` for one test."""
    with made_folder() as path:
        yield path


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    path = tmp_path / "tiny"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(
            f"mounting is not allowed here: {done.stderr.strip()}; a limit on the size of files is tested all the same"
        )
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedPostgres]:
    """The embedded PostgreSQL 18, in a folder of its own, with sample data."""
    with made_folder() as folder, EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}) as running:
        seed(running, SEED_ROWS)
        yield running


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest) -> str:
    """The libpq URI of the server under test."""
    given = os.environ.get("SLUICE_TEST_DSN")
    if given:
        return given
    running: EmbeddedPostgres = request.getfixturevalue("embedded")
    return running.uri


@pytest.fixture(scope="session")
def _postgres(database_url: str) -> Iterator[Postgres]:
    postgres = Postgres(database_url)
    yield postgres
    postgres.connection.close()


@pytest.fixture
def postgres(_postgres: Postgres) -> Iterator[Postgres]:
    """The database under test; what the test makes in the schema public is dropped after it."""
    _postgres.keep()
    yield _postgres
    _postgres.tidy()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings as a test server has them."""
    return Settings(database_url=database_url, shutdown_timeout=5, export_storage_path=tmp_path / "exports")


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """Sluice's own connections, without HTTP."""
    async with Database(settings) as opened:
        yield opened


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """Sluice in this process behind aiohttp's test client: quick, but not how it behaves on a disconnect."""
    server = TestServer(create_app(settings))
    await server.start_server(max_line_size=MAX_REQUEST_LINE)
    async with TestClient(server) as opened:
        yield opened


@pytest.fixture(scope="session")
def live(database_url: str) -> Iterator[LiveServer]:
    """Sluice under gunicorn, shared by all tests that leave it as they found it."""
    with LiveServer(DATABASE_URL=database_url, LOG_LEVEL="DEBUG") as server:
        yield server


@pytest.fixture
def start_live(database_url: str) -> Iterator[Callable[..., LiveServer]]:
    """Starts a server with settings of its own; stopped after the test."""
    started: list[LiveServer] = []

    def start(**environment: str) -> LiveServer:
        server = LiveServer(**{"DATABASE_URL": database_url, **environment})
        started.append(server)
        return server.__enter__()

    yield start
    for server in started:
        server.__exit__(None, None, None)

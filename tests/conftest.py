"""Fixtures: a real PostgreSQL, Sluice in this process, and Sluice under gunicorn.

The variable SLUICE_TEST_DSN selects another server: the URI of a database for these tests alone, as a superuser.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from server.app import MAX_REQUEST_LINE, create_app
from server.postgres.database import Database
from server.process.embedded import EmbeddedPostgres
from server.process.sample_data import seed
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.folders import made_folder
from tests.support.live_server import HOST, LiveServer
from tests.support.postgres import Postgres

SEED_ROWS = 20_000

# Files whose few tests take long, because they start servers or a browser, kill processes, or compile the encoder. They
# run first: the last file of a run occupies only one of the two test processes, so it should be a short one.
SLOW_FILES = [
    "encode/test_memory_safety.py",
    "http/test_disconnect.py",
    "saved/test_runner.py",
    "export/test_parallel.py",
    "pages/test_browser.py",
    "saved/test_stopping.py",
    "saved/test_crashes.py",
    "export/test_differential.py",
    "export/test_lost_readers.py",
    "export/test_replica.py",
    "export/test_memory.py",
    "postgres/test_tls.py",
    "export/test_changes.py",
    "saved/test_hanging_disk.py",
    "postgres/test_unavailable.py",
    "postgres/test_connection_limits.py",
    "postgres/test_pgbouncer.py",
    "system/test_embedded.py",
    "security/test_embedded_access.py",
    "system/test_embedded_stopping.py",
    "system/test_command_line.py",
    "http/test_honest_endings.py",
    "http/test_proxy.py",
    "http/test_blocking.py",
]

hypothesis_settings.register_profile(
    "sluice", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
hypothesis_settings.load_profile("sluice")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of SLOW_FILES first, in that order. Called by pytest."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Create a folder with `made_folder` for one test."""
    with made_folder() as path:
        yield path


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB."""
    path = tmp_path / "tiny"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}; other tests limit the size of files instead")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedPostgres]:
    """Start the embedded PostgreSQL 18 with sample data, in a folder for this run."""
    with made_folder() as folder, EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"}) as running:
        seed(running, SEED_ROWS)
        yield running


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest) -> str:
    """Return the libpq URI of the server under test."""
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
    """Return the database under test. Drop what the test has created in the schema public after it."""
    _postgres.keep()
    yield _postgres
    _postgres.tidy()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Return the settings of a test server."""
    return Settings(
        database_url=database_url,
        allowed_hosts=(HOST,),
        shutdown_timeout=5,
        export_storage_path=tmp_path / "exports",
    )


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """Open Sluice's connections, without HTTP."""
    async with open_database(settings) as opened:
        yield opened


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[TestClient[Any, Any]]:
    """Run Sluice in this process behind aiohttp's test client: fast, but it handles a disconnect unlike gunicorn."""
    server = TestServer(create_app(settings))
    await server.start_server(max_line_size=MAX_REQUEST_LINE)
    async with TestClient(server) as opened:
        yield opened


@pytest.fixture(scope="session")
def live(database_url: str) -> Iterator[LiveServer]:
    """Start Sluice under gunicorn, shared by all tests that do not change its state."""
    with LiveServer(DATABASE_URL=database_url, LOG_LEVEL="DEBUG") as server:
        yield server


@pytest.fixture
def start_live(database_url: str) -> Iterator[Callable[..., LiveServer]]:
    """Return a function that starts a server with other settings, which is stopped after the test."""
    started: list[LiveServer] = []

    def start(**environment: str) -> LiveServer:
        server = LiveServer(**{"DATABASE_URL": database_url, **environment})
        started.append(server)
        return server.__enter__()

    yield start
    for server in started:
        server.__exit__(None, None, None)

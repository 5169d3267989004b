"""Limits of connections: what a client hears when the database has none free, and that downloads leave Sluice ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer

from server.app import create_app
from server.settings import Settings
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client as RawClient
from tests.support.raw_http import ask

Client = TestClient[Any, Any]

# More than the buffers of a connection take.
ENDLESS = "CREATE VIEW endless AS SELECT generate_series(1, 100000000) AS n, repeat('x', 1000) AS filler"


@pytest.fixture
def limited(settings: Settings, postgres: Postgres) -> Iterator[Settings]:
    """Return settings with which Sluice connects as a role that may have one connection."""
    postgres.run(ENDLESS)
    postgres.run("CREATE TABLE small AS SELECT 1 AS one")
    postgres.run("CREATE ROLE limited LOGIN PASSWORD 'limited' CONNECTION LIMIT 1")
    postgres.run("GRANT SELECT ON endless, small TO limited")
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="limited", password="limited")
    yield replace(settings, database_url=dsn, parallel_readers=1)
    postgres.run("DROP OWNED BY limited; DROP ROLE limited")


@contextlib.asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(settings))) as client:
        yield client


async def ready(client: Client) -> int:
    async with client.get("/health/ready") as response:
        return response.status


async def until_free(client: Client) -> None:
    """Wait until the connection is free again, and assert that everything works then."""

    async def small() -> tuple[int, bytes]:
        async with client.get("/export/small.csv") as response:
            return response.status, await response.read()

    async with asyncio.timeout(10):
        while (answer := await small())[0] == 503:
            pass
    assert answer == (200, b"one\n1\n")
    assert await ready(client) == 200


async def assert_none_free(client: Client) -> None:
    """Assert that each request that needs a connection is told that there is none."""
    for method, path in (
        ("GET", "/export/small.csv"),
        ("HEAD", "/export/small.csv"),
        ("POST", "/export/small.csv"),
        ("GET", "/relations"),
        ("GET", "/relations/small/preview"),
    ):
        async with client.request(method, path) as response:
            assert response.status == 503, path
            assert int(response.headers["Retry-After"]) > 0
            if method != "HEAD":
                problem = await response.json()
                assert problem["code"] == "too_many_connections"
                assert "no connection free" in problem["detail"]
    for path in ("/", "/table/small"):
        async with client.get(path, headers={"Accept": "text/html"}) as response:
            assert response.status == 503
            assert "no connection free" in await response.text()


async def test_downloads_that_hold_every_connection_leave_the_server_ready(limited: Settings) -> None:
    async with served(limited) as client:
        async with client.get("/export/endless.csv") as response:
            assert response.status == 200
            await response.content.readany()
            assert await ready(client) == 200
            await assert_none_free(client)
            assert await ready(client) == 200
            response.close()
        await until_free(client)


async def test_connections_of_others_that_leave_none_make_the_server_unready(limited: Settings) -> None:
    other = psycopg2.connect(limited.dsn)
    try:
        async with served(limited) as client:
            assert await ready(client) == 503
            await assert_none_free(client)
            other.close()
            await until_free(client)
    finally:
        other.close()


def test_downloads_of_another_worker_leave_each_worker_ready(
    start_live: Callable[..., LiveServer], limited: Settings
) -> None:
    server = start_live(DATABASE_URL=limited.dsn, PARALLEL_READERS="1", WEB_CONCURRENCY="2")
    wait_until("there are two workers", lambda: len(server.workers()) == 2)
    with contextlib.ExitStack() as opened:

        def download() -> bool:
            client = opened.enter_context(RawClient(server.connect()))
            client.send("/export/endless.csv")
            return client.socket.recv(12) == b"HTTP/1.1 200"

        wait_until("the worker that has the connection gets the request", download)
        for worker in server.workers():
            worker.suspend()  # so that the other one answers
            try:
                assert ask(server, "/health/ready").status == 200
            finally:
                worker.resume()

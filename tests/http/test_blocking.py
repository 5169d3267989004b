"""No request blocks the event loop: blockbuster raises if a blocking call of Python is made on it.

It does not see blocking calls within libpq. For these test_database.py watches the event loop while the database
cannot be reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx


@pytest.fixture
def blockbuster(client: TestClient[Any, Any]) -> Iterator[BlockBuster]:
    """Catch blocking calls once the server has started: its start may block."""
    with blockbuster_ctx() as active:
        yield active


def test_blockbuster_catches_a_blocking_call(blockbuster: BlockBuster) -> None:
    async def blocks() -> None:
        time.sleep(0.001)  # noqa: ASYNC251 the call that has to be caught

    with pytest.raises(BlockingError):
        asyncio.run(blocks())


@pytest.mark.usefixtures("blockbuster")
async def test_no_step_of_a_saved_export_blocks_the_event_loop(client: TestClient[Any, Any]) -> None:
    accepted = await client.post("/export/users.csv", headers={"Idempotency-Key": "k"})
    assert accepted.status == 202
    path = accepted.headers["Location"]
    events = await client.get(path + "/events")
    assert b'"status": "completed"' in await events.read()
    for address, status in ((path, 200), ("/exports", 200), (path + "/download", 200), ("/exports/nothing", 404)):
        response = await client.get(address)
        assert response.status == status
        assert await response.read()
    assert (await client.post("/export/users.csv", headers={"Idempotency-Key": "k"})).status == 200
    part = await client.get(path + "/download", headers={"Range": "bytes=5-"})
    assert part.status == 206
    assert await part.read()
    assert (await client.delete(path)).status == 204


@pytest.mark.usefixtures("blockbuster")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/export/users.csv", 200),
        ("/export/users.csv?select=id,full_name:name", 200),
        ("/export/orders.csv", 200),
        ("/export/revenue_by_country.csv", 200),
        ("/export/nothing_here.csv", 404),
        ("/export/users.csv?limitt=1", 400),
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/nowhere", 404),
        ("/", 200),
        ("/?q=user&schema=public", 200),
        ("/table/users?id=gt.7&name=ilike.*a*&order=id", 200),
        ("/table/users?id=eq.x", 200),
        ("/table/nothing_here", 404),
        ("/shape/users?c=id&a=&t=0", 200),
        ("/saved", 200),
        ("/static/table.js", 200),
        ("/static/sluice.css", 200),
    ],
)
async def test_no_request_blocks_the_event_loop(client: TestClient[Any, Any], path: str, status: int) -> None:
    # A blocking call raises, and the server would answer with 500 or cut the stream.
    for _ in range(2):
        response = await client.get(path)
        assert response.status == status
        assert await response.read()

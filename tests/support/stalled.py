"""Clients that stall or read little, and what PostgreSQL does meanwhile."""

from __future__ import annotations

import time

from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client
from tests.support.waiting import at_work


def assert_stops(postgres: Postgres) -> None:
    """Check that PostgreSQL stops once the client has left."""
    wait_until("PostgreSQL has stopped", lambda: not at_work(postgres))


def stalled(server: LiveServer, postgres: Postgres, path: str, request_id: str = "stalled", count: int = 1) -> Client:
    """Return a client that has sent the request and reads nothing, as soon as the stream waits for it.

    count: how many clients of this server stall, this one included.
    """
    client = Client(server.connect(receive_buffer=4096))
    client.send(path, headers={"X-Request-Id": request_id})
    wait_until("the stream waits for its reader", lambda: postgres.streams_at_rest(count))
    return client


def read_slowly(client: Client, seconds: float) -> None:
    """Receive 50 kB a second for this time, as a client with a slow connection does. It is the time that is tested.

    The client needs a small receive buffer: its system acknowledges about as much as the buffer holds at once.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert client.receive(most=2500), "the connection was cut"
        time.sleep(0.05)

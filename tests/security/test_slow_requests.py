"""One client does its worst, and another one downloads a table as fast as before. `make attacks` runs these tests.

They measure wall time, so they are not part of the other suites, which run on machines with other work.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import pytest

from tests.support import attackers
from tests.support.live_server import ROOT, LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import ask

pytestmark = pytest.mark.attacks

# How often each is measured. The median is what counts: the machine has other work to do.
ROUNDS = 7
# Wall time of a download during the attack, as a multiple of that before and after it.
SLOWER = 1.5
# Seconds until /health/ready answers during the attack.
READY = 0.1
# Measurements of a kind, of which one has to be good: no other process may be the reason.
ATTEMPTS = 3

RELATIONS = """
CREATE TABLE many AS SELECT n AS id, 'name ' || n AS name, repeat('x', 100) AS filler FROM generate_series(1, 300000) n;
CREATE TABLE megabytes AS SELECT repeat('x', 1000000) AS t FROM generate_series(1, 20);
CREATE VIEW slow AS SELECT n, pg_sleep(60)::text AS s FROM generate_series(1, 5) AS n;
CREATE VIEW locking AS SELECT pg_advisory_lock(42)::text AS locked;
VACUUM ANALYZE many
"""


@pytest.fixture
def server(start_live: Callable[..., LiveServer], postgres: Postgres) -> LiveServer:
    for statement in RELATIONS.split(";\n"):
        postgres.run(statement)
    return start_live()


@contextmanager
def attack(kind: str, server: LiveServer) -> Iterator[None]:
    """Let another process attack the server in the block."""
    arguments = [sys.executable, "-m", "tests.support.attackers", kind, str(server.port)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == "attacking\n"
            yield
        finally:
            attacker.kill()


def seconds(server: LiveServer, path: str) -> float:
    """Return the wall time of one request, which has to be answered whole."""
    started = time.perf_counter()
    answer = ask(server, path)
    assert (answer.status, answer.ending in ("length", "terminator")) == (200, True), (path, answer)
    return time.perf_counter() - started


def downloads(server: LiveServer) -> float:
    return median(seconds(server, "/export/many.csv") for _ in range(ROUNDS))


@pytest.mark.parametrize("kind", attackers.KINDS)
def test_no_attack_slows_the_download_of_another_client(kind: str, server: LiveServer) -> None:
    seen = []
    for _ in range(ATTEMPTS):
        before = downloads(server)
        with attack(kind, server):
            during = downloads(server)
            ready = median(seconds(server, "/health/ready") for _ in range(3 * ROUNDS))
        seen.append((round(during / before, 2), round(ready, 4)))
        if during < SLOWER * before and ready < READY:
            return
    pytest.fail(f"download × before, and seconds until ready: {seen}")

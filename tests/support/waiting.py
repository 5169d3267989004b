"""What PostgreSQL and a worker wait for, and how a test waits until they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres

# Passes of the event loop after which every task has ended or waits for another one.
SETTLED = 200


async def settle() -> None:
    """Run the event loop until every task has ended or waits for another one."""
    for _ in range(SETTLED):
        await asyncio.sleep(0)


def at_work(postgres: Postgres) -> list[tuple[str, str]]:
    """Return (state, query) of each session of Sluice that is not idle."""
    return [(state, query) for state, query in postgres.statements() if state != "idle"]


def sleeping_backends(postgres: Postgres) -> list[int]:
    """Return the process IDs of the backends in which Sluice runs pg_sleep."""
    rows = postgres.run("SELECT pid FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event = 'PgSleep'")
    return [pid for (pid,) in rows]


def waiting_readers(postgres: Postgres) -> list[int]:
    """The backends that wait until their rows are taken, the first reader's first."""
    rows = postgres.run(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'sluice' AND query LIKE '%ctid%' "
        "AND wait_event = 'ClientWrite' ORDER BY xact_start"
    )
    return [pid for (pid,) in rows]


def threads_sleep(process: psutil.Process) -> bool:
    """Whether no thread of this process has anything to do."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{process.pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


def come_to_rest(server: LiveServer, postgres: Postgres, count: int) -> list[int]:
    """Return the backends of `count` readers when all of them wait for the worker and it waits for the client."""

    def find() -> list[int]:
        pids = waiting_readers(postgres)
        return pids if len(pids) == count else []

    return when_at_rest(server, find, f"{count} readers wait for the client")


def when_at_rest(server: LiveServer, find: Callable[[], list[int]], what: str) -> list[int]:
    """Return the backends when they and the worker have come to rest. find: the backends, none if one is at work."""
    (worker,) = server.workers()
    pids: list[int] = []
    # One look may fall between two statements or two rows, so several looks in a row must agree.
    looks = 0

    def at_rest() -> bool:
        nonlocal pids, looks
        before, pids = pids, find()
        looks = looks + 1 if pids and pids == before and threads_sleep(worker) else 0
        return looks >= 20

    wait_until(what, at_rest, seconds=30)
    return pids

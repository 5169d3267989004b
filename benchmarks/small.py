"""Exports of 10 rows over kept-alive connections: the time of one alone, and how many a second one worker answers."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks.light_client import Connection, answer_all, body
from benchmarks.processes import BenchmarkError, Server, postgres_cpu
from benchmarks.report import verdict
from benchmarks.sample import TINY, Sample

# The two ways to get 10 rows: the first of many, and all of a table.
TARGETS = {"the first 10 of the users": "/export/users.csv?limit=10", "a table of 10 rows": f"/export/{TINY}.csv"}
ROWS = 10
# The targets.
MOST_SECONDS_ALONE = 0.0025
LEAST_A_SECOND = 600

ALONE = 300
CONNECTIONS = 8
# Requests of one run with all connections: a second or two.
REQUESTS = 800
# Requests on each connection before anything counts: they open the connections to the database.
WARM_UP = 10


@dataclass(frozen=True)
class Small:
    """The measurements of one export. alone: seconds of each request. rates: requests a second, by run.

    worker, postgres, client: seconds of CPU for one request while all connections ask.
    """

    what: str
    alone: list[float]
    rates: list[float]
    worker: float
    postgres: float
    client: float


def measure(sample: Sample, server: Server, runs: int, say: Callable[[str], None]) -> list[Small]:
    """Measure both exports. runs: the number of times that all connections send REQUESTS."""
    return [_measure(sample, server, what, runs, say) for what in TARGETS]


def _measure(sample: Sample, server: Server, what: str, runs: int, say: Callable[[str], None]) -> Small:
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port, TARGETS[what])) for _ in range(CONNECTIONS)]
        file = body(connections[0].response()).decode()
        if len(list(csv.reader(io.StringIO(file)))) != 1 + ROWS:
            raise BenchmarkError(f"{TARGETS[what]} has not {ROWS} rows: {file}")
        answer_all(connections, WARM_UP * CONNECTIONS)
        alone = latencies(connections[0], ALONE)
        began = postgres_cpu(sample.postmaster_pid), server.cpu(), time.process_time()
        rates = [REQUESTS / answer_all(connections, REQUESTS) for _ in range(runs)]
        ended = postgres_cpu(sample.postmaster_pid), server.cpu(), time.process_time()
    postgres, worker, client = ((now - then) / (runs * REQUESTS) for then, now in zip(began, ended, strict=True))
    say(f"{what}: {median(alone) * 1e3:.2f} ms alone, {median(rates):.0f} a second")
    return Small(what, alone, rates, worker, postgres, client)


def latencies(connection: Connection, requests: int) -> list[float]:
    """Return the seconds of each request, one after the other."""
    found = []
    for _ in range(requests):
        began = time.perf_counter()
        connection.response()
        found.append(time.perf_counter() - began)
    return found


def table(found: Sequence[Small]) -> str:
    """Return the figures as Markdown."""
    heads = ("kept-alive connections", "1: median, slowest, ms", f"{CONNECTIONS}: requests a second (range)")
    cpu = f"{CONNECTIONS}: CPU of worker, PostgreSQL, client, ms a request"
    lines = [f"| {' | '.join(heads)} | {cpu} |", "|---|--:|--:|--:|"]
    lines += [
        f"| {each.what} | {median(each.alone) * 1e3:.2f}, {max(each.alone) * 1e3:.2f} "
        f"| {median(each.rates):.0f} ({min(each.rates):.0f} to {max(each.rates):.0f}) "
        f"| {each.worker * 1e3:.2f}, {each.postgres * 1e3:.2f}, {each.client * 1e3:.2f} |"
        for each in found
    ]
    return "\n".join(lines)


def verdicts(found: Sequence[Small]) -> list[str]:
    """Compare each figure with its target. Return a line with PASS or MISS for each."""
    lines = []
    for each in found:
        alone, rate = median(each.alone), median(each.rates)
        lines += [
            verdict(
                alone <= MOST_SECONDS_ALONE,
                f"{each.what}, alone: {alone * 1e3:.2f} ms (at most {MOST_SECONDS_ALONE * 1e3})",
            ),
            verdict(
                rate >= LEAST_A_SECOND,
                f"{each.what}, {CONNECTIONS} connections at once: {rate:.0f} a second (at least {LEAST_A_SECOND})",
            ),
        ]
    return lines

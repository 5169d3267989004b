"""This build of Sluice against another one, in one run: both serve one database and take turns in each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.light_client import Connection, answer_all
from benchmarks.measure import downloaded
from benchmarks.processes import ROOT, SLUICE, BenchmarkError, Server, postgres_cpu, start_curl, timed
from benchmarks.report import spread, verdict
from benchmarks.sample import Sample
from benchmarks.saved import Api, seconds_to_save
from benchmarks.small import CONNECTIONS, latencies

# First bytes of each build in a round, of which the median counts: one takes milliseconds. For the whole table each
# costs a whole download.
FIRST_BYTES_OF_TEN_ROWS = 20
FIRST_BYTES_OF_ALL_ROWS = 3
# Requests of ten rows over kept-alive connections in a round.
SMALL_REQUESTS = 400
SMALL = "/export/users.csv?limit=10"


@dataclass(frozen=True)
class Cost:
    """The cost of one run. seconds: wall time. cpu, postgres: seconds of CPU of the worker and of PostgreSQL."""

    seconds: float
    cpu: float
    postgres: float


@dataclass(frozen=True)
class Task:
    """Work that both builds do in each round.

    kind: of the server, a key of KINDS. run: does it once and returns the seconds that count. has_cpu: whether it takes
    long enough for the CPU times, which the system counts in steps of 10 ms.
    """

    name: str
    kind: str
    run: Callable[[Server], float]
    has_cpu: bool = True


ONE, FOUR, PURE = "PARALLEL_READERS=1", "PARALLEL_READERS=4", "SLUICE_PURE_PYTHON=1"
# The servers of each build, by what is set.
KINDS = {setting: dict([setting.split("=")]) for setting in (ONE, FOUR, PURE)}


def _download(target: str, copies: int = 1) -> Callable[[Server], float]:
    return lambda server: timed(start_curl, server.export(target), copies=copies).seconds


def _first_byte(target: str, tries: int) -> Callable[[Server], float]:
    return lambda server: median(
        float(timed(start_curl, server.export(target)).output.split()[0]) for _ in range(tries)
    )


def _save(server: Server) -> float:
    return seconds_to_save(Api(server.port))


def _small_alone(server: Server) -> float:
    with Connection(server.port, SMALL) as connection:
        return median(latencies(connection, SMALL_REQUESTS))


def _small_at_once(server: Server) -> float:
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port, SMALL)) for _ in range(CONNECTIONS)]
        return answer_all(connections, SMALL_REQUESTS) / SMALL_REQUESTS


TASKS = (
    Task("whole table, 1 reader", ONE, _download("users.csv")),
    Task("whole table, 4 readers", FOUR, _download("users.csv")),
    Task("4 at once, 1 reader each", ONE, _download("users.csv", copies=4)),
    Task("4 at once, 4 readers each", FOUR, _download("users.csv", copies=4)),
    Task("gzip file, 4 readers", FOUR, _download("users.csv.gz")),
    Task("ndjson, 4 readers", FOUR, _download("users.ndjson")),
    Task("sorted by the primary key", FOUR, _download("users.csv?order=id")),
    Task("a filter that keeps three in seven", FOUR, _download("users.csv?subscription_tier=eq.free")),
    Task("pure-Python encoder, a sixth of the table", PURE, _download("users.csv?limit=500000")),
    Task("saved export, 4 readers", FOUR, _save),
    Task("first byte, whole table", FOUR, _first_byte("users.csv", FIRST_BYTES_OF_ALL_ROWS), has_cpu=False),
    Task("first byte, 10 rows", FOUR, _first_byte("users.csv?limit=10", FIRST_BYTES_OF_TEN_ROWS), has_cpu=False),
    Task("10 rows, kept-alive connection", FOUR, _small_alone, has_cpu=False),
    Task(f"10 rows, {CONNECTIONS} connections, one of {SMALL_REQUESTS} requests", FOUR, _small_at_once),
)

Results = Mapping[str, Sequence[tuple[Cost, Cost]]]


def compare(
    sample: Sample, folder: Path, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, list[tuple[Cost, Cost]]], list[str]]:
    """Run every task with both builds, round by round.

    folder: a checkout of the other build, whose native encoder has been built. Return the costs of this and the other
    build by the name of the task, and a verdict on the bytes of each server. Raise BenchmarkError if the folder holds
    no such build.
    """
    if not any(folder.glob("server/**/_encode*.so")):
        raise BenchmarkError(
            f"{folder} holds no build of Sluice with its native encoder: "
            "run `python setup.py build_ext --inplace` there with the Python of this project"
        )
    with ExitStack() as stack:
        builds = {
            name: {kind: stack.enter_context(_server(sample, checkout, kind)) for kind in KINDS}
            for name, checkout in (("this build", ROOT), ("the other build", folder.resolve()))
        }
        say("comparing the bytes")
        verdicts = _check_bytes(sample, builds)
        results: dict[str, list[tuple[Cost, Cost]]] = {task.name: [] for task in TASKS}
        for number in range(-1, rounds):  # the first is not counted
            for task in TASKS:
                ours, theirs = (servers[task.kind] for servers in builds.values())
                pair = _take_turns(sample, task, ours, theirs, reverse=bool(number % 2))
                if number >= 0:
                    results[task.name].append(pair)
            if number >= 0:
                latest = (
                    f"{name} {costs[-1][0].seconds / costs[-1][1].seconds:.2f}" for name, costs in results.items()
                )
                say(f"round {number + 1}, new/old: " + ", ".join(latest))
    return results, verdicts


def _server(sample: Sample, folder: Path, kind: str) -> Server:
    return Server(SLUICE, sample.embedded.uri, folder=folder, **KINDS[kind])


def _check_bytes(sample: Sample, builds: Mapping[str, Mapping[str, Server]]) -> list[str]:
    expected = sample.copied()
    verdicts = []
    for name, servers in builds.items():
        for kind, server in servers.items():
            same = downloaded(server) == expected
            verdicts.append(verdict(same, rf"{name}, {kind}: the bytes of `\copy … csv header`"))
    return verdicts


def _take_turns(sample: Sample, task: Task, ours: Server, theirs: Server, *, reverse: bool) -> tuple[Cost, Cost]:
    if reverse:
        other = _measure(sample, task, theirs)
        return _measure(sample, task, ours), other
    return _measure(sample, task, ours), _measure(sample, task, theirs)


def _measure(sample: Sample, task: Task, server: Server) -> Cost:
    used, before = server.cpu(), postgres_cpu(sample.postmaster_pid)
    seconds = task.run(server)
    return Cost(seconds, server.cpu() - used, postgres_cpu(sample.postmaster_pid) - before)


def table(results: Results) -> str:
    """Return medians and the ratios new/old as Markdown, a line for each task. Below 1, this build is faster."""
    lines = [
        "| new against old build | new, s | old, s | wall time (range) | worker's CPU (range) | PostgreSQL's (range) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for task in TASKS:
        pairs = results[task.name]
        seconds = [ours.seconds / theirs.seconds for ours, theirs in pairs]
        cpu = [ours.cpu / theirs.cpu for ours, theirs in pairs if theirs.cpu] if task.has_cpu else []
        postgres = [ours.postgres / theirs.postgres for ours, theirs in pairs if theirs.postgres and task.has_cpu]
        lines.append(
            f"| {task.name} | {median(ours.seconds for ours, _ in pairs):.4f} "
            f"| {median(theirs.seconds for _, theirs in pairs):.4f} "
            f"| {spread(seconds)} | {spread(cpu)} | {spread(postgres)} |"
        )
    return "\n".join(lines)

"""This build of Sluice against another one, in one run: both serve one database and take turns in each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measure import downloaded
from benchmarks.processes import ROOT, SLUICE, BenchmarkError, Server, start_curl, timed
from benchmarks.sample import Sample
from benchmarks.saved import Api, seconds_to_save

# First bytes of each build in a round, of which the median counts: one takes milliseconds. For the whole table each
# costs a whole download.
FIRST_BYTES_OF_TEN_ROWS = 20
FIRST_BYTES_OF_ALL_ROWS = 3


@dataclass(frozen=True)
class Cost:
    """The cost of one run. seconds: wall time. cpu: seconds of the worker's CPU."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class Task:
    """Work that both builds do in each round.

    readers: PARALLEL_READERS of the server. run: does it once and returns the seconds that count. has_cpu: whether it
    takes long enough for the worker's CPU time, which the system counts in steps of 10 ms.
    """

    name: str
    readers: int
    run: Callable[[Server], float]
    has_cpu: bool = True


def _download(target: str) -> Callable[[Server], float]:
    return lambda server: timed(start_curl, server.export(target)).seconds


def _first_byte(target: str, tries: int) -> Callable[[Server], float]:
    return lambda server: median(
        float(timed(start_curl, server.export(target)).output.split()[0]) for _ in range(tries)
    )


def _save(server: Server) -> float:
    return seconds_to_save(Api(server.port))


TASKS = (
    Task("whole table, 1 reader", 1, _download("users.csv")),
    Task("whole table, 4 readers", 4, _download("users.csv")),
    Task("gzip file, 4 readers", 4, _download("users.csv.gz")),
    Task("ndjson, 4 readers", 4, _download("users.ndjson")),
    Task("sorted by the primary key", 4, _download("users.csv?order=id")),
    Task("saved export, 4 readers", 4, _save),
    Task("first byte, whole table", 4, _first_byte("users.csv", FIRST_BYTES_OF_ALL_ROWS), has_cpu=False),
    Task("first byte, 10 rows", 4, _first_byte("users.csv?limit=10", FIRST_BYTES_OF_TEN_ROWS), has_cpu=False),
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
            name: {readers: stack.enter_context(_server(sample, checkout, readers)) for readers in (1, 4)}
            for name, checkout in (("this build", ROOT), ("the other build", folder.resolve()))
        }
        say("comparing the bytes")
        verdicts = _check_bytes(sample, builds)
        results: dict[str, list[tuple[Cost, Cost]]] = {task.name: [] for task in TASKS}
        for number in range(-1, rounds):  # the first is not counted
            for task in TASKS:
                ours, theirs = (servers[task.readers] for servers in builds.values())
                pair = _take_turns(task, ours, theirs, reverse=bool(number % 2))
                if number >= 0:
                    results[task.name].append(pair)
            if number >= 0:
                latest = (
                    f"{name} {costs[-1][0].seconds / costs[-1][1].seconds:.2f}" for name, costs in results.items()
                )
                say(f"round {number + 1}, new/old: " + ", ".join(latest))
    return results, verdicts


def _server(sample: Sample, folder: Path, readers: int) -> Server:
    return Server(SLUICE, sample.embedded.uri, folder=folder, PARALLEL_READERS=str(readers))


def _check_bytes(sample: Sample, builds: Mapping[str, Mapping[int, Server]]) -> list[str]:
    expected = sample.copied()
    verdicts = []
    for name, servers in builds.items():
        for readers, server in servers.items():
            verdict = "PASS" if downloaded(server) == expected else "MISS"
            verdicts.append(rf"- {verdict} {name}, PARALLEL_READERS={readers}: the bytes of `\copy … csv header`")
    return verdicts


def _take_turns(task: Task, ours: Server, theirs: Server, *, reverse: bool) -> tuple[Cost, Cost]:
    if reverse:
        other = _measure(task, theirs)
        return _measure(task, ours), other
    return _measure(task, ours), _measure(task, theirs)


def _measure(task: Task, server: Server) -> Cost:
    used = server.cpu()
    seconds = task.run(server)
    return Cost(seconds, server.cpu() - used)


def table(results: Results) -> str:
    """Return the medians and ratios as Markdown, one line for each task. Below 1, this build is the faster one."""
    lines = [
        "| new against old build | new, s | old, s | wall time, new/old (range) | worker's CPU, new/old (range) |",
        "|---|--:|--:|--:|--:|",
    ]
    for task in TASKS:
        pairs = results[task.name]
        seconds = [ours.seconds / theirs.seconds for ours, theirs in pairs]
        cpu = [ours.cpu / theirs.cpu for ours, theirs in pairs if theirs.cpu] if task.has_cpu else []
        lines.append(
            f"| {task.name} | {median(ours.seconds for ours, _ in pairs):.4f} "
            f"| {median(theirs.seconds for _, theirs in pairs):.4f} | {_spread(seconds)} | {_spread(cpu)} |"
        )
    return "\n".join(lines)


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"

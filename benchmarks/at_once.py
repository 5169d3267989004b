r"""Several downloads of all users at once from one worker, compared with as many `\copy` at once.

Then the processors are the limit: what counts is the CPU time of all processes for one download.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Download, cpu_ratios, fetched, ratios, served
from benchmarks.processes import Server, start_curl, timed
from benchmarks.report import spread, verdict
from benchmarks.sample import Sample

# Eight is the default of MAX_CONCURRENT_EXPORTS.
COUNTS = (4, 8)
# The target for the wall time, relative to as many `\copy`.
MOST_TIMES_COPY = 1.15


@dataclass(frozen=True)
class AtOnce:
    r"""The downloads of one server. count: how many at once. ours, copied: by round, copied by `\copy`.

    has_target: whether the server is the one that the target is for.
    """

    what: str
    count: int
    has_target: bool
    ours: list[Download]
    copied: list[Download]


def measure(
    sample: Sample, default: Server, one_reader: Server, rounds: int, say: Callable[[str], None]
) -> list[AtOnce]:
    """Let the servers and psql take turns, in opposite order in every second round.

    default: a server with the default number of readers. one_reader: one with PARALLEL_READERS=1.
    """
    servers: Mapping[str, Server] = {"default readers": default, "one reader": one_reader}
    found = []
    for count in COUNTS:
        for server in servers.values():  # opens the connections
            timed(start_curl, server.export("users.csv?limit=1000"), copies=count)
        runs: dict[str, Callable[[], Download]] = {
            name: functools.partial(served, sample, server, count) for name, server in servers.items()
        }
        runs["copied"] = functools.partial(fetched, sample, sample.start_copy, count)
        downloads: dict[str, list[Download]] = {name: [] for name in runs}
        for number in range(rounds):
            for name in runs if number % 2 == 0 else reversed(runs):
                downloads[name].append(runs[name]())
            latest = ", ".join(f"{name} {done[-1].seconds:.2f} s" for name, done in downloads.items())
            say(f"{count} at once, round {number + 1}: {latest}")
        found += [
            AtOnce(name, count, server is default, downloads[name], downloads["copied"])
            for name, server in servers.items()
        ]
    return found


def table(found: Sequence[AtOnce]) -> str:
    """Return the medians as Markdown, one line for each number of downloads and server."""
    lines = [
        r"| downloads at once | wall time, s | `\copy`, s | × `\copy` (range) | CPU of all, s | × that of `\copy` |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {each.count}, {each.what} | {median(ours.seconds for ours in each.ours):.2f} "
        f"| {median(copied.seconds for copied in each.copied):.2f} | {spread(ratios(each.ours, each.copied))} "
        f"| {median(d.machine_cpu for d in each.ours):.2f} | {median(cpu_ratios(each.ours, each.copied)):.2f} |"
        for each in found
    ]
    return "\n".join(lines)


def verdicts(found: Sequence[AtOnce]) -> list[str]:
    """Compare the times of the default with the target. Return a line with PASS or MISS for each number."""
    times = {each.count: median(ratios(each.ours, each.copied)) for each in found if each.has_target}
    return [
        verdict(
            ratio <= MOST_TIMES_COPY,
            rf"{count} downloads at once: {ratio:.2f} × as many `\copy` (at most {MOST_TIMES_COPY})",
        )
        for count, ratio in times.items()
    ]

r"""The cost of queries, dialects and formats, relative to psql's `\copy` of the same query or to the plain download."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.processes import BenchmarkError, Server, start_curl, timed
from benchmarks.report import spread, verdict
from benchmarks.sample import Sample

PLAIN = "users.csv"
# The target for the size of a .gz file, relative to the output of `gzip -6` for the same bytes.
MOST_TIMES_GZIP = 1.10


@dataclass(frozen=True)
class Query:
    r"""A download. copied: the query that psql's `\copy` runs as the reference, None for the plain download.

    most: the target, a ratio of wall times.
    """

    name: str
    target: str
    copied: str | None
    most: float


QUERIES = (
    Query("sorted by the primary key", "users.csv?order=id", "SELECT * FROM users ORDER BY id", 1.25),
    Query(
        "a filter that keeps three in seven",
        "users.csv?subscription_tier=eq.free",
        "SELECT * FROM users WHERE subscription_tier = 'free'",
        1.25,
    ),
    Query("ndjson", "users.ndjson", "SELECT row_to_json(u) FROM users AS u", 1.25),
    Query("quote=strings", "users.csv?quote=strings", None, 1.1),
    Query("guard=formulas", "users.csv?guard=formulas", None, 1.1),
    Query("delimiter=;", "users.csv?delimiter=;", None, 1.1),
    Query("gzip file", "users.csv.gz", None, 1.35),
)


def compare(sample: Sample, server: Server, rounds: int, say: Callable[[str], None]) -> list[tuple[Query, list[float]]]:
    """Return the ratios of wall times of each query, one for each round. The reference runs just before or after it."""
    ratios: list[tuple[Query, list[float]]] = [(query, []) for query in QUERIES]
    for number in range(-1, rounds):  # the first is not counted
        for query, found in ratios:
            ours, theirs = _pair(sample, server, query, reverse=bool(number % 2))
            if number >= 0:
                found.append(ours / theirs)
        if number >= 0:
            say(f"queries, round {number + 1}: " + ", ".join(f"{q.name} {found[-1]:.2f}" for q, found in ratios))
    return ratios


def _pair(sample: Sample, server: Server, query: Query, *, reverse: bool) -> tuple[float, float]:
    def ours() -> float:
        return timed(start_curl, server.export(query.target)).seconds

    def theirs() -> float:
        if query.copied is None:
            return timed(start_curl, server.export(PLAIN)).seconds
        return timed(sample.start_copy, f"({query.copied})").seconds

    if reverse:
        reference = theirs()
        return ours(), reference
    return ours(), theirs()


def gzip_sizes(server: Server) -> tuple[int, int]:
    """Return the size in bytes of the .gz file and of the output of `gzip -6` for the plain file."""
    file = int(timed(start_curl, server.export(PLAIN + ".gz")).output.split()[1])
    with (
        subprocess.Popen(
            ["curl", "--silent", "--fail", "--noproxy", "*", server.export(PLAIN)], stdout=subprocess.PIPE
        ) as curl,
        subprocess.Popen(["gzip", "-6"], stdin=curl.stdout, stdout=subprocess.PIPE) as gzip,
    ):
        assert gzip.stdout is not None
        length = 0
        while part := os.read(gzip.stdout.fileno(), 1 << 20):
            length += len(part)
    if curl.returncode or gzip.returncode:
        raise BenchmarkError("curl | gzip -6 failed")
    return file, length


def table(ratios: list[tuple[Query, list[float]]]) -> str:
    """Return the medians and ranges as Markdown."""
    lines = ["| download | compared with | × its wall time (range) |", "|---|---|--:|"]
    for query, found in ratios:
        reference = r"`\copy` of the same query" if query.copied else "the plain download"
        lines.append(f"| {query.name} | {reference} | {spread(found)} |")
    return "\n".join(lines)


def verdicts(ratios: list[tuple[Query, list[float]]], sizes: tuple[int, int]) -> list[str]:
    """Compare each figure with its target. Return a line with PASS or MISS for each."""
    lines = [
        verdict(median(found) <= query.most, f"{query.name}: {median(found):.2f} (at most {query.most})")
        for query, found in ratios
    ]
    file, reference = sizes
    times = file / reference
    text = f"size of the gzip file: {times:.3f} × that of gzip -6 (at most {MOST_TIMES_GZIP})"
    return [*lines, verdict(times <= MOST_TIMES_GZIP, text)]

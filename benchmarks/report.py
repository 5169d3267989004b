"""The measurements as Markdown, and a comparison with the targets. Measures nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from statistics import median

import psutil

from benchmarks.contenders import PURE, Contenders, statement_seconds
from benchmarks.measure import Download, cpu_ratios, ratios
from benchmarks.sample import MEGABYTES, TENTH, TINY
from server.cpus import available_cpus

# The targets, for 3,000,000 users.
MOST_TIMES_COPY = 0.75
MOST_TIMES_DUCKDB = 0.70
MOST_TIMES_COPY_PURE = 7
MOST_MICROSECONDS_A_ROW = 0.25
MOST_TIMES_CPU_OF_COPY = 1.15
MOST_SECONDS_TO_FIRST_BYTE = 0.010
MOST_PEAK_BYTES = 60_000_000
MOST_PEAK_BYTES_LARGE_VALUES = 150_000_000
# Largest difference of medians that still count as equal: first bytes in seconds, memory as a fraction.
SAME_FIRST_BYTE = 0.005
SAME_PEAK = 0.10


def machine(postgres_version: str) -> str:
    """Return a line about the machine, without its name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"{available_cpus()} cores ({model}), {memory:.0f} GB of memory, {platform.system()}; "
        f"PostgreSQL {postgres_version}, Python {platform.python_version()}"
    )


def race_table(results: Mapping[str, Sequence[Download]], rows: int) -> str:
    """Return a table with one line for each contender, of which the first is the reference."""
    reference = next(iter(results.values()))
    lines = [
        r"| whole table | s | × `\copy` (range) | its CPU, s | µs/row | PostgreSQL's CPU, s | CPU of all, s | × |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, downloads in results.items():
        times = ratios(downloads, reference)
        shown = spread(times) if downloads is not reference else "1.00"
        cpu = median(download.cpu for download in downloads)
        lines.append(
            f"| {name} | {median(download.seconds for download in downloads):.2f} | {shown} "
            f"| {cpu:.2f} | {cpu / rows * 1e6:.2f} | {median(d.postgres_cpu for d in downloads):.2f} "
            f"| {median(d.machine_cpu for d in downloads):.2f} | {median(cpu_ratios(downloads, reference)):.2f} |"
        )
    return "\n".join(lines)


def first_byte_table(times: Mapping[str, Sequence[float]], sizes: Mapping[str, int]) -> str:
    """Return a table with one line for each relation."""
    lines = ["| first byte | median, ms | slowest, ms |", "|---|--:|--:|"]
    for relation, seconds in times.items():
        lines.append(f"| {sizes[relation]:,} rows | {median(seconds) * 1e3:.1f} | {max(seconds) * 1e3:.1f} |")
    return "\n".join(lines)


def memory_table(peaks: Mapping[str, int | None], sizes: Mapping[str, int]) -> str:
    """Return a table with one line for each relation that a new worker has sent."""
    lines = ["| a fresh worker, after one download of | peak resident memory, MB |", "|---|--:|"]
    for relation, peak in peaks.items():
        what = f"{sizes[relation]:,} rows" + (" of 1 MB" if relation == MEGABYTES else "")
        lines.append(f"| {what} | {'not known on this system' if peak is None else f'{peak / 1e6:.1f}'} |")
    return "\n".join(lines)


def fastest(results: Mapping[str, Sequence[Download]], names: Iterable[str]) -> str:
    """Return the name of the contender with the smallest median."""
    return min(names, key=lambda name: median(download.seconds for download in results[name]))


def race_verdicts(results: Mapping[str, Sequence[Download]], contenders: Contenders, rows: int) -> list[str]:
    """Compare the figures of the race with their targets. Return a line with PASS or MISS for each."""
    reference = next(iter(results.values()))
    best = fastest(results, contenders.native)
    whole, pure = (median(ratios(results[name], reference)) for name in (best, PURE))
    cpu = median(download.cpu for download in results[best]) / rows * 1e6
    machine_cpu = median(cpu_ratios(results[best], reference))
    return [
        verdict(whole <= MOST_TIMES_COPY, rf"{best}: {whole:.2f} × `\copy` (at most {MOST_TIMES_COPY})"),
        _duckdb_verdict(results, contenders.duckdb, best),
        verdict(
            cpu <= MOST_MICROSECONDS_A_ROW,
            f"the worker's CPU: {cpu:.2f} µs a row (at most {MOST_MICROSECONDS_A_ROW})",
        ),
        verdict(
            machine_cpu <= MOST_TIMES_CPU_OF_COPY,
            rf"CPU of PostgreSQL, worker and client: {machine_cpu:.2f} × that of `\copy` "
            f"(at most {MOST_TIMES_CPU_OF_COPY})",
        ),
        verdict(
            pure <= MOST_TIMES_COPY_PURE,
            rf"pure-Python encoder: {pure:.2f} × `\copy` (at most {MOST_TIMES_COPY_PURE})",
        ),
    ]


def _duckdb_verdict(results: Mapping[str, Sequence[Download]], names: Sequence[str], best: str) -> str:
    """Compare with DuckDB's fastest. What counts of DuckDB is its statement alone, without the start of its process."""
    if not names:
        return "- not measured: DuckDB needs the packages duckdb and duckdb-extension-postgres-scanner"
    seconds = {name: [statement_seconds(download) for download in results[name]] for name in names}
    rival = min(names, key=lambda name: median(seconds[name]))
    pairs = zip(results[best], seconds[rival], strict=False)
    times = median(ours.seconds / theirs for ours, theirs in pairs)
    return verdict(
        times <= MOST_TIMES_DUCKDB,
        f"{best}: {times:.2f} × the {median(seconds[rival]):.2f} s that the statement of {rival}, takes in a process "
        f"that already runs (at most {MOST_TIMES_DUCKDB})",
    )


def first_byte_verdicts(first: Mapping[str, Sequence[float]]) -> list[str]:
    """Compare the first bytes with their targets. Return a line with PASS or MISS for each."""
    medians = [median(first[relation]) for relation in ("users", TENTH, TINY)]
    apart = max(medians) - min(medians)
    return [
        verdict(
            medians[0] <= MOST_SECONDS_TO_FIRST_BYTE,
            f"first byte: {medians[0] * 1e3:.1f} ms (at most {MOST_SECONDS_TO_FIRST_BYTE * 1e3:.0f} ms)",
        ),
        verdict(
            apart <= SAME_FIRST_BYTE,
            f"first byte, independent of the size of the table: medians {apart * 1e3:.1f} ms apart "
            f"(at most {SAME_FIRST_BYTE * 1e3:.0f} ms)",
        ),
    ]


def memory_verdicts(peaks: Mapping[str, int | None]) -> list[str]:
    """Compare the peaks of memory with their targets. Return a line with PASS or MISS for each."""
    tenth, users = peaks[TENTH], peaks["users"]
    if tenth is None or users is None:
        return ["- not measured: peak memory needs Linux's /proc"]
    peak = max(known for name, known in peaks.items() if known is not None and name != MEGABYTES)
    large = peaks[MEGABYTES] or 0
    growth = abs(users - tenth) / min(users, tenth)
    return [
        verdict(peak <= MOST_PEAK_BYTES, f"peak memory: {peak / 1e6:.1f} MB (at most {MOST_PEAK_BYTES / 1e6:.0f} MB)"),
        verdict(
            large <= MOST_PEAK_BYTES_LARGE_VALUES,
            f"peak memory with values of 1 MB: {large / 1e6:.1f} MB "
            f"(at most {MOST_PEAK_BYTES_LARGE_VALUES / 1e6:.0f} MB)",
        ),
        verdict(
            growth <= SAME_PEAK,
            f"peak memory, independent of the size of the table: {growth:.1%} apart (at most {SAME_PEAK:.0%})",
        ),
    ]


def length_verdicts(expected: tuple[str, int], lengths: Set[int]) -> list[str]:
    """Return a verdict only if a download of the race has another length."""
    wrong = sorted(lengths - {expected[1]})
    return [verdict(False, f"whole downloads of {wrong} bytes in the race, not of {expected[1]}")] if wrong else []


def byte_verdicts(expected: tuple[str, int], found: Mapping[str, tuple[str, int]]) -> list[str]:
    r"""Return a verdict for each server: whether its bytes are those of `\copy … csv header`."""
    return [
        verdict(
            result == expected,
            f"{name}: {result[1]:,} bytes, md5 {result[0]}; "
            + (
                r"the same as `\copy … csv header`"
                if result == expected
                else f"expected {expected[1]:,}, {expected[0]}"
            ),
        )
        for name, result in found.items()
    ]


def spread(ratios: Sequence[float]) -> str:
    """Return the median and the range of ratios, or a dash if there are none."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"


def verdict(reached: bool, text: str) -> str:
    """Return a line with PASS or MISS."""
    return f"- {'PASS' if reached else 'MISS'} {text}"

"""The measurements as Markdown, and a comparison with the targets. Measures nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import psutil

from benchmarks.measure import Download, ratios
from benchmarks.sample import MEGABYTES, TENTH, TINY
from server.cpus import available_cpus

# The targets, for 3,000,000 users.
MOST_TIMES_COPY = 0.95
MOST_MICROSECONDS_A_ROW = 0.35
MOST_SECONDS_TO_FIRST_BYTE = 0.050
MOST_PEAK_BYTES = 100_000_000
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
        r"| whole table | wall time, s | × `\copy` (range) | its CPU, s | its CPU, µs a row | PostgreSQL's CPU, s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, downloads in results.items():
        times = ratios(downloads, reference)
        spread = f" ({min(times):.2f} to {max(times):.2f})" if downloads is not reference else ""
        cpu = median(download.cpu for download in downloads)
        lines.append(
            f"| {name} | {median(download.seconds for download in downloads):.2f} | {median(times):.2f}{spread} "
            f"| {cpu:.2f} | {cpu / rows * 1e6:.2f} | {median(d.postgres_cpu for d in downloads):.2f} |"
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


def verdicts(
    best: str,
    results: Mapping[str, Sequence[Download]],
    rows: int,
    first: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int | None],
) -> list[str]:
    """Compare each figure with its target. Return a line with PASS or MISS for each.

    best: the contender that must be faster than the reference.
    """
    reference = next(iter(results.values()))
    whole = median(ratios(results[best], reference))
    cpu = median(download.cpu for download in results[best]) / rows * 1e6
    medians = [median(first[relation]) for relation in ("users", TENTH, TINY)]
    spread = max(medians) - min(medians)
    lines = [
        _line(whole <= MOST_TIMES_COPY, rf"{best}: {whole:.2f} × `\copy` (at most {MOST_TIMES_COPY})"),
        _line(
            cpu <= MOST_MICROSECONDS_A_ROW,
            f"the worker's CPU: {cpu:.2f} µs a row (at most {MOST_MICROSECONDS_A_ROW})",
        ),
        _line(
            medians[0] <= MOST_SECONDS_TO_FIRST_BYTE,
            f"first byte: {medians[0] * 1e3:.1f} ms (at most {MOST_SECONDS_TO_FIRST_BYTE * 1e3:.0f} ms)",
        ),
        _line(
            spread <= SAME_FIRST_BYTE,
            f"first byte, independent of the size of the table: medians {spread * 1e3:.1f} ms apart "
            f"(at most {SAME_FIRST_BYTE * 1e3:.0f} ms)",
        ),
    ]
    tenth, users = peaks[TENTH], peaks["users"]
    if tenth is None or users is None:
        return [*lines, "- not measured: peak memory needs Linux's /proc"]
    peak = max(known for name, known in peaks.items() if known is not None and name != MEGABYTES)
    large = peaks[MEGABYTES] or 0
    apart = abs(users - tenth) / min(users, tenth)
    return [
        *lines,
        _line(peak <= MOST_PEAK_BYTES, f"peak memory: {peak / 1e6:.1f} MB (at most {MOST_PEAK_BYTES / 1e6:.0f} MB)"),
        _line(
            large <= MOST_PEAK_BYTES_LARGE_VALUES,
            f"peak memory with values of 1 MB: {large / 1e6:.1f} MB "
            f"(at most {MOST_PEAK_BYTES_LARGE_VALUES / 1e6:.0f} MB)",
        ),
        _line(
            apart <= SAME_PEAK,
            f"peak memory, independent of the size of the table: {apart:.1%} apart (at most {SAME_PEAK:.0%})",
        ),
    ]


def byte_verdict(expected: tuple[str, int], found: Mapping[str, tuple[str, int]]) -> list[str]:
    r"""Return a verdict for each server: whether its bytes are those of `\copy … csv header`."""
    return [
        _line(
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


def _line(reached: bool, text: str) -> str:
    return f"- {'PASS' if reached else 'MISS'} {text}"

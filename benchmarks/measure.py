"""The measurements. Each is interleaved with its reference, so that a noisy machine disturbs both equally."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.processes import SLUICE, Server, postgres_cpu, start_curl, timed
from benchmarks.sample import MEGABYTES, TENTH, TINY, Sample, digest


@dataclass(frozen=True)
class Download:
    """One download of all users. cpu: seconds of the process that writes the CSV. postgres_cpu: of the server."""

    seconds: float
    cpu: float
    postgres_cpu: float
    bytes: int | None = None


@dataclass(frozen=True)
class Contender:
    """A participant in the race. server: None for psql. rounds: the number of rounds in which it runs."""

    name: str
    server: Server | None
    rounds: int


def race(sample: Sample, contenders: Sequence[Contender], say: Callable[[str], None]) -> dict[str, list[Download]]:
    """Let each contender download the users once in each round, in opposite order in every second round.

    The first contender is the reference. One round before the first is not counted. Return the downloads by name.
    """
    results: dict[str, list[Download]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        _download(sample, contender)
    for number in range(max(contender.rounds for contender in contenders)):
        running = [contender for contender in contenders if number < contender.rounds]
        for contender in running if number % 2 == 0 else reversed(running):
            results[contender.name].append(_download(sample, contender))
        latest = ", ".join(f"{c.name} {results[c.name][-1].seconds:.2f} s" for c in running)
        say(f"round {number + 1}: {latest}")
    return results


def _download(sample: Sample, contender: Contender) -> Download:
    before = postgres_cpu(sample.postmaster_pid)
    if contender.server is None:
        finished = timed(sample.start_copy)
        cpu, length = finished.cpu, None
    else:
        used = contender.server.cpu()
        finished = timed(start_curl, contender.server.url("users"))
        cpu = contender.server.cpu() - used
        length = int(finished.output.split()[1])
    return Download(finished.seconds, cpu, postgres_cpu(sample.postmaster_pid) - before, length)


def ratios(downloads: Sequence[Download], reference: Sequence[Download]) -> list[float]:
    """Return the wall time of each download over that of the reference in the same round."""
    return [ours.seconds / theirs.seconds for ours, theirs in zip(downloads, reference, strict=False)]


def first_bytes(server: Server, tries: int) -> dict[str, list[float]]:
    """Return the seconds from curl's start to the first byte, by relation. The server's connections are open."""
    times: dict[str, list[float]] = {"users": [], TENTH: [], TINY: []}
    for number in range(-2, tries):  # the first two are not counted
        for relation, seconds in times.items():
            finished = timed(start_curl, server.url(relation))
            if number >= 0:
                seconds.append(float(finished.output.split()[0]))
    return times


def peak_memory(sample: Sample) -> dict[str, int | None]:
    """Return the peak resident memory, in bytes, of a new worker with four readers that sent each relation once."""
    peaks: dict[str, int | None] = {}
    for relation in (TINY, TENTH, "users", MEGABYTES):
        with Server(SLUICE, sample.embedded.uri, PARALLEL_READERS="4") as server:
            timed(start_curl, server.url(relation))
            peaks[relation] = server.peak_memory()
    return peaks


def downloaded(server: Server) -> tuple[str, int]:
    """Return the md5 and the length of the users as this server sends them."""
    command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", server.url("users")]
    return digest(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

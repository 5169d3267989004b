"""The measurements. Each is interleaved with its reference, so that a noisy machine disturbs both equally."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.processes import SLUICE, Finished, Server, postgres_cpu, start_curl, timed
from benchmarks.sample import MEGABYTES, TENTH, TINY, Sample, digest


@dataclass(frozen=True)
class Download(Finished):
    """One download of all users, or several at once.

    seconds: wall time until the last client has ended. cpu: of the processes that write the CSV: the worker, or psql
    and DuckDB themselves. client_cpu: of curl, 0 where no worker stands between. postgres_cpu: of the server.
    """

    postgres_cpu: float
    client_cpu: float

    @property
    def bytes(self) -> int:
        """The length of the file, as curl printed it."""
        return int(self.output.split()[1])

    @property
    def machine_cpu(self) -> float:
        """The CPU time of all processes that take part, in seconds."""
        return self.cpu + self.postgres_cpu + self.client_cpu


@dataclass(frozen=True)
class Contender:
    """A participant in the race. download: downloads the users once. rounds: the number of rounds in which it runs."""

    name: str
    download: Callable[[], Download]
    rounds: int


def served(sample: Sample, server: Server, copies: int = 1) -> Download:
    """Download the users from this server with curl. copies: how many downloads run at once."""
    before, used = postgres_cpu(sample.postmaster_pid), server.cpu()
    curl = timed(start_curl, server.url("users"), copies=copies)
    worker, postgres = server.cpu() - used, postgres_cpu(sample.postmaster_pid) - before
    return Download(curl.seconds, worker, curl.output, postgres, curl.cpu)


def fetched(sample: Sample, start: Callable[[], subprocess.Popen[str]], copies: int = 1) -> Download:
    """Let clients that `start` starts fetch the users from PostgreSQL. copies: how many run at once."""
    before = postgres_cpu(sample.postmaster_pid)
    client = timed(start, copies=copies)
    postgres = postgres_cpu(sample.postmaster_pid) - before
    return Download(client.seconds, client.cpu, client.output, postgres, 0.0)


def race(contenders: Sequence[Contender], say: Callable[[str], None]) -> dict[str, list[Download]]:
    """Let each contender download the users once in each round, in opposite order in every second round.

    The first contender is the reference. One round before the first is not counted. Return the downloads by name.
    """
    results: dict[str, list[Download]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        contender.download()
    for number in range(max(contender.rounds for contender in contenders)):
        running = [contender for contender in contenders if number < contender.rounds]
        for contender in running if number % 2 == 0 else reversed(running):
            results[contender.name].append(contender.download())
        latest = ", ".join(f"{c.name} {results[c.name][-1].seconds:.2f} s" for c in running)
        say(f"round {number + 1}: {latest}")
    return results


def ratios(downloads: Sequence[Download], reference: Sequence[Download]) -> list[float]:
    """Return the wall time of each download over that of the reference in the same round."""
    return [ours.seconds / theirs.seconds for ours, theirs in zip(downloads, reference, strict=False)]


def cpu_ratios(downloads: Sequence[Download], reference: Sequence[Download]) -> list[float]:
    """Return the CPU time of all processes over that of the reference in the same round."""
    return [ours.machine_cpu / theirs.machine_cpu for ours, theirs in zip(downloads, reference, strict=False)]


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

r"""The contenders of the race: psql's `\copy` as the reference, Sluice, DuckDB and other servers."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import others
from benchmarks.measure import Contender, Download, fetched, served
from benchmarks.processes import SLUICE, BenchmarkError, Server
from benchmarks.sample import Sample

REFERENCE = r"psql `\copy users to '/dev/null' csv`"
NATIVE = "Sluice"
PURE = "Sluice, pure-Python encoder"
DUCKDB = "DuckDB's scanner"
ASYNCPG = "aiohttp with asyncpg's `copy_from_query`"
OBVIOUS_WAY = "the obvious way: typed rows, `csv.writer`"
NODE = "Express, pg-query-stream, csv-stringify"

# Readers of one download.
READERS = (1, 2, 3, 4)
DUCKDB_THREADS = (1, 2, 4)
# Most rounds of those that take many seconds each, or of which there are several.
MOST_ROUNDS = {PURE: 3, OBVIOUS_WAY: 5, NODE: 5}
DUCKDB_ROUNDS = 5


@dataclass(frozen=True)
class Contenders:
    """All participants. all: the reference first. ours: Sluice's servers by name. native: the names without PURE.

    duckdb: the names of DuckDB's, none if its packages are not installed.
    """

    all: list[Contender]
    ours: dict[str, Server]
    native: list[str]
    duckdb: list[str]


def start(stack: ExitStack, sample: Sample, node_folder: Path, rounds: int) -> Contenders:
    """Start every server. node_folder: where npm installs packages. rounds: most rounds of each contender."""
    url = sample.embedded.uri
    native = {
        f"{NATIVE}, {count} reader{'s' if count > 1 else ''}": Server(SLUICE, url, PARALLEL_READERS=str(count))
        for count in READERS
    }
    ours = native | {PURE: Server(SLUICE, url, SLUICE_PURE_PYTHON="1")}
    theirs = {ASYNCPG: others.asyncpg_copy(url), OBVIOUS_WAY: others.obvious(url)}
    node = others.node(url, node_folder)
    if node is not None:
        theirs[NODE] = node

    duckdb = _duckdb(sample, min(rounds, DUCKDB_ROUNDS))
    contenders = [Contender(REFERENCE, functools.partial(fetched, sample, sample.start_copy), rounds)]
    for name, server in (ours | theirs).items():
        stack.enter_context(server)
        most = min(rounds, MOST_ROUNDS.get(name, rounds))
        contenders.append(Contender(name, functools.partial(served, sample, server), most))
    return Contenders([*contenders, *duckdb], ours, list(native), [contender.name for contender in duckdb])


def _duckdb(sample: Sample, rounds: int) -> list[Contender]:
    extension = others.duckdb_extension()
    if extension is None:
        return []
    return [
        Contender(
            f"{DUCKDB}, {threads} thread{'s' if threads > 1 else ''}",
            functools.partial(_fetched_by_duckdb, sample, extension, threads),
            rounds,
        )
        for threads in DUCKDB_THREADS
    ]


def _fetched_by_duckdb(sample: Sample, extension: Path, threads: int) -> Download:
    download = fetched(sample, functools.partial(others.start_duckdb, sample.embedded.uri, extension, threads))
    rows = int(download.output.split()[0])
    if rows != sample.rows:
        raise BenchmarkError(f"DuckDB wrote {rows} rows, not {sample.rows}")
    return download


def statement_seconds(download: Download) -> float:
    """Return the time of DuckDB's statement alone, without the start of its process."""
    return float(download.output.split()[1])

r"""`make bench`: Sluice against psql's `\copy` and other servers, on an embedded PostgreSQL of its own.

Prints Markdown on standard output and progress on standard error. Fails only if Sluice's bytes are not those of
`\copy`: machines are noisy, so a person judges the times.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import against, others, page, queries, report, saved, scaling
from benchmarks.measure import Contender, downloaded, first_bytes, peak_memory, race
from benchmarks.processes import SLUICE, BenchmarkError, Server
from benchmarks.sample import MEGABYTES, TENTH, TINY, Sample
from server.process.embedded import EmbeddedError, EmbeddedPostgres
from server.process.sample_data import seed

REFERENCE = r"psql `\copy users to '/dev/null' csv`"
NATIVE = "Sluice"
PURE = "Sluice, pure-Python encoder"
ASYNCPG = "aiohttp with asyncpg's `copy_from_query`"
OBVIOUS_WAY = "the obvious way: typed rows, `csv.writer`"
NODE = "Express, pg-query-stream, csv-stringify"

# Users in the sample data for which the targets are set.
TARGET_ROWS = 3_000_000
# Rows of 1 MB in the table of large values.
LARGE_VALUES = 300
# Most rounds of the contenders that take many seconds each, and of the comparisons outside the race.
OBVIOUS_ROUNDS = 5
PURE_ROUNDS = 3
QUERY_ROUNDS = 7
SCALING_ROUNDS = 5
# Readers of one download.
READERS = (1, 2, 3, 4)


def main() -> int:
    """Run the benchmark and return the exit status: 1 for wrong bytes, 2 if it could not run."""
    options = _options()
    path: Path = options.data or Path(
        ".data/benchmark" if options.rows == TARGET_ROWS else f".data/benchmark-{options.rows}"
    )
    run = _run if options.against is None else _run_against
    try:
        return run(options, path)
    except (BenchmarkError, EmbeddedError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, help="users in the sample data (3000000)")
    parser.add_argument("--rounds", type=int, help="downloads of the whole table by each contender (9)")
    parser.add_argument("--tries", type=int, help="first bytes of each table (20)")
    parser.add_argument("--quick", action="store_true", help="check that everything works: 100,000 users, 3 rounds")
    parser.add_argument("--data", type=Path, help="data folder of the embedded PostgreSQL (.data/benchmark)")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="only compare with the build of Sluice in this checkout, whose native encoder has been built",
    )
    options = parser.parse_args()
    for name, whole, quick in (("rows", TARGET_ROWS, 100_000), ("rounds", 9, 3), ("tries", 20, 5)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def _open_sample(stack: ExitStack, options: argparse.Namespace, path: Path) -> Sample:
    embedded = stack.enter_context(EmbeddedPostgres(path))
    seed(embedded, options.rows)
    sample = Sample(embedded, path)
    if sample.rows != options.rows:
        raise BenchmarkError(f"{path} holds {sample.rows:,} users: use --rows {sample.rows}, or another --data")
    return sample


def _run_against(options: argparse.Namespace, path: Path) -> int:
    with ExitStack() as stack:
        sample = _open_sample(stack, options, path)
        sample.query("VACUUM (ANALYZE) users")
        results, verdicts = against.compare(sample, options.against, options.rounds, _say)
        version = sample.query("SHOW server_version")
    print(f"{report.machine(version)}. {sample.rows:,} users, medians of {options.rounds} rounds.\n")
    print(against.table(results), "\n".join(verdicts), sep="\n\n")
    return int(any("MISS" in verdict for verdict in verdicts))


def _run(options: argparse.Namespace, path: Path) -> int:
    with ExitStack() as stack:
        sample = _open_sample(stack, options, path)
        embedded = sample.embedded
        _say("making the tables of other sizes")
        large_values = LARGE_VALUES // 10 if options.quick else LARGE_VALUES
        sample.make_tables(large_values)
        sizes = {"users": sample.rows, TENTH: sample.rows // 10, TINY: 10, MEGABYTES: large_values}

        sluice = stack.enter_context(Server(SLUICE, embedded.uri))
        ours, contenders = _contenders(stack, embedded.uri, path.parent / "benchmark-node", options.rounds)
        _say("comparing the bytes")
        expected = sample.copied()
        found = {name: downloaded(server) for name, server in ours.items()}
        results = race(sample, [Contender(REFERENCE, None, options.rounds), *contenders], _say)
        rounds = min(options.rounds, QUERY_ROUNDS)
        compared = queries.compare(sample, sluice, rounds, _say)
        gzipped = queries.gzip_sizes(sluice)
        costs = _scaling(sample, sluice, options)
        _say("saved exports")
        kept = saved.measure(embedded.uri, rounds, _say)
        _say("the web page")
        visited = page.measure(sample, sluice, options.tries, _say)
        _say("first bytes")
        first = first_bytes(sluice, options.tries)
        _say("memory")
        peaks = peak_memory(sample)
        version = sample.query("SHOW server_version")

    print(f"{report.machine(version)}. {sample.rows:,} users, {expected[1] / 1e6:.0f} MB of CSV.")
    counts = ", ".join(str(len(downloads)) for downloads in results.values())
    print(f"Medians of {counts} downloads in this order, and of {options.tries} first bytes of each table.\n")
    tables = [report.race_table(results, sample.rows), queries.table(compared), scaling.table(costs), saved.table(kept)]
    tables += [page.table(visited), report.first_byte_table(first, sizes), report.memory_table(peaks, sizes)]
    print("\n\n".join(tables), end="\n\n")
    if options.rows != TARGET_ROWS:
        print(f"The targets are for {TARGET_ROWS:,} users; with fewer, starting the programs weighs more.\n")
    best = report.fastest(results, [name for name in ours if name != PURE])
    verdicts = report.verdicts(best, results, sample.rows, first, peaks) + scaling.verdicts(costs)
    verdicts += queries.verdicts(compared, gzipped) + saved.verdicts(kept)
    verdicts += page.verdicts(visited) + report.byte_verdict(expected, found)
    short = {download.bytes for name in ours for download in results[name]} - {expected[1]}
    if short:
        verdicts.append(f"- MISS whole downloads of {sorted(map(str, short))} bytes in the race, not of {expected[1]}")
    print("\n".join(verdicts))
    return int(bool(short) or any(result != expected for result in found.values()))


def _contenders(
    stack: ExitStack, database_url: str, node_folder: Path, rounds: int
) -> tuple[dict[str, Server], list[Contender]]:
    """Start every server. Return Sluice's own by name, and all contenders except the reference."""
    ours = {
        f"{NATIVE}, {count} reader{'s' if count > 1 else ''}": Server(SLUICE, database_url, PARALLEL_READERS=str(count))
        for count in READERS
    }
    ours[PURE] = Server(SLUICE, database_url, SLUICE_PURE_PYTHON="1")
    theirs = {ASYNCPG: others.asyncpg_copy(database_url), OBVIOUS_WAY: others.obvious(database_url)}
    node = others.node(database_url, node_folder)
    if node is not None:
        theirs[NODE] = node
    most = {PURE: PURE_ROUNDS, OBVIOUS_WAY: OBVIOUS_ROUNDS, NODE: OBVIOUS_ROUNDS}
    contenders = [
        Contender(name, stack.enter_context(server), min(rounds, most.get(name, rounds)))
        for name, server in (ours | theirs).items()
    ]
    return ours, contenders


def _scaling(sample: Sample, server: Server, options: argparse.Namespace) -> list[scaling.Cost]:
    sizes = tuple(rows for rows in scaling.SIZES if not options.quick or rows <= options.rows)
    shapes = tuple((columns, rows // 20 if options.quick else rows) for columns, rows in scaling.SHAPES)
    _say("making the tables of other sizes and shapes")
    scaling.make_tables(sample, sizes, shapes)
    return scaling.measure(sample, server, sizes, shapes, min(options.rounds, SCALING_ROUNDS), _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

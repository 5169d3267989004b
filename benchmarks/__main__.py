r"""`make bench`: Sluice against psql's `\copy`, DuckDB and other servers, on an embedded PostgreSQL of its own.

Prints Markdown on standard output and progress on standard error. Fails only if Sluice's bytes are not those of
`\copy`: machines are noisy, so a person judges the times.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import against, at_once, contenders, page, queries, report, saved, scaling, small, tls
from benchmarks.measure import downloaded, first_bytes, peak_memory, race
from benchmarks.processes import SLUICE, BenchmarkError, Server
from benchmarks.sample import MEGABYTES, TENTH, TINY, Sample, seeded
from server.process.data_folder import EmbeddedError
from server.process.embedded import EmbeddedPostgres

# Users in the sample data for which the targets are set.
TARGET_ROWS = 3_000_000
# Rows of 1 MB in the table of large values.
LARGE_VALUES = 300
# Most rounds of the comparisons outside the race, of which these are the longest and the others.
SOME_ROUNDS = 5
QUERY_ROUNDS = 7

# A table as Markdown, and a line with PASS or MISS for each figure of it that has a target.
Section = tuple[str, list[str]]


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


def _run_against(options: argparse.Namespace, path: Path) -> int:
    with ExitStack() as stack:
        sample = seeded(stack.enter_context(EmbeddedPostgres(path)), path, options.rows)
        sample.query("VACUUM (ANALYZE) users")
        results, verdicts = against.compare(sample, options.against, options.rounds, _say)
        version = sample.query("SHOW server_version")
    print(f"{report.machine(version)}. {sample.rows:,} users, medians of {options.rounds} rounds.\n")
    print(against.table(results), "\n".join(verdicts), sep="\n\n")
    return int(any("MISS" in verdict for verdict in verdicts))


def _run(options: argparse.Namespace, path: Path) -> int:
    with ExitStack() as stack:
        sample = seeded(stack.enter_context(EmbeddedPostgres(path)), path, options.rows)
        _say("making the tables of other sizes")
        large_values = LARGE_VALUES // 10 if options.quick else LARGE_VALUES
        sample.make_tables(large_values)
        sizes = {"users": sample.rows, TENTH: sample.rows // 10, TINY: 10, MEGABYTES: large_values}

        sluice = stack.enter_context(Server(SLUICE, sample.embedded.uri))
        all = contenders.start(stack, sample, path.parent / "benchmark-node", options.rounds)
        _say("comparing the bytes")
        expected = sample.copied()
        found = {name: downloaded(server) for name, server in all.ours.items()}
        results = race(all.all, _say)
        sections = [(report.race_table(results, sample.rows), report.race_verdicts(results, all, sample.rows))]
        sections += _others(sample, sluice, all.ours[all.native[0]], options)
        _say("first bytes")
        first = first_bytes(sluice, options.tries)
        _say("memory")
        peaks = peak_memory(sample)
        sections.append((report.first_byte_table(first, sizes), report.first_byte_verdicts(first)))
        sections.append((report.memory_table(peaks, sizes), report.memory_verdicts(peaks)))
        version = sample.query("SHOW server_version")
    _say("TLS")
    encrypted = tls.measure(path.with_name(f"{path.name}-tls"), options.rows, min(options.rounds, SOME_ROUNDS), _say)
    sections.append((tls.table(encrypted), tls.verdicts(encrypted)))

    print(f"{report.machine(version)}. {sample.rows:,} users, {expected[1] / 1e6:.0f} MB of CSV.")
    counts = ", ".join(str(len(downloads)) for downloads in results.values())
    print(f"Medians of {counts} downloads in this order, and of {options.tries} first bytes of each table.\n")
    print("\n\n".join(table for table, _ in sections if table), end="\n\n")
    if options.rows != TARGET_ROWS:
        print(f"The targets are for {TARGET_ROWS:,} users; with fewer, starting the programs weighs more.\n")
    verdicts = [line for _, lines in sections for line in lines] + report.byte_verdicts(expected, found)
    lengths = {download.bytes for name in all.ours for download in results[name]}
    verdicts += report.length_verdicts(expected, lengths)
    print("\n".join(verdicts))
    return int(lengths != {expected[1]} or any(result != expected for result in found.values()))


def _others(sample: Sample, server: Server, one_reader: Server, options: argparse.Namespace) -> list[Section]:
    """Measure everything that is no download of the whole table alone. server: has the default settings."""
    rounds, some_rounds = min(options.rounds, QUERY_ROUNDS), min(options.rounds, SOME_ROUNDS)
    _say("downloads at once")
    crowd = at_once.measure(sample, server, one_reader, some_rounds, _say)
    _say("small exports")
    ten_rows = small.measure(sample, server, some_rounds, _say)
    compared = queries.compare(sample, server, rounds, _say)
    gzipped = queries.gzip_sizes(server)
    costs = _scaling(sample, server, options)
    _say("saved exports")
    kept = saved.measure(sample.embedded.uri, rounds, _say)
    _say("the web page")
    visited = page.measure(sample, server, options.tries, _say)
    return [
        (at_once.table(crowd), at_once.verdicts(crowd)),
        (small.table(ten_rows), small.verdicts(ten_rows)),
        (queries.table(compared), queries.verdicts(compared, gzipped)),
        (scaling.table(costs), scaling.verdicts(costs)),
        (saved.table(kept), saved.verdicts(kept)),
        (page.table(visited), page.verdicts(visited)),
    ]


def _scaling(sample: Sample, server: Server, options: argparse.Namespace) -> list[scaling.Cost]:
    sizes = tuple(rows for rows in scaling.SIZES if not options.quick or rows <= options.rows)
    shapes = tuple((columns, rows // 20 if options.quick else rows) for columns, rows in scaling.SHAPES)
    _say("making the tables of other sizes and shapes")
    scaling.make_tables(sample, sizes, shapes)
    return scaling.measure(sample, server, sizes, shapes, min(options.rounds, SOME_ROUNDS), _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

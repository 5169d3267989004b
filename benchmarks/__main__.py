r"""`make bench`: Sluice against psql's `\copy` and against the obvious way, on an embedded PostgreSQL of its own.

Prints Markdown on standard output and its progress on standard error. Fails only where Sluice's bytes are not
those of `\copy`: the times are for a person to judge, since machines are noisy.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import page, queries, report, saved
from benchmarks.measure import Contender, downloaded, first_bytes, peak_memory, race, ratios
from benchmarks.processes import OBVIOUS, SLUICE, BenchmarkError, Server
from benchmarks.sample import MEGABYTES, TENTH, TINY, Sample
from server.embedded import EmbeddedError, EmbeddedPostgres, seed

REFERENCE = r"psql `\copy users to '/dev/null' csv`"
NATIVE = "Sluice"
PURE = "Sluice, pure-Python encoder"
OBVIOUS_WAY = "the obvious way: typed rows, `csv.writer`"

# The size that the promised figures are for.
PROMISED_ROWS = 3_000_000
# Rows of 1 MB that one worker sends.
LARGE_VALUES = 300
# Most rounds of those that take many seconds each; the question is how Sluice compares with the reference.
OBVIOUS_ROUNDS = 5
PURE_ROUNDS = 3
QUERY_ROUNDS = 7


def main() -> int:
    """The exit status: 1 for wrong bytes."""
    options = _options()
    path: Path = options.data or Path(
        ".data/benchmark" if options.rows == PROMISED_ROWS else f".data/benchmark-{options.rows}"
    )
    try:
        return _run(options, path)
    except (BenchmarkError, EmbeddedError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, help="users in the sample data (3000000)")
    parser.add_argument("--rounds", type=int, help="whole downloads by psql and by Sluice (9)")
    parser.add_argument("--tries", type=int, help="first bytes of each table (20)")
    parser.add_argument("--quick", action="store_true", help="100,000 users, 3 rounds, 5 tries: does it all work?")
    parser.add_argument("--data", type=Path, help="data folder of the embedded PostgreSQL (.data/benchmark)")
    options = parser.parse_args()
    for name, whole, quick in (("rows", PROMISED_ROWS, 100_000), ("rounds", 9, 3), ("tries", 20, 5)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def _run(options: argparse.Namespace, path: Path) -> int:
    with ExitStack() as stack:
        embedded = stack.enter_context(EmbeddedPostgres(path))
        seed(embedded, options.rows)
        sample = Sample(embedded, path)
        if sample.rows != options.rows:
            raise BenchmarkError(f"{path} holds {sample.rows:,} users: say --rows {sample.rows}, or another --data")
        _say("making the tables of other sizes")
        large_values = LARGE_VALUES // 10 if options.quick else LARGE_VALUES
        sample.make_tables(large_values)
        sizes = {"users": sample.rows, TENTH: sample.rows // 10, TINY: 10, MEGABYTES: large_values}

        sluice = stack.enter_context(Server(SLUICE, embedded.uri))
        pure = stack.enter_context(Server(SLUICE, embedded.uri, SLUICE_PURE_PYTHON="1"))
        obvious = stack.enter_context(Server(OBVIOUS, embedded.uri))
        _say("comparing the bytes")
        expected = sample.copied()
        found = {NATIVE: downloaded(sluice), PURE: downloaded(pure)}
        results = race(
            sample,
            [
                Contender(REFERENCE, None, options.rounds),
                Contender(NATIVE, sluice, options.rounds),
                Contender(PURE, pure, min(options.rounds, PURE_ROUNDS)),
                Contender(OBVIOUS_WAY, obvious, min(options.rounds, OBVIOUS_ROUNDS)),
            ],
            _say,
        )
        short = {d.bytes for name in found for d in results[name]} - {expected[1]}
        compared = queries.compare(sample, sluice, min(options.rounds, QUERY_ROUNDS), _say)
        sizes_of_gzip = queries.gzip_sizes(sluice)
        _say("saved exports")
        kept = saved.measure(embedded.uri, min(options.rounds, QUERY_ROUNDS), _say)
        _say("the web page")
        visited = page.measure(sample, sluice, options.tries, _say)
        _say("first bytes")
        first = first_bytes(sluice, options.tries)
        _say("memory")
        peaks = peak_memory(sample)
        version = sample.query("SHOW server_version")

    print(f"{report.machine(version)}. {sample.rows:,} users, {expected[1] / 1e6:.0f} MB of CSV.")
    rounds = ", ".join(str(len(downloads)) for downloads in results.values())
    print(f"Medians of {rounds} downloads by the four, and of {options.tries} first bytes of each table.\n")
    print(report.race_table(results, sample.rows), end="\n\n")
    print(queries.table(compared), end="\n\n")
    print(saved.table(kept), end="\n\n")
    print(page.table(visited), end="\n\n")
    print(report.first_byte_table(first, sizes), end="\n\n")
    print(report.memory_table(peaks, sizes), end="\n\n")
    if options.rows != PROMISED_ROWS:
        print(f"The figures are meant for {PROMISED_ROWS:,} users; with fewer, starting the programs weighs more.\n")
    print("\n".join(report.verdicts(ratios(results[NATIVE], results[REFERENCE]), first, peaks)))
    print("\n".join(queries.verdicts(compared, sizes_of_gzip)))
    print("\n".join(saved.verdicts(kept)))
    print("\n".join(page.verdicts(visited)))
    print("\n".join(report.byte_verdict(expected, found)))
    if short:
        print(f"- MISS whole downloads of {sorted(map(str, short))} bytes in the race, not of {expected[1]}")
    return int(bool(short) or any(result != expected for result in found.values()))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

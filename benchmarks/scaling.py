r"""The cost of a download by the size and the shape of the table, each relative to psql's `\copy` of the same table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.processes import Server, start_curl, timed
from benchmarks.report import verdict
from benchmarks.sample import MEGABYTES, Sample

# Rows of the tables of users that differ in size only.
SIZES = (10_000, 100_000, 1_000_000, 3_000_000, 10_000_000)
# (columns, rows) of the tables that differ in shape. Each has about the same number of values.
SHAPES = ((3, 2_000_000), (30, 200_000), (300, 20_000))
# The target for the wall time of 10,000,000 rows, relative to that of 3,000,000.
MOST_TIMES_LARGEST = 3.6


@dataclass(frozen=True)
class Cost:
    """The medians for one table. copied: seconds of psql. ratio: seconds over copied, by round. cpu: of the worker."""

    what: str
    rows: int
    seconds: float
    copied: float
    ratio: float
    cpu: float


def make_tables(sample: Sample, sizes: tuple[int, ...], shapes: tuple[tuple[int, int], ...]) -> None:
    """Create the tables unless they exist. sizes: rows of users. shapes: (columns, rows)."""
    for rows in sizes:
        name = _sized(rows)
        if sample.query(f"SELECT to_regclass('{name}') IS NULL") == "t":
            sample.query(
                f"CREATE UNLOGGED TABLE {name} AS "
                f"SELECT users.* FROM generate_series(1, {rows // sample.rows + 1}), users LIMIT {rows}",
                f"VACUUM (ANALYZE) {name}",
            )
    for columns, rows in shapes:
        name = _shaped(columns)
        if sample.query(f"SELECT to_regclass('{name}') IS NULL") == "t":
            # A number, a text and a timestamp, in turn.
            kinds = (
                "n * {0}",
                "'value ' || n % ({0} * 7)",
                "timestamptz '2024-01-01 00:00:00Z' + n * {0} * interval '1 s'",
            )
            values = ", ".join(f"{kinds[i % 3].format(i + 1)} AS column_{i + 1}" for i in range(columns))
            sample.query(
                f"CREATE UNLOGGED TABLE {name} AS SELECT {values} FROM generate_series(1, {rows}) AS n",
                f"VACUUM (ANALYZE) {name}",
            )


def measure(
    sample: Sample,
    server: Server,
    sizes: tuple[int, ...],
    shapes: tuple[tuple[int, int], ...],
    rounds: int,
    say: Callable[[str], None],
) -> list[Cost]:
    """Download each table in turn with its reference, round by round, and return the medians."""
    tables = [(f"{rows:,} users", _sized(rows), rows) for rows in sizes]
    tables += [(f"{columns} columns", _shaped(columns), rows) for columns, rows in shapes]
    large = int(sample.query(f"SELECT count(*) FROM {MEGABYTES}"))
    tables.append(("values of 1 MB", MEGABYTES, large))
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for _, name, _ in tables}
    for number in range(-1, rounds):  # the first is not counted
        for _, name, _ in tables:
            used = server.cpu()
            ours = timed(start_curl, server.url(name)).seconds
            cpu = server.cpu() - used
            theirs = timed(sample.start_copy, name).seconds
            if number >= 0:
                times[name].append((ours, theirs, cpu))
        say(f"sizes and shapes, round {number + 1}")
    return [
        Cost(
            what,
            rows,
            median(ours for ours, _, _ in times[name]),
            median(theirs for _, theirs, _ in times[name]),
            median(ours / theirs for ours, theirs, _ in times[name]),
            median(cpu for _, _, cpu in times[name]),
        )
        for what, name, rows in tables
    ]


def _sized(rows: int) -> str:
    return f"benchmark_users_{_words(rows)}"


def _shaped(columns: int) -> str:
    return f"benchmark_columns_{_words(columns)}"


def _words(number: int) -> str:
    """Return the number in letters, because the other servers accept plain names only."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def table(costs: list[Cost]) -> str:
    """Return a table with one line for each table, as Markdown."""
    lines = [
        r"| table | rows | wall time, s | `\copy`, s | × `\copy` | worker's CPU, µs a row |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {cost.what} | {cost.rows:,} | {cost.seconds:.3f} | {cost.copied:.3f} | {cost.ratio:.2f} "
        f"| {cost.cpu / cost.rows * 1e6:.2f} |"
        for cost in costs
    ]
    return "\n".join(lines)


def verdicts(costs: list[Cost]) -> list[str]:
    """Compare the time of 10,000,000 rows with its target. Return a line with PASS or MISS."""
    by_rows = {cost.what: cost.seconds for cost in costs}
    largest, reference = by_rows.get("10,000,000 users"), by_rows.get("3,000,000 users")
    if largest is None or reference is None:
        return []
    times = largest / reference
    text = f"10,000,000 rows: {times:.2f} × the time of 3,000,000 (at most {MOST_TIMES_LARGEST})"
    return [verdict(times <= MOST_TIMES_LARGEST, text)]

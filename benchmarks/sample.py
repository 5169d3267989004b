"""The database of the benchmark: the sample data in an embedded PostgreSQL, tables of other sizes, the reference."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from benchmarks.processes import BenchmarkError
from server.process.embedded import EmbeddedPostgres
from server.process.sample_data import seed

# The tables that are downloaded in addition to the users of the sample data.
TENTH = "benchmark_tenth"
TINY = "benchmark_tiny"
MEGABYTES = "benchmark_megabytes"

# The scan must begin at the first block of the table, so that both sides give the rows in the same order.
_REFERENCE = {"PGOPTIONS": "-c synchronize_seqscans=off", "PGCLIENTENCODING": "UTF8"}


class Sample:
    """The seeded database. rows: the number of users. path: the data folder."""

    def __init__(self, embedded: EmbeddedPostgres, path: Path) -> None:
        self.embedded = embedded
        self.rows = int(self.query("SELECT count(*) FROM users"))
        self.postmaster_pid = int((path / "postmaster.pid").read_text().split("\n", 1)[0])

    def query(self, *statements: str) -> str:
        """Run the statements with psql and return what it prints. Raise BenchmarkError if one fails."""
        process = self.embedded.psql(
            "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", *(f"--command={s}" for s in statements)
        )
        output, complaint = process.communicate()
        if process.returncode:
            raise BenchmarkError(f"psql: {complaint.strip()}")
        return output.strip()

    def make_tables(self, large_values: int) -> None:
        """Create the tables of other sizes unless they exist. large_values: rows of MEGABYTES, of 1 MB each."""
        made = self.query(f"SELECT to_regclass('{MEGABYTES}') IS NOT NULL")
        if made == "t" and self.query(f"SELECT count(*) FROM {MEGABYTES}") == str(large_values):
            return
        self.query(
            f"DROP TABLE IF EXISTS {TENTH}, {TINY}, {MEGABYTES}",
            f"CREATE TABLE {TENTH} AS SELECT * FROM users ORDER BY id LIMIT {self.rows // 10}",
            f"CREATE TABLE {TINY} AS SELECT * FROM users ORDER BY id LIMIT 10",
            # Random hexadecimal text, which PostgreSQL cannot compress: 31,250 times 32 characters are 1 MB.
            f"CREATE TABLE {MEGABYTES} AS SELECT id, string_agg(md5(id || '.' || part), '') AS value "
            f"FROM generate_series(1, {large_values}) AS id, generate_series(1, 31250) AS part GROUP BY id ORDER BY id",
            *(f"VACUUM (ANALYZE) {table}" for table in (TENTH, TINY, MEGABYTES, "users")),
        )

    def start_copy(self, what: str = "users") -> subprocess.Popen[str]:
        r"""Start psql with `\copy users to '/dev/null' csv`, the reference for speed.

        what: a table, or a query in parentheses.
        """
        return self.embedded.psql(rf"--command=\copy {what} to '{os.devnull}' csv", environment=_REFERENCE)

    def copied(self) -> tuple[str, int]:
        r"""Return the md5 and the length of the output of `\copy (select * from users) to stdout csv header`."""
        process = self.embedded.psql(
            r"--command=\copy (select * from users) to stdout csv header", environment=_REFERENCE
        )
        return digest(process)


def seeded(embedded: EmbeddedPostgres, path: Path, rows: int) -> Sample:
    """Load the sample data unless the database holds it already. path: the data folder. rows: the number of users."""
    seed(embedded, rows)
    sample = Sample(embedded, path)
    if sample.rows != rows:
        raise BenchmarkError(f"{path} holds {sample.rows:,} users: use --rows {sample.rows}, or another --data")
    return sample


def digest(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Return the md5 and the length of the output of a process. Raise BenchmarkError if it fails."""
    assert process.stdout is not None
    assert process.stderr is not None
    md5 = hashlib.md5(usedforsecurity=False)
    length = 0
    while part := os.read(process.stdout.fileno(), 1 << 20):
        md5.update(part)
        length += len(part)
    complaint = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    if process.wait():
        raise BenchmarkError(f"{process.args!r} ended with status {process.returncode}: {complaint}")
    return md5.hexdigest(), length

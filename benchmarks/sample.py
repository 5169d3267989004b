"""The database of the benchmark: the sample data in an embedded PostgreSQL, tables of other sizes, the reference."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from benchmarks.processes import BenchmarkError
from server.process.embedded import EmbeddedPostgres

# The tables that are downloaded, beside the users of the sample data.
TENTH = "benchmark_tenth"
TINY = "benchmark_tiny"
MEGABYTES = "benchmark_megabytes"

# The scan must begin at the table's first block, for both sides to give the rows in the same order.
_REFERENCE = {"PGOPTIONS": "-c synchronize_seqscans=off", "PGCLIENTENCODING": "UTF8"}


class Sample:
    """The seeded database. rows: how many users it holds. path: its data folder."""

    def __init__(self, embedded: EmbeddedPostgres, path: Path) -> None:
        self.embedded = embedded
        self.rows = int(self.query("SELECT count(*) FROM users"))
        self.postmaster_pid = int((path / "postmaster.pid").read_text().split("\n", 1)[0])

    def query(self, *statements: str) -> str:
        """What psql prints for these statements. Raises BenchmarkError."""
        process = self.embedded.psql(
            "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", *(f"--command={s}" for s in statements)
        )
        output, complaint = process.communicate()
        if process.returncode:
            raise BenchmarkError(f"psql: {complaint.strip()}")
        return output.strip()

    def make_tables(self, large_values: int) -> None:
        """Make the tables of other sizes, unless an earlier run has. large_values: rows of MEGABYTES, 1 MB each."""
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
        r"""psql on its way with `\copy users to '/dev/null' csv`, or a query in brackets: the reference for speed."""
        return self.embedded.psql(rf"--command=\copy {what} to '{os.devnull}' csv", environment=_REFERENCE)

    def copied(self) -> tuple[str, int]:
        r"""md5 and length of what psql's `\copy (select * from users) to stdout csv header` writes."""
        process = self.embedded.psql(
            r"--command=\copy (select * from users) to stdout csv header", environment=_REFERENCE
        )
        return digest(process)


def digest(process: subprocess.Popen[str]) -> tuple[str, int]:
    """md5 and length of what the process prints. Raises BenchmarkError if it fails."""
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

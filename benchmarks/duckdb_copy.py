"""Another fast client, for comparison: DuckDB reads the users with its scanner for PostgreSQL and writes them as CSV.

A program of its own, which imports nothing else, because its time counts from the start of the process like psql's.
Arguments: URI of the database, path of the extension, number of threads. It prints the number of rows and the seconds
of the one statement that does the work, without the start of Python and DuckDB.

The other settings are DuckDB's defaults: each thread has a connection of its own and reads ranges of 1,000 blocks with
COPY in binary format, and the file has the order of the table.
"""

from __future__ import annotations

import sys
import time

import duckdb


def main() -> None:
    """Write the users to /dev/null."""
    uri, extension, threads = sys.argv[1:]
    connection = duckdb.connect(config={"threads": threads})
    connection.load_extension(extension)
    quoted = uri.replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS pg (TYPE postgres, READ_ONLY)")
    began = time.perf_counter()
    written = connection.execute("COPY (SELECT * FROM pg.users) TO '/dev/null' (FORMAT csv, HEADER)").fetchone()
    seconds = time.perf_counter() - began
    assert written is not None
    print(written[0], seconds)


if __name__ == "__main__":
    main()

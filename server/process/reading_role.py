"""The role through which the embedded database is served, from `seeds/reader.sql`.

It may read everything and owns nothing: what a client makes the server run cannot write, read files or run programs.
"""

from __future__ import annotations

from pathlib import Path

from server.process.data_folder import EmbeddedError
from server.process.embedded import EmbeddedPostgres

READER = "sluice_reader"
_SQL = Path(__file__).resolve().parents[2] / "seeds" / "reader.sql"


def reading_uri(embedded: EmbeddedPostgres) -> str:
    """Return the libpq URI of the running server for READER. Create that role if there is none."""
    with embedded.psql(f"--file={_SQL}", environment={"READER_NAME": READER}) as creating:
        _, errors = creating.communicate()
    if creating.returncode:
        raise EmbeddedError(f"the role {READER} could not be created: {errors.strip()}")
    return embedded.uri_for(READER)

"""Sample data for an empty embedded database, from `seeds/init.sql`, with progress on standard error.

Must not touch a database that already holds a relation of any user.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from server.process.data_folder import EmbeddedError
from server.process.embedded import EmbeddedPostgres

SEEDS = Path(__file__).resolve().parents[2] / "seeds" / "init.sql"
# Characters of the progress bar, and of a step's name, which has to overwrite the bar.
_BAR_CHARACTERS = 30
_STEP_CHARACTERS = 46

_COUNT_RELATIONS = (
    "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
    "WHERE n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'"
)


def seed(embedded: EmbeddedPostgres, rows: int) -> None:
    """Load the sample data if the database is empty. rows: the number of users. Raise EmbeddedError if it fails."""
    if not _is_empty(embedded):
        return
    started = time.monotonic()
    with embedded.psql(f"--file={SEEDS}", environment={"SEED_ROWS": str(rows)}, dies_with_us=True) as seeding:
        assert seeding.stdout is not None
        assert seeding.stderr is not None
        try:
            for line in seeding.stdout:
                show_progress(line.strip())
            errors = seeding.stderr.read()
        except BaseException:
            seeding.kill()
            raise
    if seeding.returncode:
        raise EmbeddedError(f"the sample data could not be loaded: {errors.strip()}")
    _show(f"\rLoaded sample data ({rows:,} users) in {time.monotonic() - started:.1f} s" + " " * 20 + "\n")


def _is_empty(embedded: EmbeddedPostgres) -> bool:
    only_ours = {"PGOPTIONS": "-c search_path=pg_catalog"}
    with embedded.psql("--tuples-only", "--no-align", f"--command={_COUNT_RELATIONS}", environment=only_ours) as count:
        output, errors = count.communicate()
    if count.returncode:
        raise EmbeddedError(f"the embedded database does not answer: {errors.strip()}")
    return output.strip() == "0"


def show_progress(line: str) -> None:
    """Show one line of the seeds' output.

    line: `users 50000 of 1000000`, or the name of another step. A terminal gets a bar that is overwritten; other
    outputs get one line for each table, when it is complete.
    """
    table, _, numbers = line.partition(" ")
    done, _, total = numbers.partition(" of ")
    terminal = sys.stderr.isatty()
    if not total:
        if terminal:
            _show(f"\rLoading sample data: {line:{_STEP_CHARACTERS}}")
        return
    fraction = int(done) / int(total)
    if terminal:
        bar = "█" * round(fraction * _BAR_CHARACTERS)
        _show(f"\rLoading sample data: {table:8}{bar:{_BAR_CHARACTERS}} {fraction:4.0%} ")
    elif fraction == 1:
        _show(f"Loading sample data: {table} done\n")


def _show(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)

"""The peak memory of a gunicorn worker whose rows suddenly become a thousand times larger, as Linux reports it.

Larger values, and the limit of what may be held, are tested in tests/security/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.support.raw_http import ask

MEGABYTE = 1_000_000
# Thousands of tiny rows, then 60 of a megabyte each.
SUDDEN = "SELECT n, CASE WHEN n > 5000 THEN {large} END AS large FROM generate_series(1, 5060) AS n"
LARGE = f"repeat('x', {MEGABYTE})"
RELATIONS = {
    "out of line": "CREATE TABLE sudden (n int, large text); ALTER TABLE sudden ALTER large SET STORAGE EXTERNAL;"
    f"INSERT INTO sudden {SUDDEN.format(large=LARGE)}",
    "compressed": f"CREATE TABLE sudden AS {SUDDEN.format(large=LARGE)}",
    "compressed, analyzed": f"CREATE TABLE sudden AS {SUDDEN.format(large=LARGE)}; ANALYZE sudden",
    "made by a view": f"CREATE VIEW sudden AS {SUDDEN.format(large=LARGE)}",
    # As large as possible without TOAST, so that the catalogue does not show their size.
    "compressed, in their rows": "CREATE TABLE sudden AS "
    "SELECT n, CASE WHEN n > 5000 THEN repeat('x', 150000) END AS large FROM generate_series(1, 5600) AS n",
}
# Bytes more than a worker that has sent a tiny table: the value that is held, and the chunks that wait to be sent.
MOST_GROWTH = 16 * MEGABYTE


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps the peak there")
@pytest.mark.parametrize("relation", RELATIONS)
def test_rows_that_grow_suddenly_take_little_memory(
    start_live: Callable[..., LiveServer], postgres: Postgres, relation: str
) -> None:
    postgres.run("CREATE TABLE tiny AS SELECT 1 AS one")
    postgres.run(RELATIONS[relation])
    right = postgres.copy("SELECT * FROM sudden")
    server = start_live()
    assert ask(server, "/export/tiny.csv").body == b"one\n1\n"
    before = server.peak_memory()
    answer = ask(server, "/export/sudden.csv")
    assert answer.ending == "terminator"
    assert answer.body == right
    assert server.peak_memory() - before < MOST_GROWTH

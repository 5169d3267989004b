"""Tables that change while three readers read them: the file is one snapshot, or the download fails.

Every transaction of the writers keeps what can be checked in a file: each slot is there once, all rows have the same
generation, and the sum of the amounts. A mixture of two moments breaks one of them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Answer, Client, ask

# Together about 1,150 blocks with the fill factor below, so just enough to be read by ranges.
SLOTS = 2300
AMOUNT = 1000
# Rounds of one change after another. Each is a transaction or two.
ROUNDS = 4
READERS = 3

# A row has half a kilobyte and two rows fit a block, so an UPDATE writes the new row to another block.
ROWS = f"SELECT slot, {{generation}} AS generation, {AMOUNT} AS amount, repeat(md5(slot::text), 12) AS filler"
EACH = f"FROM generate_series(1, {SLOTS}) AS slot"
LEAF = "WITH (fillfactor = 10, autovacuum_enabled = off)"

# Run in turn, each in a transaction of its own where that is possible.
CHANGES = {
    "update all": ["UPDATE changing SET generation = generation + 1"],
    "update some": [
        (
            "UPDATE changing SET amount = amount + 1 WHERE slot <= 100; "
            "UPDATE changing SET amount = amount - 1 WHERE slot > 2200"
        )
    ],
    "delete and insert": [
        (
            "WITH gone AS (DELETE FROM changing WHERE slot % 5 = {random} RETURNING slot, generation, amount, filler) "
            "INSERT INTO changing (slot, generation, amount, filler) SELECT * FROM gone"
        )
    ],
    "vacuum": ["VACUUM changing"],
    "vacuum full": ["VACUUM FULL changing"],
    "truncate": [
        (
            "CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT slot, generation, amount, filler FROM changing; "
            "TRUNCATE changing; INSERT INTO changing (slot, generation, amount, filler) SELECT * FROM kept"
        )
    ],
    "add and drop a column": [
        "ALTER TABLE changing ADD COLUMN more int DEFAULT 7",
        "UPDATE changing SET generation = generation + 1, more = 8",
        "ALTER TABLE changing DROP COLUMN more",
    ],
    "change a type": [
        "ALTER TABLE changing ALTER COLUMN amount TYPE bigint",
        "ALTER TABLE changing ALTER COLUMN amount TYPE int",
    ],
    "rename a column": [
        "ALTER TABLE changing RENAME COLUMN amount TO worth",
        "ALTER TABLE changing RENAME COLUMN worth TO amount",
    ],
}
PARTITION_CHANGES = {
    **CHANGES,
    # One transaction removes rows with one partition and adds them with another.
    "swap a partition": [
        "LOCK TABLE changing; CREATE TABLE fresh (LIKE changing) " + LEAF + "; "
        "INSERT INTO fresh SELECT * FROM changing_2; UPDATE fresh SET generation = generation + 1; "
        "ALTER TABLE changing DETACH PARTITION changing_2; DROP TABLE changing_2; "
        "UPDATE changing SET generation = generation + 1; "
        "ALTER TABLE fresh RENAME TO changing_2; "
        f"ALTER TABLE changing ATTACH PARTITION changing_2 FOR VALUES FROM (1000) TO ({SLOTS + 1})"
    ],
}


def make_table(postgres: Postgres) -> None:
    postgres.run(f"CREATE TABLE changing {LEAF} AS {ROWS.format(generation=0)} {EACH}; ANALYZE changing")


def make_partitions(postgres: Postgres) -> None:
    postgres.run("CREATE TABLE changing (slot int, generation int, amount int, filler text) PARTITION BY RANGE (slot)")
    postgres.run(f"CREATE TABLE changing_1 PARTITION OF changing FOR VALUES FROM (1) TO (1000) {LEAF}")
    postgres.run(f"CREATE TABLE changing_2 PARTITION OF changing FOR VALUES FROM (1000) TO ({SLOTS + 1}) {LEAF}")
    postgres.run(f"INSERT INTO changing {ROWS.format(generation=0)} {EACH}; ANALYZE changing")


def assert_one_moment(body: bytes) -> None:
    """Whether the file is what a single transaction could have seen."""
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    slots = Counter(int(row["slot"]) for row in rows)
    assert len(rows) == SLOTS
    assert slots == Counter(range(1, SLOTS + 1))
    assert len({row["generation"] for row in rows}) == 1
    amount = "amount" if "amount" in rows[0] else "worth"
    assert sum(int(row[amount]) for row in rows) == SLOTS * AMOUNT


@pytest.fixture
def server(start_live: Callable[..., LiveServer]) -> LiveServer:
    return start_live(PARALLEL_READERS=str(READERS))


@pytest.mark.parametrize(
    ("make", "changes"), [(make_table, CHANGES), (make_partitions, PARTITION_CHANGES)], ids=["table", "partitions"]
)
def test_a_file_is_one_snapshot_while_its_table_changes(
    server: LiveServer, postgres: Postgres, make: Callable[[Postgres], None], changes: dict[str, list[str]]
) -> None:
    make(postgres)
    over = threading.Event()
    answers: list[Answer] = []

    def read(number: int) -> None:
        for turn in itertools.count():
            request_id = f"changes-{number}-{turn}"
            answers.append(ask(server, "/export/changing.csv", headers={"X-Request-Id": request_id}))
            if over.is_set():
                return

    def change() -> None:
        chosen = random.Random(4711)
        try:
            for _ in range(ROUNDS):
                for statements in chosen.sample(list(changes.values()), len(changes)):
                    for statement in statements:
                        postgres.run(statement.replace("{random}", str(chosen.randrange(5))))
        finally:
            over.set()

    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(read, number) for number in range(2)]
        threads.submit(change).result()
        for one in reading:
            one.result()

    whole = [answer for answer in answers if answer.ending == "terminator"]
    for answer in whole:
        assert answer.status == 200
        assert_one_moment(answer.body)
    for answer in answers:
        if answer.ending != "terminator" and answer.status != 200:
            # The table or a column was replaced during each of three attempts.
            assert answer.status in (404, 503), answer.body
            assert answer.problem()
    # The last download started after all changes. The failures before it have left nothing broken.
    last = ask(server, "/export/changing.csv", headers={"X-Request-Id": "after"})
    assert (last.status, last.ending) == (200, "terminator")
    assert_one_moment(last.body)
    assert last.body == postgres.copy("SELECT * FROM changing")
    assert server.export_line("after")["scan"] == "cursor, block ranges"
    # Most downloads succeed: otherwise this would prove little.
    assert len(whole) >= 2
    read_by_ranges = [
        line for line in server.log if 'scan="cursor, block ranges"' in line and "requestId=changes-" in line
    ]
    assert [line for line in read_by_ranges if "outcome=complete" in line]


# --- one change between the snapshot and the lock ----------------------------------------------------------------

BEFORE_THE_LOCK = {
    "swap": PARTITION_CHANGES["swap a partition"][0],
    "attach": "LOCK TABLE changing_1; UPDATE changing SET generation = generation + 1; "
    "ALTER TABLE changing ATTACH PARTITION beside FOR VALUES FROM (9000) TO (9999)",
    "drop": "DROP TABLE changing_2; UPDATE changing SET generation = generation + 1",
    "truncate one": "TRUNCATE changing_2; UPDATE changing SET generation = generation + 1",
    "a new one": "LOCK TABLE changing_1; UPDATE changing SET generation = generation + 1; "
    "CREATE TABLE changing_3 PARTITION OF changing FOR VALUES FROM (8000) TO (9000); "
    "INSERT INTO changing_3 VALUES (8000, 1, 0, '')",
}


@pytest.fixture
def other(postgres: Postgres) -> Iterator[psycopg2.extensions.connection]:
    """A concurrent transaction."""
    with contextlib.closing(postgres.connect()) as connection:
        connection.autocommit = False
        yield connection


@pytest.mark.parametrize("change", BEFORE_THE_LOCK)
def test_partitions_that_change_before_the_lock_give_one_snapshot(
    server: LiveServer, postgres: Postgres, other: psycopg2.extensions.connection, change: str
) -> None:
    make_partitions(postgres)
    postgres.run(f"CREATE TABLE beside {LEAF} AS SELECT 9000 AS slot, 1 AS generation, 0 AS amount, '' AS filler")
    before = postgres.copy("SELECT * FROM changing")
    other.cursor().execute(BEFORE_THE_LOCK[change])
    with Client(server.connect()) as client:
        client.send("/export/changing.csv")
        wait_until(
            "the export waits for the lock",
            lambda: postgres.run(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event_type = 'Lock'"
            ),
        )
        other.commit()
        answer = client.read()
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body in (before, postgres.copy("SELECT * FROM changing"))

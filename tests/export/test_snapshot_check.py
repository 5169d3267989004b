"""What counts as a change of a relation between the snapshot of an export and its locks, and what does not.

A state of the catalogue that lasts is no change: it would refuse the relation as long as it lasts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg2
import pytest
from aiohttp.test_utils import TestClient

from server import errors
from server.postgres.database import Database
from server.query.sql import lock_statements
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import ask
from tests.support.rows import opened
from tests.support.saved_exports import download, saved

PARTITIONS = """
CREATE TABLE dp (n int, filler text) PARTITION BY RANGE (n);
CREATE TABLE dp1 PARTITION OF dp FOR VALUES FROM (0) TO (3000) WITH (fillfactor = 10, autovacuum_enabled = off);
CREATE TABLE dp2 PARTITION OF dp FOR VALUES FROM (3000) TO (6000) WITH (fillfactor = 10, autovacuum_enabled = off);
CREATE TABLE dp3 PARTITION OF dp FOR VALUES FROM (6000) TO (9000) PARTITION BY RANGE (n);
CREATE TABLE dp31 PARTITION OF dp3 FOR VALUES FROM (6000) TO (7000);
CREATE TABLE dp32 PARTITION OF dp3 FOR VALUES FROM (7000) TO (9000);
INSERT INTO dp SELECT n, 'x' FROM generate_series({first}, {last}, {step}) AS n;
CREATE VIEW over_dp AS SELECT n + 1 AS n FROM dp;
ANALYZE dp
"""
FEW = PARTITIONS.format(first=1000, last=8000, step=1000)
# At least strategy.FEWEST_BLOCKS.
MANY = PARTITIONS.replace("'x'", "repeat('x', 300)").format(first=0, last=5999, step=1)


@contextlib.contextmanager
def old_snapshot(postgres: Postgres) -> Iterator[psycopg2.extensions.connection]:
    """A transaction that has read `dp`, for which a concurrent detach waits."""
    with contextlib.closing(postgres.connect()) as other:
        other.autocommit = False
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM dp")
        yield other


def interrupt(postgres: Postgres, ddl: str) -> None:
    """Run this statement, which waits for older snapshots, and interrupt it while it waits."""
    with old_snapshot(postgres), contextlib.closing(postgres.connect()) as other, other.cursor() as cursor:
        cursor.execute("SET statement_timeout = '100ms'")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute(ddl)


def leave_detach_pending(postgres: Postgres, partition: str = "dp2") -> None:
    interrupt(postgres, f"ALTER TABLE dp DETACH PARTITION {partition} CONCURRENTLY")
    assert postgres.run("SELECT 1 FROM pg_inherits WHERE inhrelid = %s::regclass AND inhdetachpending", (partition,)), (
        "the detach is not pending"
    )


async def exported(client: TestClient[Any, Any], path: str) -> bytes:
    async with client.get(path) as response:
        body = await response.read()
        assert response.status == 200, body
        return body


# --- a detach that is pending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["dp", "dp2", "over_dp", "dp3", "dp31"])
@pytest.mark.parametrize("partition", ["dp2", "dp3"])
async def test_relations_with_a_pending_detach_are_exported_as_psql_reads_them(
    client: TestClient[Any, Any], postgres: Postgres, partition: str, relation: str
) -> None:
    postgres.run(FEW)
    leave_detach_pending(postgres, partition)
    assert await exported(client, f"/export/{relation}.csv?parallel=1") == postgres.copy(f"SELECT * FROM {relation}")
    async with client.get(f"/relations/{relation}/preview") as preview:
        rows = [[str(value) for value in row] for row in postgres.run(f"SELECT * FROM {relation}")]
        assert (await preview.json())["rows"] == rows
    postgres.run(f"ALTER TABLE dp DETACH PARTITION {partition} FINALIZE")
    assert await exported(client, f"/export/{relation}.csv") == postgres.copy(f"SELECT * FROM {relation}")


def test_several_readers_and_saved_exports_read_a_table_with_a_pending_detach(
    live: LiveServer, postgres: Postgres
) -> None:
    postgres.run(MANY)
    leave_detach_pending(postgres)
    right = postgres.copy("SELECT * FROM dp")
    before = len(live.log)
    answer = ask(live, "/export/dp.csv?parallel=3", headers={"X-Request-Id": "pending"})
    assert (answer.status, answer.ending, answer.body) == (200, "terminator", right)
    assert live.export_line("pending")["scan"] == "cursor, block ranges"
    assert download(live, saved(live, "dp.csv")["exportId"]).body == right
    assert [line for line in live.log[before:] if "a reader ended early" in line] == []


async def test_a_table_is_exported_while_a_detach_waits(client: TestClient[Any, Any], postgres: Postgres) -> None:
    postgres.run(FEW)
    with contextlib.closing(postgres.connect()) as detaching, old_snapshot(postgres) as old:
        detach = "ALTER TABLE dp DETACH PARTITION dp2 CONCURRENTLY"
        thread = threading.Thread(target=detaching.cursor().execute, args=(detach,))
        thread.start()
        try:
            pending = "SELECT 1 FROM pg_inherits WHERE inhrelid = 'dp2'::regclass AND inhdetachpending"
            wait_until("the detach waits", lambda: postgres.run(pending))
            assert await exported(client, "/export/dp.csv") == postgres.copy("SELECT * FROM dp")
            assert await exported(client, "/export/dp2.csv") == postgres.copy("SELECT * FROM dp2")
        finally:
            old.rollback()
            thread.join(30)
    assert await exported(client, "/export/dp2.csv") == postgres.copy("SELECT * FROM dp2")


async def test_a_snapshot_older_than_a_detach_keeps_the_rows_of_the_partition(
    settings: Settings, postgres: Postgres
) -> None:
    """PostgreSQL reads a partition whose detach is pending in snapshots from before. A further reader does as well."""
    postgres.run(FEW)
    async with open_database(replace(settings, parallel_readers=3)) as database, opened(database) as session:
        leave_detach_pending(postgres)
        await session.explain("SELECT n FROM dp")
        assert len(await session.query("SELECT n FROM dp")) == 8
        snapshot, pinned = await session.export_snapshot()
        async with database.spare_reader(), database.reader_session(snapshot) as reader:
            await reader.lock(lock_statements([("public", "dp1"), ("public", "dp2")]), pinned)
            assert len(await reader.query("SELECT n FROM dp")) == 8


# --- changes between the snapshot and the lock, and states that last -----------------------------------------------

OTHER = """
CREATE TABLE plain (n int, filler text);
CREATE TABLE child () INHERITS (plain);
CREATE TABLE stranger (n int, filler text);
INSERT INTO plain VALUES (1, 'a'); INSERT INTO child VALUES (2, 'b'); INSERT INTO stranger VALUES (2, 'c');
CREATE INDEX plain_n ON plain (n);
CREATE MATERIALIZED VIEW stored AS SELECT n FROM plain;
CREATE TABLE beside (n int, filler text)
"""


@dataclass(frozen=True)
class Change:
    """DDL, and whether a SELECT of this relation would mix its state with that of a snapshot from before."""

    relation: str
    ddl: str
    mixes: bool


CHANGES = {
    "attach": Change("dp", "ALTER TABLE dp ATTACH PARTITION beside FOR VALUES FROM (9000) TO (9999)", True),
    "the new partition": Change(
        "beside", "ALTER TABLE dp ATTACH PARTITION beside FOR VALUES FROM (9000) TO (9999)", True
    ),
    "detach": Change("dp", "ALTER TABLE dp DETACH PARTITION dp2", True),
    "detach partitions": Change("dp", "ALTER TABLE dp DETACH PARTITION dp3", True),
    "the old partition": Change("dp2", "ALTER TABLE dp DETACH PARTITION dp2", False),
    "drop a partition": Change("dp", "DROP TABLE dp2", True),
    "a partition elsewhere": Change("dp1", "DROP TABLE dp2", False),
    "a new partition": Change("dp", "CREATE TABLE dp4 PARTITION OF dp FOR VALUES FROM (9000) TO (9999)", True),
    "move a partition": Change(
        "dp3",
        "DELETE FROM dp31; ALTER TABLE dp3 DETACH PARTITION dp31; "
        "ALTER TABLE dp ATTACH PARTITION dp31 FOR VALUES FROM (9000) TO (9999)",
        True,
    ),
    "truncate a partition": Change("dp", "TRUNCATE dp2", True),
    "insert": Change("dp", "INSERT INTO dp VALUES (1, 'new')", False),
    "drop a child": Change("plain", "DROP TABLE child", True),
    "a new child": Change("plain", "CREATE TABLE child2 () INHERITS (plain)", True),
    "the parent of a child": Change("child", "ALTER TABLE child NO INHERIT plain", False),
    "rewrite": Change("plain", "ALTER TABLE plain ALTER filler TYPE int USING 1", True),
    "vacuum full": Change("plain", "VACUUM FULL plain", True),
    "refresh": Change("stored", "REFRESH MATERIALIZED VIEW stored", True),
    "analyze": Change("plain", "ANALYZE plain", False),
    "a new index": Change("plain", "CREATE INDEX ON plain (filler)", False),
    "reindex": Change("plain", "REINDEX INDEX plain_n", False),
    "drop an index": Change("plain", "DROP INDEX plain_n", False),
}


@pytest.fixture
def relations(postgres: Postgres) -> Postgres:
    postgres.run(FEW)
    postgres.run(OTHER)
    return postgres


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_between_the_snapshot_and_the_lock(
    database: Database, relations: Postgres, change: Change
) -> None:
    select = f"SELECT n FROM {change.relation} ORDER BY n"
    before = relations.run(select)
    async with opened(database) as session:
        relations.run("SET lock_timeout = '10s'")
        for statement in change.ddl.split(";"):
            relations.run(statement)
        if change.mixes:
            with pytest.raises(errors.RelationChanged):
                await session.explain(select)
        else:
            await session.explain(select)
            assert [(row["n"],) for row in await session.query(select)] == before
    # What has changed stays readable.
    async with opened(database) as session:
        await session.explain(select)
        assert [(row["n"],) for row in await session.query(select)] == relations.run(select)


LASTING = {
    "an invalid index": "CREATE UNIQUE INDEX CONCURRENTLY ON stranger (n)",
    "an invalid index of a partition": "CREATE UNIQUE INDEX CONCURRENTLY ON dp1 (filler)",
    "an index of the parent only": "CREATE INDEX ON ONLY dp (n)",
    "an index of one partition": "CREATE INDEX parent_n ON ONLY dp (n); CREATE INDEX one_n ON dp1 (n); "
    "ALTER INDEX parent_n ATTACH PARTITION one_n",
    "no child any more": "ALTER TABLE child NO INHERIT plain",
    "one child of two": "CREATE TABLE child2 () INHERITS (plain); DROP TABLE child",
    "truncated": "TRUNCATE plain",
    "refreshed": "REFRESH MATERIALIZED VIEW stored",
    "rewritten": "VACUUM FULL plain",
    "attached again": "ALTER TABLE dp DETACH PARTITION dp2; "
    "ALTER TABLE dp ATTACH PARTITION dp2 FOR VALUES FROM (3000) TO (6000)",
    "a detached tree": "ALTER TABLE dp DETACH PARTITION dp3",
    "only the parent": "CREATE VIEW only_plain AS SELECT n FROM ONLY plain",
}


@pytest.mark.parametrize("ddl", LASTING.values(), ids=LASTING)
async def test_a_state_that_lasts_is_no_change(database: Database, relations: Postgres, ddl: str) -> None:
    relations.run("INSERT INTO stranger VALUES (2, 'd'); INSERT INTO dp VALUES (1, 'x'), (2, 'x')")
    for statement in ddl.split("; "):
        with contextlib.suppress(psycopg2.errors.UniqueViolation):  # which leaves the invalid index
            relations.run(statement)
    await assert_readable(database, relations)


@pytest.mark.parametrize("ddl", ["REINDEX INDEX CONCURRENTLY one_n", "CREATE INDEX CONCURRENTLY ON dp1 (filler)"])
async def test_an_interrupted_index_is_no_change(database: Database, relations: Postgres, ddl: str) -> None:
    relations.run("CREATE INDEX one_n ON dp1 (n)")
    interrupt(relations, ddl)
    invalid = "SELECT 1 FROM pg_index WHERE indrelid = 'dp1'::regclass AND NOT indisvalid"
    assert relations.run(invalid), "no index is invalid"
    await assert_readable(database, relations)


async def assert_readable(database: Database, relations: Postgres) -> None:
    """Check that each of the relations that exist is opened, and read as psql reads it."""
    names = "dp", "dp1", "dp2", "dp3", "dp31", "plain", "child2", "child", "stranger", "stored", "beside", "only_plain"
    found = [name for name in names if relations.run("SELECT to_regclass(%s) IS NOT NULL", (name,))[0][0]]
    for name in found:
        async with opened(database) as session:
            await session.explain(f"SELECT n FROM {name}")
            rows = await session.query(f"SELECT n FROM {name}")
        assert sorted(row["n"] for row in rows) == [n for (n,) in relations.run(f"SELECT n FROM {name} ORDER BY n")]

"""Exports from a hot standby: the primary's bytes, and a cut stream if recovery removes the rows."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2.errors
import pytest

from server.process.children import run
from server.process.embedded import EmbeddedPostgres
from tests.support.folders import made_folder
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.waiting import come_to_rest

FOR_REPLICATION = {"wal_level": "replica", "max_wal_senders": "4", "fsync": "off", "autovacuum": "off"}
# Recovery does not wait: it cancels a conflicting query at once.
ON_THE_STANDBY = {**FOR_REPLICATION, "max_standby_streaming_delay": "0", "hot_standby_feedback": "off"}
ON_THE_STANDBY |= {"log_recovery_conflict_waits": "on", "deadlock_timeout": "50ms"}


@dataclass(frozen=True)
class Pair:
    """A primary and its standby. log: the standby's."""

    primary: Postgres
    standby: Postgres
    log: Path

    def conflicts_waited_for(self) -> int:
        """How often recovery has logged that it waits for a conflicting session."""
        return self.log.read_text(errors="replace").count("recovery still waiting")

    def has_caught_up(self) -> bool:
        """Whether the standby has replayed all that the primary has written."""
        ((written,),) = self.primary.run("SELECT pg_current_wal_flush_lsn()")
        try:
            return self.standby.run("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (written,)) == [(True,)]
        except psycopg2.errors.SerializationFailure:  # this query was in the way of recovery
            return False

    def catch_up(self) -> None:
        """Wait until then."""
        wait_until("the standby has replayed it", self.has_caught_up, seconds=30)

    def run(self, *statements: str) -> None:
        """Run this on the primary and flush its WAL."""
        for statement in statements:
            self.primary.run(statement)
        # A synchronous commit flushes the WAL of VACUUM, too.
        self.primary.run("SET synchronous_commit = local; DROP TABLE IF EXISTS flushed; CREATE TABLE flushed ()")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A real streaming replica, made by pg_basebackup from a primary of its own."""
    with contextlib.ExitStack() as running:
        folder = running.enter_context(made_folder())
        # The standby connects as the account of the servers, which the embedded database refuses otherwise.
        (folder / "pg_hba.conf").write_text("local all,replication all trust\n")
        access = {"hba_file": str(folder / "pg_hba.conf")}
        first = running.enter_context(EmbeddedPostgres(folder / "primary", settings=FOR_REPLICATION | access))
        if first.account is not None:
            os.chown(folder, first.account.uid, first.account.gid)
        host = parse_qs(urlsplit(first.uri).query)["host"][0]
        options = [f"--pgdata={folder / 'standby'}", f"--host={host}", "--username=postgres", "--write-recovery-conf"]
        options += ["--checkpoint=fast", "--wal-method=stream", "--no-sync"]
        run([first.program("pg_basebackup"), *options], first.account)
        # The primary's socket is in its data folder, so its lock file was copied.
        (folder / "standby" / ".s.PGSQL.5432.lock").unlink()
        second = running.enter_context(EmbeddedPostgres(folder / "standby", settings=ON_THE_STANDBY | access))
        pair = Pair(Postgres(first.uri), Postgres(second.uri), folder / "standby" / "server.log")
        running.callback(pair.primary.connection.close)
        running.callback(pair.standby.connection.close)
        assert pair.standby.run("SELECT pg_is_in_recovery()") == [(True,)]
        # The file is forty times the table: the long value is compressed once and then copied compressed.
        pair.run(
            "CREATE TABLE one AS SELECT repeat('x', 4000) AS filler",
            "CREATE TABLE large (n int, filler text) WITH (fillfactor = 20)",
            "INSERT INTO large SELECT n, filler FROM one, generate_series(1, 20000) AS n",
            "ANALYZE large",
        )
        pair.catch_up()
        yield pair


@pytest.fixture
def server(pair: Pair, start_live: Callable[..., LiveServer]) -> LiveServer:
    """Three readers on the standby."""
    return start_live(DATABASE_URL=pair.standby.dsn, PARALLEL_READERS="3")


def test_a_standby_gives_the_bytes_of_the_primary(pair: Pair, server: LiveServer) -> None:
    # A standby exports its snapshots too (PostgreSQL 10, release notes), so there are ranges.
    document = json.loads(ask(server, "/relations/large?explain").body)
    assert (document["scan"], document["readers"]) == ("cursor, block ranges", 3)
    right = pair.primary.copy("SELECT * FROM large")
    for query in ("", "?parallel=1"):
        answer = ask(server, f"/export/large.csv{query}")
        assert (answer.status, answer.ending) == (200, "terminator")
        assert answer.body == right
    assert [line for line in server.log if "a reader ended early" in line] == []


def test_a_conflict_with_recovery_before_the_first_byte_is_tried_again(pair: Pair, server: LiveServer) -> None:
    # The view waits for a lock that this test holds on the standby, so that the conflict occurs there. It has not read
    # a page by then, and VACUUM takes no lock; otherwise later WAL records would end the next attempts too.
    pair.run(
        "CREATE TABLE swept AS SELECT n FROM generate_series(1, 2000) AS n",
        "CREATE VIEW waiting AS "
        "SELECT n, held FROM (SELECT pg_advisory_xact_lock_shared(4711)::text AS held OFFSET 0) AS gate, "
        "LATERAL (SELECT n FROM swept WHERE n > length(held) OFFSET 0) AS behind_it",
    )
    pair.catch_up()
    held = pair.standby.connect()
    held.cursor().execute("SELECT pg_advisory_lock(4711)")

    def waiting() -> list[tuple[Any, ...]]:
        return pair.standby.run(
            "SELECT xact_start FROM pg_stat_activity WHERE application_name = 'sluice' AND wait_event = 'advisory'"
        )

    with contextlib.closing(held), Client(server.connect()) as client:
        client.send("/export/waiting.csv", headers={"X-Request-Id": "again"})
        wait_until("the export waits", waiting)
        first = waiting()
        pair.run("DELETE FROM swept WHERE n % 2 = 0", "VACUUM (TRUNCATE false) swept")
        pair.catch_up()
        wait_until("another transaction waits", lambda: waiting() not in (first, []), seconds=30)
        held.cursor().execute("SELECT pg_advisory_unlock(4711)")
        answer = client.read()
    assert (answer.status, answer.ending) == (200, "terminator")
    # The rows as of the last attempt.
    assert answer.body == pair.primary.copy("SELECT n, '' AS held FROM swept")
    assert server.export_line("again")["outcome"] == "complete"


def test_a_conflict_with_recovery_after_the_first_byte_cuts_the_stream(pair: Pair, server: LiveServer) -> None:
    pair.run("CREATE TABLE lost WITH (fillfactor = 20) AS SELECT * FROM large", "ANALYZE lost")
    pair.catch_up()
    right = pair.primary.copy("SELECT * FROM lost")
    waited = pair.conflicts_waited_for()
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send("/export/lost.csv", headers={"X-Request-Id": "conflict"})
        come_to_rest(server, pair.standby, 3)
        pair.run("DELETE FROM lost", "VACUUM lost")
        # Recovery waits for the readers or has ended them, before the client reads on.
        wait_until(
            "recovery conflicts with the readers",
            lambda: pair.conflicts_waited_for() > waited or pair.has_caught_up(),
            seconds=30,
        )
        answer = client.read()
    assert (answer.status, answer.ending) == (200, "reset")
    assert right.startswith(answer.body)
    assert len(answer.body) < len(right)
    assert server.export_line("conflict")["code"] == "conflict_with_recovery"
    pair.catch_up()
    assert ask(server, "/export/lost.csv").body == b"n,filler\n"

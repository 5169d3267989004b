"""The database under test, through a connection that is independent of Sluice."""

from __future__ import annotations

import io
import time
from typing import Any

import psycopg2
import psycopg2.extensions


class Postgres:
    """The database under test, through a superuser's connection of psycopg2."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = self.connect()
        self._kept: set[tuple[str, str, str]] = set()

    def connect(self) -> psycopg2.extensions.connection:
        """Open another connection, in autocommit mode."""
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        return connection

    def run(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Run statements and return the rows of the last one."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def copy(self, query: str, options: str = "HEADER") -> bytes:
        """Return what the server's own COPY writes for this query: the reference for every byte."""
        output = io.BytesIO()
        with self.connection.cursor() as cursor:
            cursor.execute("SET synchronize_seqscans = off")
            cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, {options})", output)
        return output.getvalue()

    def statements(self) -> list[tuple[str, str]]:
        """Return (state, query) of every session that Sluice has open."""
        rows = self.run("SELECT state, query FROM pg_stat_activity WHERE application_name = 'sluice'")
        return [(state, query) for state, query in rows]

    def streams_at_rest(self, count: int = 1) -> bool:
        """Return whether at least `count` backends wait for their clients, and no backend of Sluice does otherwise.

        A further reader of an export may wait for its first range, after its last setting. Looks several times, because
        a backend can be idle between two statements.
        """
        for _ in range(5):
            ((backends, reading, waiting),) = self.run(
                "SELECT count(*), count(*) FILTER (WHERE query LIKE 'SELECT source.%' "
                "AND (state = 'idle in transaction' OR wait_event = 'ClientWrite')), "
                "count(*) FILTER (WHERE query LIKE 'SELECT pg_catalog.set_config(''enable_tidscan''%' "
                "AND state = 'idle in transaction') FROM pg_stat_activity "
                "WHERE application_name = 'sluice' AND xact_start IS NOT NULL"
            )
            if backends != reading + waiting or reading < count:
                return False
            time.sleep(0.02)
        return True

    def _relations(self) -> set[tuple[str, str, str]]:
        return set(
            self.run(
                "SELECT n.nspname, c.relname, c.relkind::text "
                "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            )
        )

    def keep(self) -> None:
        """Let `tidy` keep everything that is in the schema public now: sample data, tables of a whole module."""
        self._kept = self._relations()

    def tidy(self) -> None:
        """Drop what a test has created in the schema public."""
        words = {"v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE"}
        # A failed test may leave a lock in a server of this process, whose event loop cannot run during this call.
        self.run("SET lock_timeout = '10s'")
        for schema, name, kind in self._relations() - self._kept:
            quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
            self.run(f"DROP {words.get(kind, 'TABLE')} IF EXISTS {quoted} CASCADE")
        self.run("RESET lock_timeout")

"""One session: a transaction, its statements, and its rows, streamed or fetched from a cursor.

With `connections.py`, `libpq.py` and `rows.py` the only importer of the driver. Must not know plans, dialects or
HTTP: it runs SQL that it is given and hands over results.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, cast

import aiopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras

from server import errors
from server.postgres.connections import Connection, cancelled_from_here
from server.postgres.explained import Explained
from server.postgres.libpq import result_memory
from server.postgres.rows import RowReader, Rows
from server.postgres.server_errors import connection_lost, statement_timed_out, translate
from server.query import catalogue

# Seconds for a catalogue query and for cancelling: short enough for a person.
CONTROL_TIMEOUT = 10.0
# Seconds that count as "for ever" to the driver, whose own timeouts cannot be switched off.
FOREVER = 10.0**7

# What else the text of values and the meaning of names depend on: fixed when the transaction begins, for all readers.
_PINNED = ("TimeZone", "lc_monetary", "search_path")
_TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout")
_SET_TIMEZONE = "SELECT set_config('TimeZone', %(timezone)s, true)"

# Whether anything that this transaction reads was rewritten (TRUNCATE, a rewriting ALTER TABLE, another table of
# the same name) after its snapshot was taken and before it had the lock: the snapshot would then see no rows at
# all (PostgreSQL manual, "MVCC Caveats"); or became or ceased to be a partition, so that the plan has other tables
# than the snapshot. pg_class and pg_inherits are read as of the snapshot, the functions look at what is now.
_CHANGED = """
EXISTS (
    SELECT
    FROM pg_locks AS l
    LEFT JOIN pg_class AS c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (
        c.oid IS NULL
        OR (c.relfilenode <> 0 AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid))
        OR c.relispartition <> coalesce(pg_partition_root(c.oid) <> c.oid, false)
        OR EXISTS (
            SELECT FROM pg_inherits AS i
            WHERE i.inhparent = c.oid AND pg_partition_root(i.inhrelid) IS DISTINCT FROM pg_partition_root(c.oid)
        )
      )
)
"""


# A range of blocks is read by tuple identifiers, whatever the planner thinks of it: in a small partition it may
# expect less of an index, and the rows would come in the index's order.
_BY_BLOCKS = "".join(
    f", set_config('enable_{way}scan', '{'on' if way == 'tid' else 'off'}', true)"
    for way in ("tid", "index", "indexonly", "bitmap")
)
_BY_BLOCKS += ", set_config('max_parallel_workers_per_gather', '0', true)"


class Batch:
    """The rows of one FETCH, valid until the next FETCH but one of the same session.

    pgresult: address of the PGresult. count: rows. memory: bytes that libpq holds for it.
    """

    __slots__ = ("_cursor", "count", "memory", "pgresult")

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.pgresult: int = cursor.pgresult_ptr
        self.count: int = cursor.rowcount
        self.memory: int = result_memory(self.pgresult)

    @property
    def types(self) -> Sequence[int]:
        """The type OID of each column; a domain's is that of its base type."""
        return [column.type_code for column in self._cursor.description]

    def rows(self) -> Sequence[Sequence[bytes | None]]:
        """The rows as PostgreSQL's text output, NULL as None."""
        return cast("Sequence[Sequence[bytes | None]]", self._cursor.fetchall())


class Session:
    """One read-only REPEATABLE READ transaction: one snapshot on one connection.

    Made by `Database.session`. After an error nothing but leaving is allowed.
    """

    def __init__(
        self,
        connection: Connection,
        statement_timeout: float,
        schemas: Sequence[str],
        threads: Executor,
    ) -> None:
        self.connection = connection
        self._threads = threads
        self._rows: Rows | None = None
        self._schemas = schemas
        self._statement_timeout = statement_timeout
        # The server stops the statement first; ours is for a server that does not answer at all.
        self._driver_timeout = statement_timeout + 30.0 if statement_timeout else FOREVER
        self._executing = False
        self._cursors: list[aiopg.Cursor] = []
        self.backend_pid = 0
        self.snapshot_at: datetime.datetime | None = None

    async def begin(self, settings: Mapping[str, str], snapshot: str | None = None) -> None:
        """Open the transaction with these settings, local to it (PgBouncer may share the connection).

        snapshot: one that another session has exported, to see what that one sees.
        """
        statements = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]
        if snapshot is not None:
            statements.append(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        statements += [f"SET LOCAL {name} = '{value}'" for name, value in settings.items()]
        statements += ["SELECT pg_backend_pid() AS pid, now() AS started"]
        if self.server_version >= 140000:
            # Lets the server notice a killed worker while it sorts. Not every platform's server can, and one
            # that cannot answers the attempt with an error.
            statements[-1] += (
                ", CASE WHEN version() !~* 'windows|mingw|visual c|darwin' "
                "THEN set_config('client_connection_check_interval', '1s', true) END"
            )
        statements[-1] += "".join(f", set_config('{name}', current_setting('{name}'), true)" for name in _PINNED)
        row = (await self.query("; ".join(statements)))[0]
        self.backend_pid, self.snapshot_at = row["pid"], row["started"]

    async def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """All rows of a small query, as dictionaries of Python values."""
        cursor = await self._cursor(psycopg2.extras.RealDictCursor)
        with contextlib.closing(cursor):
            await self._execute(cursor, sql, values)
            return [dict(row) for row in cursor.raw.fetchall()]

    async def explain(
        self,
        select: str,
        values: Mapping[str, str] | None = None,
        *,
        timezone: str | None = None,
        in_order: bool = False,
    ) -> Explained:
        """PostgreSQL's plan of this SELECT.

        Locks what the SELECT reads, and fails as the SELECT itself would on a value that its column cannot take.
        in_order: rows as they lie in the table, so no parallel plan, in which they would come as they please.
        """
        bound = dict(values or {})
        statements = [f"EXPLAIN (VERBOSE, FORMAT JSON) {select}"]
        if in_order:
            statements.insert(0, "SET LOCAL max_parallel_workers_per_gather = 0")
        if timezone is not None:
            bound["timezone"] = timezone
            statements.insert(0, _SET_TIMEZONE)
        row = (await self.query("; ".join(statements), bound))[0]
        return Explained(row["QUERY PLAN"][0]["Plan"])

    async def lock(self, statement: str, settings: Mapping[str, str]) -> None:
        """Run what takes the locks of a reader beside the first, with the settings that came with its snapshot."""
        pinned = ", ".join(f"set_config('{name}', %({name})s, true)" for name in settings)
        await self.query(f"SELECT {pinned}; {statement}", settings)

    async def export_snapshot(self) -> tuple[str, dict[str, str]]:
        """The name under which other sessions can take this one's snapshot, and the settings that go with it.

        It lasts as long as this transaction.
        """
        settings = ", ".join(f"current_setting('{name}') AS \"{name}\"" for name in _PINNED)
        row = (await self.query(f"SELECT pg_export_snapshot() AS name, {settings}"))[0]
        name: str = row.pop("name")
        return name, row

    async def relation(self, wanted: catalogue.RelationName, *, exact: bool = True) -> catalogue.Relation:
        """The relation of this name as it is now; its TOAST's size too if `exact`, which waits for locks.

        Raises RelationNotFound.
        """
        schemas = catalogue.schemas_to_search(wanted, self._schemas)
        find = catalogue.FIND_RELATION if exact else catalogue.DESCRIBE_RELATION
        rows = await self.query(find, {"schemas": schemas, "name": wanted.name})
        if not rows:
            names = await self.query(catalogue.LIST_NAMES, {"schemas": list(self._schemas)})
            raise catalogue.relation_not_found(wanted, [row["name"] for row in names])
        relation = catalogue.relation_from_row(rows[0])
        if any(column.readable is None for column in relation.columns):  # dropped while we looked
            raise errors.RelationGone("The relation is gone.")
        return relation

    async def settle(self, *, streaming: bool, by_blocks: bool = False) -> None:
        """Before the first row: make sure that the snapshot fits the relations.

        To be called once the query's relations are locked, by `explain` or by opening a cursor. streaming: how long
        the next statements take, and the time between them, is up to the client, so that only the wait for rows is
        limited, and not by PostgreSQL. by_blocks: they read ranges of blocks. Raises RelationChanged.
        """
        settings = "".join(f", set_config('{name}', '0', true)" for name in _TIMEOUTS) if streaming else ""
        settings += _BY_BLOCKS if by_blocks else ""
        if (await self.query(f"SELECT {_CHANGED} AS changed{settings}"))[0]["changed"]:
            raise errors.RelationChanged("The relation was changed while it was being opened.")

    @property
    def server_version(self) -> int:
        """The server's version as libpq gives it: 140005 for 14.5."""
        return self.connection.server_version

    def bound(self, sql: str, values: Mapping[str, str]) -> bytes:
        """Return the statement with its values in place of the placeholders, quoted by the driver."""
        return self.connection.bound(sql, values)

    def rows(self, reader: RowReader) -> Rows:
        """SELECTs whose rows are streamed; while they are, the session takes nothing else. Raises ConnectionLost."""
        if self.connection.closed:  # noticed since the last statement
            raise connection_lost()
        self._rows = Rows(self.connection, reader, self._threads, self._statement_timeout)
        return self._rows

    async def declare(
        self, select: str, values: Mapping[str, str] | None = None, *, timezone: str | None = None
    ) -> None:
        """Open the session's cursor over this SELECT; its rows come with `fetch`.

        values: for the SELECT's placeholders. timezone: in which timestamps are written.
        """
        bound = dict(values or {})
        statements = [f"DECLARE sluice NO SCROLL CURSOR FOR {select}", "FETCH FORWARD 0 FROM sluice"]
        if timezone is not None:
            bound["timezone"] = timezone
            statements.insert(0, _SET_TIMEZONE)
        # Two driver cursors in turn, so that a result stays valid while the next FETCH runs.
        self._cursors = [await self._cursor(None) for _ in range(2)]
        cursor = self._cursors[0]
        await self._execute(cursor, "; ".join(statements), bound)
        await self.settle(streaming=False)
        # Every type as the bytes that the server sent: the driver would parse numbers and dates.
        types = [column.type_code for column in cursor.raw.description]
        raw = dict.fromkeys(types, psycopg2.extensions.BYTES)
        for cursor in self._cursors:
            psycopg2.extensions.register_type(psycopg2.extensions.BYTES, cursor.raw)
            cursor.raw.string_types.update(raw)

    async def fetch(self, rows: int) -> Batch:
        """The next rows, at most so many; fewer only at the end."""
        self._cursors.reverse()
        cursor = self._cursors[0]
        await self._execute(cursor, f"FETCH FORWARD {rows} FROM sluice")
        return Batch(cursor.raw)

    async def _cursor(self, factory: type[psycopg2.extensions.cursor] | None) -> aiopg.Cursor:
        try:
            return await self.connection.cursor(cursor_factory=factory)
        except psycopg2.Error as error:
            raise translate(error) from error

    async def _execute(self, cursor: aiopg.Cursor, sql: str, values: Mapping[str, Any] | None = None) -> None:
        self._executing = True
        started = asyncio.get_running_loop().time()
        try:
            await cursor.execute(sql, values, timeout=self._driver_timeout)
        except asyncio.CancelledError:
            # aiopg gives a statement that the server cancelled (SQLSTATE 57014) the same face as a task
            # that is cancelled; only the task itself can tell.
            if cancelled_from_here():
                raise
            self._executing = False
            waited = asyncio.get_running_loop().time() - started
            if self._statement_timeout and waited >= self._statement_timeout * 0.9:
                raise statement_timed_out(self._statement_timeout) from None
            raise errors.QueryCancelled("The query was cancelled in the database.") from None
        except TimeoutError:
            raise errors.QueryTimeout("The database did not answer in time.") from None
        except psycopg2.Error as error:
            self._executing = False
            raise translate(error) from error
        self._executing = False
        # Before Python 3.12 asyncio.wait_for drops a cancellation that arrives together with the result.
        if cancelled_from_here():
            raise asyncio.CancelledError

    async def end(self) -> bool:
        """Close the transaction; whether the connection can be used again. Never raises but CancelledError."""
        if self.statement_left_running or self.connection.closed or (self._rows is not None and self._rows.lost):
            return False
        try:
            cursor = await self.connection.cursor()
            with contextlib.closing(cursor):
                await cursor.execute("ROLLBACK", timeout=CONTROL_TIMEOUT)
        except asyncio.CancelledError:
            if cancelled_from_here():
                raise
            return False
        except (TimeoutError, psycopg2.Error):
            return False
        return not self.connection.closed

    @property
    def statement_left_running(self) -> bool:
        """Whether the server may still be at work on a statement that nobody waits for."""
        return self._executing or (self._rows is not None and self._rows.running)

    def stop(self) -> None:
        """Stop a thread that reads rows of this session: see `Rows.stop`. Other statements continue."""
        if self._rows is not None:
            self._rows.stop()

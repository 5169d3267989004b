"""One session: a transaction, its statements, and its rows, streamed or fetched from a cursor.

It runs the SQL that it is given and returns results. Must not know plans, dialects or HTTP.
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
from server.postgres import statements
from server.postgres.connections import Connection, cancelled_from_here
from server.postgres.explained import Explained
from server.postgres.libpq import result_memory
from server.postgres.rows import RowReader, Rows
from server.postgres.server_errors import connection_lost, query_cancelled, statement_timed_out, translate
from server.query import catalogue

# Seconds for a query of the catalogue and for cancelling: short enough for a person who waits.
CONTROL_TIMEOUT = 10.0
# Seconds that stand for no limit: the driver's own timeout cannot be switched off.
FOREVER = 10.0**7
# Seconds that the driver waits beyond the server's own timeout, for a server that does not answer at all.
ANSWER_MARGIN = 30.0
# A statement that was cancelled after this share of STATEMENT_TIMEOUT was ended by the timeout; PostgreSQL has one
# SQLSTATE (57014) for both. Less than 1, since two clocks measure the time.
TIMEOUT_SHARE = 0.9


class Batch:
    """The rows of one FETCH. Valid until the second FETCH after it on the same session.

    pgresult: the address of the PGresult. count: how many rows. memory: how many bytes libpq holds for it.
    """

    __slots__ = ("_cursor", "count", "memory", "pgresult")

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.pgresult: int = cursor.pgresult_ptr
        self.count: int = cursor.rowcount
        self.memory: int = result_memory(self.pgresult)

    @property
    def types(self) -> Sequence[int]:
        """The type OID of each column. For a domain, that of its base type."""
        return [column.type_code for column in self._cursor.description]

    def rows(self) -> Sequence[Sequence[bytes | None]]:
        """Return the rows, each value as the text that PostgreSQL sent, NULL as None."""
        return cast("Sequence[Sequence[bytes | None]]", self._cursor.fetchall())


class Session:
    """One read-only REPEATABLE READ transaction: one snapshot on one connection.

    Made by `Database.session`. After an error the session can only be left.

    backend_pid: the process ID of its backend. snapshot_at: the start of the transaction.
    """

    def __init__(
        self, connection: Connection, statement_timeout: float, schemas: Sequence[str], threads: Executor
    ) -> None:
        """statement_timeout: in seconds, 0 for none. schemas: those whose relations may be exported, in search order.

        threads: one for each connection that reads rows at once.
        """
        self.connection = connection
        self._threads = threads
        self._rows: Rows | None = None
        self._schemas = schemas
        self._statement_timeout = statement_timeout
        self._driver_timeout = statement_timeout + ANSWER_MARGIN if statement_timeout else FOREVER
        self._executing = False
        self._cursors: list[aiopg.Cursor] = []
        self.backend_pid = 0
        self.snapshot_at: datetime.datetime | None = None

    async def begin(self, settings: Mapping[str, str], snapshot: str | None = None) -> None:
        """Open the transaction. Raise the errors of `query`.

        settings: by name, in force until the transaction ends. snapshot: the name of a snapshot that another session
        has exported; None for a new one.
        """
        row = (await self.query(statements.begin(settings, snapshot, self.server_version)))[0]
        self.backend_pid, self.snapshot_at = row["pid"], row["started"]

    async def query(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return all rows of a small query, each as a dictionary of Python values by column name.

        sql: one or more statements with placeholders like %(name)s; the rows are those of the last one. values: those
        of the placeholders, by name; None if there are no placeholders (a percent sign then stands for itself).

        Raise QueryTimeout, QueryCancelled, ConnectionLost, or what `server_errors.error_for` makes of the server's
        error.
        """
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
        """Return PostgreSQL's plan of this SELECT, and lock what it reads.

        values: those of its placeholders. timezone: the time zone of the transaction from now on. in_order: the rows
        must come in the order in which they lie in the table, so no parallel plan may be used for the rest of the
        transaction. Raise what the SELECT itself would for a value that its column cannot take, and the errors of
        `query`.
        """
        text = f"EXPLAIN (VERBOSE, FORMAT JSON) {select}"
        if in_order:
            text = f"{statements.NO_PARALLEL_PLAN}; {text}"
        row = (await self.query(*statements.in_timezone(text, values, timezone)))[0]
        return Explained(row["QUERY PLAN"][0]["Plan"])

    async def lock(self, statement: str, settings: Mapping[str, str]) -> None:
        """Take over the settings of the session whose snapshot this one uses, then run the statement that locks.

        settings: as `export_snapshot` returned them.
        """
        await self.query(f"{statements.pin(settings)}; {statement}", settings)

    async def export_snapshot(self) -> tuple[str, dict[str, str]]:
        """Return the name under which other sessions can import this snapshot, and the settings they must take over.

        The name is valid as long as this transaction (PostgreSQL manual, "Snapshot Synchronization Functions").
        """
        row = (await self.query(statements.EXPORT_SNAPSHOT))[0]
        name: str = row.pop("name")
        return name, row

    async def relation(self, wanted: catalogue.RelationName, *, exact: bool = True) -> catalogue.Relation:
        """Return the relation of this name as it is now. Raise RelationNotFound, RelationGone.

        exact: include the size of its TOAST table, which waits for a lock on the relation.
        """
        schemas = catalogue.schemas_to_search(wanted, self._schemas)
        find = catalogue.FIND_RELATION if exact else catalogue.DESCRIBE_RELATION
        rows = await self.query(find, {"schemas": schemas, "name": wanted.name})
        if not rows:
            names = await self.query(catalogue.LIST_NAMES, {"schemas": list(self._schemas)})
            raise catalogue.relation_not_found(wanted, [row["name"] for row in names])
        relation = catalogue.relation_from_row(rows[0])
        if any(column.readable is None for column in relation.columns):  # dropped during the query
            raise errors.RelationGone("The relation no longer exists.")
        return relation

    async def check_snapshot(self, *, streaming: bool, by_blocks: bool = False) -> None:
        """Check that the snapshot fits the relations. Raise RelationChanged if one was rewritten since it was taken.

        Call it before the first row is read, when the relations of the query are locked: after `explain`, `lock` or
        `declare`.

        streaming: the client determines how long the next statements take and how far apart they are, so the server's
        timeouts are switched off; `Rows` limits the wait for a row. by_blocks: they read ranges of blocks.
        """
        if (await self.query(statements.check_snapshot(streaming=streaming, by_blocks=by_blocks)))[0]["changed"]:
            raise errors.RelationChanged("The relation was changed while it was being opened.")

    @property
    def server_version(self) -> int:
        """The server's version as libpq gives it: 140005 for 14.5."""
        return self.connection.server_version

    def bound(self, sql: str, values: Mapping[str, str]) -> bytes:
        """Return the statement with its values in place of the placeholders, quoted by the driver."""
        return self.connection.bound(sql, values)

    def rows(self, reader: RowReader) -> Rows:
        """Return a context manager that streams the rows of SELECTs. Within it the session takes no other statement.

        reader: encodes the rows. Raise ConnectionLost if the connection has broken since the last statement.
        """
        if self.connection.closed:
            raise connection_lost()
        self._rows = Rows(self.connection, reader, self._threads, self._statement_timeout)
        return self._rows

    async def declare(
        self, select: str, values: Mapping[str, str] | None = None, *, timezone: str | None = None
    ) -> None:
        """Open the session's only cursor over this SELECT; `fetch` returns its rows.

        values: those of the SELECT's placeholders. timezone: the time zone of the transaction from now on. Raise
        RelationChanged, and the errors of `query`.
        """
        text = f"DECLARE sluice NO SCROLL CURSOR FOR {select}; FETCH FORWARD 0 FROM sluice"
        # Two of the driver's cursors in turn, so that a result stays valid while the next FETCH runs.
        self._cursors = [await self._cursor(None) for _ in range(2)]
        cursor = self._cursors[0]
        await self._execute(cursor, *statements.in_timezone(text, values, timezone))
        await self.check_snapshot(streaming=False)
        # Every type as the bytes that the server sent: the driver would parse numbers and dates.
        types = [column.type_code for column in cursor.raw.description]
        raw = dict.fromkeys(types, psycopg2.extensions.BYTES)
        for cursor in self._cursors:
            psycopg2.extensions.register_type(psycopg2.extensions.BYTES, cursor.raw)
            cursor.raw.string_types.update(raw)

    async def fetch(self, rows: int) -> Batch:
        """Return the cursor's next rows, at most `rows`. Fewer mean that these are the last.

        The whole batch is held in memory. Call `declare` first. Raise the errors of `query`.
        """
        self._cursors.reverse()
        cursor = self._cursors[0]
        await self._execute(cursor, f"FETCH FORWARD {rows} FROM sluice")
        return Batch(cursor.raw)

    async def end(self) -> bool:
        """Roll the transaction back. Return whether the connection can be used again.

        Takes at most CONTROL_TIMEOUT seconds. Raise nothing but CancelledError.
        """
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
        """Whether the server may still be running a statement whose result nothing awaits."""
        return self._executing or (self._rows is not None and self._rows.running)

    def stop(self) -> None:
        """Stop a thread that reads rows of this session: see `Rows.stop`. Other statements continue."""
        if self._rows is not None:
            self._rows.stop()

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
            if cancelled_from_here():
                raise
            self._executing = False
            waited = asyncio.get_running_loop().time() - started
            if self._statement_timeout and waited >= self._statement_timeout * TIMEOUT_SHARE:
                raise statement_timed_out(self._statement_timeout) from None
            raise query_cancelled() from None
        except TimeoutError:
            raise errors.QueryTimeout("The database did not answer in time.") from None
        except psycopg2.Error as error:
            self._executing = False
            raise translate(error) from error
        self._executing = False
        # Before Python 3.12 asyncio.wait_for drops a cancellation that arrives together with the result.
        if cancelled_from_here():
            raise asyncio.CancelledError

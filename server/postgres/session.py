"""One session: a transaction, its queries, and the rows of its SELECTs.

It runs the SQL that it is given and returns results. Must not know plans, dialects or HTTP.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Collection, Mapping, Sequence

from server import errors
from server.postgres import statements
from server.postgres.cleaning import cleaning, is_as_new
from server.postgres.connection import Connection
from server.postgres.explained import NOT_ASKED, Explained, top_node
from server.postgres.planning import PlanningLimit
from server.postgres.queries import Query, Row, Value
from server.postgres.reader import RowReader
from server.postgres.rows import Rows
from server.postgres.server_errors import connection_lost, statement_timed_out
from server.postgres.statements import Timeouts
from server.postgres.withheld import WITHHELD
from server.query import catalogue, operators, suggestions
from server.threads import Threads, in_thread

# Seconds for a query of the catalogue and for cancelling: short enough for a person who waits.
CONTROL_TIMEOUT = 10.0
# Seconds to wait for an answer beyond the server's own timeout, for a server that does not answer at all.
ANSWER_MARGIN = 30.0
# A statement that was cancelled after this share of STATEMENT_TIMEOUT was ended by the timeout; PostgreSQL has one
# SQLSTATE (57014) for both. Less than 1, since two clocks measure the time.
TIMEOUT_SHARE = 0.9


# Characters of a plan that is read on the event loop, in about a millisecond.
LONG_PLAN = 100_000


class Session:
    """One read-only REPEATABLE READ transaction: one snapshot on one connection.

    Made by `Database.session`. After an error the session can only be left.

    backend_pid: the process ID of its backend, 0 until the server has opened the transaction. snapshot_at: the start of
    the transaction.
    """

    def __init__(
        self,
        connection: Connection,
        timeouts: Timeouts,
        schemas: Sequence[str],
        threads: Threads,
        planning: PlanningLimit,
    ) -> None:
        """schemas: those whose relations may be exported, in search order.

        threads: `rows` must have one for each connection that reads rows at once. planning: bounds `explain`.
        """
        self.connection = connection
        self._planning = planning
        # Whether functions of others may have run: those of views, policies, operators and indexes.
        self._ran_foreign_code = False
        self._threads = threads
        self._rows: Rows | None = None
        self._schemas = schemas
        self._timeouts = timeouts
        # In seconds, 0 for none. A shorter one of the role takes its place when the transaction is open.
        self._statement_timeout = timeouts.statement
        self._unsent: list[Query] = []
        self.backend_pid = 0
        self.snapshot_at: datetime.datetime | None = None

    def begin(self, snapshot: str | None = None) -> None:
        """Open the transaction together with the first query, in one round trip.

        snapshot: the name of a snapshot that another session has exported; None for a new one.
        """
        *opening, last = statements.begin(snapshot)
        self._unsent = [Query(sql) for sql in opening]
        self._unsent.append(Query(last, self._timeouts.values, prepare=True, then=self._begun))

    def _begun(self, rows: list[Row]) -> None:
        self.backend_pid, self.snapshot_at = rows[0]["pid"], rows[0]["started"]
        self._statement_timeout = rows[0]["statement_timeout"] / 1000
        self.connection.direct = self.backend_pid == self.connection.raw.get_backend_pid()

    @property
    def timezone(self) -> str:
        """The time zone of the connection, as PostgreSQL reported it: in force unless the transaction sets another."""
        return str(self.connection.raw.get_parameter_status("TimeZone"))

    async def query(self, sql: str, values: Sequence[Value] = (), *, prepare: bool = False) -> list[Row]:
        """Return all rows of a small query, each as a dictionary of Python values by column name.

        sql: with the parameters $1, $2, … values: theirs. prepare: keep it prepared on the connection, where that is
        possible; for texts that do not depend on the request, and run no function that is not PostgreSQL's own.

        Raise QueryTimeout, QueryCancelled, ConnectionLost, or what `server_errors.error_for` makes of the server's
        error.
        """
        self._ran_foreign_code = self._ran_foreign_code or not prepare
        return (await self._run(Query(sql, values, prepare)))[-1]

    async def parameter_types(self, sql: str) -> list[int]:
        """Return the type OIDs of the parameters of a statement, which is parsed and not run. Raise as `query` does."""
        return [row["type"] for row in (await self._run(Query(sql, runs=False)))[-1]]

    async def read_values(self, values: Sequence[Value], types: Sequence[int]) -> None:
        """Let the server read each value as one of its type, and nothing else. Raise as `query` does."""
        await self._run(Query("SELECT", values, types=types))

    async def query_all(self, statements: Sequence[tuple[str, Sequence[Value]]], finished: list[list[Row]]) -> None:
        """Run small queries in one round trip, each a text with its values. Raise the errors of `query`.

        finished: gets the rows of each query as soon as it ends. The first one that fails is the last one that runs.
        """
        await self.open()
        self._ran_foreign_code = True
        await self.connection.run([Query(*statement) for statement in statements], finished)

    async def open(self) -> None:
        """Open the transaction now, without a query. Raise the errors of `query`."""
        await self._run()

    async def explain(
        self,
        select: str,
        values: Sequence[Value] = (),
        *,
        timezone: str | None = None,
        in_order: bool = False,
        told_about: int | None = None,
        relation_alone: bool = False,
    ) -> Explained:
        """Return PostgreSQL's plan of this SELECT, and lock what it reads. End the time-outs of opening.

        values: those of its parameters. timezone: the time zone of the transaction from now on. in_order: the rows
        must come in the order in which they lie in the table, so no parallel plan may be used for the rest of the
        transaction. told_about: the OID of the relation that a request names, to find out whether the plan may be told
        to its user; None for a plan that nobody is told. relation_alone: the request adds nothing that could take long
        to plan. Raise what the SELECT itself would for a value that its column cannot take, RelationLocked,
        RelationChanged, PlanTimeout, and the errors of `query`.
        """
        queries = []
        if timezone is not None:
            queries.append(Query("SELECT pg_catalog.set_config('TimeZone', $1, true)", (timezone,)))
        if in_order:
            queries.append(Query(f"SELECT {statements.set_local(statements.NO_PARALLEL_PLAN)}", prepare=True))
        first = len(self._unsent) + len(queries)
        queries.append(Query(f"EXPLAIN (VERBOSE, FORMAT JSON) {select}", values, as_text=True))
        if told_about is not None:
            queries.append(Query(WITHHELD, (told_about,), prepare=True))
        self._ran_foreign_code = True
        try:
            async with self._planning.planning(self, relation_alone=relation_alone):
                plan, *asked, checked = (await self._run(*queries, self._check))[first:]
        except errors.AnswerTooLarge:
            raise errors.RequestTooLarge(
                "PostgreSQL's plan of this request is too large.",
                hint="The plan repeats the filters for each partition. Use shorter ones, or export the partitions.",
            ) from None
        withheld = (asked[0][0]["reason"] or "") if asked else NOT_ASKED
        blocks = statements.unchanged(checked[0])
        text = plan[0]["QUERY PLAN"]
        # That of a thousand partitions has megabytes.
        node = top_node(text) if len(text) < LONG_PLAN else await in_thread(self._threads.pages, top_node, text)
        return Explained(node, blocks, withheld)

    async def read_by_blocks(self) -> None:
        """Allow only plans that read ranges of blocks from now on. Raise the errors of `query`."""
        await self.query(statements.BY_BLOCKS, prepare=True)

    async def lock(self, locks: Sequence[str], settings: Mapping[str, str]) -> None:
        """Take over the settings of the session whose snapshot this one uses, then lock, and read only by blocks.

        locks: the statements that lock. settings: as `export_snapshot` returned them. Raise RelationLocked,
        RelationChanged, and the errors of `query`.
        """
        pin = Query(statements.pin(settings), list(settings.values()), prepare=True)
        by_blocks = Query(statements.BY_BLOCKS, prepare=True)
        self._ran_foreign_code = True
        statements.unchanged((await self._run(pin, *map(Query, locks), self._check, by_blocks))[-2][0])

    async def export_snapshot(self) -> tuple[str, dict[str, str]]:
        """Return the name under which other sessions can import this snapshot, and the settings they must take over.

        The name is valid as long as this transaction (PostgreSQL manual, "Snapshot Synchronization Functions").
        """
        row = (await self.query(statements.EXPORT_SNAPSHOT, prepare=True))[0]
        name: str = row.pop("name")
        return name, row

    async def relation(
        self, wanted: catalogue.RelationName, *, statistics: bool = False, filtered: Collection[str] = ()
    ) -> catalogue.Relation:
        """Return the relation of this name as it is now. Raise RelationNotFound, RelationGone.

        statistics: with its estimated rows, its size and its comment. filtered: the columns that filters compare, of
        which a type that is not PostgreSQL's own is looked up.
        """
        schemas = catalogue.schemas_to_search(wanted, self._schemas)
        several, values = len(schemas) > 1, (schemas, wanted.name)
        rows: list[Row] = []
        if not statistics:
            rows = await self.query(catalogue.FIND_RELATION[several], values, prepare=True)
        if statistics or (rows and rows[0]["has_domains"]):
            rows = await self.query(catalogue.DESCRIBE_RELATION[several], values, prepare=True)
        if not rows:
            names = await self.query(suggestions.LIST_NAMES, (self._schemas, wanted.name, str(wanted)))
            known = [catalogue.RelationName(row["name"], row["schema"]) for row in names]
            # Comparing names takes long.
            raise await in_thread(self._threads.pages, suggestions.relation_not_found, wanted, known, self._schemas)
        relation = catalogue.relation_from_row(rows[0])
        if any(column.readable is None for column in relation.columns):  # dropped during the query
            raise errors.RelationGone("The relation no longer exists.")
        others = [
            column.name
            for column in relation.columns
            if column.name in filtered and not column.built_in and column.values is None
        ]
        if others:
            parameters = (relation.oid, others, operators.SYMBOLS)
            rows = await self.query(operators.FIND_OPERATORS, parameters, prepare=True)
            relation = catalogue.with_types(relation, operators.types_from_rows(rows))
        return relation

    def rows(self, reader: RowReader) -> Rows:
        """Return a context manager that streams the rows of SELECTs. Within it the session takes no other statement.

        reader: encodes the rows. Raise ConnectionLost if the connection has broken since the last statement.
        """
        if self._unsent:
            raise RuntimeError("the transaction was not opened yet")
        if not self.connection.still_open():
            raise connection_lost()
        self._ran_foreign_code = True
        self._rows = Rows(self.connection, reader, self._threads.rows, self._statement_timeout)
        return self._rows

    async def end(self) -> bool:
        """Roll the transaction back and remove what that leaves. Return whether the connection can be used again.

        Takes at most CONTROL_TIMEOUT seconds. Raise nothing but CancelledError.
        """
        if not self._clean:
            return False
        if self._unsent:  # there is no transaction
            return True
        queries, connection = [Query("ROLLBACK")], self.connection
        if self._ran_foreign_code and self.snapshot_at is not None:
            queries += cleaning(self.snapshot_at, direct=connection.direct)
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT):
                _, *cleaned = await connection.run(queries)
        except (TimeoutError, errors.ExportError):
            return False
        as_new = not (cleaned and connection.direct) or is_as_new(cleaned[0], connection.prepared)
        return as_new and connection.idle

    def abandon(self) -> None:
        """Close the connection, also while a statement of it runs. The session can only be left."""
        self.connection.close()

    @property
    def _clean(self) -> bool:
        return self.connection.clean and (self._rows is None or self._rows.clean)

    @property
    def statement_left_running(self) -> bool:
        """Whether the server may still be running a statement whose result nothing awaits."""
        return self.connection.unanswered > 0 or (self._rows is not None and self._rows.pending > 0)

    def stop(self) -> None:
        """Stop a thread that reads rows of this session: see `Rows.stop`. Other statements continue."""
        if self._rows is not None:
            self._rows.stop()

    async def _run(self, *queries: Query) -> list[list[Row]]:
        """Run the queries in one round trip, after those that were not sent yet. Return the rows of each."""
        queries = (*self._unsent, *queries)
        self._unsent = []
        limit = self._statement_timeout
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit + ANSWER_MARGIN if limit else None):
                return await self.connection.run(queries)
        except TimeoutError:
            raise errors.QueryTimeout("The database did not answer in time.") from None
        except errors.QueryCancelled:
            limit = self._statement_timeout  # perhaps that of the role, which is known by now
            if limit and asyncio.get_running_loop().time() - started >= limit * TIMEOUT_SHARE:
                raise statement_timed_out(limit) from None
            raise

    @property
    def _check(self) -> Query:
        return Query(statements.CHECK_SNAPSHOT, prepare=True)

"""The SQL with which a session opens its transaction, fixes its settings and checks its snapshot, and cancels another.

Pure: text from values. All settings are local to the transaction, since PgBouncer may share the connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# The settings on which the text of values and the meaning of names also depend. They are fixed when the transaction
# begins; readers that share its snapshot take them over.
PINNED = ("TimeZone", "lc_monetary", "search_path")

# The version as libpq numbers it: the first one with client_connection_check_interval and TID range scans.
POSTGRES_14 = 140000

# A parallel plan returns the rows in no particular order.
NO_PARALLEL_PLAN = "SET LOCAL max_parallel_workers_per_gather = 0"

# The name under which other sessions can import this snapshot, and the pinned settings.
EXPORT_SNAPSHOT = "SELECT pg_export_snapshot() AS name, " + ", ".join(
    f"current_setting('{name}') AS \"{name}\"" for name in PINNED
)

# Placeholders: pid, start. The start of the transaction tells it from another one that a pooler runs on the same
# backend meanwhile.
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %(pid)s AND xact_start = %(start)s"

# Whether a relation that this transaction reads was rewritten (TRUNCATE, a rewriting ALTER TABLE, another table of the
# same name) after its snapshot was taken and before it held the lock: the snapshot would then see no rows at all
# (PostgreSQL manual, "MVCC Caveats"). Also whether it became a partition or is no longer one, so that the plan reads
# other tables than the snapshot has. pg_class and pg_inherits are read as of the snapshot; the functions show the
# present state.
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

# The time between two rows is up to the client.
_NO_TIMEOUTS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}

# A range of blocks must be read by tuple identifiers even if the planner prefers an index, as it may in a small
# partition: the rows would come in the order of the index.
_TID_SCANS_ONLY = {
    "enable_tidscan": "on",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
}

# Lets the server notice a killed worker while it sorts (from PostgreSQL 14). Not every platform's server can do that,
# and one that cannot rejects the setting.
_CHECK_CLIENT = (
    "CASE WHEN version() !~* 'windows|mingw|visual c|darwin' "
    "THEN set_config('client_connection_check_interval', '1s', true) END"
)


def session_settings(statement_timeout: float, idle_timeout: float) -> dict[str, str]:
    """Return the settings of a transaction, by name. Both timeouts are in seconds, 0 for none."""
    return {
        # The bytes must not depend on the settings of the server or the role.
        "datestyle": "ISO, MDY",
        "intervalstyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "quote_all_identifiers": "off",
        "synchronize_seqscans": "off",
        # All rows are wanted. By default the planner optimises a cursor for the first tenth of them.
        "cursor_tuple_fraction": "1.0",
        "jit": "off",
        # The driver keeps every notice, and nothing reads them.
        "client_min_messages": "error",
        "statement_timeout": f"{round(statement_timeout * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{round(idle_timeout * 1000)}ms",
    }


def begin(settings: Mapping[str, str], snapshot: str | None, server_version: int) -> str:
    """Return the statements that open a transaction and then give one row: `pid`, and `started`, a timestamp.

    snapshot: the name of a snapshot that another session has exported; None for a new one. server_version: as libpq
    gives it, 140005 for 14.5.
    """
    statements = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]
    if snapshot is not None:
        statements.append(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
    statements += [f"SET LOCAL {name} = '{value}'" for name, value in settings.items()]
    row = ["pg_backend_pid() AS pid", "now() AS started"]
    if server_version >= POSTGRES_14:
        row.append(_CHECK_CLIENT)
    row += [f"set_config('{name}', current_setting('{name}'), true)" for name in PINNED]
    return "; ".join([*statements, f"SELECT {', '.join(row)}"])


def in_timezone(
    statement: str, values: Mapping[str, str] | None, timezone: str | None
) -> tuple[str, Mapping[str, str]]:
    """Return the statement and its values, preceded by one that sets the time zone of the transaction.

    timezone: None to leave the time zone unchanged.
    """
    if timezone is None:
        return statement, values or {}
    set_timezone = "SELECT set_config('TimeZone', %(timezone)s, true)"
    return f"{set_timezone}; {statement}", {**(values or {}), "timezone": timezone}


def pin(names: Iterable[str]) -> str:
    """Return the statement that takes over settings from another session; its placeholders have their names."""
    return "SELECT " + ", ".join(f"set_config('{name}', %({name})s, true)" for name in names)


def check_snapshot(*, streaming: bool, by_blocks: bool) -> str:
    """Return the statement that gives one row, `changed`: whether the snapshot does not fit the locked relations.

    streaming: switch the server's timeouts off. by_blocks: allow only plans that read ranges of blocks.
    """
    settings = (_NO_TIMEOUTS if streaming else {}) | (_TID_SCANS_ONLY if by_blocks else {})
    return ", ".join(
        [
            f"SELECT {_CHANGED} AS changed",
            *(f"set_config('{name}', '{value}', true)" for name, value in settings.items()),
        ]
    )

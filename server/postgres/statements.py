"""The SQL with which a session opens its transaction, fixes its settings and checks its snapshot, and cancels another.

Pure: text from values. All settings are local to the transaction, since PgBouncer may share the connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# The settings on which the text of values and the meaning of names also depend. They are fixed when the transaction
# begins; readers that share its snapshot take them over.
PINNED = ("TimeZone", "lc_monetary", "search_path")

# A parallel plan returns the rows in no particular order.
NO_PARALLEL_PLAN = {"max_parallel_workers_per_gather": "0"}

# The name under which other sessions can import this snapshot, and the pinned settings.
EXPORT_SNAPSHOT = "SELECT pg_export_snapshot() AS name, " + ", ".join(
    f"current_setting('{name}') AS \"{name}\"" for name in PINNED
)

# Parameters: the process ID, and the start of the transaction, which tells it from another one that a pooler runs on
# the same backend meanwhile.
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND xact_start = $2"

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

_BLOCKS = """
(
    SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint / current_setting('block_size')::bigint
    FROM pg_locks AS l
    JOIN pg_class AS c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND c.relkind IN ('r', 'm')
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND c.relnamespace <> 'pg_catalog'::regnamespace
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
    "plan_cache_mode": "force_custom_plan",
}

# Lets the server notice a killed worker while it sorts. Not every platform's server can do that, and one that cannot
# rejects the setting.
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
        "jit": "off",
        # PostgreSQL plans the SELECT for its own values, as it does for EXPLAIN. The role may have set something else.
        "plan_cache_mode": "auto",
        # Nothing reads notices.
        "client_min_messages": "error",
        "statement_timeout": f"{round(statement_timeout * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{round(idle_timeout * 1000)}ms",
    }


def set_local(settings: Mapping[str, str]) -> str:
    """Return the expressions that set these settings until the transaction ends."""
    return ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())


def begin(settings: Mapping[str, str], snapshot: str | None) -> list[str]:
    """Return the statements that open a transaction. The last gives one row: `pid`, and `started`, a timestamp.

    snapshot: the name of a snapshot that another session has exported; None for a new one.
    """
    statements = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]
    if snapshot is not None:
        statements.append(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
    pinned = ", ".join(f"set_config('{name}', current_setting('{name}'), true)" for name in PINNED)
    row = f"pg_backend_pid() AS pid, now() AS started, {_CHECK_CLIENT}, {pinned}"
    return [*statements, f"SELECT {set_local(settings)}, {row}"]


def pin(names: Iterable[str]) -> str:
    """Return the statement that takes over settings from another session; its parameters are their values in order."""
    return "SELECT " + ", ".join(f"set_config('{name}', ${number}, true)" for number, name in enumerate(names, start=1))


# Gives one row: `changed`, whether the snapshot does not fit the locked relations; `blocks`, how many blocks the tables
# among them have now, system tables not included. Also switches the timeouts off.
CHECK_SNAPSHOT = f"SELECT {_CHANGED} AS changed, {_BLOCKS} AS blocks, {set_local(_NO_TIMEOUTS)}"

# For readers of block ranges. Every range is planned for its own blocks.
BY_BLOCKS = f"SELECT {set_local(_TID_SCANS_ONLY)}"

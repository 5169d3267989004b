"""The SQL with which a session opens its transaction, fixes its settings and checks its snapshot, and cancels another.

Pure: text from values. All settings are local to the transaction, since PgBouncer may share the connection. Every
function, operator, type and table is named with its schema: see `query/sql.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import RelationChanged

# The settings on which the text of values and the meaning of names also depend. They are fixed when the transaction
# begins; readers that share its snapshot take them over.
PINNED = ("TimeZone", "lc_monetary", "search_path")

# A parallel plan returns the rows in no particular order.
NO_PARALLEL_PLAN = {"max_parallel_workers_per_gather": "0"}

# The name under which other sessions can import this snapshot, and the pinned settings.
EXPORT_SNAPSHOT = "SELECT pg_catalog.pg_export_snapshot() AS name, " + ", ".join(
    f"pg_catalog.current_setting('{name}') AS \"{name}\"" for name in PINNED
)

# Parameters: the process ID, and the start of the transaction, which tells it from another one that a pooler runs on
# the same backend meanwhile.
CANCEL = """
SELECT pg_catalog.pg_cancel_backend(pid) FROM pg_catalog.pg_stat_activity
WHERE pid OPERATOR(pg_catalog.=) $1 AND xact_start OPERATOR(pg_catalog.=) $2
"""

# One row if that transaction waits for a lock. Parameters: as above.
WAITING = """
SELECT
FROM pg_catalog.pg_stat_activity
WHERE pid OPERATOR(pg_catalog.=) $1::pg_catalog.int4
  AND xact_start OPERATOR(pg_catalog.=) $2::pg_catalog.timestamptz
  AND wait_event_type OPERATOR(pg_catalog.=) 'Lock'::pg_catalog.text
"""

# Whether a relation that this transaction reads was rewritten (TRUNCATE, a rewriting ALTER TABLE, another table of the
# same name) after its snapshot was taken and before it held the lock: the snapshot would then see no rows at all
# (PostgreSQL manual, "MVCC Caveats"). Also whether a partition was attached or detached or a child dropped, so that the
# plan reads other tables than the snapshot has. An index may be made meanwhile: it does not change the rows.
#
# pg_class and pg_inherits are read as of the snapshot; the functions show the present state. Both sides leave out a
# partition whose detach is pending, which lasts until FINALIZE: pg_partition_ancestors ends there, and PostgreSQL reads
# its rows with the parent only in snapshots that are older than the detach. In those, the partition is its own only
# ancestor now, while one that was detached has none. For a partition that has partitions both look the same: the
# export is then repeated, and the next snapshot has the pending detach.
_CHANGED = """CASE
  WHEN c.oid IS NULL THEN pg_catalog.pg_index_has_property(l.relation, 'clusterable') IS NULL
  WHEN c.relkind OPERATOR(pg_catalog.=) ANY ('{i,I}') THEN false
  WHEN c.relfilenode OPERATOR(pg_catalog.<>) 0
    AND (c.relfilenode OPERATOR(pg_catalog.=) pg_catalog.pg_relation_filenode(c.oid)) IS NOT TRUE THEN true
  WHEN pg_catalog.pg_partition_root(c.oid) OPERATOR(pg_catalog.<>) c.oid AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_inherits AS i
      WHERE i.inhrelid OPERATOR(pg_catalog.=) c.oid AND NOT i.inhdetachpending
        AND i.inhparent OPERATOR(pg_catalog.=)
          (ARRAY(SELECT pg_catalog.pg_partition_ancestors(c.oid)))[2]::pg_catalog.oid
  ) THEN true
  WHEN c.relhassubclass THEN EXISTS (
      SELECT
      FROM pg_catalog.pg_inherits AS i
      JOIN pg_catalog.pg_class AS child ON child.oid OPERATOR(pg_catalog.=) i.inhrelid
      CROSS JOIN LATERAL (
          SELECT ARRAY(SELECT pg_catalog.pg_partition_ancestors(child.oid))::pg_catalog.oid[] AS ancestors OFFSET 0
      ) AS now
      WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid AND NOT i.inhdetachpending
        AND NOT CASE
          WHEN c.relkind OPERATOR(pg_catalog.<>) 'p' THEN pg_catalog.pg_table_is_visible(child.oid) IS NOT NULL
          WHEN now.ancestors[2] IS NULL
            THEN child.relkind OPERATOR(pg_catalog.<>) 'p' AND now.ancestors[1] IS NOT NULL
          ELSE now.ancestors[2] OPERATOR(pg_catalog.=) c.oid
        END
  )
  ELSE false
END"""

_BYTES = """CASE
  WHEN c.relkind OPERATOR(pg_catalog.=) ANY ('{r,m}')
    AND c.relnamespace OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace
  THEN pg_catalog.pg_relation_size(c.oid)
END"""

# The relations that this transaction has locked.
_FROM_LOCKS = """
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) l.relation
WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.locktype OPERATOR(pg_catalog.=) 'relation'
  AND l.database OPERATOR(pg_catalog.=) (
      SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
  )
"""

# When the relations are locked, the session waits for rows. How long is measured where they are read, and the time
# between two rows is up to the client. A lock that a function of the query takes is part of the wait for rows: the
# role's own lock_timeout (NULL restores it) applies to it, as to any session of the role.
_OPENED = (
    "pg_catalog.set_config('statement_timeout', '0', true), "
    "pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true), "
    "pg_catalog.set_config('lock_timeout', NULL, true)"
)

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
    "CASE WHEN pg_catalog.version() OPERATOR(pg_catalog.!~*) 'windows|mingw|visual c|darwin' "
    "THEN pg_catalog.set_config('client_connection_check_interval', '1s', true) END"
)

# A download may take any time. PostgreSQL has this setting since version 17; within a transaction 0 stops the time that
# BEGIN has started.
_NO_TRANSACTION_TIMEOUT = (
    "CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL "
    "THEN pg_catalog.set_config('transaction_timeout', '0', true) END"
)


def _limit_of_role(name: str) -> str:
    """Return the expression of a time-out of the role in milliseconds, NULL for none, which is quick to see."""
    setting = f"pg_catalog.current_setting('{name}')"
    return (
        f"CASE WHEN {setting} OPERATOR(pg_catalog.<>) '0' "
        f"THEN (extract(epoch FROM {setting}::interval) OPERATOR(pg_catalog.*) 1000.0)::bigint END"
    )


def _limit(parameter: str) -> str:
    """Return the expression of a limit in milliseconds, NULL for none. parameter: 0 for none."""
    return f"CASE WHEN {parameter}::bigint OPERATOR(pg_catalog.<>) 0 THEN {parameter}::bigint END"


# The limits of a session in milliseconds, 0 for none: of the role's time-out and the parameter, $1 for a statement and
# $2 for a lock, the shorter one. A wait for a lock also ends before the time-out of the statement that waits, which
# would not tell that a lock was the reason. OFFSET 0 makes PostgreSQL read the role's settings before it changes them.
_FROM_LIMITS = f"""
FROM (
    SELECT own.statement, coalesce(
        least(own.lock, {_limit("$2")}, own.statement OPERATOR(pg_catalog.*) 9 OPERATOR(pg_catalog./) 10), 0
    ) AS lock
    FROM (
        SELECT least(role.statement, {_limit("$1")}) AS statement, role.lock
        FROM (
            SELECT {_limit_of_role("statement_timeout")} AS statement, {_limit_of_role("lock_timeout")} AS lock
        ) AS role
    ) AS own
    OFFSET 0
) AS limits
"""

# In force until the transaction ends, by name.
SETTINGS = {
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
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a session waits, in seconds, 0 for no limit.

    statement: for the end of a statement, and for the next rows. lock: for each lock, while the session is opened.
    idle: for the next statement, until the relations are locked. A shorter statement_timeout or lock_timeout of the
    database role takes the place of the first two.
    """

    statement: float
    lock: float
    idle: float

    @property
    def values(self) -> list[int]:
        """The values of the parameters of the last statement of `begin`."""
        return [math.ceil(seconds * 1000) for seconds in (self.statement, self.lock, self.idle)]


def set_local(settings: Mapping[str, str]) -> str:
    """Return the expressions that set these settings until the transaction ends."""
    return ", ".join(f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in settings.items())


def begin(snapshot: str | None) -> list[str]:
    """Return the statements that open a transaction.

    snapshot: the name of a snapshot that another session has exported; None for a new one. The last statement takes the
    `Timeouts.values` and gives one row: `pid`; `started`, a timestamp; `statement_timeout`, the limit that is in force,
    in milliseconds.
    """
    statements = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]
    if snapshot is not None:
        statements.append(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
    expressions = [
        "pg_catalog.pg_backend_pid() AS pid",
        "pg_catalog.now() AS started",
        "coalesce(limits.statement, 0) AS statement_timeout",
        "pg_catalog.set_config('statement_timeout', coalesce(limits.statement, 0)::pg_catalog.text, true)",
        "pg_catalog.set_config('lock_timeout', limits.lock::pg_catalog.text, true)",
        "pg_catalog.set_config('idle_in_transaction_session_timeout', $3, true)",
        _NO_TRANSACTION_TIMEOUT,
        _CHECK_CLIENT,
        set_local(SETTINGS),
        *(f"pg_catalog.set_config('{name}', pg_catalog.current_setting('{name}'), true)" for name in PINNED),
    ]
    return [*statements, f"SELECT {', '.join(expressions)} {_FROM_LIMITS}"]


def pin(names: Iterable[str]) -> str:
    """Return the statement that takes over settings from another session; its parameters are their values in order."""
    settings = enumerate(names, start=1)
    return "SELECT " + ", ".join(f"pg_catalog.set_config('{name}', ${number}, true)" for number, name in settings)


# Gives one row: `changed`, whether the snapshot does not fit the locked relations; `blocks`, how many blocks the tables
# among them have now, system tables not included. Also ends the time-outs of opening.
CHECK_SNAPSHOT = (
    f"SELECT coalesce(pg_catalog.bool_or({_CHANGED}), false) AS changed, "
    f"coalesce(pg_catalog.sum({_BYTES}), 0)::bigint "
    f"OPERATOR(pg_catalog./) pg_catalog.current_setting('block_size')::bigint AS blocks, {_OPENED} {_FROM_LOCKS}"
)

# For readers of block ranges. Every range is planned for its own blocks.
BY_BLOCKS = f"SELECT {set_local(_TID_SCANS_ONLY)}"


def unchanged(checked: Mapping[str, Any]) -> int:
    """Return how many blocks the locked tables have. Raise RelationChanged if one was rewritten after the snapshot.

    checked: the row of CHECK_SNAPSHOT, which has to be read when the relations of the query are locked.
    """
    if checked["changed"]:
        raise RelationChanged("The relation was changed while it was being opened.")
    blocks: int = checked["blocks"]
    return blocks

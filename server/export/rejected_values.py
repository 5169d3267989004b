"""What PostgreSQL says about a value of a request: the only text of PostgreSQL that a client may see.

Any message of a statement that names a relation may quote a value of a row, even if the statement reads no row: while
it is planned, PostgreSQL runs functions that are called immutable, and operators on the statistics of the columns. So
the statement is only parsed here, which tells the types of its parameters. Its values are then read as these types by a
statement that names no relation.
"""

from __future__ import annotations

from server.errors import ExportError, QueryFailed
from server.postgres.session import Session
from server.query.sql import Statement

# Whether reading a value as one of these types runs the CHECK of a domain, which may call a function that reads rows.
# The input functions of all other types are written in C. Parameter: $1, the OIDs of the types.
_RUNS_A_CHECK = """
WITH RECURSIVE part (oid) AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[])
    UNION
    SELECT within.oid
    FROM part
    JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) part.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem
        UNION ALL SELECT t.typbasetype
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid OPERATOR(pg_catalog.=) t.typrelid
                AND a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range AS r
            WHERE r.rngtypid OPERATOR(pg_catalog.=) t.oid OR r.rngmultitypid OPERATOR(pg_catalog.=) t.oid
    ) AS within (oid)
    WHERE within.oid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid
)
SELECT EXISTS (
    SELECT FROM part JOIN pg_catalog.pg_constraint AS c ON c.contypid OPERATOR(pg_catalog.=) part.oid
) AS runs
"""


async def message_about(session: Session, statement: Statement) -> str | None:
    """Return PostgreSQL's message about a value of this statement, None if it reads each of them or may run a check.

    The statement itself is not run. After a message the session can only be left.
    """
    try:
        types = await session.parameter_types(statement.text)
        if (await session.query(_RUNS_A_CHECK, ([str(type) for type in set(types)],)))[0]["runs"]:
            return None
    except ExportError:  # the relation is locked, for example: the rest is known without the message
        return None
    try:
        await session.read_values(statement.values, types)
    except QueryFailed as error:
        return error.server_message or None
    return None

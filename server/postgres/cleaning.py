"""What a session may leave on its connection although its transaction is rolled back, and the SQL that removes it.

Functions of views, policies, operators and indexes run in the session. ROLLBACK undoes most of what they may do in a
read-only transaction: settings (also by set_config(…, false)), the role, LISTEN, NOTIFY, temporary tables, cursors,
also those WITH HOLD. What stays until the session ends: advisory locks of the session, statements that SQL's PREPARE
has made, the loss of statements that DEALLOCATE has removed, and the seed of random(). DISCARD ALL would also remove
what Sluice itself has prepared, and fails within a transaction.

Both statements follow the ROLLBACK in the same pipeline. They cost no round trip, work after an error too, and a pooler
gives the server's process to another client only after them. Pure.
"""

from __future__ import annotations

import datetime
import random

from server.postgres.queries import Query, Row

# Gives one row: `from_sql`, an array with an item for each statement that the session has prepared, whether SQL's
# PREPARE has made it; Sluice does not use that. Never prepared itself: a function could put another statement in its
# place. The parameter is the seed that random() has from now on. It costs PostgreSQL 0.03 ms; counting would cost more.
_CLEAN = """
SELECT
    pg_catalog.pg_advisory_unlock_all(),
    pg_catalog.setseed($1::pg_catalog.float8),
    pg_catalog.array_agg(each.from_sql) AS from_sql
FROM pg_catalog.pg_prepared_statement() AS each
"""

# Removes what PREPARE has made since the transaction began. Statements that a pooler has prepared are not made by SQL.
_DEALLOCATE = """
DO LANGUAGE plpgsql $$
DECLARE
    statement_name pg_catalog.text;
BEGIN
    FOR statement_name IN
        SELECT each.name FROM pg_catalog.pg_prepared_statement() AS each
        WHERE each.from_sql AND each.prepare_time OPERATOR(pg_catalog.>=) '{began}'::pg_catalog.timestamptz
    LOOP
        EXECUTE pg_catalog.concat('DEALLOCATE ', pg_catalog.quote_ident(statement_name));
    END LOOP;
END
$$
"""

# Not reproducible, as that of a new session is.
_seeds = random.SystemRandom()


def cleaning(began: datetime.datetime, *, direct: bool) -> list[Query]:
    """Return the statements that follow the ROLLBACK.

    began: when the transaction began. direct: whether the server's process belongs to this connection alone. If not,
    the connection cannot be thrown away with what is left on it.
    """
    queries = [Query(_CLEAN, (repr(_seeds.uniform(-1, 1)),))]
    if not direct:
        queries.append(Query(_DEALLOCATE.format(began=began.isoformat())))
    return queries


def is_as_new(rows: list[Row], prepared: int) -> bool:
    """Return whether a connection of its own has those statements that Sluice has prepared, and no others.

    rows: of the first of the `cleaning` statements. prepared: how many Sluice has prepared.
    """
    made: str = "".join(row["from_sql"] or "" for row in rows)
    return "t" not in made and made.count("f") == prepared

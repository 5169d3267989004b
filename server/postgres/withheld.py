"""Whether the planner's expectations may be told to a user: only if they rest on nothing that the role may not read.

Estimates, and the choice between two plans, come from the statistics of whole tables. So they tell about rows that a
policy or a view hides: an estimate for `secret=eq.merger` that differs from the one for `secret=eq.nothing` is an
answer. SQL text only.
"""

from __future__ import annotations

# Why PostgreSQL's plan of a query is withheld from the user, NULL if it may be told: one row with the column `reason`.
# Parameter: $1, the OID of the relation that the request names. Run it after EXPLAIN: the transaction then holds a lock
# on every relation of the query, also beneath views, in policies, and in functions that the planner inlines or runs.
#
# The role itself must be able to read each table whole, except that of the relation in the request it may lack some
# columns: the request cannot use them. The rows of a partition are also readable through a parent. Which rows another
# server hides is not known. A view with security_barrier is there to hide rows.
WITHHELD = """
SELECT CASE
    WHEN pg_catalog.row_security_active($1::pg_catalog.oid) THEN 'row-level security'
    WHEN EXISTS (
        SELECT
        FROM pg_catalog.pg_locks AS l
        JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) l.relation
        WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
          AND l.locktype OPERATOR(pg_catalog.=) 'relation'::pg_catalog.text
          AND CASE
            WHEN c.relkind OPERATOR(pg_catalog.=) 'f'::pg_catalog."char" THEN true
            WHEN c.relkind OPERATOR(pg_catalog.=) 'v'::pg_catalog."char" THEN EXISTS (
                SELECT
                FROM pg_catalog.pg_options_to_table(c.reloptions) AS o
                WHERE o.option_name OPERATOR(pg_catalog.=) 'security_barrier'::pg_catalog.text
                  AND o.option_value::pg_catalog.bool
            )
            WHEN c.relkind OPERATOR(pg_catalog.<>) ALL ('{r,p,m}'::pg_catalog."char"[]) THEN false
            WHEN pg_catalog.has_table_privilege(c.oid, 'SELECT'::pg_catalog.text)
                AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'::pg_catalog.text)
                AND NOT pg_catalog.row_security_active(c.oid) THEN false
            ELSE NOT EXISTS (
                WITH RECURSIVE parent (oid) AS (
                    SELECT c.oid
                    UNION ALL
                    SELECT i.inhparent
                    FROM parent JOIN pg_catalog.pg_inherits AS i ON i.inhrelid OPERATOR(pg_catalog.=) parent.oid
                )
                SELECT
                FROM parent JOIN pg_catalog.pg_class AS p ON p.oid OPERATOR(pg_catalog.=) parent.oid
                WHERE p.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid
                   OR (
                       c.relispartition
                       AND pg_catalog.has_table_privilege(p.oid, 'SELECT'::pg_catalog.text)
                       AND pg_catalog.has_schema_privilege(p.relnamespace, 'USAGE'::pg_catalog.text)
                       AND NOT pg_catalog.row_security_active(p.oid)
                   )
            )
          END
    ) THEN 'rows that the role may not see'
END AS reason
"""

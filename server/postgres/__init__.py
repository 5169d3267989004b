"""Connections to PostgreSQL, transactions, and the rows of a running statement.

The only package that imports the driver (aiopg and psycopg2), which opens the connections. From then on Sluice speaks
the protocol on their sockets by itself. It holds the connection pool, sessions and their limits, cancellation, and the
translation of the server's errors. It must not know plans, dialects or HTTP.

Start with `database.py`.

Inside: events, explained, libpq, messages, planning, reader, sessions_of_workers, slots, spare_readers, statements,
withheld → large_row, queries, server_errors, tls → cleaning, portal, wire → connection → rows, unused → connections,
session → database.
May import: query.
"""

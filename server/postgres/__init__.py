"""Connections to PostgreSQL, transactions, and the rows of a running statement.

The only package that imports the driver (aiopg and psycopg2), which opens the connections. From then on Sluice speaks
the protocol on their sockets by itself. It holds the connection pool, sessions and their limits, cancellation, and the
translation of the server's errors. It must not know plans, dialects or HTTP.

Start with `database.py`.

Inside: events, explained, messages, reader, spare_readers, statements, tls → portal, queries, server_errors, wire →
connection → connections, rows → session → database.
May import: query.
"""

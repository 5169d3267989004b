"""Connections to PostgreSQL, transactions, and the rows of a running statement.

The only package that imports the driver (aiopg, psycopg2 and the libpq they use). It holds the connection pool,
sessions and their limits, cancellation, and the translation of the server's errors. It must not know plans, dialects
or HTTP.

Start with `database.py`.

Inside: events, explained, server_errors, statements → connections, libpq → rows → session → database.
May import: query.
"""

"""Connections to PostgreSQL, transactions, and the rows of a running statement.

The only package that imports the driver. Holds the pool, the sessions and their limits, cancellation, and the
translation of the server's errors. Must not know plans, dialects or HTTP. Start with `database.py`.

May import: query.
"""

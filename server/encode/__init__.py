"""From rows as PostgreSQL sends them to the bytes of CSV, TSV and JSON lines.

Holds the native encoder (`_encode.pyx`), which also reads the rows from the socket, and the pure-Python encoder
(`encoders.py`, `large_values.py`), which write the same bytes. Must not import the driver: it receives the addresses of
OpenSSL's functions.

Inside: _encode, kinds → large_values → encoders.

May import: query, postgres.
"""

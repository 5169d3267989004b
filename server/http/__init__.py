"""Requests and responses of the API.

Holds the routes (`routes/`), streaming with an honest end (`streaming.py`), problem documents, byte ranges and the
protection against requests of other sites. Runs no SQL of its own and touches no file but through `saved`.

May import: query, postgres, encode, export, saved.
"""

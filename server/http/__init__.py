"""Requests and responses of the API.

Holds the routes (`routes/`), the sending of a download and how it ends (`transfer.py`, `sendfile.py`), problem
documents, byte ranges, content negotiation and the protection against cross-site requests. Runs no SQL of its own and
opens no file except through `saved`.

May import: query, postgres, encode, export, saved.
"""

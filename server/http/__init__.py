"""Requests and responses of the API.

Holds the routes (`routes/`), the sending of a download and how it ends (`transfer.py`, `sendfile.py`), problem
documents, byte ranges, content negotiation and the protection against cross-site requests. Runs no SQL of its own and
opens no file except through `saved`.

Inside: addresses, byte_ranges, csrf, events, file_headers, negotiation → problems, transfer → aiohttp_internals, keys →
responses, sendfile → routes.
May import: query, postgres, export, saved.
"""

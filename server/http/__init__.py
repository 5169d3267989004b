"""Requests and responses of the API.

Holds the routes (`routes/`), the sending of a download and how it ends (`transfer.py`, `sendfile.py`), problem
documents, byte ranges, content negotiation, the trust in proxies, the limits on connections and on bodies, and the
protection against pages of other sites. Runs no SQL of its own and opens no file except through `saved`.

Values and headers come first, then the transfer of a file, then the routes.

Inside: addresses, bodies, byte_ranges, caching, events, forwarded, malformed, negotiation, paging, stall → connections,
cross_site, file_headers, hosts, problems, transfer → aiohttp_connections → aiohttp_internals, keys → parsing,
responses, saving, sendfile → routes.
May import: query, export, saved.
"""

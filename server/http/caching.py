"""What caches may do with a response (RFC 9111). Imports nothing."""

from __future__ import annotations

# For everything that changes from one request to the next.
NO_STORE = {"Cache-Control": "no-store"}

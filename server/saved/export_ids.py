"""The ids of saved exports: random, or derived from the client's Idempotency-Key.

The same key gives the same id in all processes that share the folder, and nobody can compute it without the secret in
the folder. May block on the disk: call it in a thread.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from server.saved import durable_files

# The file with the secret, in the folder of saved exports; no id begins with a dot.
_FILE = ".secret"
_SECRET_BYTES = 32
# 128 bits cannot be guessed, and two random ids are never equal.
_ID_BYTES = 16


def random_id() -> str:
    """Return a new id."""
    return secrets.token_urlsafe(_ID_BYTES)


def id_of_key(root: int, key: str) -> str:
    """Return the id that belongs to this Idempotency-Key. root: the folder of saved exports. Raise OSError."""
    digest = hmac.digest(read_secret(root), key.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest[:_ID_BYTES]).decode().rstrip("=")


def read_secret(root: int) -> bytes:
    """Return the secret of the folder, creating it if there is none. Raise OSError, also if it was changed."""
    try:
        secret = durable_files.read_file(root, _FILE, _SECRET_BYTES)
    except FileNotFoundError:
        durable_files.create_once(root, _FILE, secrets.token_bytes(_SECRET_BYTES))
        secret = durable_files.read_file(root, _FILE, _SECRET_BYTES)
    if len(secret) != _SECRET_BYTES:
        raise OSError(f"{_FILE} has been changed")
    return secret

"""The value that travels from the encoder to the client or the disk. Every package may import it."""

from __future__ import annotations

from typing import NamedTuple


class Chunk(NamedTuple):
    """A piece of the file.

    data: the bytes. rows: the number of rows that end in them. done: the fraction of the relation that has been read
    so far, from 0 to 1, or None if it is not known.
    """

    data: bytes
    rows: int
    done: float | None = None

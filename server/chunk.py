"""The value that travels from the encoder to the client or the disk. Every package may import it."""

from __future__ import annotations

from typing import NamedTuple


class Chunk(NamedTuple):
    """A piece of the file.

    data: the bytes. rows: how many rows end in them. done: the share of the relation that has been read by then,
    from 0 to 1, or None where it is not known.
    """

    data: bytes
    rows: int
    done: float | None = None

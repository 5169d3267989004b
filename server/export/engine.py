"""What all exports of one worker process share. Holds no code."""

from __future__ import annotations

from dataclasses import dataclass

from server.encode.encoders import Encoders
from server.memory import Memory
from server.postgres.database import Database
from server.threads import Threads


@dataclass(frozen=True, slots=True)
class Engine:
    """The database, the encoders, the threads and the memory of one worker process. Every export is opened with it.

    memory: for values that have to be held whole. regular_expressions: whether filters may hold them.
    """

    database: Database
    encoders: Encoders
    threads: Threads
    memory: Memory
    regular_expressions: bool = True

"""What all exports of one worker process share. Holds no code."""

from __future__ import annotations

from dataclasses import dataclass

from server.encode.encoders import Encoders
from server.postgres.database import Database
from server.threads import Threads


@dataclass(frozen=True, slots=True)
class Engine:
    """The database, the encoders and the threads of one worker process. Every export is opened with it."""

    database: Database
    encoders: Encoders
    threads: Threads

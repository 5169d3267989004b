"""A PostgreSQL server of a test's own, which it can start and stop."""

from __future__ import annotations

import socket
from pathlib import Path

import psycopg2

from server.process.embedded import EmbeddedPostgres


class OwnPostgres:
    """A PostgreSQL on a TCP port of its own, which a test can start and stop."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder = folder / "postgres"
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        # Who may connect: everyone over TCP, unlike to the embedded PostgreSQL of a user.
        self.access = folder / "pg_hba.conf"
        self.access.write_text("host all all 127.0.0.1/32 trust\n")
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "fsync": "off",
            "hba_file": str(self.access),
        }
        self._running: EmbeddedPostgres | None = None

    def start(self) -> None:
        self._running = EmbeddedPostgres(self.folder, settings=self._settings).__enter__()

    def stop(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None

    def run(self, sql: str) -> None:
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            connection.cursor().execute(sql)
        finally:
            connection.close()

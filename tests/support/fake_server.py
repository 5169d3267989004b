"""A PostgreSQL of which a test writes every answer: libpq connects to it, and then it is scripted.

For what a real server cannot be made to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from tests.support.fake_backend import BOUND, INT4, NO_DATA, PARSED, TEXT, message, row

TIMESTAMPTZ = 1184
# What a server reports while libpq connects, so that psycopg2 has nothing to change.
REPORTED = {"client_encoding": "UTF8", "DateStyle": "ISO, MDY", "standard_conforming_strings": "on"}
# The process ID that it tells libpq.
PID = 4711
IDLE = message(b"Z", b"I")
COMPLETE = message(b"C", b"SELECT 1\0")
# What libpq sends before it closes a connection.
TERMINATE = message(b"X")


@dataclass(frozen=True)
class Result:
    """What a statement returns. columns: the type of each by its name. rows: the values of each as text."""

    columns: Mapping[str, int]
    rows: Sequence[Sequence[str]]


NOTHING = Result({}, ())


def text(**values: str) -> Result:
    """Return a result of one row of text."""
    return Result(dict.fromkeys(values, TEXT), [list(values.values())])


def opening(sql: str, pid: int = PID) -> Result:
    """Return the result of a statement with which a session opens its transaction."""
    if "pg_backend_pid() AS pid" not in sql:
        return NOTHING
    columns = {"pid": INT4, "started": TIMESTAMPTZ, "statement_timeout": INT4}
    return Result(columns, [[str(pid), "2026-01-01 00:00:00+00", "0"]])


def answers(pipeline: Iterable[tuple[bytes, str]], result: Callable[[str], Result]) -> bytes:
    """Return the answers to all messages before Sync. result: called with the text of each statement."""
    data = b""
    for kind, sql in pipeline:
        if kind == b"P":
            data += PARSED
        elif kind == b"B":
            data += BOUND
        elif kind == b"D":
            data += description(result(sql).columns)
        elif kind == b"E":
            data += b"".join(row(*[value.encode() for value in values]) for values in result(sql).rows) + COMPLETE
    return data


def description(columns: Mapping[str, int]) -> bytes:
    """Return RowDescription, or NoData."""
    if not columns:
        return NO_DATA
    described = [name.encode() + b"\0" + struct.pack("!IHIhih", 0, 0, oid, -1, -1, 0) for name, oid in columns.items()]
    return message(b"T", struct.pack("!H", len(columns)) + b"".join(described))


class Conversation:
    """One connection, on which libpq is connected.

    parsed: the names under which statements were prepared so far, "" for each unnamed one.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._prepared: dict[bytes, str] = {}
        self.parsed: list[str] = []

    async def pipeline(self) -> list[tuple[bytes, str]]:
        """Wait for the messages up to Sync. Return the type of each before it, and the statement that it is about."""
        found = []
        sql = ""
        while (kind := await self._reader.readexactly(1)) != b"S":
            body = await self._body()
            if kind == b"P":
                name, parsed, _ = body.split(b"\0", 2)
                sql = self._prepared[name] = parsed.decode()
                self.parsed.append(name.decode())
            elif kind == b"B":
                sql = self._prepared[body.split(b"\0", 2)[1]]
            found.append((kind, sql))
        await self._body()
        return found

    async def send(self, data: bytes) -> None:
        """Send this at once."""
        self._writer.write(data)
        await self._writer.drain()

    async def serve(self, result: Callable[[str], Result]) -> None:
        """Answer each pipeline from now on. result: called with the text of each statement."""
        while True:
            await self.send(answers(await self.pipeline(), result) + IDLE)

    async def end(self) -> None:
        """Wait until the other end has closed the connection."""
        assert await self._reader.read() in (b"", TERMINATE)

    async def _body(self) -> bytes:
        (length,) = struct.unpack("!I", await self._reader.readexactly(4))
        return await self._reader.readexactly(length - 4)


Script = Callable[[Conversation], Awaitable[None]]


class FakeServer:
    """Listens on a port of its own. Each connection follows the script and is closed after it.

    dsn: the URI of its database. connections: how many were made so far.
    """

    def __init__(self, script: Script, *, version: str = "17.5", greeting: bytes = b"") -> None:
        """version: which it reports. greeting: sent to the first connection with the last message of the start."""
        self._script = script
        self._version = version
        self._greeting = greeting
        self._running: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> FakeServer:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1")
        port = self._listening.sockets[0].getsockname()[1]
        self.dsn = f"postgresql://somebody@127.0.0.1:{port}/fake?sslmode=disable"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise what a script has raised."""
        self._listening.close()
        for task in self._running:
            task.cancel()
        for ended in await asyncio.gather(*self._running, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        await self._listening.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._running.add(asyncio.create_task(self._converse(reader, writer)))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # The other end may leave at any time.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._start(reader, writer)
                await self._script(Conversation(reader, writer))
        finally:
            writer.close()

    async def _start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        reported = {**REPORTED, "server_version": self._version}
        statuses = [message(b"S", f"{name}\0{value}\0".encode()) for name, value in reported.items()]
        key = message(b"K", struct.pack("!II", PID, 1))
        # In one piece, of which libpq reads everything at once.
        writer.write(message(b"R", struct.pack("!I", 0)) + b"".join(statuses) + key + IDLE + self._greeting)
        self._greeting = b""
        await writer.drain()

"""Sluice as users run it: `python -m server serve` in another process, under real gunicorn."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
# The name by which tests ask a server over raw sockets.
HOST = "sluice.test"


def wait_until(what: str, holds: Callable[[], object], *, seconds: float = 30) -> None:
    """Poll until this holds, for a state of PostgreSQL or of a process. what: describes it when it fails."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


async def eventually(what: str, holds: Callable[[], object], *, seconds: float = 30) -> None:
    """Do as `wait_until` does, without blocking the event loop."""
    await asyncio.to_thread(wait_until, what, holds, seconds=seconds)


class LiveServer:
    """A running server. port: the port it listens on. log: the lines of its log so far.

    environment: variables in addition to those of every test server (a free port, a folder for saved exports).
    """

    def __init__(self, **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "DATABASE_URL"))}
        self._storage = Path(tempfile.mkdtemp(prefix="sluice-exports-"))
        ours = {"API_PORT": "0", "PYTHONUNBUFFERED": "1", "EXPORT_STORAGE_PATH": str(self._storage)}
        ours["ALLOWED_HOSTS"] = HOST
        self._environment = {**inherited, **ours, **environment}
        self.log: list[str] = []
        self.port = 0

    module = "server"

    def __enter__(self) -> LiveServer:
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, "serve"],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            line = self.wait_for_log(r"Sluice is at http://\S+:(\d+)/", seconds=60)
            wait_until("a worker runs", self.workers, seconds=60)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        self.port = int(line[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(signal.SIGINT)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def wait_for_log(self, pattern: str, *, seconds: float = 30, after: int = 0) -> re.Match[str]:
        """Wait for a line of the log that matches, and return the match. after: the number of lines to skip."""
        deadline = time.monotonic() + seconds
        while True:
            for line in list(self.log)[after:]:
                found = re.search(pattern, line)
                if found:
                    return found
            if time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} in the log:\n" + "\n".join(self.log))
            if self.process.poll() is not None and not self._reader.is_alive():
                raise AssertionError(f"the server ended ({self.process.returncode}):\n" + "\n".join(self.log))
            time.sleep(0.02)

    def export_line(self, request_id: str, *, seconds: float = 30) -> dict[str, str]:
        """Wait for the log line of the export with this X-Request-Id, and return its fields."""
        pattern = rf".* event=export .*requestId={re.escape(request_id)}(?: .*|$)"
        line = self.wait_for_log(pattern, seconds=seconds)[0]
        return dict(field.partition("=")[::2] for field in shlex.split(line))

    def workers(self) -> list[psutil.Process]:
        """The worker processes."""
        return psutil.Process(self.process.pid).children()

    def peak_memory(self) -> int:
        """The peak memory of the only worker in bytes (proc(5), VmHWM). Only Linux keeps it."""
        (worker,) = self.workers()
        status = Path(f"/proc/{worker.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        """Stop it like a person (SIGINT) or a supervisor (SIGTERM), and return its exit status."""
        assert self.process.stderr is not None
        if self.process.stderr.closed:  # stopped or killed before
            return self.process.returncode
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self._closed()
        return status

    def kill(self) -> None:
        """Kill all its processes with SIGKILL."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._closed()

    def _closed(self) -> None:
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        shutil.rmtree(self._storage, ignore_errors=True)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Return a socket to the server. receive_buffer: its size in bytes; a small one makes the server wait early."""
        raw = socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(30)
        raw.connect(("127.0.0.1", self.port))
        return raw

    def request(self, path: str, *, method: str = "GET", headers: str = "", **options: Any) -> socket.socket:
        """Return a socket on which the request has been sent and no response has been read."""
        raw = self.connect(**options)
        raw.sendall(f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode())
        return raw

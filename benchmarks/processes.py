"""The processes that are measured: servers under gunicorn, timed clients, and their CPU time and memory."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).resolve().parent.parent

SLUICE = ("-m", "server", "serve")
# The line that each server prints once it listens.
_LISTENING = re.compile(r"(?:Sluice is|Listening) at:? http://127\.0\.0\.1:(\d+)")


class BenchmarkError(RuntimeError):
    """The benchmark cannot continue. The message gives the reason."""


class Server:
    """One server with one worker, in processes of its own. port: the port it listens on.

    arguments: of the executable, by default this Python. folder: its working directory; that of another build runs the
    other build. environment: variables in addition to those of every server.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        database_url: str,
        *,
        executable: str = sys.executable,
        folder: Path = ROOT,
        **environment: str,
    ) -> None:
        self._executable = executable
        self._folder = folder
        ours = ("DB_", "DATABASE_URL", "API_", "SLUICE_", "EXPORT_", "MAX_", "WEB_CONCURRENCY", "GUNICORN_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._storage = tempfile.TemporaryDirectory(prefix="sluice-benchmark-")
        own = {"API_PORT": "0", "DATABASE_URL": database_url, "EXPORT_STORAGE_PATH": self._storage.name}
        self._environment = {**inherited, **own, **environment}
        self._arguments = arguments
        self.port = 0

    def __enter__(self) -> Server:
        self._log = tempfile.NamedTemporaryFile("w+", prefix="sluice-benchmark-", suffix=".log")
        self._process = subprocess.Popen(
            [self._executable, *self._arguments],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches the benchmark only, which then stops the server
        )
        try:
            self.port = self._wait_for_port(seconds=60)
        except BaseException:
            self._stop()
            raise
        return self

    def _wait_for_port(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while True:
            said = Path(self._log.name).read_text()
            found = _LISTENING.search(said)
            if found and (self._alone or psutil.Process(self._process.pid).children()):
                return int(found[1])
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{' '.join(self._arguments)} did not start:\n{said}")
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        self._storage.cleanup()

    def url(self, relation: str) -> str:
        """Return the address of the CSV of this relation."""
        return self.export(f"{relation}.csv")

    def export(self, target: str) -> str:
        """Return the address of an export. target: path below /export/ and query string."""
        return f"http://127.0.0.1:{self.port}/export/{target}"

    @property
    def _alone(self) -> bool:
        return self._executable != sys.executable

    def _worker(self) -> psutil.Process:
        """Return the process that writes the CSV: gunicorn's worker, or the only process."""
        started = psutil.Process(self._process.pid)
        if self._alone:
            return started
        (worker,) = started.children()
        return worker

    def cpu(self) -> float:
        """Return the CPU time of the worker so far, in seconds."""
        times = self._worker().cpu_times()
        return times.user + times.system

    def peak_memory(self) -> int | None:
        """Return the worker's peak resident memory in bytes (proc(5), VmHWM), or None on a system without /proc."""
        try:
            status = Path(f"/proc/{self._worker().pid}/status").read_text()
        except FileNotFoundError:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else None


def postgres_cpu(postmaster_pid: int) -> float:
    """Return the CPU time of a PostgreSQL server so far, in seconds, including its processes that have ended."""
    postmaster = psutil.Process(postmaster_pid)
    while True:
        running = postmaster.children()
        try:
            times = [process.cpu_times() for process in running]
        except psutil.NoSuchProcess:
            continue
        whole = postmaster.cpu_times()
        # The time of a process that ended meanwhile is now part of the postmaster's own figures: count again.
        if set(postmaster.children()) == set(running):
            own = whole.user + whole.system + whole.children_user + whole.children_system
            return own + sum(each.user + each.system for each in times)


@dataclass(frozen=True)
class Finished:
    """Clients that have ended. seconds: wall time. cpu: their own CPU time in seconds. output: what they printed."""

    seconds: float
    cpu: float
    output: str


def timed(start: Callable[..., subprocess.Popen[str]], *arguments: str, copies: int = 1) -> Finished:
    """Start a client with `start(*arguments)` and wait for its end. Raise BenchmarkError if it fails.

    copies: how many such clients run at once. Their CPU time is added up, their outputs follow each other.
    """
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    processes = [start(*arguments) for _ in range(copies)]
    printed = [process.communicate() for process in processes]
    seconds = time.perf_counter() - began
    for process, (_, complaint) in zip(processes, printed, strict=True):
        if process.returncode:
            raise BenchmarkError(f"{process.args!r} ended with status {process.returncode}: {complaint}")
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = use.ru_utime + use.ru_stime - used.ru_utime - used.ru_stime
    return Finished(seconds, cpu, "".join(output for output, _ in printed))


def start_curl(url: str) -> subprocess.Popen[str]:
    """Start curl with a download to /dev/null. It prints a line: seconds to the first byte, and number of bytes."""
    return subprocess.Popen(
        [
            *("curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", os.devnull),
            *("--write-out", r"%{time_starttransfer} %{size_download}\n", url),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

"""Another worker process of the same server, as far as its connections go."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from server.postgres.sessions_of_workers import SessionsOfWorkers
from tests.support.live_server import ROOT

# Another worker: it has inherited the file, and has a session and an unused connection until it gets a line.
WORKER = """
import sys
from server.postgres.sessions_of_workers import SessionsOfWorkers
workers = SessionsOfWorkers()
workers._file = int(sys.argv[1])
workers.mark(True)
workers.mark_unused(True)
print("has one", flush=True)
sys.stdin.readline()
workers.mark(False)
workers.mark_unused(False)
print("has none", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def another_worker(workers: SessionsOfWorkers) -> Iterator[subprocess.Popen[str]]:
    """Start another worker, and wait until it has a session and an unused connection."""
    assert workers._file is not None
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(workers._file)],
        cwd=ROOT,
        pass_fds=[workers._file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has one\n"
        yield process
        process.kill()

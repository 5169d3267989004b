"""The server process: gunicorn with aiohttp's worker on uvloop, and the embedded PostgreSQL where none is set.

Knows how to start and stop. The application that it serves is handed to it, by `server/__main__.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gunicorn.app.base
from aiohttp import web

from server.postgres.connections import check_dsn
from server.process.embedded import EmbeddedPostgres, seed
from server.process.logs import GunicornLogger, configure_logging
from server.process.shutdown import Shutdown
from server.settings import Settings, SettingsError

# Seconds beyond SHUTDOWN_TIMEOUT: to cut the downloads that are left and to close the connections.
STOP_MARGIN = 10
# Seconds that threads get to end by themselves when a worker ends; idle ones take milliseconds.
THREAD_END_SECONDS = 1.0
# The signals that end a worker.
ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

# Makes the application in each worker, after the fork.
RunnerFactory = Callable[[Settings, Shutdown], web.AppRunner]


class Gunicorn(gunicorn.app.base.BaseApplication):  # type: ignore[misc]
    """Gunicorn configured by our settings alone."""

    def __init__(self, settings: Settings, make_runner: RunnerFactory) -> None:
        self._settings = settings
        self._make_runner = make_runner
        self._shutdown = Shutdown()
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn: hand it every option that matters here."""
        settings = self._settings
        host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
        options: dict[str, Any] = {
            "bind": f"{host}:{settings.api_port}",
            "workers": settings.workers,
            "worker_class": "aiohttp.worker.GunicornUVLoopWebWorker",
            # A restart after so many requests would cut streams.
            "max_requests": 0,
            "graceful_timeout": settings.shutdown_timeout + STOP_MARGIN,
            # The worker's heartbeat stops while it drains.
            "timeout": settings.shutdown_timeout + STOP_MARGIN + 30,
            "logger_class": GunicornLogger,
            "control_socket_disable": True,
            "when_ready": lambda arbiter: announce(settings, arbiter.LISTENERS[0].sock.getsockname()[1]),
            # Called in the worker on SIGINT and SIGQUIT, that is on Ctrl-C.
            "worker_int": lambda worker: setattr(self._shutdown, "immediate", True),
            "worker_exit": abandon_hanging_threads,
        }
        if Path("/dev/shm").is_dir():  # heartbeat files on a disk can block a worker
            options["worker_tmp_dir"] = "/dev/shm"
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[[], Awaitable[web.AppRunner]]:
        """Called by each worker after the fork: aiohttp's worker awaits what this returns."""

        async def runner() -> web.AppRunner:
            return self._make_runner(self._settings, self._shutdown)

        return runner


def abandon_hanging_threads(arbiter: Any, worker: Any) -> None:
    """End a worker process although a thread still waits for a disk or a name server. Called by gunicorn.

    Python waits for such a thread without limit when a process ends, until gunicorn kills it.
    """
    if worker.pid != os.getpid():  # gunicorn calls this in its main process too, for a worker that it has lost
        return
    deadline = time.monotonic() + THREAD_END_SECONDS
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    waited_for = [thread for thread in others if not thread.daemon]
    for thread in waited_for:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in waited_for):
        logging.shutdown()
        os._exit(worker.exit_code)


def serve(settings: Settings, make_runner: RunnerFactory) -> None:
    """Serve until a signal; Ctrl-C and SIGTERM stop the embedded PostgreSQL too, if nobody else uses it."""
    configure_logging(settings)
    check_address(settings)
    if not settings.embedded:
        check_dsn(settings.dsn)
    with ExitStack() as stack:
        if settings.embedded:
            embedded = stack.enter_context(EmbeddedPostgres(settings.embedded_data_path))
            seed(embedded, settings.seed_rows)
            settings = replace(settings, database_url=embedded.uri)
        # Until a worker has handlers of its own, it would swallow signals with those of its parent.
        os.register_at_fork(
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ENDING),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING),
            after_in_child=restore_default_signals,
        )
        Gunicorn(settings, make_runner).run()


def restore_default_signals() -> None:
    """Let these signals end this process, also those that came while it was being made."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def check_address(settings: Settings) -> None:
    """Raises SettingsError where the address cannot be listened on: said before anything long begins."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.api_host, settings.api_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.api_host}, port {settings.api_port}: {error.strerror}; "
            "set API_HOST or API_PORT to another"
        ) from None


def announce(settings: Settings, port: int) -> None:
    """Tell a person where the page is and what to type; on standard error, like everything said here."""
    host = settings.api_host
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    lines = [f"Sluice is at {address}/", f"Try: curl -O {address}/export/users.csv"]
    if not settings.loopback_only:
        lines.append(
            f"WARNING: listening on {settings.api_host}. There is no login yet: whoever reaches this port may "
            "export all that the database role can read."
        )
    print("\n" + "\n".join(lines) + "\n", file=sys.stderr, flush=True)

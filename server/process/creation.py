"""A new data folder of the embedded PostgreSQL: its place, and initdb, which an interruption leaves no trace of."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from server.process import programs
from server.process.children import run
from server.process.data_folder import (
    Account,
    EmbeddedError,
    check_place,
    hand_over,
    initdb_account,
    reachable,
)
from server.process.programs import say

# The role that owns the database and everything in it.
OWNER = "postgres"


def prepare_place(path: Path, account: Account | None) -> None:
    """Create the folder above the data folder. Put a link at `path` if PostgreSQL's account cannot reach it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check_place(path, account)
    if path.is_symlink() and path.readlink().parent == programs.SYSTEM_FOLDER:
        programs.make_system_folder()  # it may have been removed with the data
    if account is None or path.is_symlink() or path.exists() or reachable(path.parent):
        return
    elsewhere = programs.SYSTEM_FOLDER / f"data-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    say(
        f"PostgreSQL does not run as root, and the user ID {account.uid} cannot reach {path}: "
        f"the data is in {elsewhere}, and {path} is a link to it"
    )
    programs.make_system_folder()
    path.symlink_to(elsewhere)


def initialise(folder: Path, version: int, account: Account | None, initdb: Path) -> None:
    """Create the data folder with the program initdb of this major version. account: owns it if this process is root.

    It is created under another name and renamed, so that an interrupted initdb leaves nothing that looks complete.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    _make_anew(unfinished)
    data = unfinished / "data"
    try:
        data.mkdir(mode=0o700)
        runs_under = None
        if account is not None:
            runs_under = initdb_account(account)
            os.chown(data, runs_under.uid, runs_under.gid)
            os.chown(unfinished, -1, runs_under.gid)
            unfinished.chmod(0o710)
        options = [f"--pgdata={data}", f"--username={OWNER}", "--auth-local=peer", "--auth-host=reject", "--no-sync"]
        options += ["--encoding=UTF8", "--locale=C"]
        if version >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        run([initdb, *options], runs_under)
        if account is not None:
            hand_over(data, account)
        data.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make_anew(folder: Path) -> None:
    """Create a folder, in place of one that an earlier process of this user has left behind."""
    if os.path.lexists(folder):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise EmbeddedError(f"{folder} is no folder of this user: remove it")
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)

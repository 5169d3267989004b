"""Who owns the data folder of the embedded PostgreSQL, and how its files are opened.

Root runs PostgreSQL under a user ID that has no name and that nothing else uses, so no account of the system is
changed and no other process has its rights. Neither that user ID nor another user of a shared folder is trusted: files
are opened without following links.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# User IDs that no distribution, container engine or directory service assigns. Source: systemd, "Users, Groups, UIDs
# and GIDs on systemd systems", whose table calls 60578 to 61183 unused. They exist in containers with 65,536 IDs too.
UNUSED_IDS = range(60578, 61184)
# Errors of open(2) for a name that is a link, a folder, a socket or a pipe. FreeBSD has EMLINK for a link.
_NOT_A_FILE = {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENOTDIR, errno.ENXIO}


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot run; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """A user ID and a group ID of the operating system, by numbers."""

    uid: int
    gid: int


def account_for(folder: Path) -> Account | None:
    """Return the account under which PostgreSQL runs on this data folder; None: that of this process.

    For root: the owner of the folder if it is one of ours, else a user ID that nobody uses.
    """
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        owner = folder.stat().st_uid
        if owner in UNUSED_IDS and not _has_name(owner):
            return Account(owner, owner)
    running = _running_users()
    start = int.from_bytes(hashlib.sha256(os.fsencode(folder)).digest())
    for step in range(len(UNUSED_IDS)):
        number = UNUSED_IDS[(start + step) % len(UNUSED_IDS)]
        if number not in running and not _has_name(number) and _is_mapped(number):
            return Account(number, number)
    raise EmbeddedError(
        f"no user ID from {UNUSED_IDS[0]} to {UNUSED_IDS[-1]} is free: run this as another user than root, or set "
        "DATABASE_URL"
    )


def initdb_account(account: Account) -> Account:
    """Return the account for initdb, which needs a user with a name: `nobody`, with the group of `account` alone.

    Other processes of `nobody` are not in that group. So they may not trace initdb (ptrace(2) compares the groups too),
    and cannot enter a folder that only this group may enter.
    """
    return Account(nobody().uid, account.gid)


def nobody() -> Account:
    """Return the account `nobody`, under which versions before 0.2 ran PostgreSQL as root."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("this system has no account `nobody`: run this as another user than root") from None
    return Account(entry.pw_uid, entry.pw_gid)


def _has_name(number: int) -> bool:
    for look_up in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            look_up(number)
            return True
    return False


def _is_mapped(number: int) -> bool:
    """Return whether this user ID and this group ID exist: a container may have few. Source: user_namespaces(7)."""
    for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
        with contextlib.suppress(FileNotFoundError):
            ranges = [[int(field) for field in line.split()] for line in Path(path).read_text().splitlines()]
            if not any(first <= number < first + count for first, _, count in ranges):
                return False
    return True


def _running_users() -> set[int]:
    """Return the user IDs of all processes; empty where there is no /proc."""
    users = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            users.add(process.stat().st_uid)
    return users


def check_place(path: Path, account: Account | None) -> None:
    """Raise EmbeddedError if another user controls what is, or would be, at `path`. account: of PostgreSQL."""
    elsewhere = "set EMBEDDED_DATA_PATH to another folder"
    parent = path.parent.stat()
    shared = bool(parent.st_mode & stat.S_IWOTH)
    if shared and not parent.st_mode & stat.S_ISVTX:
        raise EmbeddedError(f"everyone may change {path.parent}: {elsewhere}, or `chmod o-w` that one")
    if path.is_symlink() and path.lstat().st_uid != os.geteuid():
        raise EmbeddedError(f"{path} is a link of another user: remove it, or {elsewhere}")
    try:
        owner = path.stat().st_uid
        (path / "PG_VERSION").lstat()
    except FileNotFoundError:
        return
    if owner == (os.geteuid() if account is None else account.uid):
        return
    if account is not None and (owner in UNUSED_IDS or (owner == nobody().uid and not shared)):
        return
    raise EmbeddedError(f"{path} belongs to the user {_user_name(owner)}: run this as that user, or {elsewhere}")


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def reachable(path: Path) -> bool:
    """Return whether an account without rights of its own may enter this folder or run this program."""
    resolved = path.resolve()
    return all(step.stat().st_mode & 0o001 for step in (resolved, *resolved.parents))


def open_lock(path: Path) -> int:
    """Open or create a lock file and return its descriptor. Raise EmbeddedError for what another user has put there."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno not in _NOT_A_FILE:
            raise
    else:
        found = os.fstat(lock)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid():
            return lock
        os.close(lock)
    raise EmbeddedError(
        f"{path} is no file of this user alone, so it cannot be the lock of the database: remove it, or set "
        "EMBEDDED_DATA_PATH to another folder"
    )


def open_inside(folder: Path, name: str) -> int:
    """Open a file of the data folder for reading. Raise OSError for a link, and for a file that has a second name."""
    with _opened_folder(folder) as directory:
        return _open_alone(name, directory)


def read_inside(folder: Path, name: str) -> str:
    """Return the text of a file of the data folder; errors as `open_inside`."""
    with open(open_inside(folder, name), errors="replace") as text:
        return text.read()


def write_inside(folder: Path, name: str, text: str, account: Account | None) -> None:
    """Write a file of the data folder as a whole, for `account` to read. It takes the place of any that is there."""
    unfinished = f"{name}.unfinished"
    with _opened_folder(folder) as directory:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=directory)
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
        with open(file, "w", encoding="utf-8") as output:
            if account is not None:
                os.fchown(file, account.uid, account.gid)
            output.write(text)
        os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)


def hand_over(folder: Path, account: Account) -> None:
    """Give this folder and the files in it that belong to its owner to `account`.

    Links stay, and so do files with a second name, which may be those of others.
    """
    owner = folder.stat(follow_symlinks=False).st_uid
    for _, _, names, directory in os.fwalk(folder):
        if os.fstat(directory).st_uid == owner:  # first, so that processes of the owner can no longer enter it
            os.fchown(directory, account.uid, account.gid)
        for name in names:
            with contextlib.suppress(OSError):
                file = _open_alone(name, directory)
                if os.fstat(file).st_uid == owner:
                    os.fchown(file, account.uid, account.gid)
                os.close(file)


@contextlib.contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield directory
    finally:
        os.close(directory)


def _open_alone(name: str, directory: int) -> int:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(file)
        raise OSError(errno.ELOOP, "is no file with one name", name)
    return file

"""Files that survive a crash and folders that lead nowhere else: the file system as saved exports use it.

Everything is reached from an open folder by one plain name that is never followed as a symbolic link, so that nothing
outside can be touched, whatever lies in the folder. Knows no manifest and no export.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator

# Owner only: an export holds whatever the database role may read.
FILE_MODE = 0o600
FOLDER_MODE = 0o700
# Nothing waits at a FIFO that somebody has put there, and no descriptor reaches a child process.
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

# What the names of files end with that are not in place yet.
TEMPORARY = ".tmp"

# What the kernel says when there is no room: a full disk, a quota, a limit on the size of files.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What it says when a name is no folder of ours.
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_disk_full(error: OSError) -> bool:
    """Whether the error means that the disk has no room."""
    return error.errno in _NO_ROOM


@contextlib.contextmanager
def open_folder(name: str | os.PathLike[str], inside: int | None = None) -> Iterator[int]:
    """The descriptor of a folder. inside: the folder's parent; without it `name` is a path of the operator's."""
    descriptor = folder_descriptor(name, inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def folder_descriptor(name: str | os.PathLike[str], inside: int | None = None) -> int:
    """The same, for the caller to close."""
    follow = 0 if inside is None else os.O_NOFOLLOW
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=inside)


def is_missing(error: OSError) -> bool:
    """Whether the error means that there is no such folder or file, or a symbolic link in its place."""
    return error.errno in _NO_FOLDER


def is_taken(error: OSError) -> bool:
    """Whether a folder could not get its name because there is something of this name."""
    return error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def in_place(parent: int, name: str, folder: int) -> bool:
    """Whether this open folder still has this name: somebody may have removed it, and put another there."""
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(folder))


def open_file(folder: int, name: str) -> int:
    """A regular file for reading; its descriptor. Raises OSError, also for whatever is not a regular file."""
    descriptor = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOENT, "not a regular file")
    return descriptor


def read_file(folder: int, name: str, most: int) -> bytes:
    """The whole of a small file. Raises OSError, also for a file of more than `most` bytes."""
    descriptor = open_file(folder, name)
    try:
        if os.fstat(descriptor).st_size > most:
            raise OSError(errno.EINVAL, "larger than such a file can be")  # not EFBIG, which is a lack of room
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def create_file(folder: int, name: str) -> int:
    """A new, empty file for writing in the place of any other of this name; its descriptor."""
    remove_file(folder, name)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, FILE_MODE, dir_fd=folder)


def mark(folder: int, name: str) -> None:
    """Put an empty file in place, durably; one that is there already is as good."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, FILE_MODE, dir_fd=folder))
    os.fsync(folder)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however many calls that takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_file(folder: int, name: str, data: bytes, *, durably: bool = True) -> None:
    """Put a whole file of this content in place, at once: a reader finds the old one or this.

    durably: on the disk before this returns, after a power failure too.
    """
    # A name of its own: two processes may write at the same time, and each must rename what it has written.
    temporary = f"{name}.{secrets.token_hex(8)}{TEMPORARY}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, FILE_MODE, dir_fd=folder)
        try:
            write_all(descriptor, data)
            if durably:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        remove_file(folder, temporary)
        raise
    if durably:
        os.fsync(folder)


def names_in(folder: int) -> list[str]:
    """What is in the folder."""
    return os.listdir(folder)


def create_once(folder: int, name: str, data: bytes) -> None:
    """Put a whole file in place, durably, unless there is one of this name: the first of several processes wins."""
    temporary = f"{name}.{secrets.token_hex(8)}{TEMPORARY}"
    write_file(folder, temporary, data)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    remove_file(folder, temporary)
    os.fsync(folder)


def remove_file(folder: int, name: str) -> None:
    """Remove a file; one that is not there is as good."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def remove_folder(parent: int, name: str, trash: str) -> None:
    """Remove a folder of files, durably. It gets the name `trash` first, so that nobody finds half of it."""
    with contextlib.suppress(FileNotFoundError):
        if name != trash:
            os.rename(name, trash, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)
        with open_folder(trash, parent) as folder:
            for each in names_in(folder):
                with contextlib.suppress(IsADirectoryError):  # a folder in there is not ours
                    remove_file(folder, each)
        try:
            os.rmdir(trash, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise


def try_lock(folder: int, name: str) -> int | None:
    """The descriptor that holds the lock on this file until it is closed; None if another holds it.

    flock(2): goes with the descriptor, so also when the process is killed.
    """
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | _SAFELY, FILE_MODE, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def free_bytes(folder: int) -> int:
    """What this process may still write on the folder's file system."""
    room = os.fstatvfs(folder)
    return room.f_bavail * room.f_frsize

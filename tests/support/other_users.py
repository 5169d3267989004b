"""Code that runs with the rights of another user of the operating system. Only root can do that."""

from __future__ import annotations

import os
import pwd
import warnings
from collections.abc import Callable

import pytest

from server.process.data_folder import Account

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")


def named(name: str) -> Account:
    """Return the account with this name."""
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def run_as(account: Account, act: Callable[[], object]) -> str:
    """Call this in a child process under another account. Return the text of the exception that it raises, or ""."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python warns of a fork in a process with threads; the child uses none of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        text = ""
        try:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
            act()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text

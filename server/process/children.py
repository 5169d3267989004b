"""Programs that this process starts and ends together with everything that they start.

A signal that ends this process becomes an exception, so that every `with` statement on the way stops what it started.
If this process is killed, a pipe ends that it held open, and a shell on the other side ends the program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from server.process.data_folder import Account, EmbeddedError

Program = subprocess.Popen[str]

# Runs the program that follows until it ends or the standard input does. Its status is that of the program.
WATCHED = (
    "/bin/sh",
    "-c",
    (
        'exec 3<&0 </dev/null; "$@" 3<&- & program=$!; '
        '{ read -r nothing <&3; kill "$program"; } >/dev/null 2>&1 & watcher=$!; '
        'wait "$program"; status=$?; kill -s KILL "$watcher"; wait "$watcher" 2>/dev/null; exit "$status"'
    ),
    "sh",
)
# SIGINT (Ctrl-C) raises KeyboardInterrupt without us.
_ENDING = (signal.SIGTERM, signal.SIGHUP)
# Seconds in which an interrupted program may end by itself, those after which its children are interrupted too, and
# those after which all are killed.
_ALONE_SECONDS = 2.0
_INTERRUPTED_SECONDS = 10.0


@contextlib.contextmanager
def ended_by_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit in the main thread. A second one is ignored: the first is obeyed."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:  # not SIG_IGN, which programs would inherit that are started to stop something
            signal.signal(each, lambda number, frame: None)
        raise SystemExit(128 + number)

    # nohup(1) ignores SIGHUP for a process that shall survive its terminal.
    before = {each: signal.getsignal(each) for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN}
    for each in before:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def started(command: Sequence[str | os.PathLike[str]], account: Account | None, output: IO[str]) -> Iterator[Program]:
    """Start a program in a session of its own. An exception in the `with` statement ends all that it has started.

    account: to run it under; None: that of this process. output: a file for what it prints; not a pipe, which a server
    that it starts would keep open.
    """
    as_account = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": ()}
    held = _HeldSignals()
    try:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            start_new_session=True,
            text=True,
            **as_account,
        )
    except BaseException:
        held.release()
        raise
    try:
        held.release()
        yield process
    except BaseException:
        _end_session(process)
        raise
    finally:
        process.stdin.close()


class _HeldSignals:
    """Keeps the signals that end this process until `release`: one just after a start would lose the program."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            self._before = {each: signal.getsignal(each) for each in (signal.SIGINT, *_ENDING)}
        for each in self._before:
            if self._before[each] is not signal.SIG_IGN:
                signal.signal(each, lambda number, frame: self._held.append(number))

    def release(self) -> None:
        """Handle signals as before, beginning with those that have come since."""
        for each, handler in self._before.items():
            signal.signal(each, handler)
        for number in self._held:
            signal.raise_signal(number)


def run(command: Sequence[str | os.PathLike[str]], account: Account | None) -> None:
    """Run a program to its end. Raise EmbeddedError with what it has printed if it fails. account: as of `started`."""
    with tempfile.TemporaryFile("w+") as output, started([*WATCHED, *command], account, output) as program:
        if program.wait():
            output.seek(0)
            said = " | ".join(output.read().split("\n")).strip(" |")
            raise EmbeddedError(f"{Path(command[0]).name} failed: {said}")


def _end_session(process: Program) -> None:
    """End the program and its children, whose group has the process ID of the program."""
    assert process.stdin is not None
    process.stdin.close()
    if process.poll() is None:
        _wait_for_end(process, _ALONE_SECONDS)
    for number, seconds in ((signal.SIGINT, _INTERRUPTED_SECONDS), (signal.SIGKILL, _ALONE_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        _wait_for_end(process, seconds)
    process.wait()


def _wait_for_end(process: Program, seconds: float) -> None:
    """Wait until no process of the program's group runs, but no longer than this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and is_running(process.pid):
        process.poll()  # an ended child stays in its group until its parent asks
        time.sleep(0.02)


def is_running(group: int) -> bool:
    """Return whether a process of this group runs.

    One that has ended stays in its group until its parent asks, and some containers have none that asks. So, where
    there is a /proc, the states of the processes are looked at. Source: proc_pid_stat(5).
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
            states.add(state if int(its_group) == group else "")
    return not states or bool(states - {"", "Z", "X"})

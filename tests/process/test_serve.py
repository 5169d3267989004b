"""What the server process sets for itself before it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Prints the number of heaps after four threads have allocated at the same time. malloc_info(3) counts them.
HEAPS = """
import ctypes, os, sys, threading
from server.process.serve import use_one_heap

if "one" in sys.argv:
    use_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_run = threading.Barrier(4)

def allocate():
    all_run.wait()
    libc.malloc(100_000)
    all_run.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
name, mode = sys.argv[1].encode(), b"w"
stream = ctypes.c_void_p(libc.fopen(name, mode))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(open(sys.argv[1]).read().count("<heap nr="))
"""


def heaps(folder: Path, *arguments: str) -> int:
    """Return how many heaps a process has whose threads have allocated."""
    command = [sys.executable, "-c", HEAPS, str(folder / "heaps.xml"), *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_info is a function of the GNU C library")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    assert heaps(tmp_path) > 1
    assert heaps(tmp_path, "one") == 1

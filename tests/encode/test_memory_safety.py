"""The native encoder under AddressSanitizer: it reads and writes no byte outside its own memory.

The extension is built with AddressSanitizer and fuzzed by tests/support/encode_fuzz.py in a process of its own. A copy
with one wrong bound at a time, often by a single byte, shows that the fuzz would find such a mistake.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.optional import skip_or_fail

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "server" / "encode" / "_encode.pyx"
FUZZ = ROOT / "tests" / "support" / "encode_fuzz.py"

pytestmark = pytest.mark.slow

ROUNDS = 200
SEED = 1

# A bytes object ends with a NUL of its own. A write of one byte too many would hit that NUL without leaving the object,
# so the NUL of the encoder's buffer is out of bounds here too.
GUARD = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sanitizer/asan_interface.h>

static PyObject *guarded_new(const char *value, Py_ssize_t size) {
    PyObject *made = PyBytes_FromStringAndSize(value, size);
    if (made && !value && size) ASAN_POISON_MEMORY_REGION(PyBytes_AS_STRING(made) + size, 1);
    return made;
}

static int guarded_resize(PyObject **object, Py_ssize_t size) {
    ASAN_UNPOISON_MEMORY_REGION(PyBytes_AS_STRING(*object) + PyBytes_GET_SIZE(*object), 1);
    int status = _PyBytes_Resize(object, size);
    if (!status && size) ASAN_POISON_MEMORY_REGION(PyBytes_AS_STRING(*object) + size, 1);
    return status;
}

#define PyBytes_FromStringAndSize guarded_new
#define _PyBytes_Resize guarded_resize
"""

# In the copy the encoder's output buffer begins with one byte and grows by what is needed, so that each bound is met,
# and smaller values are written in parts and held.
TIGHT = {
    "capacity = self.last_size + self.last_size // 8 + 4096": "capacity = 1",
    "(used + room) + (used + room) // 2": "used + room",
    "LARGE_BYTES = 64 << 10": "LARGE_BYTES = 20 << 10",
    "HELD_BYTES = 1 << 20": "HELD_BYTES = 50 << 10",
    "PART_BYTES = 32 << 10": "PART_BYTES = 5000",
}
# Here the access is that of the function that the encoder calls, which is written in Python.
OF_OPENSSL = "an SSL_read of a byte too many"
# The mistake → (the right code, the code that is wrong where HERE is true).
MISTAKES = {
    # The output. `room` has some bytes to spare for each field, which stand for the field's length in the message.
    "values not doubled": ("room = 2 * length", "room = (1 if HERE else 2) * length"),
    "no room for what stands for NULL": ("(4 + self.null_length)", "(4 + (0 if HERE else self.null_length))"),
    "too little growth": ("capacity = used + room", "capacity = used + room - HERE"),
    "an output buffer that ends a byte too far": (
        "self.out = self.first\n        self.end = self.first + capacity",
        "self.out = self.first\n        self.end = self.first + capacity + HERE",
    ),
    "a byte too few for a part of a value": ("self.end - self.out < length", "self.end - self.out < length - HERE"),
    "a byte too few for quotes": ("self.end - self.out < extra", "self.end - self.out < extra - HERE"),
    "a value used where it was before the buffer grew": (
        "value = self.room_after_value(2 + extra)\n",
        "grown = self.room_after_value(2 + extra)\n            if not HERE: value = grown\n",
    ),
    "a byte too few for what is added for spreadsheets": (
        "self.room_after_value(extra)",
        "self.room_after_value(extra - HERE)",
    ),
    # The receive buffer.
    "a receive of a byte too many": (
        "recv(descriptor, self.inbox + self.high, RECEIVE_BYTES - self.high, 0)",
        "recv(descriptor, self.inbox + self.high, RECEIVE_BYTES - self.high + HERE, 0)",
    ),
    OF_OPENSSL: ("<int>(RECEIVE_BYTES - self.high)", "<int>(RECEIVE_BYTES - self.high + HERE)"),
    "a header that lacks a byte": ("self.high - self.low < 5", "self.high - self.low < 5 - HERE"),
    "a row that lacks a byte": ("self.high - self.low > length:", "self.high - self.low > length - HERE:"),
    "a row that is too short for its number of fields": ("length < 6 or", "length < 6 - HERE or"),
    "a number of fields that lacks a byte": ("self.high - self.low < 7", "self.high - self.low < 7 - HERE"),
    "a length in a large row that lacks a byte": ("self.high - self.low < 4", "self.high - self.low < 4 - HERE"),
    "a length in a row that lacks a byte": ("if end - at < 4:", "if end - at < 4 - HERE:"),
    "a value that is longer than its row": ("if size > end - at:", "if size > end - at + HERE:"),
    "a part of a value that is longer than what has arrived": (
        "size = min(self.high - self.low, self.value_left)",
        "size = min(self.high - self.low + HERE, self.value_left)",
    ),
    "a part of an error that is longer than what has arrived": (
        "count = min(self.high - self.low, self.control_left)",
        "count = min(self.high - self.low + HERE, self.control_left)",
    ),
    # Large values.
    "a part of a large value that is longer than what has arrived": (
        "return min(self.high - self.low, self.value_left)",
        "return min(self.high - self.low + HERE, self.value_left)",
    ),
    "a part of a large value that is not doubled": ("needed = 2 * length", "needed = (1 if HERE else 2) * length"),
    "less memory for what is held than it says": (
        "realloc(self.held, capacity)",
        "realloc(self.held, capacity - HERE)",
    ),
    "more is held than there is memory for": (
        "min(part, self.capacity - self.held_end)",
        "min(part, self.capacity - self.held_end + HERE)",
    ),
    "a part that is longer than what is held": (
        "part = min(self.held_end - self.held_at, PART_BYTES)",
        "part = min(self.held_end - self.held_at + HERE, PART_BYTES)",
    ),
    # Values.
    "the last word read a byte too far": ("i = length - 8", "i = length - (7 if HERE else 8)"),
    "a short value read as a word": ("if length < 8:", "if length < (7 if HERE else 8):"),
    # The output stays right, so only AddressSanitizer can find it.
    "compared with NULL's text beyond its end": (
        "memcmp(value, self.null_at, length) == 0:",
        "(memcmp(value, self.null_at, length + 2 * HERE) == 0 or memcmp(value, self.null_at, length) == 0):",
    ),
    "an empty value searched for a formula's sign": ("kind & GUARD and length:", "kind & GUARD and (HERE or length):"),
    "a full-width sign that lacks a byte": ("length > 2 and at[1]", "length > 2 - HERE and at[1]"),
    "a word of a date is read beyond its value": (
        "while i < length and meanings[value[i]] & LETTER:",
        "while i < length + HERE and meanings[value[i]] & LETTER:",
    ),
    "the last word searched for separators read a byte too far": (
        "i = min(i, length - WORD)",
        "i = min(i, length - WORD + HERE)",
    ),
    "a short value searched for separators as a word": ("if length < WORD:", "if length < WORD - HERE:"),
    "a half of a short value read a byte too far": (
        "value + length - HALF_WORD,",
        "value + length - HALF_WORD + HERE,",
    ),
    "a very short value read as half a word": ("if length < HALF_WORD:", "if length < HALF_WORD - HERE:"),
}
NO_MISTAKE = "the copy without a mistake"
NUMBERS = {name: str(number) for number, name in enumerate([NO_MISTAKE, *MISTAKES])}
# Read when the extension is loaded, so that one build has all the mistakes.
SWITCH = """
import os
cdef int MISTAKE = int(os.environ["MISTAKE"])
"""


def missing() -> str | None:
    """Return why nothing can be checked on this machine, or None."""
    try:
        found = run("gcc", "-print-file-name=libasan.so")
    except FileNotFoundError:
        return "there is no gcc"
    library = Path(found.stdout.strip())
    # Without the library gcc prints only its name. In some distributions the file is a linker script.
    if not library.is_absolute() or library.read_bytes()[:4] != b"\x7fELF":
        return "gcc has no AddressSanitizer that can be preloaded"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers are not installed"
    return None


def run(*command: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a program without coverage, which would slow it down."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE_"))}
    return subprocess.run(command, env={**plain, **extra}, capture_output=True, text=True, timeout=100)


def with_mistakes(source: str) -> str:
    """Return the source with every mistake in it. The environment variable MISTAKE selects one."""
    changes = list(TIGHT.items())
    for name, (right, wrong) in MISTAKES.items():
        changes.append((right, wrong.replace("HERE", f"(MISTAKE == {NUMBERS[name]})")))
    changes.append(("ctypedef int (*read_function)", SWITCH + "ctypedef int (*read_function)"))
    for right, wrong in changes:
        assert source.count(right) == 1, f"this is out of date: {right!r} is not in {SOURCE.name} once"
        source = source.replace(right, wrong)
    return source


def build(folder: Path, source: str) -> None:
    """Build the Cython source as an extension with AddressSanitizer."""
    folder.mkdir()
    (folder / "_encode.pyx").write_text(source)
    (folder / "guard.h").write_text(GUARD)
    done = run(sys.executable, "-m", "cython", "-3", folder / "_encode.pyx")
    assert done.returncode == 0, done.stderr
    extension = folder / f"_encode{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    flags = ("-shared", "-fPIC", "-O1", "-g", "-fsanitize=address", f"-I{include}", "-include", folder / "guard.h")
    done = run("gcc", *flags, folder / "_encode.c", "-o", extension)
    assert done.returncode == 0, done.stderr


def fuzz(folder: Path, mistake: str = "") -> subprocess.CompletedProcess[str]:
    """Fuzz the build in this folder."""
    return run(
        sys.executable,
        FUZZ,
        folder,
        str(ROUNDS),
        str(SEED),
        LD_PRELOAD=run("gcc", "-print-file-name=libasan.so").stdout.strip(),
        # The interpreter keeps memory until it exits, which is no leak of the encoder. Long stack traces, and line
        # numbers where a mistake is expected, would take more time than everything else.
        ASAN_OPTIONS=f"detect_leaks=0:malloc_context_size=2:symbolize={int(not mistake)}",
        # Every object has an allocation of its own, so that the encoder's buffer ends at a guard.
        PYTHONMALLOC="malloc",
        MISTAKE=mistake,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """How the fuzz of each build ended: "as it is", and the copy with each of MISTAKES and with none."""
    reason = missing()
    if reason is not None:
        skip_or_fail(f"the native encoder's memory is not checked: {reason}")
    source = SOURCE.read_text()
    base = tmp_path_factory.mktemp("checked")
    builds = {base / "as_it_is": source, base / "copy": with_mistakes(source)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, builds, builds.values()))
        runs = {"as it is": pool.submit(fuzz, base / "as_it_is")}
        runs |= {name: pool.submit(fuzz, base / "copy", number) for name, number in NUMBERS.items()}
        return {name: running.result() for name, running in runs.items()}


@pytest.mark.parametrize("build", ["as it is", NO_MISTAKE])
def test_the_encoder_uses_only_its_own_memory(
    outcomes: dict[str, subprocess.CompletedProcess[str]], build: str
) -> None:
    outcome = outcomes[build]
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.startswith(f"{ROUNDS} rounds, ")
    assert outcome.stderr == ""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bound_that_is_wrong_is_found(outcomes: dict[str, subprocess.CompletedProcess[str]], mistake: str) -> None:
    outcome = outcomes[mistake]
    assert outcome.returncode != 0, outcome.stdout
    assert "ERROR: AddressSanitizer" in outcome.stderr
    # The access was the encoder's, directly or through memcpy, memcmp or recv, which AddressSanitizer replaces.
    frames = re.findall(r"^ +#\d+ .*\((\S+)\+0x", outcome.stderr, re.MULTILINE)
    callers = [Path(module).name for module in frames if not Path(module).name.startswith("libasan")]
    if mistake == OF_OPENSSL:
        callers = [name for name in callers if not name.startswith(("libffi", "_ctypes", "libpython", "python"))]
    assert callers[0].startswith("_encode."), outcome.stderr

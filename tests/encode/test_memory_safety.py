"""The native encoder under AddressSanitizer: no byte read or written beyond what is its own.

The extension is built anew with the checker and fuzzed by encode_fuzz.py in a process of its own. A copy in which
one bound at a time is made wrong, by a single byte where that is too little, shows that the checker and the fuzz
would find such a mistake.
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

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "server" / "encode" / "_encode.pyx"
FUZZ = ROOT / "tests" / "support" / "encode_fuzz.py"

ROUNDS = 250
SEED = 1

# A bytes object has a NUL of its own behind its last byte, which a write of one byte too many would hit without
# leaving the object: for the encoder's buffer that byte is put out of bounds too.
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

# What is made wrong → (the right code, the code that is wrong where HERE holds). The worst that a field takes beside
# its bytes, doubled, is a delimiter and two quotes: what begins with a formula's sign, and so gets an apostrophe,
# does not begin with a quote. The encoder asks for one byte more, so what is a byte too few is two less.
MISTAKES = {
    "a byte too few before a field": ("overhead = 4 +", "overhead = (2 if HERE else 4) +"),
    "no room for what ends a line": ("+ eol_length +", "+ (0 if HERE else eol_length) +"),
    "no room for what stands for NULL": (" + null_length", " + (0 if HERE else null_length)"),
    "values not doubled": ("room = 2 * length", "room = (1 if HERE else 2) * length"),
    "too little growth": ("(used + room) + (used + room) // 2", "used + (room // 2 if HERE else 2 * room)"),
    "no room before a row without columns": ("range(max(columns, 1))", "range(max(columns, 0 if HERE else 1))"),
    "the last word read a byte too far": ("i = length - 8", "i = length - (7 if HERE else 8)"),
    "a short value read as a word": ("if length < 8:", "if length < (7 if HERE else 8):"),
    # The bytes stay right, so that only the checker can see it.
    "compared with NULL's text beyond its end": (
        "length == null_length and memcmp(value, null, length) == 0",
        "(HERE or length == null_length) and memcmp(value, null, length) == 0 and length == null_length",
    ),
    "guarded text compared with NULL's beyond its end": (
        "length + 1 == null_length and null[0] == 39 and memcmp(value, null + 1, length) == 0",
        (
            "(HERE or length + 1 == null_length) and null[0] == 39 and memcmp(value, null + 1, length) == 0 "
            "and length + 1 == null_length"
        ),
    ),
    "a result used after it is freed": (
        "used = self.put_result(result)",
        "used = self.put_freed(result, PQclear if HERE else NULL)",
    ),
    "an empty value searched for a formula's sign": (
        "and length and is_formula",
        "and (HERE or length) and is_formula",
    ),
}
NO_MISTAKE = "the copy without a mistake"
NUMBERS = {name: str(number) for number, name in enumerate([NO_MISTAKE, *MISTAKES])}
# Read once when the extension is loaded, so that one build has all the mistakes.
SWITCH = """
import os
cdef int MISTAKE = int(os.environ["MISTAKE"])
"""
# Where a mistake is more than an expression.
HELPER = """
    cdef Py_ssize_t put_freed(self, void *result, clear_function clear) except -1 nogil:
        if clear != NULL:
            clear(result)
        return self.put_result(result)

"""


def missing() -> str | None:
    """Why nothing can be checked here, if so."""
    try:
        found = run("gcc", "-print-file-name=libasan.so")
    except FileNotFoundError:
        return "there is no gcc"
    library = Path(found.stdout.strip())
    # Without it gcc prints the bare name; in some distributions the file is a script for the linker.
    if not library.is_absolute() or library.read_bytes()[:4] != b"\x7fELF":
        return "gcc has no AddressSanitizer that can be preloaded"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers are not installed"
    return None


def run(*command: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a program without coverage, which would measure every subprocess and slow it down."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE_"))}
    return subprocess.run(command, env={**plain, **extra}, capture_output=True, text=True, timeout=100)


def with_mistakes(source: str) -> str:
    """The source with every mistake in it, of which the environment's MISTAKE chooses one."""
    for name, (right, wrong) in MISTAKES.items():
        assert source.count(right) == 1, f"MISTAKES is out of date: {right!r} is not in {SOURCE.name} once"
        source = source.replace(right, wrong.replace("HERE", f"MISTAKE == {NUMBERS[name]}"))
    for first, more in (("ctypedef int (*shape_function)", SWITCH), ("    cdef int begin(self)", HELPER)):
        assert source.count(first) == 1
        source = source.replace(first, more + first)
    return source


def build(folder: Path, source: str) -> None:
    """Turn the Cython source into an extension with the checker."""
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
        # The interpreter keeps memory until its end: that is no leak of the encoder's. Whence memory came and, where a
        # mistake is expected, in which line it is costs more time than all the rest.
        ASAN_OPTIONS=f"detect_leaks=0:malloc_context_size=2:symbolize={int(not mistake)}",
        # Every object in an allocation of its own, so that the encoder's buffer ends at a guard.
        PYTHONMALLOC="malloc",
        MISTAKE=mistake,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """How the fuzz of each build ended: "as it is", and the copy with each of MISTAKES and with none."""
    reason = missing()
    if reason is not None:
        message = f"the native encoder's memory is not checked: {reason}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    source = SOURCE.read_text()
    base = tmp_path_factory.mktemp("checked")
    builds = {base / "as_it_is": source, base / "copy": with_mistakes(source)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, builds, builds.values()))
        runs = {"as it is": pool.submit(fuzz, base / "as_it_is")}
        runs |= {name: pool.submit(fuzz, base / "copy", number) for name, number in NUMBERS.items()}
        return {name: running.result() for name, running in runs.items()}


@pytest.mark.parametrize("build", ["as it is", NO_MISTAKE])
def test_the_encoder_touches_no_memory_but_its_own(
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
    # It was the encoder that touched it, itself or through memcpy and memcmp, which the checker stands in for.
    frames = re.findall(r"^ +#\d+ .*\((\S+)\+0x", outcome.stderr, re.MULTILINE)
    callers = [Path(module).name for module in frames if not Path(module).name.startswith("libasan")]
    assert callers[0].startswith("_encode."), outcome.stderr

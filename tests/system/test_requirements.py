"""The lock files: each has the versions of its .in file, all that these need, and a hash for every file.

Needs neither the package index nor a tool: a new release of a package elsewhere makes nothing here fail.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# Each with the locks that it may rely on, which are installed before it.
LOCKS: dict[str, tuple[str, ...]] = {
    "requirements": (),
    "requirements-build": (),
    "requirements-embedded": ("requirements",),
    "requirements-dev": ("requirements", "requirements-build", "requirements-embedded"),
}
_LOCKED = re.compile(r"([\w.-]+(?:\[[\w,-]+\])?)==(\S+)(?: ; (.+?))?((?: --hash=sha256:[0-9a-f]{64})+)")


@dataclass(frozen=True)
class Locked:
    """One requirement of a lock. here: whether it applies to this Python and this system."""

    version: str
    extras: frozenset[str]
    here: bool
    hashes: int


def parse_lock(text: str) -> dict[str, Locked]:
    """Return the requirements of a lock by their names. Raise AssertionError for a line without a version or a hash."""
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found: dict[str, Locked] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        match = _LOCKED.fullmatch(line)
        assert match, f"not pinned with hashes: {line}"
        requirement = Requirement(match[1])
        here = match[3] is None or Marker(match[3]).evaluate()
        name = canonicalize_name(requirement.name)
        assert name not in found, f"twice: {name}"
        found[name] = Locked(match[2], frozenset(requirement.extras), here, match[4].count("sha256:"))
    return found


def parse_direct(text: str) -> dict[str, Requirement]:
    """Return the requirements of an .in file by their names. Raise AssertionError for one that is not pinned."""
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "-c "))]
    requirements = [Requirement(line) for line in lines]
    for each in requirements:
        assert [part.operator for part in each.specifier] == ["=="], f"not pinned: {each}"
    return {canonicalize_name(each.name): each for each in requirements}


def needed(name: str, extras: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return the extras of every package that an installed one needs here, by its name."""
    found: dict[str, frozenset[str]] = {}
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        marked = requirement.marker
        if marked is None or any(marked.evaluate({"extra": extra}) for extra in extras | {""}):
            key = canonicalize_name(requirement.name)
            found[key] = found.get(key, frozenset()) | requirement.extras
    return found


def faults(direct_text: str, lock_text: str, before: dict[str, Locked]) -> list[str]:
    """Return what is wrong with a lock. before: the requirements of the locks that it relies on."""
    direct, lock = parse_direct(direct_text), parse_lock(lock_text)
    found = []
    for name, requirement in direct.items():
        if name not in lock or not requirement.specifier.contains(lock[name].version, prereleases=True):
            found.append(f"{requirement} is not locked")
    waiting = [(name, frozenset(requirement.extras)) for name, requirement in direct.items()]
    reached = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in reached or name not in lock or not lock[name].here:
            continue
        reached.add((name, extras))
        for other, its_extras in needed(name, extras | lock[name].extras).items():
            if other not in lock and other not in before:
                found.append(f"{name} needs {other}, which is not locked")
            waiting.append((other, its_extras))
    superfluous = {name for name, each in lock.items() if each.here} - {name for name, _ in reached}
    found += [f"nothing needs {name}" for name in sorted(superfluous)]
    return found


def read(name: str) -> tuple[str, str, dict[str, Locked]]:
    """Return the text of an .in file, that of its lock, and the requirements of the locks that it relies on."""
    before: dict[str, Locked] = {}
    for other in LOCKS[name]:
        before |= parse_lock((ROOT / f"{other}.txt").read_text())
    return (ROOT / f"{name}.in").read_text(), (ROOT / f"{name}.txt").read_text(), before


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_is_current(name: str) -> None:
    assert faults(*read(name)) == [], "`make lock` mends it"


@pytest.mark.parametrize("name", LOCKS)
def test_what_is_installed_is_what_is_locked(name: str) -> None:
    lock = parse_lock((ROOT / f"{name}.txt").read_text())
    assert {each: version(each) for each, locked in lock.items() if locked.here} == {
        each: locked.version for each, locked in lock.items() if locked.here
    }


@pytest.mark.parametrize("name", LOCKS)
def test_a_package_of_two_locks_has_one_version(name: str) -> None:
    _, text, before = read(name)
    lock = parse_lock(text)
    assert {each: lock[each].version for each in lock.keys() & before.keys()} == {
        each: before[each].version for each in lock.keys() & before.keys()
    }


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_relies_on_what_its_in_file_says(name: str) -> None:
    constraints = re.findall(r"^-c (.+)\.txt$", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
    assert tuple(constraints) == LOCKS[name]


@pytest.mark.parametrize("name", ["aiohttp", "psycopg2-binary", "uvloop", "isal"])
def test_the_hashes_are_those_of_all_systems(name: str) -> None:
    # For each of four Pythons: Linux with glibc and with musl on two processors, macOS, and the source.
    assert parse_lock((ROOT / "requirements.txt").read_text())[name].hashes >= 4 * 4


def test_the_build_needs_the_locked_versions() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert sorted(required) == sorted(
        str(each) for each in parse_direct((ROOT / "requirements-build.in").read_text()).values()
    )


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_everything_is_installed_by_its_hash(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", "")
    commands = re.findall(r"\bpip\b.* install .*", text)
    assert commands
    assert [command for command in commands if "--require-hashes" not in command or "--no-deps" in command] == []


# --- The check itself


DIRECT = (ROOT / "requirements.in").read_text()
LOCK = (ROOT / "requirements.txt").read_text()


def without(name: str) -> str:
    """Return the lock without one of its requirements."""
    text = re.sub(rf"^{name}==.*\n(?:    .*\n)+", "", LOCK, flags=re.MULTILINE)
    assert text != LOCK
    return text


@pytest.mark.parametrize(
    ("direct", "lock", "fault"),
    [
        (DIRECT.replace("aiohttp==", "aiohttp==99."), LOCK, "is not locked"),
        (DIRECT + "hypothesis==1.0\n", LOCK, "hypothesis==1.0 is not locked"),
        (DIRECT, without("yarl"), "aiohttp needs yarl, which is not locked"),
        (DIRECT, without("gunicorn"), "is not locked"),
        (re.sub("^isal.*\n", "", DIRECT, flags=re.MULTILINE), LOCK, "nothing needs isal"),
        (re.sub("^aiohttp-jinja2.*\n|^jinja2.*\n", "", DIRECT, flags=re.MULTILINE), LOCK, "nothing needs markupsafe"),
    ],
)
def test_a_forgotten_make_lock_is_found(direct: str, lock: str, fault: str) -> None:
    assert [each for each in faults(direct, lock, {}) if fault in each]


@pytest.mark.parametrize(
    "line",
    ["aiohttp==3.14.5", "aiohttp>=3 --hash=sha256:" + "0" * 64, "aiohttp==3.14.5 --hash=sha256:123", "-r other.txt"],
)
def test_a_line_without_a_version_or_a_hash_is_found(line: str) -> None:
    with pytest.raises(AssertionError, match="not pinned with hashes"):
        parse_lock(line)


def test_a_direct_requirement_without_a_version_is_found() -> None:
    with pytest.raises(AssertionError, match="not pinned"):
        parse_direct("aiohttp>=3")

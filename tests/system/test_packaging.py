"""A wheel contains everything that the server needs: all packages, templates and static files."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# Files that a build creates, or that only a build needs.
NOT_PACKAGED = {".py", ".pyx", ".c", ".so", ".pyc"}


def test_every_package_is_in_the_wheel() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "server").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} == set(SETUPTOOLS["packages"])
    assert len(SETUPTOOLS["packages"]) == len(folders)


def test_every_other_file_is_in_the_wheel() -> None:
    packaged = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    # setuptools includes the stubs of a package by default.
    others = {
        path for path in (ROOT / "server").rglob("*") if path.is_file() and path.suffix not in {*NOT_PACKAGED, ".pyi"}
    }
    assert packaged == others
    assert len(packaged) > 10


def test_stubs_lie_next_to_their_extension() -> None:
    for stub in (ROOT / "server").rglob("*.pyi"):
        assert stub.with_suffix(".pyx").exists()

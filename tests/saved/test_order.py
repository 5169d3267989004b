"""The modules of saved exports import each other in the order that the docstring of the package states."""

from __future__ import annotations

import re
from pathlib import Path

from server import saved

FOLDER = Path(saved.__file__).parent


def test_each_module_imports_only_those_before_it() -> None:
    assert saved.__doc__ is not None
    sentence = saved.__doc__.partition("Inside:")[2].partition(". ")[0]
    order = [name for group in re.findall(r"\(([^)]*)\)", sentence) for name in re.split(r",\s+", group)]
    assert sorted(order) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
    for position, name in enumerate(order):
        text = (FOLDER / f"{name}.py").read_text()
        imported = set(re.findall(r"^from server\.saved\.(\w+) import", text, re.MULTILINE))
        for names in re.findall(r"^from server\.saved import (.*)$", text, re.MULTILINE):
            imported |= set(names.split(", "))
        assert imported <= set(order[:position]), name

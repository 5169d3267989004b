"""Imports run one way: each package imports only the packages that its docstring names."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
# In the order in which a request passes them; docs/architecture.md lists them in the same order.
PACKAGES = ["query", "postgres", "encode", "export", "saved", "http", "pages", "process"]
# Modules on top of server/ that put everything together. The others there lie below all packages.
TOP = ["app", "__main__"]
DRIVER = {"aiopg", "psycopg2"}
# Packages and modules that do no I/O.
PURE = [
    "errors",
    "settings",
    "chunk",
    "query",
    "encode",
    "postgres.explained",
    "postgres.statements",
    "export.strategy",
    "saved.manifest",
    "saved.status",
    "http.byte_ranges",
    "http.negotiation",
    "pages.controls",
    "pages.faults",
    "pages.form",
    "pages.form_reader",
    "pages.formatting",
    "pages.snippets",
]
OUTSIDE_PURE = {"aiohttp", "aiopg", "psycopg2", "gunicorn", "asyncio", "socket", "structlog", "uvloop", "concurrent"}
LONGEST_MODULE = 300


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SERVER).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SERVER.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Every module that the file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(name: str) -> set[str]:
    """The modules of server/ that this module imports, without packages as such."""
    found = {module.removeprefix("server.") for module in imported(MODULES[name]) if module.startswith("server.")}
    return {module for module in found if module in MODULES and MODULES[module].name != "__init__.py"}


def package(name: str) -> str:
    """The package of a module; "" for one on top of server/."""
    return name.partition(".")[0] if "." in name else ""


def may_import(name: str) -> set[str]:
    """The packages that the docstring of this package names."""
    docstring = ast.get_docstring(ast.parse((SERVER / name / "__init__.py").read_text())) or ""
    found = re.search(r"^May import: ([a-z, ]+)\.$", docstring, re.MULTILINE)
    assert found is not None, f"server/{name}/__init__.py does not say what it may import"
    return set(found[1].split(", ")) - {"nothing"}


LEAVES = [name for name, path in MODULES.items() if path.name != "__init__.py"]


def test_every_folder_is_a_package_with_a_place() -> None:
    assert {package(name) for name in LEAVES} == {"", *PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_may_import_only_packages_before_it(name: str) -> None:
    assert may_import(name) <= set(PACKAGES[: PACKAGES.index(name)])


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in TOP])
def test_a_module_imports_only_what_its_package_may(name: str) -> None:
    allowed = {"", package(name)} | (may_import(package(name)) if package(name) else set())
    assert {module for module in ours(name) if package(module) not in allowed or module in TOP} == set()


def test_no_imports_run_in_a_circle() -> None:
    # static_order raises CycleError, which names the circle.
    assert set(graphlib.TopologicalSorter({name: ours(name) for name in LEAVES}).static_order()) == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_nothing_but_the_application_imports_a_route(name: str) -> None:
    assert name == "app" or not {module for module in ours(name) if module.startswith("http.routes.")}


@pytest.mark.parametrize("name", LEAVES)
def test_only_the_package_postgres_imports_the_driver(name: str) -> None:
    if package(name) != "postgres":
        assert not {module.split(".")[0] for module in imported(MODULES[name])} & DRIVER


@pytest.mark.parametrize("name", [name for name in LEAVES if name in PURE or package(name) in PURE])
def test_pure_stages_do_no_io(name: str) -> None:
    assert not {module.split(".")[0] for module in imported(MODULES[name])} & OUTSIDE_PURE


def test_the_list_of_pure_stages_names_what_there_is() -> None:
    assert {name for name in PURE if name not in MODULES} == set()


@pytest.mark.parametrize("name", LEAVES)
def test_a_module_says_what_it_is_and_stays_short(name: str) -> None:
    text = MODULES[name].read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py" and name])
def test_a_package_holds_nothing_but_its_docstring(name: str) -> None:
    if name != "__init__":  # the version
        assert len(ast.parse(MODULES[name].read_text()).body) == 1


@pytest.mark.parametrize("name", LEAVES)
def test_no_module_only_forwards(name: str) -> None:
    body = ast.parse(MODULES[name].read_text()).body
    assert any(isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign) for node in body)


def test_the_code_map_shows_the_packages_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| `server/(\w+)/` \|", page, re.MULTILINE) == PACKAGES


def test_the_tests_mirror_the_packages() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}
    assert folders == {*PACKAGES, "support", "system"}

"""Imports run one way: a module of `server/` imports only what stands above it in docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[2] / "server"

# From what knows nothing to what knows everything. The same order as the table in docs/architecture.md.
ORDER = [
    "__init__",
    "errors",
    "settings",
    "catalogue",
    "dialect",
    "grammar",
    "filters",
    "options",
    "request",
    "controls",
    "form",
    "filling",
    "snippets",
    "manifest",
    "status",
    "byte_ranges",
    "plan",
    "sql",
    "strategy",
    "encode",
    "libpq",
    "connections",
    "rows",
    "session",
    "database",
    "diagnose",
    "ranges",
    "scan",
    "compress",
    "opening",
    "preview",
    "storage",
    "store",
    "room",
    "claim",
    "queue",
    "exports",
    "download",
    "sendfile",
    "problems",
    "origin",
    "routes.__init__",
    "routes.keys",
    "routes.export",
    "routes.exports",
    "routes.save",
    "routes.saved_file",
    "routes.relations",
    "routes.health",
    "routes.pages.__init__",
    "routes.pages.site",
    "routes.pages.listing",
    "routes.pages.shape",
    "routes.pages.saved",
    "app",
    "logs",
    "embedded",
    "serve",
    "__main__",
]
PURE = {
    "controls",
    "form",
    "filling",
    "snippets",
    "errors",
    "settings",
    "catalogue",
    "dialect",
    "grammar",
    "filters",
    "request",
    "plan",
    "sql",
    "strategy",
    "encode",
}
PURE |= {"options", "manifest", "status", "byte_ranges"}
OUTSIDE_PURE = {"aiohttp", "aiopg", "psycopg2", "gunicorn", "asyncio", "socket", "structlog", "uvloop"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SERVER).with_suffix("").parts)


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


MODULES = {module_name(path): path for path in sorted(SERVER.rglob("*.py"))}


def test_every_module_has_its_place() -> None:
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_only_what_lies_above(name: str) -> None:
    above = ORDER[: ORDER.index(name)]
    ours = {module.removeprefix("server.") for module in imported(MODULES[name]) if module.startswith("server.")}
    assert {module for module in ours if module in ORDER and module not in above} == set()


@pytest.mark.parametrize("name", ORDER)
def test_only_the_lowest_modules_import_the_driver(name: str) -> None:
    if name not in ("libpq", "connections", "rows", "session"):
        assert not {module.split(".")[0] for module in imported(MODULES[name])} & {"aiopg", "psycopg2"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_stages_do_no_io(name: str) -> None:
    assert not {module.split(".")[0] for module in imported(MODULES[name])} & OUTSIDE_PURE


@pytest.mark.parametrize("name", ORDER)
def test_a_module_says_what_it_is_and_stays_short(name: str) -> None:
    text = MODULES[name].read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 330


def test_the_code_map_shows_the_same_order() -> None:
    page = (SERVER.parent / "docs" / "architecture.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    mapped = [row.removesuffix(".py").replace("/", ".") for row in rows]
    assert [name for name in mapped if name in ORDER] == [name for name in ORDER if "__init__" not in name]

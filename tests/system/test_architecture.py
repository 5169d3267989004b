"""The rules of the code's structure, which the docstrings of the packages state.

The order of imports between packages and inside each package, stages without I/O, the length of modules, and the one
place for threads, logging and the private parts of libraries.
"""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

from tests.conftest import SLOW_FILES

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
# In the order in which a request passes them; docs/architecture.md lists them in the same order.
PACKAGES = ["query", "postgres", "encode", "export", "saved", "http", "pages", "process"]
# Modules on top of server/ that put everything together. The others there lie below all packages.
TOP = ["app", "__main__"]
DRIVER = {"aiopg", "psycopg2"}
# Packages and modules that do no I/O, nor does any module that they import. `settings` is not one of them: it parses
# the mapping that it gets, but it imports `cpus`, which reads /proc and /sys.
PURE = [
    "errors",
    "events",
    "chunk",
    "network_names",
    "setting_values",
    "visible",
    "query",
    "encode",
    "postgres.explained",
    "postgres.messages",
    "postgres.queries",
    "postgres.reader",
    "postgres.statements",
    "postgres.withheld",
    "export.rejections",
    "export.relation_faults",
    "export.strategy",
    "saved.known",
    "saved.manifest",
    "saved.status",
    "http.byte_ranges",
    "http.negotiation",
    "http.paging",
    "pages.controls",
    "pages.days",
    "pages.expected",
    "pages.faults",
    "pages.form",
    "pages.form_reader",
    "pages.formatting",
    "pages.notes",
    "pages.relation_list",
    "pages.snippets",
]
OUTSIDE_PURE = {
    *("aiohttp", "aiopg", "psycopg2", "gunicorn", "structlog", "uvloop", "asyncio", "concurrent", "multiprocessing"),
    *("threading", "subprocess", "socket", "ssl", "signal", "fcntl", "os", "pathlib", "shutil", "tempfile", "io"),
    *("ctypes", "zoneinfo"),
}
# The exceptions, each with its reason.
PURE_EXCEPTIONS = {
    "query.parameters": {"zoneinfo"},  # reads the names in the time zone database, once
}
LONGEST_MODULE = 300
# Cython has no other way to inline functions without the GIL than one module: the parser of the protocol and the
# encoders of all formats share the functions that are called for each value.
LONGER_MODULE = "encode/_encode.pyx"
# Regular expressions of what is used in the modules named and nowhere else.
ONE_PLACE = {
    r"\bto_thread\b": set(),  # `in_thread` of threads.py
    r"\brun_in_executor\(None\b": set(),
    r"\bset_default_executor\b": set(),
    r"\brun_in_executor\b": {"postgres.connections"},  # look-ups of host names, which are abandoned
    r"\bFileResponse\b": set(),  # aiohttp reads the file in the event loop's default pool
    r"\bstructlog\b": {"process.logs"},
    r"\bgetLogger\b": {"process.logs"},
}
# Private attributes of aiohttp, aiopg and psycopg2, each with the one module that uses it.
PRIVATE = {
    "_make_server": "http.aiohttp_internals",
    "_kwargs": "http.aiohttp_internals",
    "_loop": "http.aiohttp_internals",
    "_drain_helper": "http.aiohttp_internals",
    "_waiter": "http.aiohttp_connections",
    "_request_count": "http.aiohttp_connections",
    "_max_msg_queue_size": "http.aiohttp_connections",
    "_msg_queue_resume_size": "http.aiohttp_connections",
    "_fileno": "postgres.connection",
    "_psycopg": "postgres.libpq",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SERVER).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SERVER.rglob("*.py"))}


def tree(name: str) -> ast.Module:
    """Return the syntax tree of a module of server/."""
    return ast.parse(MODULES[name].read_text())


def imported(path: Path) -> set[str]:
    """Return the names of all modules that the file imports, also inside functions, and of what it takes from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} has a relative import"
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(name: str) -> set[str]:
    """Return the modules of server/ that this module imports, without packages as such."""
    found = {module.removeprefix("server.") for module in imported(MODULES[name]) if module.startswith("server.")}
    return {module for module in found if module in MODULES and MODULES[module].name != "__init__.py"}


def package(name: str) -> str:
    """Return the package of a module; "" for one on top of server/."""
    return name.partition(".")[0] if "." in name else ""


LEAVES = [name for name, path in MODULES.items() if path.name != "__init__.py"]


def docstring(name: str) -> str:
    """Return the docstring of a package; "" is server/ itself."""
    return ast.get_docstring(ast.parse((SERVER / name / "__init__.py").read_text())) or ""


def may_import(name: str) -> set[str]:
    """Return the packages that the docstring of this package names after "May import:"."""
    found = re.search(r"^May import: ([a-z, ]+)\.$", docstring(name), re.MULTILINE)
    assert found is not None, f"server/{name}/__init__.py does not state what it may import"
    return set(found[1].split(", ")) - {"nothing"}


def order_inside(text: str) -> dict[str, int]:
    """Return the modules that the sentence "Inside: a, b → c." of a docstring names, with the number of their group."""
    found = re.search(r"^Inside: ([\w,→\s]+)\.$", text, re.MULTILINE)
    assert found is not None, "the docstring does not state the order inside the package"
    groups = [group.split(",") for group in found[1].split("→")]
    names = [(name.strip(), number) for number, group in enumerate(groups) for name in group]
    assert len(dict(names)) == len(names), "a module is named twice"
    return dict(names)


def inner_name(name: str) -> str:
    """Return the name of a module inside its package: its own, or that of the folder in which it is."""
    return name.removeprefix(package(name) + ".").partition(".")[0]


def reachable(name: str) -> set[str]:
    """Return this module and all of server/ that it imports, directly or through others."""
    found = {name}
    waiting = [name]
    while waiting:
        new = ours(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def only_forwards(text: str) -> bool:
    """Return whether a module holds nothing but a docstring, imports, other names for what it imports, and __all__."""
    return all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Name | ast.Attribute | None))
        or (isinstance(node, ast.Assign | ast.AugAssign) and "__all__" in ast.unparse(node).split("=")[0])
        for node in ast.parse(text).body
    )


def test_every_folder_is_a_package_with_a_place() -> None:
    assert {package(name) for name in LEAVES} == {"", *PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_may_import_only_packages_before_it(name: str) -> None:
    assert may_import(name) <= set(PACKAGES[: PACKAGES.index(name)])


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_the_packages_that_it_names(name: str) -> None:
    used = {package(module) for leaf in LEAVES if package(leaf) == name for module in ours(leaf)}
    assert used - {"", name} == may_import(name)


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in TOP])
def test_only_the_modules_on_top_import_them(name: str) -> None:
    assert ours(name) & set(TOP) == set()
    assert package(name) or not {module for module in ours(name) if package(module)}


@pytest.mark.parametrize("name", ["", *PACKAGES])
def test_the_docstring_of_a_package_names_its_modules_in_the_order_of_their_imports(name: str) -> None:
    order = order_inside(docstring(name))
    leaves = [leaf for leaf in LEAVES if package(leaf) == name]
    compiled = {path.stem for path in (SERVER / name).glob("*.pyx")}
    assert set(order) == {inner_name(leaf) for leaf in leaves} | compiled
    wrong = {
        (inner_name(leaf), inner_name(module))
        for leaf in leaves
        for module in ours(leaf)
        if package(module) == name and order[inner_name(module)] > order[inner_name(leaf)]
    }
    assert wrong == set()


def test_the_sentence_of_a_docstring_may_wrap() -> None:
    text = "What it is.\n\nInside: one, two → three,\nfour → five.\nMay import: nothing."
    assert order_inside(text) == {"one": 0, "two": 0, "three": 1, "four": 1, "five": 2}


@pytest.mark.parametrize("text", ["", "Inside: one, two", "Inside: one → two → one."])
def test_a_docstring_without_a_usable_sentence_is_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        order_inside(text)


def test_no_imports_run_in_a_circle() -> None:
    # static_order raises CycleError, which names the circle.
    assert set(graphlib.TopologicalSorter({name: ours(name) for name in LEAVES}).static_order()) == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_only_the_application_imports_a_route(name: str) -> None:
    assert name == "app" or not {module for module in ours(name) if module.startswith("http.routes.")}


@pytest.mark.parametrize("name", LEAVES)
def test_only_the_package_postgres_imports_the_driver(name: str) -> None:
    if package(name) != "postgres":
        assert not {module.split(".")[0] for module in imported(MODULES[name])} & DRIVER


@pytest.mark.parametrize("name", [name for name in LEAVES if name in PURE or package(name) in PURE])
def test_pure_stages_do_no_io(name: str) -> None:
    for module in sorted(reachable(name)):
        used = {outside.split(".")[0] for outside in imported(MODULES[module])} & OUTSIDE_PURE
        assert used - PURE_EXCEPTIONS.get(module, set()) == set(), module
        called = {node.func.id for node in calls(module) if isinstance(node.func, ast.Name)}
        assert not called & {"open", "print", "input"}, module


def calls(name: str) -> list[ast.Call]:
    """Return all calls in a module."""
    return [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]


def test_the_lists_name_only_modules_that_exist() -> None:
    named = {*PURE, *PURE_EXCEPTIONS, *PRIVATE.values(), *(name for names in ONE_PLACE.values() for name in names)}
    assert named - set(MODULES) == set()


@pytest.mark.parametrize(("name", "outside"), [(name, each) for name, used in PURE_EXCEPTIONS.items() for each in used])
def test_every_exception_for_a_pure_stage_is_needed(name: str, outside: str) -> None:
    assert outside in imported(MODULES[name])


@pytest.mark.parametrize("pattern", ONE_PLACE)
def test_it_is_used_only_in_its_one_place(pattern: str) -> None:
    assert {name for name in LEAVES if re.search(pattern, ast.unparse(tree(name)))} == ONE_PLACE[pattern]


@pytest.mark.parametrize("attribute", PRIVATE)
def test_a_private_part_of_a_library_is_used_in_one_module(attribute: str) -> None:
    users = {
        name
        for name in LEAVES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute) and node.attr == attribute
    }
    assert users == {PRIVATE[attribute]}


@pytest.mark.parametrize("name", LEAVES)
def test_a_module_uses_no_other_private_attribute_of_another_object(name: str) -> None:
    attributes = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)]
    functions = {node.name for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own = functions | {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    used = {
        node.attr
        for node in attributes
        if re.match(r"_[^_]", node.attr) and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    # os._exit and the method of named tuples are documented, in spite of their names.
    assert used - own - set(PRIVATE) <= {"_exit", "_replace"}


@pytest.mark.parametrize("name", LEAVES)
def test_a_module_has_a_docstring(name: str) -> None:
    assert ast.get_docstring(tree(name))


@pytest.mark.parametrize("path", [*SERVER.rglob("*.py"), *SERVER.rglob("*.pyx")], ids=lambda path: path.name)
def test_a_module_is_short(path: Path) -> None:
    is_short = len(path.read_text().splitlines()) <= LONGEST_MODULE
    assert is_short is not (path == SERVER / LONGER_MODULE)


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py" and name])
def test_a_package_holds_nothing_but_its_docstring(name: str) -> None:
    if name != "__init__":  # the version
        assert len(ast.parse(MODULES[name].read_text()).body) == 1


@pytest.mark.parametrize("name", LEAVES)
def test_no_module_only_forwards(name: str) -> None:
    assert not only_forwards(MODULES[name].read_text())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ('"""Text."""\nimport a\nfrom b import c\n', True),
        ('from b import c\n__all__ = ["c"]\n__all__ += ["d"]\n', True),
        ("import a\nfrom b import c\nd = c\ne: type = a.e\n", True),
        ("from b import c\nd = c + 1\n", False),
        ("import a\nLIMIT = 7\n", False),
        ("def f() -> None: ...\n", False),
        ("class C: ...\n", False),
    ],
)
def test_a_module_that_only_forwards_is_recognised(text: str, expected: bool) -> None:
    assert only_forwards(text) is expected


def test_the_code_map_shows_the_packages_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `server/(\w+)/` \|.*\| ([^|]+) \|$", page, re.MULTILINE))
    assert list(rows) == PACKAGES
    assert {name: set(text.split(", ")) - {"–"} for name, text in rows.items()} == {
        name: may_import(name) for name in PACKAGES
    }


def test_the_slow_files_exist_and_are_named_once() -> None:
    assert [name for name in SLOW_FILES if not (ROOT / "tests" / name).exists()] == []
    assert len(set(SLOW_FILES)) == len(SLOW_FILES)


def test_the_tests_mirror_the_packages() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}
    assert folders == {*PACKAGES, "security", "support", "system"}

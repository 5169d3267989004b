"""The documents agree with the code: settings, parameters, commands and dependencies."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from server.errors import ExportError
from server.export.strategy import BlockRanges, Strategy
from server.http.events import ExportStreamed
from server.query.filters import OPERATORS
from server.query.request import FORMATS, PARAMETERS, parse_export_request
from server.saved.errors import TooManyExports
from server.settings import describe_settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("architecture", "deployment", "errors", "performance", "postgrest")
README = (ROOT / "README.md").read_text()
CODE_MAP = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize(("variable", "default", "meaning"), describe_settings())
def test_every_setting_is_in_the_readme(variable: str, default: str, meaning: str) -> None:
    shown = f"`{default}`" if default else ""
    assert f"| `{variable}` | {shown} | {meaning} |" in README


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert named == {variable for variable, _, _ in describe_settings()}


def kinds_of_errors(base: type[ExportError] = ExportError) -> set[type[ExportError]]:
    return {base}.union(*map(kinds_of_errors, base.__subclasses__()))


def test_every_status_of_an_error_is_documented() -> None:
    table = (ROOT / "docs" / "errors.md").read_text()
    documented = {int(found) for found in re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE)}
    # Answered without the application, which has seen no request.
    refused = {
        int(found)
        for path in (ROOT / "server" / "http").glob("*.py")
        for found in re.findall(r"(?:refusal|_answer)\((\d{3}),", path.read_text())
    }
    assert len(refused) > 2
    kinds = kinds_of_errors()
    assert TooManyExports in kinds  # those of the packages count
    assert ({kind.status for kind in kinds} | refused) - documented == set()


def query_table() -> list[tuple[list[str], list[str]]]:
    """Return (parameters, examples) of each row of the README's table of the query string."""
    table = README.partition("| parameter | example | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()]
    return [(re.findall(r"`([^`]+)`", names), re.findall(r"`([^`]+)`", examples)) for names, examples, *_ in rows]


def test_every_parameter_is_in_the_readme_and_no_other() -> None:
    named = [name for names, _ in query_table() for name in names]
    assert sorted(named) == sorted(PARAMETERS)


def test_every_example_of_a_query_in_the_readme_works() -> None:
    rows = query_table()
    assert all(examples for _, examples in rows)
    for names, examples in rows:
        for example in examples:
            parse_export_request("users.csv", example)
        assert not names or any(name + "=" in example for name in names for example in examples)


def test_every_export_in_the_readme_is_one() -> None:
    links = re.findall(r"/export/([^\s'\"`?]+)(?:\?([^\s'`]+))?", README)
    assert len(links) > 3
    for target, query in links:
        parse_export_request(target, query)


def test_every_operator_and_format_is_in_the_readme() -> None:
    operators = re.search(r"^Operators: `([^`]+)`", README, re.MULTILINE)
    assert operators is not None
    assert sorted(operators[1].split()) == sorted(OPERATORS)
    formats = re.search(r"^Formats: (.+)", README, re.MULTILINE)
    assert formats is not None
    assert re.findall(r"`\.(\w+)`", formats[1]) == [*FORMATS, "gz"]


def test_the_log_line_in_the_readme_has_the_fields_of_the_event() -> None:
    line = re.search(r"^time=.* event=export .*\n.*\n.*", README, re.MULTILINE)
    assert line is not None
    shown = dict(field.split("=", 1) for field in shlex.split(line[0]))
    of_a_failure = ("error", "context", "status", "code", "sqlstate", "reason")
    own = [each.name for each in fields(ExportStreamed) if each.name not in of_a_failure]
    assert list(shown) == ["time", "level", "event", *own, "requestId", "client"]
    by_ranges = Strategy(
        BlockRanges([("public", "orders", 1)]), readers=2, estimated_rows=1, parallel_plan=False, reason=""
    )
    assert shown["scan"] == by_ranges.name


def module(path: str) -> Path:
    """Return the file behind a path of docs/architecture.md, which is below server/ or below the root."""
    return next((root / path for root in (ROOT / "server", ROOT) if (root / path).exists()), ROOT / "missing" / path)


def test_every_file_in_the_code_map_exists() -> None:
    named = set(re.findall(r"`((?:server/|tests/)?[\w/]+/[\w]+\.py)`", CODE_MAP))
    assert len(named) > 20
    assert {path for path in named if not module(path).exists()} == set()


def test_every_name_in_the_code_map_is_in_its_module() -> None:
    # `name` in `module.py`, also of a class: `Class.method` in `module.py`.
    pairs = re.findall(r"`(?:\w+\.)?(\w+)`(?: and `(\w+)`)? (?:in|of) `([\w/]+\.py)`", CODE_MAP)
    assert len(pairs) > 10
    missing = {
        (name, path)
        for *names, path in pairs
        for name in names
        if name and not re.search(rf"^ *(?:class |def |async def )?{name}\b", module(path).read_text(), re.MULTILINE)
    }
    assert missing == set()


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "SECURITY.md", *(f"docs/{name}.md" for name in DOCUMENTS)]
)
def test_the_lines_of_a_document_are_short(name: str) -> None:
    # Tables and pictures need long lines; a line with results is pasted as the benchmark printed it.
    unlimited = ("|", "![", "2 cores", "- PASS")
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(unlimited)] == []


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make (?:-s )?([a-z]+)", README)) <= targets


def test_every_direct_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs" / "dependencies.md").read_text().lower()
    files = list(ROOT.glob("requirements*.in"))
    assert len(files) == 4
    direct = "".join(path.read_text() for path in files)
    for name in re.findall(r"^([A-Za-z0-9-]+)==", direct, re.MULTILINE):
        reason = "types-" if name.startswith("types-") else name.lower()
        assert reason in reasons, name


def test_the_changelog_has_a_section_for_this_version() -> None:
    from server import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()

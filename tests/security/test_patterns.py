"""Regular expressions that PostgreSQL compiles for seconds are refused, and those that are accepted take no second.

It compiles an expression while it plans, where a time-out of Sluice can only close the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestClient
from yarl import URL

from server.query.pattern_limits import LARGEST_EXPRESSION, LONGEST_PATTERN
from server.query.regular_expressions import size_of
from tests.support.postgres import Postgres

HUNGRY = "((a?){0,40}){0,40}"
# Seconds in which PostgreSQL compiles an expression that is accepted, on a machine with other work to do.
LONGEST_COMPILATION = 1.5
WORDS = "".join(chr(0x4E00 + number) for number in range(800))

# Each grows with a number, from 1.
FAMILIES: dict[str, Callable[[int], str]] = {
    "a part that may be missing, repeated": lambda n: f"(a?){{0,{n}}}",
    "repetitions within repetitions": lambda n: f"((a?){{0,{n}}}){{0,{n}}}",
    "three levels": lambda n: f"(((a?){{0,{n}}}){{0,{n}}}){{0,{n}}}",
    "lower bounds": lambda n: f"((a?){{{n},}}){{{n},}}",
    "loops": lambda n: f"(a*b*c*d*){{0,{n}}}",
    "classes": lambda n: f"(\\w*\\W*){{0,{n}}}",
    "three classes": lambda n: f"(\\w*\\d*\\s*){{0,{n}}}",
    "many parts": lambda n: "a?" * n,
    "many loops": lambda n: "a*" * n,
    "letters": lambda n: f"(a?b?c?d?e?f?g?h?){{0,{n}}}",
    "a class and few characters": lambda n: f"([^a]?){{0,{n}}}{WORDS[:40]}",
    "a class and many characters": lambda n: f"([^a]?){{0,{n}}}{WORDS[:300]}",
    "copies of a class and many characters": lambda n: f"[^a]{{0,{n}}}{WORDS[:700]}",
    "classes and many characters": lambda n: "[^a]*" * n + WORDS[:300],
    "any case": lambda n: f"(?i)([a-z]?){{0,{n}}}",
    "copies of a group": lambda n: f"(a{{0,{n}}}b{{0,{n}}}){{0,{n}}}",
    "back references": lambda n: "(.)\\1" * n,
    "look-ahead": lambda n: "(?=a*)" * n,
    "basic": lambda n: f"(?b)\\(\\(a*\\)\\{{0,{n}\\}}\\)\\{{0,{n}\\}}",
}


def largest(family: str) -> str:
    """Return the largest expression of this family that is accepted."""
    accepted = ""
    for number in range(1, 256):
        expression = FAMILIES[family](number)
        if size_of(expression) > LARGEST_EXPRESSION or len(expression) > LONGEST_PATTERN:
            break
        accepted = expression
    assert accepted
    return accepted


def seconds(postgres: Postgres, expression: str) -> float:
    """Return how long PostgreSQL takes for this expression, the shortest time of three."""
    taken = []
    for attempt in range(3):
        started = time.perf_counter()
        # A comment makes it another expression, which PostgreSQL does not remember.
        postgres.run("SELECT 'ab12' ~ %s", (f"{expression}(?#{attempt})" if "(?b)" not in expression else expression,))
        taken.append(time.perf_counter() - started)
    return min(taken)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_expressions_that_are_accepted_are_compiled_quickly(family: str, postgres: Postgres) -> None:
    assert seconds(postgres, largest(family)) < LONGEST_COMPILATION


def test_one_of_the_largest_expressions_is_compiled_quickly(postgres: Postgres) -> None:
    assert seconds(postgres, largest("repetitions within repetitions")) < LONGEST_COMPILATION


@pytest.mark.parametrize("path", ["/export/users.csv", "/relations/users/preview", "/relations/users"])
@pytest.mark.parametrize(
    "query", [f"name=match.{quote(HUNGRY)}", f"or=(name.imatch.%22(?={quote(HUNGRY)})1%22,id.eq.1)"]
)
async def test_an_expression_that_repeats_too_much_reaches_no_database(
    client: TestClient[Any, Any], path: str, query: str
) -> None:
    explain = "explain&" if path == "/relations/users" else ""
    async with client.get(URL(f"{path}?{explain}{query}", encoded=True)) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (400, "too_complex")
    assert "repeats too much" in problem["detail"]


async def test_a_thousand_hungry_conditions_are_refused_at_once(client: TestClient[Any, Any]) -> None:
    query = "&".join(f"name=match.{quote(HUNGRY)}{number}" for number in range(999)) + "&id=eq.abc"
    async with client.get(URL(f"/export/users.csv?{query}", encoded=True)) as response:
        assert (response.status, (await response.json())["code"]) == (400, "too_complex")

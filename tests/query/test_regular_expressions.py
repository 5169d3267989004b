"""The size of a regular expression, which bounds how long PostgreSQL compiles it (tests/security/test_patterns.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, RequestTooLarge
from server.query.fields import Field
from server.query.filter_reader import parse_condition, parse_group
from server.query.pattern_limits import LARGEST_EXPRESSION, LONGEST_ARRAY, LONGEST_PATTERN
from server.query.regular_expressions import HUGE, SIZE_OF_GAP, size_of
from tests.support.cpu import cpu_limit, most_seconds

A = Field("a")
GAP = SIZE_OF_GAP


@pytest.mark.parametrize(
    ("expression", "size"),
    [
        ("", 0),
        ("abc", 3),
        (r"a\{9}", 4),
        ("a{9}", 9),
        ("a{9,}", 9),
        ("a{2,9}", 9),
        ("(ab){9}", 27),
        ("(?:ab){9}c", 28),
        ("a+", 1),
        ("a*b?", 2 + 2 * GAP),
        ("a{0,9}", 9 + GAP),
        ("(a?){9}", 9 * (2 + 2 * GAP)),
        ("(a|b{3}|){2}", 2 * (5 + GAP)),
        ("(a|b){3}", 9),
        ("((a{3}){3}){3}", 39),
        ("^a$", 3),
        ("(^){3}", 3 * (2 + GAP)),
        ("(?=abc){3}", 3 * (4 + GAP)),
        ("[]{9}]", 1),
        ("[^]a{9}]{2}", 2),
        (r"[a\]{9}]{2}", 2),
        ("[[:alpha:]{9}]{2}", 4),  # two, for there are more than ten characters
        (r"\d{4}-\d{2}", 7),
        ("(?#a{9})b{2}", 2),
        ("(?x) a {3} # {9}\n b", 4),
        (" {3}", 3),
        ("(?i)a{3}", 3),
        ("***:a{3}", 3),
        ("***=a{3}{9}", 11),
        ("(?q)a{3}{9}", 11),
        (")a{3}", 4),
        ("((a{3}", 3),
        ("[a{9}", 1),
        ("a{x}", 4),
        ("\\", 1),
        ("a{99999}{99999}", HUGE),
        ("(" * 300 + "a" + "){9}" * 300, HUGE),
    ],
)
def test_the_size_of_an_expression(expression: str, size: int) -> None:
    assert size_of(expression) == size


def test_a_basic_expression_counts_as_if_all_its_counts_were_nested() -> None:
    assert size_of(r"(?b)\(\(a*\)\{0,40\}\)\{0,40\}") > LARGEST_EXPRESSION
    assert size_of("(?e)((a?){0,40}){0,40}") > LARGEST_EXPRESSION
    assert size_of(r"(?b)a\{3\}") < LARGEST_EXPRESSION


@given(st.text(alphabet="ab()[]{}|*+?,0123456789^$\\=!:<.x# ", max_size=60), st.integers(2, 255))
def test_a_repetition_is_never_smaller_than_what_it_repeats(text: str, count: int) -> None:
    assert size_of(f"(?:{text}){{{count}}}") >= 0
    size = size_of("ab{3}c?" * 3)
    assert size_of(f"(?:{'ab{3}c?' * 3}){{{count}}}") >= min(size * count, HUGE)


@pytest.mark.parametrize(
    "piece", ["(", "[", "[[:", "\\", "{1,2}", "(?#", "a{1,2}|(", "((a?){0,9}){0,9}", "[^]", "(?=", "*?"]
)
def test_the_longest_expression_is_read_quickly(piece: str) -> None:
    for text in (
        (piece * LONGEST_PATTERN)[:LONGEST_PATTERN],
        "(?x)" + (piece * LONGEST_PATTERN)[: LONGEST_PATTERN - 4],
    ):
        with cpu_limit(most_seconds(0.01)):
            size_of(text)


@pytest.mark.parametrize(
    "expression",
    [
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$",
        r"^(\+\d{1,3})?[ -]?\(?\d{3}\)?[ -]?\d{3}[ -]?\d{4}$",
        r"^(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}$",
        r"^https?://(www\.)?[-a-zA-Z0-9@:%._+~#=]{1,255}\.[a-zA-Z0-9()]{1,6}\y([-a-zA-Z0-9()@:%_+.~#?&/=]*)$",
        r"(\w+\s+){3,100}",
        r"^\s*([^,]*,){10,50}[^,]*$",
        "|".join(f"word{number}" for number in range(100)),
    ],
)
def test_expressions_as_people_write_them_are_accepted(expression: str) -> None:
    assert parse_condition(A, f"match.{expression}").values == (expression,)


HUNGRY = "((a?){0,40}){0,40}"


@pytest.mark.parametrize(
    "text",
    [
        f"match.{HUNGRY}",
        f"not.imatch.(?={HUNGRY})N1",
        f"match(any).{{a,{HUNGRY.replace(',', chr(44))}}}".replace(HUNGRY, f'"{HUNGRY}"'),
        "match." + "a?" * 200,
        r"match.(\w*\W*){0,250}",
    ],
)
def test_an_expression_that_repeats_too_much_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match='The regular expression for "a" repeats too much') as caught:
        parse_condition(A, text)
    assert (caught.value.status, caught.value.code) == (400, "too_complex")
    assert "smaller counts" in (caught.value.hint or "")


def test_the_sizes_of_all_expressions_count() -> None:
    one = "(a?){0,40}"
    members = [f'a.match."{one}{number}"' for number in range(30)]
    with pytest.raises(RequestTooLarge, match="all together"):
        parse_group("or", f"({','.join(members)})")
    assert parse_group("or", f"({','.join(members[:20])})")


@pytest.mark.parametrize("operator", ["like", "ilike", "match", "imatch", "fts", "plfts", "phfts", "wfts(english)"])
def test_the_length_of_a_pattern_is_limited(operator: str) -> None:
    assert parse_condition(A, f"{operator}.{'x' * LONGEST_PATTERN}")
    with pytest.raises(InvalidRequest, match=r'"a" has more than 1,000 characters') as caught:
        parse_condition(A, f"{operator}.{'x' * (LONGEST_PATTERN + 1)}")
    assert caught.value.hint


@pytest.mark.parametrize("operator", ["like(any)", "ilike(all)", "match(any)", "imatch(all)"])
def test_the_length_of_an_array_of_patterns_is_limited(operator: str) -> None:
    longest = "x" * LONGEST_PATTERN
    assert parse_condition(A, f"{operator}.{{{longest},{longest}}}")
    for text in (f"{{{longest}x}}", "{" + "a," * (LONGEST_ARRAY // 2) + "}"):
        with pytest.raises(InvalidRequest, match="more than 1"):
            parse_condition(A, f"{operator}.{text}")


def test_other_values_may_be_long() -> None:
    assert parse_condition(A, "eq." + "x" * 100_000)
    assert parse_condition(A, "eq(any).{" + "x," * 50_000 + "y}")

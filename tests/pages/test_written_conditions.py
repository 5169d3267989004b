"""What the page writes for a condition is read back as the same condition. No database."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given

from server.pages.controls import COMPARISONS_BY_KIND, FilterInput, condition_of, input_of, write_condition
from server.query.fields import Field
from server.query.filter_reader import parse_condition
from server.query.filters import Condition
from server.query.grammar import form_decode
from tests.support.random_filters import conditions


@given(conditions())
@example(Condition(Field("a"), "in", (" a ", "", '"', "b,c", "{", "d\\")))
@example(Condition(Field("a"), "like", (r"50\%%a*_\\%",)))
@example(Condition(Field("a"), "ilike", (r"{%,*,\\\\}",), negated=True, modifier="all"))
@example(Condition(Field("a"), "like", (r"{50\\%,a*}",), modifier="any"))
@example(Condition(Field("a"), "fts", ("x+1",), modifier="english"))
def test_a_written_condition_is_read_back(condition: Condition) -> None:
    text = write_condition(condition)
    assert parse_condition(condition.field, text) == condition
    # Also from an address, in which nothing is a plus sign that means a space.
    decoded, signs = form_decode(quote(text), "x")
    assert (decoded, signs) == (text, ())


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [("A*", "A%"), ("A%", "A%"), (r"\*", "*"), (r"a\*b*", "a*b%"), (r"50\%", r"50\%"), ("_", "_"), ("a\\", "a\\")],
)
def test_a_typed_pattern_has_the_wildcards_of_the_query_string(typed: str, pattern: str) -> None:
    comparison = next(item for item in COMPARISONS_BY_KIND["text"] if item.key == "like")
    condition = condition_of("a", FilterInput(comparison, (typed,)))
    assert condition == Condition(Field("a"), "like", (pattern,))
    shown = input_of(condition, "text")
    assert shown is not None
    assert condition_of("a", shown) == condition
    assert shown.values == (typed.replace("A%", "A*"),)

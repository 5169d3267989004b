r"""The patterns of `like`: what a query string has, what SQL has, and the way back. No database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.query.patterns import elements, ends_inside_escape, from_sql, to_sql


@pytest.mark.parametrize(
    ("written", "sql"),
    [
        ("", ""),
        ("a", "a"),
        ("*a*", "%a%"),
        ("_", "_"),
        (r"\*", "*"),
        (r"a\*b*", "a*b%"),
        (r"\\*", r"\\%"),
        (r"\\\*", r"\\*"),
        (r"\%\_\a", r"\%\_\a"),
        ("a\n*", "a\n%"),
        ("\\\n*", "\\\n%"),
        ("a\\", "a\\"),
    ],
)
def test_a_pattern_has_two_forms(written: str, sql: str) -> None:
    assert to_sql(written) == sql
    assert from_sql(sql) == written


@pytest.mark.parametrize(
    ("written", "sql"),
    [
        ("{*a,b*}", "{%a,b%}"),
        (r"{a\\*b}", "{a*b}"),
        (r"{a\*b}", "{a*b}"),
        (r"{a\\\*b}", "{a*b}"),
        (r"{a\\\\*}", r"{a\\\\%}"),
        (r'{"a\\*,*"}', '{"a*,%"}'),
        (r"{50\\%,\\_\,*}", r"{50\\%,\\_\,%}"),
        (r'{"a\\",*}', r'{"a\\",%}'),
    ],
)
def test_the_patterns_of_an_array_have_two_forms(written: str, sql: str) -> None:
    assert to_sql(written, array=True) == sql
    assert to_sql(from_sql(sql, array=True), array=True) == sql


def test_a_percent_sign_is_a_wildcard_too() -> None:
    assert to_sql(r"50%*\%") == r"50%%\%"
    assert from_sql(to_sql("%")) == "*"


@pytest.mark.parametrize("array", [False, True])
@given(pattern=st.text(r"\*%_ab", max_size=10))
def test_a_pattern_of_sql_survives_the_way_to_a_query_string_and_back(array: bool, pattern: str) -> None:
    written = from_sql(pattern, array=array)
    # In SQL an escaped star is a star too.
    assert to_sql(written, array=array) == to_sql(from_sql(to_sql(written, array=array), array=array), array=array)
    assert "%" not in written.replace(r"\%", "")


@pytest.mark.parametrize(
    ("pattern", "unpaired"), [("", False), ("a", False), ("\\", True), (r"\\", False), ("\\\\\\", True), (r"\a", False)]
)
def test_an_unpaired_backslash_is_found(pattern: str, unpaired: bool) -> None:
    assert ends_inside_escape(pattern) is unpaired


@pytest.mark.parametrize(
    ("array", "found"),
    [
        ("{}", []),
        ("{a}", ["a"]),
        ("{a,b c, d }", ["a", "b c", "d"]),
        ('{"a,b","","c\\"d"}', ["a,b", "", 'c"d']),
        (r"{a\,b,\{\},\ }", ["a,b", "{}", " "]),
        (r'{a\\,"b\\"}', ["a\\", "b\\"]),
        ("{{a,b},{c,d}}", ["a", "b", "c", "d"]),
        ("{NULL,a\nb}", ["NULL", "a\nb"]),
        ("[0:1]={a,b}", ["[0:1]=", "a", "b"]),
        ("a", ["a"]),
        ('{"a', ["a"]),
        ("", []),
    ],
)
def test_the_elements_of_an_array_are_read_as_postgresql_reads_them(array: str, found: list[str]) -> None:
    assert elements(array) == found

"""The grammar of filters: conditions, lists, quotes, braces and nested brackets, and the errors they can have.

Positions count characters from 1 within the value of the parameter. No catalogue, no database.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.errors import InvalidRequest, RequestTooLarge
from server.query.fields import Field, Step, write_field
from server.query.filter_reader import parse_condition, parse_group
from server.query.filters import (
    COMPARISONS,
    FULL_TEXT,
    IS_VALUES,
    MOST_NESTING,
    OPERATORS,
    PATTERNS,
    QUANTIFIED,
    Condition,
    Filter,
    Group,
    conditions_of,
)
from server.query.grammar import form_decode, write_quoted
from server.query.patterns import from_sql
from server.query.tally import MOST_CONDITIONS, MOST_ITEMS
from tests.support.cpu import cpu_limit, most_seconds
from tests.support.random_filters import conditions

ONE = Condition(Field("a"), "eq", ("1",))
TWO = Condition(Field("b"), "lt", ("2",))
NULL = Condition(Field("c"), "is", ("null",))


def value_of(text: str) -> tuple[str, ...]:
    return parse_condition(Field("a"), text).values


def member(text: str) -> Filter:
    """Return the only member of these brackets."""
    members = parse_group("or", text).members
    assert len(members) == 1
    return members[0]


# --- A condition as a parameter: all text after the operator is the value. ---


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("negated", [False, True])
def test_every_operator_takes_a_value_and_can_be_negated(operator: str, negated: bool) -> None:
    text = {"in": "(1)", "is": "null"}.get(operator, "1")
    values = {"is": ("null",)}.get(operator, ("1",))
    assert parse_condition(Field("a"), f"{'not.' if negated else ''}{operator}.{text}") == Condition(
        Field("a"), operator, values, negated
    )
    assert member(f"(a.{'not.' if negated else ''}{operator}.{text})") == Condition(
        Field("a"), operator, values, negated
    )


@pytest.mark.parametrize("operator", [name for name in (*COMPARISONS, *FULL_TEXT) if "like" not in name])
@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "a.b",
        "a,b",
        "(a)",
        ")",
        "{",
        '{"',
        '"',
        '"a',
        '"a"',
        "\\",
        "*",
        "%",
        "not.eq.1",
        "null",
        "ü🦥",
        "a\r\nb",
    ],
)
def test_the_value_is_all_text_that_follows(operator: str, value: str) -> None:
    assert parse_condition(Field("a"), f"{operator}.{value}") == Condition(Field("a"), operator, (value,))
    assert parse_condition(Field("a"), f"not.{operator}.{value}") == Condition(
        Field("a"), operator, (value,), negated=True
    )


@pytest.mark.parametrize("operator", ["like", "ilike"])
@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ("a*", "a%"),
        ("*", "%"),
        ("**a*b", "%%a%b"),
        ("a%", "a%"),
        ("a_", "a_"),
        ("", ""),
        (r"a\_b", r"a\_b"),
        # A star after a backslash is one.
        (r"a\*b*", "a*b%"),
        (r"\**", "*%"),
        (r"\\*", r"\\%"),
        (r"\\\*", r"\\*"),
        (r"\%*", r"\%%"),
    ],
)
def test_a_star_in_a_pattern_is_a_percent_sign(operator: str, value: str, pattern: str) -> None:
    assert value_of(f"{operator}.{value}") == (pattern,)
    assert member(f"(a.{operator}.{value})") == Condition(Field("a"), operator, (pattern,))


@pytest.mark.parametrize("operator", ["like", "not.ilike"])
@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ("\\", None),
        ("a\\", None),
        ("*\\\\\\", None),
        ("a\\\\", "a\\\\"),
        ("\\*", "*"),
        # In an array, whose text has backslashes of its own.
        (r"(any).{a\\}", None),
        (r"(any).{a,b\\,c}", None),
        (r'(all).{"a","\\"}', None),
        (r"(all).{{a},{b\\ }}", None),
        (r'(any).{"a\\,b",c\\\\,d\,,\\e}', r'{"a\\,b",c\\\\,d\,,\\e}'),
        (r"(any).{*\*,%\*}", "{%*,%*}"),
        (r'(any).{"*,*"}', '{"%,%"}'),
        # What is no array is left to PostgreSQL.
        ("(any).a", "a"),
        ('(any).{"a', '{"a'),
    ],
)
def test_a_pattern_does_not_end_with_an_unpaired_backslash(operator: str, value: str, pattern: str | None) -> None:
    """PostgreSQL would report it only at a row that the rest of the pattern matches."""
    value = value if value.startswith("(a") else f".{value}"
    if pattern is not None:
        assert value_of(f"{operator}{value}") == (pattern,)
        return
    for parse in (
        lambda: parse_condition(Field("a"), f"{operator}{value}"),
        lambda: parse_group("or", f"(a.{operator}{value})"),
    ):
        with pytest.raises(InvalidRequest) as error:
            parse()
        assert (error.value.status, error.value.code) == (400, "invalid_value")
        assert '"a"' in error.value.detail


@pytest.mark.parametrize("value", [*IS_VALUES, *(word.upper() for word in IS_VALUES), "Null", "tRuE"])
def test_is_accepts_its_values_in_any_case(value: str) -> None:
    assert value_of(f"is.{value}") == (value.lower(),)
    assert member(f"(a.is.{value})") == Condition(Field("a"), "is", (value.lower(),))


@pytest.mark.parametrize("value", ["", "nul", "null ", "not null", "1", "(null)", "distinct", "İ", '"null"'])
def test_is_accepts_no_other_value(value: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_condition(Field("a"), f"is.{value}")
    assert (error.value.status, error.value.code) == (400, "invalid_filter")
    assert error.value.detail == f'Unknown value "{value.lower()}" after "is" in the filter on "a".'
    assert error.value.hint == "Use one of null, not_null, true, false, unknown."


# --- Lists. ---


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("()", ()),
        ("(1)", ("1",)),
        ("(1,2,3)", ("1", "2", "3")),
        ("(1,1)", ("1", "1")),
        # Blanks around items and brackets do not count, except in double quotes.
        ("( 1, 2 )", ("1", "2")),
        ("(  )", ()),
        (" ( a b\t, c ) ", ("a b", "c")),
        ('( "a" , " b" ,"" )', ("a", " b", "")),
        ("( {1, 2} , { } )", ("{1, 2}", "{ }")),
        ('("")', ("",)),
        ('("","")', ("", "")),
        ('("a,b",c)', ("a,b", "c")),
        ('("(a)","b)")', ("(a)", "b)")),
        ('("say ""hi""")', ('say "hi"',)),
        (r'("say \"hi\"","back\\slash")', ('say "hi"', "back\\slash")),
        # In double quotes a backslash stands before a character that is meant as it is.
        (r'("D\a\vid W\h\ite","a\b")', ("David White", "ab")),
        (r"(\,/\Slash/\)", ("\\", "/\\Slash/\\")),
        ('(a"b,5")', ('a"b', '5"')),
        ("(a.b,eq.1)", ("a.b", "eq.1")),
        ("((a,b)", ("(a", "b")),
        ("(null,*,%)", ("null", "*", "%")),
        ("(\n,ü🦥)", ("\n", "ü🦥")),
        # Braces hold a whole array or object, with its commas and brackets.
        ("({1,2},{3})", ("{1,2}", "{3}")),
        ("({{1,2},{3,4}})", ("{{1,2},{3,4}}",)),
        ('({"a":[1,2],"b":"}"},x)', ('{"a":[1,2],"b":"}"}', "x")),
        (r'({"q\"}",")"})', (r'{"q\"}",")"}',)),
        ("(a{,b})", ("a{", "b}")),
    ],
)
def test_in_takes_a_list(text: str, values: tuple[str, ...]) -> None:
    assert value_of(f"in.{text}") == values
    assert member(f"(a.in.{text})") == Condition(Field("a"), "in", values)
    assert parse_group("or", f"(a.not.in.{text},b.lt.2)").members == (Condition(Field("a"), "in", values, True), TWO)


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("", "invalid_filter", 'Expected a list in brackets in the filter on "a" at position 4.'),
        ("1,2", "invalid_filter", 'Expected a list in brackets in the filter on "a" at position 4.'),
        ("{1,2}", "invalid_filter", 'Expected a list in brackets in the filter on "a" at position 4.'),
        ("(", "invalid_filter", 'An item is missing in the filter on "a" at position 5.'),
        ("(,1)", "invalid_filter", 'An item is missing in the filter on "a" at position 5.'),
        ("(1,)", "invalid_filter", 'An item is missing in the filter on "a" at position 7.'),
        ("(1,,2)", "invalid_filter", 'An item is missing in the filter on "a" at position 7.'),
        ("( ,1)", "invalid_filter", 'An item is missing in the filter on "a" at position 6.'),
        ("(1, )", "invalid_filter", 'An item is missing in the filter on "a" at position 8.'),
        ("(1,2", "unbalanced_brackets", 'The bracket in the filter on "a" at position 4 is not closed.'),
        ('("a"', "unbalanced_brackets", 'The bracket in the filter on "a" at position 4 is not closed.'),
        (
            "(1)2",
            "unbalanced_brackets",
            'Unexpected text after the closing bracket in the filter on "a" at position 7: "2".',
        ),
        (
            "(1))",
            "unbalanced_brackets",
            'Unexpected text after the closing bracket in the filter on "a" at position 7: ")".',
        ),
        (
            "()" + "x" * 8192,
            "unbalanced_brackets",
            f'Unexpected text after the closing bracket in the filter on "a" at position 6: "{"x" * 100}…".',
        ),
        ('(1,"a', "invalid_quotes", 'The double quote in the filter on "a" at position 7 is not closed.'),
        ('("a)', "invalid_quotes", 'The double quote in the filter on "a" at position 5 is not closed.'),
        ('(ü,"a"b)', "invalid_quotes", 'Unexpected text after the closing quote in the filter on "a" at position 10.'),
        ("({1,2)", "unbalanced_brackets", 'The brace in the filter on "a" at position 5 is not closed.'),
        ('(1,{"})', "unbalanced_brackets", 'The brace in the filter on "a" at position 7 is not closed.'),
        ("({1\\", "unbalanced_brackets", 'The brace in the filter on "a" at position 5 is not closed.'),
        ('({"\\', "unbalanced_brackets", 'The brace in the filter on "a" at position 5 is not closed.'),
    ],
)
def test_an_error_in_a_list_has_its_position(text: str, code: str, detail: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_condition(Field("a"), f"in.{text}")
    assert (error.value.status, error.value.code, error.value.detail) == (400, code, detail)


def test_text_after_a_closing_brace_is_not_an_unclosed_bracket() -> None:
    for text in ("in.({1}x)", "in.({1}{2})"):
        with pytest.raises(InvalidRequest) as error:
            parse_condition(Field("a"), text)
        assert "not closed" not in error.value.detail


# --- Operators. ---


@pytest.mark.parametrize(
    ("text", "position", "shown"),
    [
        ("", 1, ""),
        ("1", 1, "1"),
        ("eq", 1, "eq"),
        ("EQ.1", 1, "EQ."),
        ("equals.1", 1, "equals."),
        ("=.1", 1, "="),
        ("eq:1", 1, "eq:"),
        ("eq(1)", 1, "eq("),
        (" eq.1", 1, " "),
        (".eq.1", 1, "."),
        ("not.1", 5, "1"),
        ("not.eq", 5, "eq"),
        ("not.not.eq.1", 5, "not."),
        ("NOT.eq.1", 1, "NOT."),
        ("notin.(1)", 1, "notin."),
        ("and.(b.eq.1)", 1, "and."),
        ("eq(any)", 1, "eq("),
        ("nothing(any).1", 1, "nothing("),
        ("eq(any.1", 1, "eq("),
        ("eq((any)).1", 1, "eq("),
        ("fts (english).a", 1, "fts "),
        ("ｅｑ.1", 1, "ｅｑ."),
        ("x" * 8192, 1, "x" * 100 + "…"),
    ],
)
def test_an_unknown_operator_has_its_position_and_a_hint_with_the_known_ones(
    text: str, position: int, shown: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_condition(Field("a"), text)
    assert (error.value.status, error.value.code) == (400, "unknown_operator")
    assert error.value.detail == f'Expected an operator in the filter on "a" at position {position}, found "{shown}".'
    assert error.value.hint is not None
    assert ", ".join(OPERATORS) in error.value.hint


@pytest.mark.parametrize(
    ("modifier", "operators"),
    [
        ("any", (*QUANTIFIED, *FULL_TEXT)),
        ("all", (*QUANTIFIED, *FULL_TEXT)),
        *((name, tuple(FULL_TEXT)) for name in ("english", " simple ", "my_$1", "größe", "ANY", "two words")),
        *((name, ()) for name in ("", " ", "a.b", "a'b", "x" * 8192 + "-")),
    ],
)
def test_some_operators_take_a_modifier_in_brackets(modifier: str, operators: tuple[str, ...]) -> None:
    """`any` and `all` go with comparisons, and the name of a configuration with full text search, as in PostgREST."""
    for operator in OPERATORS:
        text = f"{operator}({modifier})." + {"in": "(1)", "is": "null"}.get(operator, "{1}")
        if operator in operators:
            condition = Condition(Field("a"), operator, ("{1}",), modifier=modifier.strip())
            assert parse_condition(Field("a"), text) == member(f"(a.{text})") == condition
            assert parse_condition(Field("a"), f"not.{text}") == replace(condition, negated=True)
            continue
        with pytest.raises(InvalidRequest) as error:
            parse_condition(Field("a"), text)
        assert (error.value.status, error.value.code) == (400, "unknown_operator")
        position = len(operator) + 1
        assert f'after "{operator}" in the filter on "a" at position {position}.' in error.value.detail
        assert len(error.value.detail) < 250
        assert error.value.hint is not None
        assert "eq, gt, gte, lt, lte, like, ilike, match, imatch" in error.value.hint


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("eq.2024-01-01+02:00", True),
        ("not.gte.2024-01-01T12:00:00+02", True),
        ("eq.2024-01-01%20+02", True),
        ("eq.2024-01-01++02", True),
        ("eq.2024-01-01+%30%32", True),
        ("in.(2024-01-01,2024-01-01+02)", True),
        ("isdistinct.2024-01-01Z+2", True),
        ("ov.[2024-01-01+02,)", True),
        ('cs.{"2024-01-01+02"}', True),
        ("eq(any).{2024-01-01+02}", True),
        # An encoded plus sign, and spaces where no sign can stand.
        ("eq.2024-01-01%2B02:00", False),
        ("eq.2024-01-01%20+%2B02", False),
        ("eq.+2024-01-01", False),
        ("eq.2024-01-01+", False),
        ("eq.January+5,+2024", True),
        ("eq.January+the+fifth", False),
        ("in.(2024-01-01,+2024-01-02)", False),
        ("in.(+2024-01-01)", False),
        ("ov.[2024-01-01,+2024-01-02)", False),
    ],
)
def test_a_plus_sign_that_may_be_that_of_a_number_is_noticed(text: str, refused: bool) -> None:
    value, signs = form_decode(text, "x")
    assert parse_condition(Field("a"), value, signs).raw_plus is refused


def test_in_a_group_only_the_condition_with_the_plus_sign_has_it() -> None:
    text = "(a.eq.2024+01,b.in.(2024,+01),or(c.eq.x+,d.lt.1+2),e.eq.3,f.eq.%2B1+%2B1)"
    value, signs = form_decode(text, "x")
    found = conditions_of((parse_group("or", value, signs=signs),))
    assert [condition.column for condition in found if condition.raw_plus] == ["a", "d"]


def test_a_long_column_is_shortened_in_messages() -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_condition(Field("x" * 8192), "nothing.1")
    assert f'in the filter on "{"x" * 100}…" at position 1' in error.value.detail


# --- Brackets. ---


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("(a.eq.1)", (ONE,)),
        ("(a.eq.1,b.lt.2)", (ONE, TWO)),
        ("(a.eq.1,a.eq.1)", (ONE, ONE)),
        ("(c.is.null,a.eq.1)", (NULL, ONE)),
        ("(or(a.eq.1,b.lt.2))", (Group("or", (ONE, TWO)),)),
        ("(and(a.eq.1),b.lt.2)", (Group("and", (ONE,)), TWO)),
        ("(a.eq.1,not.and(b.lt.2,c.is.null))", (ONE, Group("and", (TWO, NULL), negated=True))),
        (
            "(not.or(a.eq.1),or(not.and(b.lt.2)))",
            (Group("or", (ONE,), negated=True), Group("or", (Group("and", (TWO,), negated=True),))),
        ),
        # Values: to the next comma or bracket, in double quotes, or in braces.
        ("(a.eq.)", (Condition(Field("a"), "eq", ("",)),)),
        ("(a.eq.,b.lt.2)", (Condition(Field("a"), "eq", ("",)), TWO)),
        ('(a.eq."")', (Condition(Field("a"), "eq", ("",)),)),
        ('(a.eq."x,(y)",b.lt.2)', (Condition(Field("a"), "eq", ("x,(y)",)), TWO)),
        (r'(a.eq."\"\\")', (Condition(Field("a"), "eq", ('"\\',)),)),
        ("(a.eq.x.y.z)", (Condition(Field("a"), "eq", ("x.y.z",)),)),
        ("(a.eq.(x)", (Condition(Field("a"), "eq", ("(x",)),)),
        ('(a.eq.x"y)', (Condition(Field("a"), "eq", ('x"y',)),)),
        ("(a.cs.{1,2},b.lt.2)", (Condition(Field("a"), "cs", ("{1,2}",)), TWO)),
        ('(a.cs.{"x":{"y":")"}})', (Condition(Field("a"), "cs", ('{"x":{"y":")"}}',)),)),
        ('(a.cs."[1,5)")', (Condition(Field("a"), "cs", ("[1,5)",)),)),
        ("(a.eq.x{,b.lt.2)", (Condition(Field("a"), "eq", ("x{",)), TWO)),
        ("(a.in.(1,2),b.lt.2)", (Condition(Field("a"), "in", ("1", "2")), TWO)),
        ("(a.in.(),b.lt.2)", (Condition(Field("a"), "in", ()), TWO)),
        (
            '(a.like.*x*,b.match."^(x|y)$")',
            (Condition(Field("a"), "like", ("%x%",)), Condition(Field("b"), "match", ("^(x|y)$",))),
        ),
        # Columns: in double quotes if they contain characters of the grammar.
        ('("a.b".eq.1)', (Condition(Field("a.b"), "eq", ("1",)),)),
        ('("a,b(c)".eq.1)', (Condition(Field("a,b(c)"), "eq", ("1",)),)),
        ('("say ""hi""".eq.1)', (Condition(Field('say "hi"'), "eq", ("1",)),)),
        ('("and(".eq.1)', (Condition(Field("and("), "eq", ("1",)),)),
        ("(and.eq.1,or.eq.1)", (Condition(Field("and"), "eq", ("1",)), Condition(Field("or"), "eq", ("1",)))),
        ("(not.eq.1)", (Condition(Field("not"), "eq", ("1",)),)),
        ("(not.not.eq.1)", (Condition(Field("not"), "eq", ("1",), negated=True),)),
        ("( a .eq.1)", (Condition(Field("a"), "eq", ("1",)),)),
        ('(" a".eq.1)', (Condition(Field(" a"), "eq", ("1",)),)),
        ("(a->b->>0.eq.1)", (Condition(Field("a", (Step("b"), Step(0, as_text=True))), "eq", ("1",)),)),
        ("(größe.eq.1)", (Condition(Field("größe"), "eq", ("1",)),)),
        # Blanks around conditions, columns, brackets and values do not count. Those after the dot belong to the value.
        (" ( a.eq.1 , b .lt.2 ) ", (ONE, TWO)),
        ("(a.eq.1,\tor ( b.lt.2 ) , not.and\t(c.is.null ) )", (ONE, Group("or", (TWO,)), Group("and", (NULL,), True))),
        ("( a.in. ( 1, 2 ) , b.lt.2)", (Condition(Field("a"), "in", ("1", "2")), TWO)),
        ("(a.eq. x y )", (Condition(Field("a"), "eq", (" x y",)),)),
        ('(a.eq." x " , b.lt.2)', (Condition(Field("a"), "eq", (" x ",)), TWO)),
        ("(a.cs.{1, 2} , b.lt.2)", (Condition(Field("a"), "cs", ("{1, 2}",)), TWO)),
        ("(a.eq. ,b.lt.2)", (Condition(Field("a"), "eq", ("",)), TWO)),
        (r'("a\b".eq."\c")', (Condition(Field("ab"), "eq", ("c",)),)),
        # Modifiers.
        ("(a.eq(any).{1,2},b.lt.2)", (Condition(Field("a"), "eq", ("{1,2}",), modifier="any"), TWO)),
        ("(a.not.like(all).{x*,*y})", (Condition(Field("a"), "like", ("{x%,%y}",), True, "all"),)),
        ("(a.fts(english).x, b.lt.2)", (Condition(Field("a"), "fts", ("x",), modifier="english"), TWO)),
    ],
)
def test_a_group_holds_conditions_and_groups(text: str, members: tuple[Filter, ...]) -> None:
    assert parse_group("or", text) == Group("or", members)
    assert parse_group("and", text, negated=True) == Group("and", members, negated=True)


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("", "invalid_filter", 'Expected an opening bracket in "or" at position 1.'),
        ("a.eq.1", "invalid_filter", 'Expected an opening bracket in "or" at position 1.'),
        (" a.eq.1", "invalid_filter", 'Expected an opening bracket in "or" at position 2.'),
        (")", "invalid_filter", 'Expected an opening bracket in "or" at position 1.'),
        ("(", "missing_name", 'A name is missing in "or" at position 2.'),
        ("()", "missing_name", 'A name is missing in "or" at position 2.'),
        ("(,a.eq.1)", "missing_name", 'A name is missing in "or" at position 2.'),
        ("(a.eq.1,)", "missing_name", 'A name is missing in "or" at position 9.'),
        ("(a.eq.1,,b.lt.2)", "missing_name", 'A name is missing in "or" at position 9.'),
        ("((a.eq.1))", "missing_name", 'A name is missing in "or" at position 2.'),
        ("(.eq.1)", "missing_name", 'A name is missing in "or" at position 2.'),
        ('("".eq.1)', "missing_name", 'A name is missing in "or" at position 2.'),
        ("(or())", "missing_name", 'A name is missing in "or" at position 5.'),
        ("(a.eq.1", "unbalanced_brackets", 'The bracket in "or" at position 1 is not closed.'),
        ("(a.eq.1,or(b.lt.2)", "unbalanced_brackets", 'The bracket in "or" at position 1 is not closed.'),
        ("(a.eq.1,or(b.lt.2", "unbalanced_brackets", 'The bracket in "or" at position 11 is not closed.'),
        ("(a.eq.1,not.and(b.lt.2", "unbalanced_brackets", 'The bracket in "or" at position 16 is not closed.'),
        ("(ü.eq.1,a.in.(1,2", "unbalanced_brackets", 'The bracket in "or" at position 14 is not closed.'),
        ("(a.eq.1))", "unbalanced_brackets", 'Unexpected text after the closing bracket in "or" at position 9: ")".'),
        ("(a.eq.1)x", "unbalanced_brackets", 'Unexpected text after the closing bracket in "or" at position 9: "x".'),
        (
            "(a.eq.f(x),b.lt.2)",
            "unbalanced_brackets",
            'Unexpected text after the closing bracket in "or" at position 11: ",b.lt.2)".',
        ),
        ("(a.cs.{1,2)", "unbalanced_brackets", 'The brace in "or" at position 7 is not closed.'),
        ('(b.lt.2,a.cs.{"})', "unbalanced_brackets", 'The brace in "or" at position 14 is not closed.'),
        ('(a.eq."x)', "invalid_quotes", 'The double quote in "or" at position 7 is not closed.'),
        ('("a.eq.1)', "invalid_quotes", 'The double quote in "or" at position 2 is not closed.'),
        ('(a.in.("x)', "invalid_quotes", 'The double quote in "or" at position 8 is not closed.'),
        ('(a.eq."x"y)', "invalid_quotes", 'Unexpected text after the closing quote in "or" at position 10.'),
        ('("a"b.eq.1)', "invalid_quotes", 'Unexpected text after the closing quote in "or" at position 5.'),
        ("(a)", "invalid_filter", 'Expected an operator after "a" in "or" at position 3.'),
        ("(a,b.lt.2)", "invalid_filter", 'Expected an operator after "a" in "or" at position 3.'),
        ("(b.lt.2,xor(a.eq.1))", "invalid_filter", 'Expected an operator after "xor" in "or" at position 12.'),
        ("(" + "x" * 8192, "invalid_filter", f'Expected an operator after "{"x" * 100}…" in "or" at'),
        ("(a.1)", "unknown_operator", 'Expected an operator in "or" at position 4, found "1)".'),
        ("(a.not.1)", "unknown_operator", 'Expected an operator in "or" at position 8, found "1)".'),
        ("(b.lt.2,a.equals.1)", "unknown_operator", 'Expected an operator in "or" at position 11, found "equals.".'),
        ("(a.eq)", "unknown_operator", 'Expected an operator in "or" at position 4, found "eq)".'),
        ("(not.a.eq.1)", "unknown_operator", 'Expected an operator in "or" at position 6, found "a.".'),
        ("(a.in.1)", "invalid_filter", 'Expected a list in brackets in "or" at position 7.'),
        ("(a.in.(1,))", "invalid_filter", 'An item is missing in "or" at position 10.'),
        ("(a.is.nothing)", "invalid_filter", 'Unknown value "nothing" after "is" in "or".'),
    ],
)
def test_an_error_in_a_group_has_its_position(text: str, code: str, detail: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_group("or", text)
    assert (error.value.status, error.value.code) == (400, code)
    assert error.value.detail.startswith(detail)


def test_text_after_a_brace_in_a_group_is_not_an_unclosed_bracket() -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_group("or", "(a.cs.{1}x,b.lt.2)")
    assert "not closed" not in error.value.detail


def nested(depth: int) -> str:
    """Return one condition in `depth` nested groups, alternately `or` and `and`."""
    return "".join("(" + ("or", "and")[level % 2] for level in range(1, depth)) + "(a.eq.1" + ")" * depth


def test_brackets_nest_to_the_limit() -> None:
    found: Filter = parse_group("and", nested(MOST_NESTING))
    for _ in range(MOST_NESTING):
        assert isinstance(found, Group)
        (found,) = found.members
    assert found == ONE


@pytest.mark.parametrize("depth", [MOST_NESTING + 1, 100, 10_000])
def test_deeper_nesting_is_refused_quickly(depth: int) -> None:
    with cpu_limit(0.5), pytest.raises(InvalidRequest) as error:
        parse_group("and", nested(depth))
    assert (error.value.status, error.value.code) == (400, "too_deep")
    assert error.value.detail == f'"and" is nested more than {MOST_NESTING} levels deep.'


def test_the_limit_counts_depth_and_not_groups() -> None:
    one = nested(MOST_NESTING - 1)
    group = parse_group("or", "(" + ",".join(["and" + one] * 500) + ")")
    assert conditions_of((group,)) == [ONE] * 500


def test_the_most_conditions_of_a_group_are_read_quickly() -> None:
    with cpu_limit(0.2):
        group = parse_group("or", "(" + ",".join(["a.eq.1"] * MOST_CONDITIONS) + ")")
    assert group.members == (ONE,) * MOST_CONDITIONS


def test_a_group_is_read_up_to_the_first_condition_too_many() -> None:
    """What follows is not even valid."""
    with pytest.raises(InvalidRequest, match="more than 1000 conditions") as caught:
        parse_group("or", "(" + ",".join(["and(a.eq.1)"] * (MOST_CONDITIONS + 1)) + "((((")
    assert caught.value.code == "too_many_conditions"


@pytest.mark.parametrize(
    "text",
    [
        "in.(" + ",".join(["1"] * MOST_ITEMS) + ")",
        "in.(" + ",".join(['"1"'] * MOST_ITEMS) + ")",
        'in.("' + '""' * 60_000 + '")',
        'in.("' + "\\\\" * 60_000 + '")',
        "in.(" + "{" * 4_999 + "}" * 4_999 + ")",
        'in.({"' + "\\\\" * 50_000 + '"})',
    ],
    ids=["items", "quoted items", "quotes", "escapes", "braces", "backslashes"],
)
def test_a_list_as_long_as_a_request_line_is_read_quickly(text: str) -> None:
    with cpu_limit(most_seconds(0.04)):
        assert value_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "in.(" + ",".join(["1"] * (MOST_ITEMS + 1)) + ")",
        "in.(" + ",".join(['"1"'] * (MOST_ITEMS + 1)) + ",((((",
        "in.({" + "{}" * MOST_ITEMS + "})",
        "in.(" + "," * MOST_ITEMS + ")",
        "in.(" + "{" * 60_000,
    ],
)
def test_a_list_is_read_up_to_the_first_item_too_many(text: str) -> None:
    with cpu_limit(most_seconds(0.04)), pytest.raises(RequestTooLarge, match="more than 10,000 items"):
        value_of(text)


def test_the_items_of_all_lists_count() -> None:
    half = ",".join(["1"] * (MOST_ITEMS // 2))
    assert parse_group("or", f"(a.in.({half}),b.in.({half}))")
    with pytest.raises(RequestTooLarge, match="more than 10,000 items"):
        parse_group("or", f"(a.in.({half}),b.in.({half}),c.in.(1))")


# --- Order, and writing and reading again. ---


def test_conditions_come_in_the_order_in_which_they_are_written() -> None:
    names = iter("abcdefghij")

    def condition() -> Condition:
        return Condition(Field(next(names)), "eq", ("1",))

    filters: tuple[Filter, ...] = (
        condition(),
        Group("or", (condition(), Group("and", (condition(), condition())), condition())),
        condition(),
        Group("and", (Group("or", (Group("or", (condition(),)),)), condition())),
    )
    assert [found.column for found in conditions_of(filters)] == list("abcdefgh")


def test_no_filters_have_no_conditions() -> None:
    assert conditions_of(()) == []


GROUPS = st.recursive(
    conditions(),
    lambda members: st.builds(
        Group, st.sampled_from(["and", "or"]), st.lists(members, min_size=1, max_size=4).map(tuple), st.booleans()
    ),
    max_leaves=12,
).filter(lambda item: isinstance(item, Group))


def written_value(value: str) -> str:
    """Return the value in double quotes if it contains characters of the grammar, as a client would."""
    plain = value and value[0] not in '"{' and not set(value) & set(",)") and value == value.strip(" \t")
    return value if plain else write_quoted(value)


def as_written(condition: Condition) -> str:
    """Return the value of a condition without quotes: the pattern of a query string for that of SQL."""
    (value,) = condition.values
    return from_sql(value) if condition.operator in PATTERNS else value


def written(item: Filter) -> str:
    before = "not." if item.negated else ""
    if isinstance(item, Group):
        return f"{before}{item.joined_by}({','.join(written(member) for member in item.members)})"
    field = write_field(item.field, ".,()")
    if item.operator == "in":
        value = "(" + ",".join(written_value(value) for value in item.values) + ")"
    elif item.operator == "is":
        value = item.values[0]
    else:
        value = written_value(as_written(item))
    return f"{field}.{before}{item.operator_text}.{value}"


@given(GROUPS)
@example(Group("or", (Condition(Field("a"), "in", ("",)),)))
@example(
    Group(
        "or",
        (Condition(Field("not"), "eq", ("(",)), Group("and", (Condition(Field('"'), "ov", ('"',)),), negated=True)),
    )
)
def test_a_written_group_is_read_back(tree: Group) -> None:
    outer = "not." if tree.negated else ""
    text = written(tree).removeprefix(outer + tree.joined_by)
    assert parse_group(tree.joined_by, text, negated=tree.negated) == tree


@given(conditions())
def test_a_written_condition_is_read_back(condition: Condition) -> None:
    """The value of a condition that is a parameter needs quotes only in a list."""
    before = "not." if condition.negated else ""
    if condition.operator == "in":
        value = "(" + ",".join(written_value(value) for value in condition.values) + ")"
    else:
        value = as_written(condition)
    assert parse_condition(condition.field, f"{before}{condition.operator_text}.{value}") == condition


@given(GROUPS)
def test_every_condition_of_a_tree_is_found_in_order(tree: Group) -> None:
    def walk(item: Filter) -> list[Condition]:
        return [item] if isinstance(item, Condition) else [found for member in item.members for found in walk(member)]

    assert conditions_of((tree, tree)) == walk(tree) * 2


ANY = st.text(st.characters(exclude_categories=[]))
WORDS = [*OPERATORS, "not.", "and(", "or(", "a", "a.eq.1", *'.,(){}"\\*% ', "null", "a.in.(", '"a"']
NEARLY = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


@hypothesis_settings(max_examples=300)
@given(ANY | NEARLY | NEARLY.map(lambda text: f"({text})") | GROUPS.map(written))
@example('({"')
@example("(a.in.(")
@example('(a.in.("')
@example("(" * 2000)
@example("(or" * 2000)
def test_any_text_is_a_filter_or_raises_invalid_request(text: str) -> None:
    outcome: Filter | InvalidRequest
    for parse in (lambda text: parse_condition(Field("or"), text), lambda text: parse_group("or", text)):
        try:
            outcome = parse(text)
        except InvalidRequest as error:
            outcome = error
        if isinstance(outcome, InvalidRequest):
            assert outcome.status == 400
            assert 0 < len(outcome.detail) < 500
        else:
            assert all(condition.operator in OPERATORS for condition in conditions_of((outcome,)))

"""The filters of a query string: text → conditions and groups, in PostgREST's grammar.

The grammar is that of PostgREST's documentation, "Tables and Views", "Horizontal Filtering" and "Logical operators".
Blanks (spaces and tabs) around a condition, a column, a bracket or an item of a list do not count. The value of a
condition that is a parameter is all text after the operator. Knows neither the columns of a relation nor SQL.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from server.errors import InvalidRequest
from server.query import patterns
from server.query.fields import BLANKS, Field, after_blanks, read_field
from server.query.filters import (
    FULL_TEXT,
    IS_VALUES,
    MOST_NESTING,
    OPERATORS,
    PATTERNS,
    QUANTIFIED,
    QUANTIFIERS,
    Condition,
    Filter,
    Group,
)
from server.query.grammar import shorten
from server.query.pattern_limits import check_limits
from server.query.tally import Tally
from server.query.value_reader import ValueReader

# The operator at the beginning of a text: negation, word, brackets, and the dot before the value.
_OPERATOR = re.compile(r"(?P<not>not\.)?(?P<word>\w*)(?P<brackets>\((?P<modifier>[^()]*)\))?(?P<dot>\.)?")
# The name of a text search configuration, as PostgREST reads it.
_LANGUAGE = re.compile(r"[\w$ ]+")
_MODIFIERS = (
    f"The operators {', '.join(QUANTIFIED)} take (any) or (all). The operators {', '.join(FULL_TEXT)} take the name of "
    "a text search configuration, for example fts(english)."
)


def parse_condition(field: Field, text: str, signs: Sequence[int] = (), tally: Tally | None = None) -> Condition:
    """Parse `op.value` or `not.op.value`, the value of a parameter that is named after a field.

    field: from the decoded name of the parameter. text: its decoded value. The value of an operator other than `in` is
    all text that follows, without quotes. signs: see `grammar.form_decode`. tally: of the request.
    Raise InvalidRequest with the position of what does not fit, and RequestTooLarge beyond a limit of the tally.
    """
    reader = _Reader(text, f'the filter on "{shorten(str(field))}"', signs, tally)
    condition = reader.condition(field, reader.rest)
    reader.expect_end()
    return condition


def parse_group(
    joined_by: str, text: str, *, negated: bool = False, signs: Sequence[int] = (), tally: Tally | None = None
) -> Group:
    """Parse `(a.eq.1,or(b.lt.2,c.not.is.null))`, the decoded value of a parameter `and`, `or`, `not.and` or `not.or`.

    joined_by: `and` or `or`. signs: see `grammar.form_decode`. tally: of the request. Raise InvalidRequest with the
    position of what does not fit, or if groups nest deeper than MOST_NESTING, and RequestTooLarge beyond a limit of the
    tally.
    """
    reader = _Reader(text, f'"{joined_by}"', signs, tally)
    members = reader.members(1)
    reader.expect_end()
    return Group(joined_by, members, negated)


class _Reader(ValueReader):
    """Reads conditions and groups. signs: see `grammar.form_decode`."""

    def __init__(self, text: str, where: str, signs: Sequence[int], tally: Tally | None) -> None:
        super().__init__(text, where, Tally() if tally is None else tally)
        self._signs = signs

    def members(self, depth: int) -> tuple[Filter, ...]:
        """Read the filters in brackets. depth: levels of nesting, from 1."""
        if depth > MOST_NESTING:
            raise InvalidRequest(f"{self.where} is nested more than {MOST_NESTING} levels deep.", code="too_deep")
        self.skip_blanks()
        if self.next() != "(":
            hint = "Write conditions in brackets, for example or=(a.eq.1,b.is.null)"
            raise self.invalid("invalid_filter", "Expected an opening bracket", self.position, hint=hint)
        return self.items(lambda: self._member(depth))

    def condition(self, field: Field, read_value: Callable[[], str]) -> Condition:
        """Read an operator and what follows it. read_value: how to read the value of an operator other than `in`."""
        self.tally.add_condition(len(field.path))
        negated, operator, modifier = self._operator()
        start = self.position
        values = self.list() if operator == "in" else (read_value(),)
        raw_plus = bisect.bisect_left(self._signs, start) < bisect.bisect_left(self._signs, self.position)
        condition = Condition(field, operator, values, negated, modifier, raw_plus)
        if operator == "is":
            return self._checked_is(condition)
        check_limits(condition, self.tally)
        return self._checked_pattern(condition) if operator in PATTERNS else condition

    def _member(self, depth: int) -> Filter:
        for joined_by in ("and", "or"):
            for prefix, negated in ((joined_by, False), (f"not.{joined_by}", True)):
                if self.text.startswith(prefix, self.position):
                    bracket = after_blanks(self.text, self.position + len(prefix))
                    if self.text[bracket : bracket + 1] == "(":
                        self.position = bracket
                        return Group(joined_by, self.members(depth + 1), negated)
        field, self.position = read_field(self.text, self.position, ".,()", self.where)
        if self.next() != ".":
            expected = f'Expected an operator after "{shorten(str(field))}"'
            hint = "Write column.operator.value, for example id.eq.1"
            raise self.invalid("invalid_filter", expected, self.position, hint=hint)
        self.position += 1
        return self.condition(field, self.value)

    def _operator(self) -> tuple[bool, str, str | None]:
        """Read an operator and the dot after it. Return whether it is negated, the operator and its modifier."""
        found = _OPERATOR.match(self.text, self.position)
        assert found is not None  # each part is optional
        operator, modifier = found["word"], found["modifier"]
        if operator not in OPERATORS or not found["dot"]:
            written = f', found "{shorten(self.text[found.start("word") : found.end("word") + 1])}"'
            hint = f"Write operator.value with one of the operators {', '.join(OPERATORS)}. The prefix not. negates it."
            raise self.invalid("unknown_operator", "Expected an operator", found.start("word"), written, hint=hint)
        if modifier is not None:
            modifier = modifier.strip(BLANKS)
            known = modifier in QUANTIFIERS if operator in QUANTIFIED else bool(_LANGUAGE.fullmatch(modifier))
            if not known or operator not in (*QUANTIFIED, *FULL_TEXT):
                unexpected = f'Unexpected "({shorten(modifier)})" after "{operator}"'
                raise self.invalid("unknown_operator", unexpected, found.start("brackets"), hint=_MODIFIERS)
        self.position = found.end()
        return bool(found["not"]), operator, modifier

    def _checked_is(self, condition: Condition) -> Condition:
        """Return the condition with the word after `is` in lower case."""
        value = condition.values[0].lower()
        if value not in IS_VALUES:
            raise InvalidRequest(
                f'Unknown value "{shorten(value)}" after "is" in {self.where}.',
                code="invalid_filter",
                hint=f"Use one of {', '.join(IS_VALUES)}.",
            )
        return replace(condition, values=(value,))

    def _checked_pattern(self, condition: Condition) -> Condition:
        """Return the condition with its pattern, or the patterns of its array, as in SQL."""
        array = condition.modifier is not None
        pattern = patterns.to_sql(condition.values[0], array=array)
        # PostgreSQL would report it only at the first row that the rest of the pattern matches.
        tried = patterns.elements(pattern) if array else [pattern]
        if any(patterns.ends_inside_escape(each) for each in tried):
            raise InvalidRequest(
                f'The pattern for "{shorten(str(condition.field))}" ends with an unpaired backslash.',
                code="invalid_value",
                hint="A backslash escapes the next character. Write two backslashes for a backslash.",
            )
        return replace(condition, values=(pattern,))

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
from typing import TypeVar

from server.errors import InvalidRequest
from server.query import patterns
from server.query.fields import BLANKS, Field, read_field
from server.query.filters import (
    FULL_TEXT,
    IS_VALUES,
    MOST_CONDITIONS,
    MOST_NESTING,
    OPERATORS,
    PATTERNS,
    QUANTIFIED,
    QUANTIFIERS,
    Condition,
    Filter,
    Group,
)
from server.query.grammar import read_quoted, shorten

# The operator at the beginning of a text: negation, word, brackets, and the dot before the value.
_OPERATOR = re.compile(r"(?P<not>not\.)?(?P<word>\w*)(?P<brackets>\((?P<modifier>[^()]*)\))?(?P<dot>\.)?")
# The name of a text search configuration, as PostgREST reads it.
_LANGUAGE = re.compile(r"[\w$ ]+")
_MODIFIERS = (
    f"The operators {', '.join(QUANTIFIED)} take (any) or (all). The operators {', '.join(FULL_TEXT)} take the name of "
    "a text search configuration, for example fts(english)."
)
# A list whose items have no quotes and braces.
_PLAIN_LIST = re.compile(r"[ \t]*\(([^\"{)]*)\)")
# What ends a value without quotes and braces.
_STOP = re.compile(r"[,)]")

Item = TypeVar("Item")


def parse_condition(field: Field, text: str, signs: Sequence[int] = ()) -> Condition:
    """Parse `op.value` or `not.op.value`, the value of a parameter that is named after a field.

    field: from the decoded name of the parameter. text: its decoded value. The value of an operator other than `in` is
    all text that follows, without quotes. signs: see `grammar.form_decode`.
    Raise InvalidRequest with the position of what does not fit.
    """
    reader = _Reader(text, f'the filter on "{shorten(str(field))}"', signs)
    condition = reader.condition(field, reader.rest)
    reader.expect_end()
    return condition


def parse_group(joined_by: str, text: str, *, negated: bool = False, signs: Sequence[int] = ()) -> Group:
    """Parse `(a.eq.1,or(b.lt.2,c.not.is.null))`, the decoded value of a parameter `and`, `or`, `not.and` or `not.or`.

    joined_by: `and` or `or`. signs: see `grammar.form_decode`. Raise InvalidRequest with the position of what does not
    fit, or if there are more than MOST_CONDITIONS conditions, or if groups nest deeper than MOST_NESTING.
    """
    reader = _Reader(text, f'"{joined_by}"', signs)
    members = reader.members(1)
    reader.expect_end()
    return Group(joined_by, members, negated)


def too_many_conditions() -> InvalidRequest:
    """Return the error for more than MOST_CONDITIONS conditions."""
    return InvalidRequest(f"There are more than {MOST_CONDITIONS} conditions.", code="too_many_conditions")


class _Reader:
    """Reads the text of one parameter from left to right. where: how a message names the parameter."""

    def __init__(self, text: str, where: str, signs: Sequence[int]) -> None:
        self._text = text
        self._where = where
        self._signs = signs
        self._position = 0
        self._conditions = 0

    def members(self, depth: int) -> tuple[Filter, ...]:
        """Read the filters in brackets. depth: levels of nesting, from 1."""
        if depth > MOST_NESTING:
            raise InvalidRequest(f"{self._where} is nested more than {MOST_NESTING} levels deep.", code="too_deep")
        self._skip_blanks()
        if self._next() != "(":
            hint = "Write conditions in brackets, for example or=(a.eq.1,b.is.null)"
            raise self._invalid("invalid_filter", "Expected an opening bracket", self._position, hint=hint)
        return self._items(lambda: self._member(depth))

    def condition(self, field: Field, read_value: Callable[[], str]) -> Condition:
        """Read an operator and what follows it. read_value: how to read the value of an operator other than `in`."""
        self._conditions += 1
        if self._conditions > MOST_CONDITIONS:
            raise too_many_conditions()
        negated, operator, modifier = self._operator()
        start = self._position
        values = self._list() if operator == "in" else (read_value(),)
        raw_plus = bisect.bisect_left(self._signs, start) < bisect.bisect_left(self._signs, self._position)
        condition = Condition(field, operator, values, negated, modifier, raw_plus)
        if operator == "is":
            return self._checked_is(condition)
        return self._checked_pattern(condition) if operator in PATTERNS else condition

    def rest(self) -> str:
        """Read all that is left."""
        start, self._position = self._position, len(self._text)
        return self._text[start:]

    def expect_end(self) -> None:
        """Raise InvalidRequest if anything but blanks is left."""
        self._skip_blanks()
        if self._position < len(self._text):
            rest = f': "{shorten(self._text[self._position :])}"'
            raise self._invalid(
                "unbalanced_brackets", "Unexpected text after the closing bracket", self._position, rest
            )

    def _member(self, depth: int) -> Filter:
        for joined_by in ("and", "or"):
            for prefix, negated in ((joined_by, False), (f"not.{joined_by}", True)):
                if self._text.startswith(prefix, self._position):
                    bracket = self._after_blanks(self._position + len(prefix))
                    if self._text[bracket : bracket + 1] == "(":
                        self._position = bracket
                        return Group(joined_by, self.members(depth + 1), negated)
        field, self._position = read_field(self._text, self._position, ".,()", self._where)
        if self._next() != ".":
            expected = f'Expected an operator after "{shorten(str(field))}"'
            hint = "Write column.operator.value, for example id.eq.1"
            raise self._invalid("invalid_filter", expected, self._position, hint=hint)
        self._position += 1
        return self.condition(field, self._value)

    def _items(self, read_item: Callable[[], Item]) -> tuple[Item, ...]:
        """Read the comma-separated items from the bracket here to the one that closes it."""
        start = self._position
        items: list[Item] = []
        while True:
            self._position += 1
            self._skip_blanks()
            items.append(read_item())
            self._skip_blanks()
            stop = self._next()
            if stop == ")":
                self._position += 1
                self._skip_blanks()
                return tuple(items)
            if stop != ",":
                raise self._invalid("unbalanced_brackets", "The bracket", start, " is not closed")

    def _list(self) -> tuple[str, ...]:
        """Read `(a,"b,c")`, the list of `in`."""
        plain = _PLAIN_LIST.match(self._text, self._position)
        items = tuple(item.strip(BLANKS) for item in plain[1].split(",")) if plain else ()
        if plain and all(items):  # a list may have tens of thousands of items
            self._position = self._after_blanks(plain.end())
            return items
        self._skip_blanks()
        if self._next() != "(":
            hint = 'Write in.(1,2,3). Put an item that contains a comma in double quotes: in.("a,b",c)'
            raise self._invalid("invalid_filter", "Expected a list in brackets", self._position, hint=hint)
        end = self._after_blanks(self._position + 1)
        if self._text[end : end + 1] == ")":
            self._position = end + 1
            self._skip_blanks()
            return ()
        return self._items(self._list_item)

    def _list_item(self) -> str:
        start = self._position
        item = self._value()
        if self._position == start:
            hint = 'Write "" for the empty string.'
            raise self._invalid("invalid_filter", "An item is missing", start, hint=hint)
        return item

    def _operator(self) -> tuple[bool, str, str | None]:
        """Read an operator and the dot after it. Return whether it is negated, the operator and its modifier."""
        found = _OPERATOR.match(self._text, self._position)
        assert found is not None  # each part is optional
        operator, modifier = found["word"], found["modifier"]
        if operator not in OPERATORS or not found["dot"]:
            written = f', found "{shorten(self._text[found.start("word") : found.end("word") + 1])}"'
            hint = f"Write operator.value with one of the operators {', '.join(OPERATORS)}. The prefix not. negates it."
            raise self._invalid("unknown_operator", "Expected an operator", found.start("word"), written, hint=hint)
        if modifier is not None:
            modifier = modifier.strip(BLANKS)
            known = modifier in QUANTIFIERS if operator in QUANTIFIED else bool(_LANGUAGE.fullmatch(modifier))
            if not known or operator not in (*QUANTIFIED, *FULL_TEXT):
                unexpected = f'Unexpected "({shorten(modifier)})" after "{operator}"'
                raise self._invalid("unknown_operator", unexpected, found.start("brackets"), hint=_MODIFIERS)
        self._position = found.end()
        return bool(found["not"]), operator, modifier

    def _value(self) -> str:
        """Read a value inside brackets: in double quotes, in braces, or up to the next comma or closing bracket."""
        start = self._position
        if self._next() == '"':
            value, self._position = read_quoted(self._text, start, self._where)
            self._expect_stop("invalid_quotes", "quote")
            return value
        if self._next() == "{":
            self._position = self._end_of_braces()
            value = self._text[start : self._position]
            self._expect_stop("unbalanced_brackets", "brace")
            return value
        stop = _STOP.search(self._text, start)
        self._position = len(self._text) if stop is None else stop.start()
        return self._text[start : self._position].rstrip(BLANKS)

    def _expect_stop(self, code: str, closing: str) -> None:
        """Skip blanks. Raise InvalidRequest if a comma or a bracket does not follow. closing: the character before."""
        self._skip_blanks()
        if self._next() not in (",", ")", ""):
            raise self._invalid(code, f"Unexpected text after the closing {closing}", self._position)

    def _end_of_braces(self) -> int:
        """Return the position after the brace that closes the one here: the end of an array or a JSON object."""
        depth = 0
        position = self._position
        while position < len(self._text):
            if self._text[position] == '"':
                position = self._end_of_json_string(position)
                continue
            depth += {"{": 1, "}": -1}.get(self._text[position], 0)
            position += 1
            if depth == 0:
                return position
        raise self._invalid("unbalanced_brackets", "The brace", self._position, " is not closed")

    def _end_of_json_string(self, start: int) -> int:
        """Return the position after the quote that closes the one at `start`, in an array or a JSON object."""
        position = start + 1
        while position < len(self._text) and self._text[position] != '"':
            position += 2 if self._text[position] == "\\" else 1
        return position + 1

    def _checked_is(self, condition: Condition) -> Condition:
        """Return the condition with the word after `is` in lower case."""
        value = condition.values[0].lower()
        if value not in IS_VALUES:
            raise InvalidRequest(
                f'Unknown value "{shorten(value)}" after "is" in {self._where}.',
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

    def _next(self) -> str:
        """Return the character here, or "" at the end."""
        return self._text[self._position : self._position + 1]

    def _after_blanks(self, position: int) -> int:
        while self._text[position : position + 1] in (" ", "\t"):
            position += 1
        return position

    def _skip_blanks(self) -> None:
        self._position = self._after_blanks(self._position)

    def _invalid(
        self, code: str, what: str, position: int, rest: str = "", *, hint: str | None = None
    ) -> InvalidRequest:
        """Return the error for what is wrong at this position. rest: of the sentence."""
        return InvalidRequest(f"{what} in {self._where} at position {position + 1}{rest}.", code=code, hint=hint)

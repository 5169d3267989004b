"""The limits of patterns: of `like`, of regular expressions and of full text searches.

PostgreSQL takes a pattern apart while it plans, before it reads a row. docs/postgrest.md lists the limits. A pattern
beyond them is invalid and not a request that is too large: the page shows it in its field, with what to change.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.errors import InvalidRequest
from server.query import patterns
from server.query.filters import FULL_TEXT, PATTERNS, REGULAR_EXPRESSIONS, Condition
from server.query.grammar import shorten
from server.query.regular_expressions import size_of
from server.query.tally import Tally

# Characters of one pattern, and of all patterns of an array.
LONGEST_PATTERN = 1000
LONGEST_ARRAY = 10_000
# The size of one regular expression: see `regular_expressions.size_of`. PostgreSQL compiles one of this size in less
# than half a second.
LARGEST_EXPRESSION = 3000


def check_limits(condition: Condition, tally: Tally) -> None:
    """Raise InvalidRequest if the pattern of this condition is too long or repeats too much, RequestTooLarge if all do.

    condition: with the value as it is written. tally: of the request.
    """
    if condition.operator not in (*PATTERNS, *REGULAR_EXPRESSIONS, *FULL_TEXT):
        return
    text = condition.values[0]
    quantified = condition.modifier is not None and condition.operator not in FULL_TEXT
    longest = LONGEST_ARRAY if quantified else LONGEST_PATTERN
    if len(text) > longest:
        raise _too_long(condition, longest, "The patterns" if quantified else "The value")
    each = patterns.elements(text) if quantified else [text]
    if any(len(one) > LONGEST_PATTERN for one in each):
        raise _too_long(condition, LONGEST_PATTERN, "A pattern")
    if condition.operator in REGULAR_EXPRESSIONS:
        _check_repetitions(condition, each, tally)


def _check_repetitions(condition: Condition, expressions: Sequence[str], tally: Tally) -> None:
    for size in map(size_of, expressions):
        if size > LARGEST_EXPRESSION:
            raise InvalidRequest(
                f'The regular expression for "{shorten(str(condition.field))}" repeats too much.',
                code="too_complex",
                hint="Use smaller counts in braces, or * and +, and no counts within a group that is itself repeated.",
            )
        tally.add_expression(size)


def _too_long(condition: Condition, longest: int, what: str) -> InvalidRequest:
    return InvalidRequest(
        f'{what} of "{condition.operator_text}" for "{shorten(str(condition.field))}" '
        f"{'have' if what.endswith('s') else 'has'} more than {longest:,} characters.",
        code="too_complex",
        hint="Search for a shorter text. A text that is to be found as a whole is compared with eq or in.",
    )

"""What one request asks for, counted while it is read, and the limits of it.

A request line of 128 kB has space for tens of thousands of conditions, items and steps, which neither the event loop
nor PostgreSQL's parser should be given. Each limit is checked before more is read. docs/postgrest.md lists them.
"""

from __future__ import annotations

from server.errors import RequestTooLarge

# Characters of a query string, percent-encoded: somewhat more than a request line can hold.
LONGEST_QUERY = 128 << 10
# Parameters of a query string: the conditions, and every other parameter once.
MOST_PARAMETERS = 1020
# Conditions of one request.
MOST_CONDITIONS = 1000
# Items of all lists of `in`, and braces of arrays and JSON in brackets.
MOST_ITEMS = 10_000
# Steps of all paths into JSON in the filters.
MOST_STEPS_IN_ALL = 2000
# The sizes of all regular expressions together: see `regular_expressions.size_of`.
LARGEST_EXPRESSIONS = 40_000


class Tally:
    """Counts the parts of the filters of one request. Each method raises RequestTooLarge beyond the limit."""

    __slots__ = ("_conditions", "_items", "_sizes", "_steps")

    def __init__(self) -> None:
        self._conditions = self._items = self._steps = self._sizes = 0

    def add_condition(self, steps: int) -> None:
        """Count a condition. steps: of the path of its field."""
        self._conditions += 1
        if self._conditions > MOST_CONDITIONS:
            raise RequestTooLarge(
                f"There are more than {MOST_CONDITIONS} conditions.",
                code="too_many_conditions",
                hint="Put several values of one column in a list: id=in.(1,2,3)",
            )
        if steps:
            self._steps += steps
            check_steps(self._steps)

    def add_items(self, count: int) -> None:
        """Count items of lists."""
        self._items += count
        if self._items > MOST_ITEMS:
            raise RequestTooLarge(
                f"The lists have more than {MOST_ITEMS:,} items.",
                hint="Send several requests, or join the values in a view or a table of their own.",
            )

    def add_expression(self, size: int) -> None:
        """Count a regular expression. size: see `regular_expressions.size_of`."""
        self._sizes += size
        if self._sizes > LARGEST_EXPRESSIONS:
            raise RequestTooLarge(
                "The regular expressions repeat too much, all together.",
                hint="Use fewer of them, smaller counts in braces, or * and +.",
            )


def check_steps(count: int) -> None:
    """Raise RequestTooLarge if paths have more than MOST_STEPS_IN_ALL steps."""
    if count > MOST_STEPS_IN_ALL:
        raise RequestTooLarge(
            f"The paths into JSON have more than {MOST_STEPS_IN_ALL:,} steps in all.",
            hint="Ask for fewer or shorter paths. A view can have them as columns.",
        )

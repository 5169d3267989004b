"""Values inside brackets, and lists of them: text → values, in PostgREST's grammar.

The grammar is that of PostgREST's documentation, "Tables and Views", "Reserved characters". Blanks (spaces and tabs)
around a value do not count. Every text is read in a time that grows with its length only, since a request line of
128 kB may hold nothing but quotes or braces. Knows neither operators nor columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from server.errors import InvalidRequest
from server.query.fields import BLANKS, after_blanks
from server.query.grammar import LONGEST_IN_MESSAGE, QUOTED, read_quoted, shorten, unescaped
from server.query.tally import Tally

# A list whose items have no quotes and braces.
_PLAIN_LIST = re.compile(r"[ \t]*+\(([^\"{)]*+)\)")
# An item of a list in double quotes or without quotes and braces, and the character after it.
_ITEM = re.compile(rf"[ \t]*+(?:{QUOTED}|([^\"{{,)][^,)]*+))[ \t]*+([,)])", re.DOTALL)
# What ends a value without quotes and braces.
_STOP = re.compile(r"[,)]")
# Text up to the next brace that is not within double quotes, and that brace. In an array and in JSON a backslash
# escapes the next character.
_UP_TO_BRACE = re.compile(r'(?:[^"{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)*+([{}])', re.DOTALL)

Item = TypeVar("Item")


class ValueReader:
    """Reads the text of one parameter from left to right.

    where: how a message names the parameter. tally: counts what the request asks for.
    """

    def __init__(self, text: str, where: str, tally: Tally) -> None:
        self.text = text
        self.where = where
        self.tally = tally
        self.position = 0

    def next(self) -> str:
        """Return the character here, or "" at the end."""
        return self.text[self.position : self.position + 1]

    def skip_blanks(self) -> None:
        """Go to the next character that is no blank."""
        self.position = after_blanks(self.text, self.position)

    def rest(self) -> str:
        """Read all that is left."""
        start, self.position = self.position, len(self.text)
        return self.text[start:]

    def expect_end(self) -> None:
        """Raise InvalidRequest if anything but blanks is left."""
        self.skip_blanks()
        if self.position < len(self.text):
            rest = f': "{shorten(self.text[self.position : self.position + 2 * LONGEST_IN_MESSAGE])}"'
            raise self.invalid("unbalanced_brackets", "Unexpected text after the closing bracket", self.position, rest)

    def value(self) -> str:
        """Read a value inside brackets: in double quotes, in braces, or up to the next comma or closing bracket."""
        start = self.position
        if self.next() == '"':
            value, self.position = read_quoted(self.text, start, self.where)
            self._expect_stop("invalid_quotes", "quote")
            return value
        if self.next() == "{":
            self.position = self._end_of_braces()
            value = self.text[start : self.position]
            self._expect_stop("unbalanced_brackets", "brace")
            return value
        stop = _STOP.search(self.text, start)
        self.position = len(self.text) if stop is None else stop.start()
        return self.text[start : self.position].rstrip(BLANKS)

    def list(self) -> tuple[str, ...]:
        """Read `(a,"b,c")`, the list of `in`."""
        plain = _PLAIN_LIST.match(self.text, self.position)
        if plain is not None:
            count = plain[1].count(",") + 1
            if count > 1 or plain[1].strip(BLANKS):
                self.tally.add_items(count)  # before any is read
            items = tuple([item.strip(BLANKS) for item in plain[1].split(",")])
            if all(items):
                self.position = after_blanks(self.text, plain.end())
                return items
        self.skip_blanks()
        if self.next() != "(":
            hint = 'Write in.(1,2,3). Put an item that contains a comma in double quotes: in.("a,b",c)'
            raise self.invalid("invalid_filter", "Expected a list in brackets", self.position, hint=hint)
        end = after_blanks(self.text, self.position + 1)
        if self.text[end : end + 1] == ")":
            self.position = end + 1
            self.skip_blanks()
            return ()
        return self.items(self._item)

    def items(self, read: Callable[[], Item]) -> tuple[Item, ...]:
        """Read the comma-separated items from the bracket here to the one that closes it. read: reads one."""
        start = self.position
        items: list[Item] = []
        while True:
            self.position += 1
            self.skip_blanks()
            items.append(read())
            self.skip_blanks()
            stop = self.next()
            if stop == ")":
                self.position += 1
                self.skip_blanks()
                return tuple(items)
            if stop != ",":
                raise self.invalid("unbalanced_brackets", "The bracket", start, " is not closed")

    def _item(self) -> str:
        self.tally.add_items(1)
        found = _ITEM.match(self.text, self.position)
        if found is not None:  # a quick way for most items
            self.position = found.start(3)
            return found[2].rstrip(BLANKS) if found[1] is None else unescaped(found[1])
        start = self.position
        item = self.value()
        if self.position == start:
            hint = 'Write "" for the empty string.'
            raise self.invalid("invalid_filter", "An item is missing", start, hint=hint)
        return item

    def _expect_stop(self, code: str, closing: str) -> None:
        """Skip blanks. Raise InvalidRequest if a comma or a bracket does not follow. closing: the character before."""
        self.skip_blanks()
        if self.next() not in (",", ")", ""):
            raise self.invalid(code, f"Unexpected text after the closing {closing}", self.position)

    def _end_of_braces(self) -> int:
        """Return the position after the brace that closes the one here: the end of an array or a JSON object."""
        depth = 0
        position = self.position
        while found := _UP_TO_BRACE.match(self.text, position):
            self.tally.add_items(1)
            depth += 1 if found[1] == "{" else -1
            position = found.end()
            if depth == 0:
                return position
        raise self.invalid("unbalanced_brackets", "The brace", self.position, " is not closed")

    def invalid(
        self, code: str, what: str, position: int, rest: str = "", *, hint: str | None = None
    ) -> InvalidRequest:
        """Return the error for what is wrong at this position. rest: of the sentence."""
        return InvalidRequest(f"{what} in {self.where} at position {position + 1}{rest}.", code=code, hint=hint)

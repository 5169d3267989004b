"""The names in SQL that PostgreSQL would look up in the search path.

Reads the SQL that Sluice writes, not all of PostgreSQL's: what it does not know it reports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?xs)
    (?P<space> \s+ | --[^\n]* )
    | (?P<text> '(?:[^']|'')*' )
    | (?P<name> "(?:[^"]|"")+" | [a-zA-Z_][\w$]* )
    | (?P<number> \d[\d.]* )
    | (?P<parameter> \$\d+ )
    | (?P<cast> :: )
    | (?P<operator> [-+*/<>=~!@\#%^&|`?]+ )
    | (?P<mark> [(),.\[\]:] )
    """
)
# Statements without expressions.
_PLAIN = re.compile(r"(BEGIN|ROLLBACK|SET (LOCAL|TRANSACTION)) ")
# Words that PostgreSQL does not look up, before a bracket or a text.
_WORDS = re.compile(
    "all|and|any|array|as|by|case|cast|coalesce|else|end|except|exists|explain|extract|from|greatest|having|in|is|join|"
    "lateral|least|like|limit|not|null|nullif|offset|on|only|or|order|ordinality|recursive|rows|select|then|union|using|"
    "values|when|where|with"
)
# Types that the grammar itself takes from pg_catalog (PostgreSQL, gram.y, "SimpleTypename").
_TYPES = {"bigint", "integer", "smallint", "boolean", "interval"}
# Words that hold an operator.
_HIDDEN = {"in", "like", "ilike", "similar", "between", "nullif", "using", "natural", "overlaps"}
_NAMES_OF_OBJECTS = {"regclass", "regtype", "regproc", "regprocedure", "regoper", "regoperator", "regconfig"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    @property
    def word(self) -> str:
        return self.text.lower() if self.kind == "name" and self.text[0] != '"' else ""


_NONE = _Token("end", "")


def _tokens(sql: str) -> list[_Token]:
    found, position = [], 0
    while position < len(sql):
        match = _TOKEN.match(sql, position)
        if match is None:
            raise ValueError(f"not understood: {sql[position : position + 30]!r}")
        position = match.end()
        if match.lastgroup != "space":
            found.append(_Token(str(match.lastgroup), match[0]))
    return found


class _Reader:
    def __init__(self, sql: str) -> None:
        self.tokens = _tokens(sql)
        self.found: list[str] = []
        # The word before each bracket that is open.
        self.open: list[str] = []
        # The names of WITH, which hide those of tables.
        self.local = set(re.findall(r"(\w+) (?:\([\w, ]+\) )?AS \(\s*SELECT", sql))

    def at(self, place: int) -> _Token:
        return self.tokens[place] if 0 <= place < len(self.tokens) else _NONE

    def read(self) -> list[str]:
        place = 0
        while place < len(self.tokens):
            place = self.one(place)
        return self.found

    def one(self, place: int) -> int:
        """Check the token at this place, and return the next place."""
        token, before, after = self.at(place), self.at(place - 1), self.at(place + 1)
        if token.word == "operator" and after.text == "(":
            if self.at(place + 3).text != ".":
                self.found.append(f"operator {self.at(place + 2).text}")
            return place + 6
        if token.text == "(":
            self.open.append(before.word)
        elif token.text == ")":
            self.open.pop()
        elif token.kind == "operator" and not (token.text == "*" and before.text in ("(", ".", "SELECT", ",")):
            self.found.append(f"operator {token.text}")
        elif token.kind == "cast":
            self.type(place + 1)
        elif token.kind == "text":
            self.text(place)
        elif token.kind == "name":
            self.name(place)
        return place + 1

    def text(self, place: int) -> None:
        before = self.at(place - 1)
        if before.kind == "name" and not _WORDS.fullmatch(before.word):
            self.found.append(f"type {before.text} of {self.at(place).text}")
        is_object = self.at(place + 1).kind == "cast" and self.at(place + 4).word in _NAMES_OF_OBJECTS
        if is_object and "." not in self.at(place).text:
            self.found.append(f"object {self.at(place).text}")

    def type(self, place: int) -> None:
        if self.at(place + 1).text != "." and self.at(place).word not in _TYPES:
            self.found.append(f"type {self.at(place).text}")

    def name(self, place: int) -> None:
        token, before, after = self.at(place), self.at(place - 1), self.at(place + 1)
        qualified = before.text == "."
        if token.word in _HIDDEN or (token.word == "distinct" and before.word in ("is", "not")):
            self.found.append(token.text)
        if token.word == "case" and after.word != "when":
            self.found.append("CASE with a value")
        if token.word == "as" and self.open and self.open[-1] == "cast":
            self.type(place + 1)
        if token.word in ("from", "join") and not (self.open and self.open[-1] == "extract"):
            self.source(place + 1 + (after.word == "only"))
        if after.text == "(" and not _WORDS.fullmatch(token.word):
            if qualified and self.at(place - 2).text != "pg_catalog":
                self.found.append(f"function {self.at(place - 2).text}.{token.text}")
            elif not qualified and before.word not in ("as", "recursive"):
                self.found.append(f"function {token.text}")

    def source(self, place: int) -> None:
        token = self.at(place)
        known = token.text == "(" or token.word in ("lateral", "rows", "only") or token.text in self.local
        if not known and self.at(place + 1).text != ".":
            self.found.append(f"table {token.text}")


def unqualified(sql: str) -> list[str]:
    """Return what PostgreSQL would look up in the search path: functions, operators, types and tables.

    Raise ValueError for SQL that is not understood.
    """
    return [] if _PLAIN.match(sql + " ") else _Reader(sql).read()

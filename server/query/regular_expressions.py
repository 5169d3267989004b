"""How much work a regular expression is for PostgreSQL before it looks at any text.

PostgreSQL copies what `{m,n}` repeats, and in a repetition within a repetition the copies too. Its work grows with the
third power of the number of parts that may be missing, and with the number of different characters: it compiles
`((a?){0,40}){0,40}` for ten seconds, while it plans the query. The syntax is that of its manual, "Pattern Matching",
"Regular Expression Details". What is not valid has some size; PostgreSQL reports it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

# The size of a part that may be missing, beside the part itself: a hundred such parts are compiled in 0.1 s.
SIZE_OF_GAP = 20
# How many characters of the expression make a class as large as a character more: it has an arc for each of them.
CHARACTERS_OF_CLASS = 10
# A size that no limit allows. Sizes are not computed beyond it, since a hundred nested counts have hundreds of digits.
HUGE = 1_000_000

# What changes the syntax: a director (`***:`, `***=`) and options in brackets, both only at the beginning.
_BEGINNING = re.compile(r"(\*\*\*[:=])?(?:\(\?([a-z]+)\))?")
# What begins a class.
_CLASS = re.compile(r"\[|\\[dswDSW]")
# The counts in a basic regular expression are written `\{m,n\}`.
_COUNTS = re.compile(r"\\?\{([0-9]+),?([0-9]*)\\?\}")
_TOKENS = r"""
      (?P<skipped> \(\?\# [^)]*+ \)? {spaces} )
    | (?P<ahead> \(\?<?[=!] )
    | (?P<open> \( (?: \?: )? )
    | (?P<close> \) )
    | (?P<or> \| )
    | \{{ (?P<least>[0-9]++) (?P<to>,?) (?P<most>[0-9]*+) \}} \??
    | (?P<loop> \+ \?? )
    | (?P<gap> [*?] \?? )
    | (?P<anchor> \^ | \$ | \\[AmMyYZ] )
    | (?P<class> \[ \^? \]? (?: [^\]\[\\]++ | \\. | \[\.[^]]*+\] | \[=[^]]*+\] | \[:[^]]*+\] | \[ )*+ \]? | \\[dswDSW] )
    | (?P<one> \\ .? | . )
"""


@dataclass(slots=True)
class _Part:
    """A part of an expression. size: of it. empty: whether it may match the empty text."""

    size: int = 0
    empty: bool = True


@dataclass(slots=True)
class _Group:
    """A group that is being read. others: its finished alternatives. before, last: of the alternative that is read, its
    last part, which a count may repeat, and those before it. ahead: whether it is a constraint, which has no length."""

    others: _Part
    before: _Part
    last: _Part
    ahead: bool = False

    def add(self, part: _Part) -> None:
        """Add a part to the alternative that is being read."""
        self.before = _Part(self.before.size + self.last.size, self.before.empty and self.last.empty)
        self.last = part

    def end(self) -> None:
        """End the alternative that is being read."""
        self.add(_Part())
        self.others = _Part(self.others.size + self.before.size, self.others.empty or self.before.empty)
        self.before, self.last = _Part(), _Part()


def size_of(expression: str) -> int:
    """Return the size of the expression, at most HUGE: its characters and classes with all repetitions written out.

    A part that may be missing counts SIZE_OF_GAP more, or a multiple of it, and so does each copy.
    """
    start = _BEGINNING.match(expression)
    assert start is not None  # each part is optional
    options = start[2] or ""
    if start[1] == "***=" or "q" in options:  # literal text
        return len(expression)
    if set(options) & set("be"):  # another syntax, which few use: as if each count were within all others
        counts = [max(int(least[:5]), int(most[:5] or 1), 1) for least, most in _COUNTS.findall(expression)]
        gaps = expression.count("*") + expression.count("?") + len(counts)
        size = len(expression) + SIZE_OF_GAP * gaps
        return functools.reduce(lambda size, count: min(size * count, HUGE), counts, size)
    return _size(expression, start.end(), expanded="x" in options)


def _size(expression: str, start: int, *, expanded: bool) -> int:
    """expanded: whether spaces and comments do not count."""
    characters = len(set(expression))
    of_class = 1 + characters // CHARACTERS_OF_CLASS
    # Ten parts of a class that may be missing take as long as five if there are eight times as many characters.
    of_gap = round(SIZE_OF_GAP * characters ** (1 / 3)) if _CLASS.search(expression) else SIZE_OF_GAP
    group = _Group(_Part(0, False), _Part(), _Part())
    outer: list[_Group] = []
    for token in _tokens(expanded).finditer(expression, start):
        kind = token.lastgroup
        if kind in ("open", "ahead"):
            outer.append(group)
            group = _Group(_Part(0, False), _Part(), _Part(), kind == "ahead")
        elif kind == "or":
            group.end()
        elif kind == "close" and outer:
            group.end()
            closed, group = group, outer.pop()
            group.add(_Part(closed.others.size + 1, closed.others.empty or closed.ahead))
        elif kind == "gap":
            group.last = _Part(group.last.size + of_gap, True)
        elif kind == "most":
            group.last = _repeated(group.last, int(token["least"][:5]), int(token["most"][:5] or 1), of_gap)
        elif kind in ("one", "class", "anchor", "close"):
            group.add(_Part(of_class if kind == "class" else 1, kind == "anchor"))
    while outer:  # brackets that are not closed
        group.end()
        closed, group = group, outer.pop()
        group.add(closed.others)
    group.end()
    return min(group.others.size, HUGE)


def _repeated(part: _Part, least: int, most: int, of_gap: int) -> _Part:
    """Return this part with its copies. most: 1 if there is no upper bound, since a loop makes no copies."""
    count = max(least, most, 1)
    gaps = of_gap if least == 0 or part.empty else 0
    # The copies of what cannot be empty have one end in common.
    size = (part.size + gaps) * count if part.empty else part.size * count + gaps
    return _Part(min(size, HUGE), part.empty or least == 0)


@functools.cache  # there are two
def _tokens(expanded: bool) -> re.Pattern[str]:
    return re.compile(_TOKENS.format(spaces=r"| \s++ | \#[^\n]*+" if expanded else ""), re.VERBOSE | re.DOTALL)

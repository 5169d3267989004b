r"""The patterns of `like` and `ilike`: `*` in a query string ↔ `%` in SQL.

In a query string `*` is a wildcard like `%`, and `\*` is a literal `*`. In SQL `*` has no meaning. Any other escape is
the same in both (PostgreSQL manual, "Pattern Matching"). The patterns of an array, which `like(any)` takes, are
translated in the array's text form, where each backslash of a pattern is written twice.
"""

from __future__ import annotations

import re

_ESCAPE_OR_WILDCARD = re.compile(r"\\.|[*%]", re.DOTALL)
# In an array: an escape of the pattern, an escape of the array, or a wildcard.
_ESCAPE_OR_WILDCARD_IN_ARRAY = re.compile(r"\\\\(?:\\.|.)|\\.|[*%]", re.DOTALL)
# An element of an array in its text form: in double quotes, or the text between blanks, commas and braces.
_ELEMENT = re.compile(
    r"""(?xs)
    " ( (?: [^"\\] | \\. )* ) "
    | ( (?: [^\s{},"\\] | \\. ) (?: \s* (?: [^\s{},"\\] | \\. ) )* )
    """
)


def to_sql(pattern: str, *, array: bool = False) -> str:
    r"""Return the pattern of a query string as SQL has it.

    array: whether the text is an array of patterns. Its literal `*` is `\\*`; `\*` is one too, since nobody writes it
    for a wildcard.
    """
    if array:
        written = {"*": "%", r"\*": "*", r"\\*": "*", r"\\\*": "*"}
        return _ESCAPE_OR_WILDCARD_IN_ARRAY.sub(lambda found: written.get(found[0], found[0]), pattern)
    written = {"*": "%", r"\*": "*"}
    return _ESCAPE_OR_WILDCARD.sub(lambda found: written.get(found[0], found[0]), pattern)


def from_sql(pattern: str, *, array: bool = False) -> str:
    r"""Return the pattern of a query string that `to_sql` translates to this one. Its only `%` are in `\%`."""
    written = {"%": "*", "*": r"\\*" if array else r"\*"}
    tokens = _ESCAPE_OR_WILDCARD_IN_ARRAY if array else _ESCAPE_OR_WILDCARD
    return tokens.sub(lambda found: written.get(found[0], found[0]), pattern)


def ends_inside_escape(pattern: str) -> bool:
    """Return whether the pattern ends with a backslash that escapes nothing."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def elements(array: str) -> list[str]:
    """Return the elements of an array of any dimensions in PostgreSQL's text form.

    If the text is not valid, which PostgreSQL reports, the result is some parts of it.
    """
    found = [quoted or plain for quoted, plain in _ELEMENT.findall(array)]
    return [re.sub(r"(?s)\\(.)", r"\1", each) if "\\" in each else each for each in found]

"""Text as people see it: a character that is invisible, or that changes how others are shown, becomes an escape.

For log lines, errors and terminals. Text of users and of the database may hold such characters: line breaks that forge
a line, sequences that control a terminal, marks that reverse the order of what follows. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Characters that Python counts as printable and that are shown as nothing (Unicode, Default_Ignorable_Code_Point).
_SHOWN_AS_NOTHING = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_visible(text: str) -> bool:
    """Return whether every character is seen and stays in its place. A space is; any other white space is not."""
    return text.isprintable() and not _SHOWN_AS_NOTHING.search(text)


def visible(text: str) -> str:
    r"""Return the text with each other character as Python's escape: `\n`, `\x1b`, `\u202e`."""
    return replace_invisible(text, lambda character: character.encode("unicode_escape").decode())


def replace_invisible(text: str, escape: Callable[[str], str]) -> str:
    """Return the text with `escape(character)` in place of each character that is not visible."""
    if is_visible(text):
        return text
    return "".join(character if is_visible(character) else escape(character) for character in text)

"""The lexical parts of a path and a query string: percent-encoding, names, double quotes.

Knows no parameters and no operators. Positions in error messages count characters from 1, after percent-decoding.
Names and double quotes follow PostgREST's grammar (its documentation, "Tables and Views", "Reserved characters").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from server.errors import InvalidRequest

# Characters of a user's text that an error message repeats: enough to recognise it, and a message stays short.
LONGEST_IN_MESSAGE = 100
# A text in double quotes, for re.DOTALL. Possessive, so that a quote which is not closed is read only once.
QUOTED = r'"([^"\\]*+(?:(?:\\.|"")[^"\\]*+)*+)"'
_QUOTED = re.compile(QUOTED, re.DOTALL)
# A raw `+`, here as NUL, that may be a sign: it follows a word and precedes a digit, as in 12:00+02.
_SIGN = re.compile(r"\w[ \t\0]*\0(?=[0-9])")


def percent_decode(text: str, where: str) -> str:
    """Decode percent-encoded UTF-8, once (WHATWG URL, "percent-decode"). A `%` without two hex digits stays.

    text: bytes that are not UTF-8 as lone surrogates, as aiohttp hands them over. where: how a message names the text.
    Raise InvalidRequest if the bytes are not UTF-8 or contain NUL, which PostgreSQL cannot store in text.
    """
    try:
        decoded = unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise InvalidRequest(f"There are bytes in {where} that are not UTF-8.", code="invalid_encoding") from None
    if "\0" in decoded:
        raise InvalidRequest(f"There is a NUL character in {where}.", code="invalid_encoding")
    return decoded


def form_decode(text: str, where: str) -> tuple[str, tuple[int, ...]]:
    """Decode a name or a value of a query string (WHATWG URL, "application/x-www-form-urlencoded parsing").

    Return it, and the ascending positions of the spaces which stood as `+` where a sign of a number can stand.
    Raise InvalidRequest as `percent_decode` does.
    """
    decoded = percent_decode(text.replace("+", " "), where)
    if "+" not in text:
        return decoded, ()
    marked = unquote_to_bytes(text.replace("+", "\0").encode("utf-8", "surrogateescape")).decode("utf-8")
    return decoded, tuple(found.end() - 1 for found in _SIGN.finditer(marked))


def read_quoted(text: str, start: int, where: str) -> tuple[str, int]:
    r"""Return the text inside the double quotes that open at `start`, and the position after the closing quote.

    Inside, a backslash stands before a character that is meant as it is, and `""` is a quote too.
    Raise InvalidRequest if the quote is not closed.
    """
    found = _QUOTED.match(text, start)
    if found is None:
        raise InvalidRequest(
            f"The double quote in {where} at position {start + 1} is not closed.", code="invalid_quotes"
        )
    return unescaped(found[1]), found.end()


def unescaped(quoted: str) -> str:
    """Return the text that stands inside double quotes, without its escapes. quoted: what QUOTED matches."""
    first, *others = quoted.split("\\")
    parts = [first.replace('""', '"')]
    following = iter(others)
    for part in following:
        if part:
            parts.append(part[0] + part[1:].replace('""', '"'))
        else:  # a backslash that is escaped, and the text after it
            parts += ("\\", next(following, "").replace('""', '"'))
    return "".join(parts)


def read_name(text: str, start: int, stops: str, where: str) -> tuple[str, int]:
    """Return the name at `start` and the position after it, which is a stop character or the end of the text.

    stops: the characters that end a name. A name that contains one is written in double quotes.
    Raise InvalidRequest if there is no name, a quote is not closed, or text follows a closing quote.
    """
    position = start
    if text[position : position + 1] == '"':
        name, position = read_quoted(text, position, where)
    else:
        position = min((at for stop in stops if (at := text.find(stop, start)) >= 0), default=len(text))
        name = text[start:position]
    if not name:
        raise InvalidRequest(f"A name is missing in {where} at position {start + 1}.", code="missing_name")
    if position < len(text) and text[position] not in stops:
        raise InvalidRequest(
            f"Unexpected text after the closing quote in {where} at position {position + 1}.", code="invalid_quotes"
        )
    return name, position


def read_names(text: str, stops: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield each name of the text with the stop character after it ("" after the last).

    Raise InvalidRequest as `read_name` does.
    """
    position = 0
    while True:
        name, position = read_name(text, position, stops, where)
        yield name, text[position : position + 1]
        if position == len(text):
            return
        position += 1


def write_name(name: str, stops: str) -> str:
    """Return the name as `read_name` reads it with these stops, in double quotes if it needs them."""
    return write_quoted(name) if name.startswith('"') or any(stop in name for stop in stops) else name


def write_quoted(text: str) -> str:
    """Return the text in double quotes, as `read_quoted` reads it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shorten(text: str) -> str:
    """Return at most LONGEST_IN_MESSAGE characters of the text, with an ellipsis if it is longer."""
    return text if len(text) <= LONGEST_IN_MESSAGE else text[:LONGEST_IN_MESSAGE] + "…"

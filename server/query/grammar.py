"""The small pieces that the path and the query string are read with: percent-decoding, names, quotes.

Knows no parameter and no operator. Positions in messages count characters from 1, after decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from server.errors import InvalidRequest


def percent_decode(text: str, where: str) -> str:
    """The text behind percent-encoded UTF-8. Raises InvalidRequest for other bytes and for NUL."""
    try:
        decoded = unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise InvalidRequest(f"There are bytes in {where} that are not UTF-8.", code="invalid_encoding") from None
    if "\0" in decoded:
        raise InvalidRequest(f"There is a NUL character in {where}.", code="invalid_encoding")
    return decoded


def read_quoted(text: str, start: int, where: str) -> tuple[str, int]:
    """The text in double quotes at `start`, and the position after its closing quote.

    A quote in it is doubled or follows a backslash; so may a backslash.
    """
    characters: list[str] = []
    position = start + 1
    while position < len(text):
        character = text[position]
        following = text[position + 1 : position + 2]
        if (character == "\\" and following in ('"', "\\") and following) or (character == '"' and following == '"'):
            characters.append(following)
            position += 2
        elif character == '"':
            return "".join(characters), position + 1
        else:
            characters.append(character)
            position += 1
    raise InvalidRequest(f"The double quote in {where} at position {start + 1} is not closed.", code="invalid_quotes")


def read_name(text: str, start: int, stops: str, where: str) -> tuple[str, int]:
    """The name at `start`, up to one of the stops or the end, and the position after it.

    A name that holds a stop is written in double quotes. Raises InvalidRequest where there is none.
    """
    position = start
    if text[position : position + 1] == '"':
        name, position = read_quoted(text, position, where)
    else:
        while position < len(text) and text[position] not in stops:
            position += 1
        name = text[start:position]
    if not name:
        raise InvalidRequest(f"A name is missing in {where} at position {start + 1}.", code="missing_name")
    if position < len(text) and text[position] not in stops:
        raise InvalidRequest(
            f"There is text after the closing quote in {where} at position {position + 1}.", code="invalid_quotes"
        )
    return name, position


def read_names(text: str, stops: str, where: str) -> Iterator[tuple[str, str]]:
    """All names of the text, each with the stop character after it ("" after the last)."""
    position = 0
    while True:
        name, position = read_name(text, position, stops, where)
        yield name, text[position : position + 1]
        if position == len(text):
            return
        position += 1


def write_name(name: str, stops: str) -> str:
    """The name as `read_name` reads it, in double quotes where it needs them."""
    return write_quoted(name) if name.startswith('"') or any(stop in name for stop in stops) else name


def write_quoted(text: str) -> str:
    """The text in double quotes, as `read_quoted` reads it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shorten(text: str) -> str:
    """The text as it may stand in a message."""
    return text if len(text) <= 100 else text[:100] + "…"

"""Names, types and arrays as SQL and PostgreSQL's text forms write them. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def quote_identifier(name: str) -> str:
    """Return the name as a quoted identifier (PostgreSQL manual, "Identifiers and Key Words").

    Raise ValueError if the name is empty or contains NUL, which no identifier can.
    """
    if not name or "\0" in name:
        raise ValueError("an identifier is not empty and holds no NUL")
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """Return a name with its schema, both quoted."""
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


def write_array(items: Iterable[str]) -> str:
    """Return the text form of an array of these items (PostgreSQL manual, "Array Input and Output Syntax")."""
    quoted = ('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"

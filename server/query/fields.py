"""A field: a column, or a part of its JSON, as `select`, `order` and filters name it: text ↔ value.

The grammar is that of PostgREST's documentation, "Tables and Views", "JSON columns" and "Casting columns": the name of
a column, then any number of steps into its JSON, `data->a->0->>b`, and in `select` a cast, `data->>a::int`. Blanks
around a name do not count. A name that holds an arrow or a stop character is written in double quotes. Knows neither
the columns of a relation nor SQL.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.query.grammar import read_quoted, shorten, write_quoted

# The types that a value can be cast to: the name in pg_type, and the name that format_type() writes.
CASTS = {
    "text": "text",
    "varchar": "character varying",
    "bool": "boolean",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "numeric": "numeric",
    "float4": "real",
    "float8": "double precision",
    "date": "date",
    "time": "time without time zone",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "interval": "interval",
    "uuid": "uuid",
    "json": "json",
    "jsonb": "jsonb",
}
# All names of these types that a cast may use, with that in pg_type (PostgreSQL manual, "Data Types").
_TYPE_NAMES = {
    **{name: name for name in CASTS},
    **{shown: name for name, shown in CASTS.items()},
    "int": "int4",
    "float": "float8",
    "decimal": "numeric",
}
# Steps into one value: neither PostgreSQL's parser nor anything here should be given tens of thousands.
MOST_STEPS = 50
# The largest index of an array, in either direction: PostgreSQL takes an integer.
MOST_INDEX = 2**31 - 1
# What surrounds a name without being a part of it.
BLANKS = " \t"

_INDEX = re.compile(r"-?[0-9]+")
_ANY_BLANKS = re.compile(r"[ \t]*+")


@dataclass(frozen=True, slots=True)
class Step:
    """A step into a JSON value. key: of an object, or the index of an array. as_text: `->>` instead of `->`."""

    key: str | int
    as_text: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the relation, or a part of its JSON. path: only the last step is taken as text.

    cast: the type to cast to, one of CASTS; None for the value's own.
    """

    column: str
    path: tuple[Step, ...] = ()
    cast: str | None = None

    @property
    def plain(self) -> bool:
        """Whether this is the column itself."""
        return not self.path and self.cast is None

    @property
    def name(self) -> str:
        """The name of its values in a file: of the last key, or of the column if there is none (PostgREST)."""
        return next((step.key for step in reversed(self.path) if isinstance(step.key, str)), self.column)

    def __str__(self) -> str:
        """Return the field as a message names it."""
        return self.column if self.plain else write_field(self, "")


def read_field(text: str, start: int, stops: str, where: str) -> tuple[Field, int]:
    """Return the field at `start`, without a cast, and the position after it: a stop character or the end of the text.

    stops: the characters that end a name, none of them `-`. where: how a message names the text. Raise InvalidRequest.
    """
    column, position = read_field_name(text, start, stops, where)
    path: list[Step] = []
    while text.startswith("->", position):
        if path and path[-1].as_text:
            raise InvalidRequest(
                f"A step follows ->> in {where} at position {position + 1}, where the value is text already.",
                code="invalid_json_path",
                hint="Write -> for all steps but the last one, for example data->address->>city",
            )
        if len(path) == MOST_STEPS:
            raise InvalidRequest(f"A path in {where} has more than {MOST_STEPS} steps.", code="too_deep")
        as_text = text.startswith("->>", position)
        key, position = _read_key(text, position + (3 if as_text else 2), stops, where)
        path.append(Step(key, as_text))
    return Field(column, tuple(path)), position


def read_cast(text: str, start: int, stops: str, where: str) -> tuple[str | None, int]:
    """Return the type after `::` at `start`, one of CASTS, and the position after it; None if there is no `::`.

    stops: as in `read_field`, with `:`. Raise InvalidRequest.
    """
    if not text.startswith("::", start):
        return None, start
    written, position = read_field_name(text, start + 2, stops, where)
    name = _TYPE_NAMES.get(" ".join(written.lower().split()))
    if name is None:
        raise InvalidRequest(
            f'A value cannot be cast to "{shorten(written)}" in {where}.',
            code="unknown_cast",
            hint=f"Cast to one of {', '.join(CASTS)}. Put a name that contains a colon in double quotes.",
        )
    return name, position


def read_field_name(text: str, start: int, stops: str, where: str) -> tuple[str, int]:
    """Return the name at `start` without the blanks around it, and the position after them.

    stops: as in `read_field`; `->` ends a name too. Raise InvalidRequest if there is no name.
    """
    name, position, _ = _read_name(text, start, stops, where)
    if not name:
        raise InvalidRequest(f"A name is missing in {where} at position {start + 1}.", code="missing_name")
    return name, position


def write_field(field: Field, stops: str) -> str:
    """Return the field as `read_field`, and `read_cast` after it, read it with these stops."""
    steps = (f"{'->>' if step.as_text else '->'}{_write_key(step.key, stops)}" for step in field.path)
    cast = "" if field.cast is None else f"::{field.cast}"
    return write_field_name(field.column, stops) + "".join(steps) + cast


def write_field_name(name: str, stops: str) -> str:
    """Return the name as `read_field_name` reads it with these stops, in double quotes if it needs them."""
    ends_early = "->" in name or "::" in name or any(stop in name for stop in stops)
    # PostgREST takes brackets for those of an embedded table.
    quoted = ends_early or name in ("", "*") or name != name.strip(BLANKS) or name[0] in '">' or set("()") & set(name)
    return write_quoted(name) if quoted else name


def _write_key(key: str | int, stops: str) -> str:
    if isinstance(key, int):
        return str(key)
    return write_quoted(key) if _INDEX.fullmatch(key) else write_field_name(key, stops)


def _read_key(text: str, start: int, stops: str, where: str) -> tuple[str | int, int]:
    key, position, quoted = _read_name(text, start, stops, where)
    if not key and not quoted:
        raise InvalidRequest(
            f"A key is missing in {where} at position {start + 1}.",
            code="invalid_json_path",
            hint="Write a key or an index after each arrow, for example data->items->0->>name",
        )
    if not quoted and set("()") & set(key):  # an aggregate function: data->price.sum()
        raise embedding_error(where)
    if not quoted and "::" in key:
        raise InvalidRequest(
            f"A cast in {where} at position {start + 1}: a value can be cast only in select.",
            code="invalid_json_path",
            hint="Put a key that contains two colons in double quotes.",
        )
    if quoted or not _INDEX.fullmatch(key):
        return key, position
    # Longer digits would only take time.
    if len(key) > 12 or abs(int(key)) > MOST_INDEX:
        raise InvalidRequest(
            f"The index {shorten(key)} in {where} is larger than {MOST_INDEX:,}.",
            code="invalid_json_path",
            hint="Put a key that consists of digits in double quotes.",
        )
    return int(key), position


def _read_name(text: str, start: int, stops: str, where: str) -> tuple[str, int, bool]:
    """Return the name at `start`, perhaps empty, the position after it, and whether it is in double quotes."""
    position = after_blanks(text, start)
    quoted = text[position : position + 1] == '"'
    if quoted:
        name, position = read_quoted(text, position, where)
        position = after_blanks(text, position)
        if position < len(text) and text[position] not in stops and not text.startswith("->", position):
            raise InvalidRequest(
                f"Unexpected text after the closing quote in {where} at position {position + 1}.", code="invalid_quotes"
            )
        return name, position, True
    found = _unquoted(stops).match(text, position)
    name, position = (found[0].rstrip(BLANKS), found.end()) if found else ("", position)
    if name.count("(") != name.count(")"):
        raise embedding_error(where)
    return name, position, False


@functools.cache  # there are four sets of stop characters
def _unquoted(stops: str) -> re.Pattern[str]:
    plain = rf"[^\-{re.escape(stops)}]*+"
    return re.compile(rf"{plain}(?:-(?!>){plain})*+")


def after_blanks(text: str, start: int) -> int:
    """Return the position of the first character at `start` or after it that is no blank."""
    found = _ANY_BLANKS.match(text, start)
    return start if found is None else found.end()


def embedding_error(where: str) -> InvalidRequest:
    """Return the error for PostgREST's `table(column)` and `column.sum()`, which Sluice does not have."""
    return InvalidRequest(
        f"Brackets in {where}: embedding of other tables and aggregate functions are not supported; "
        "a view can join and aggregate.",
        code="embedding_not_supported",
        hint="Put a name that contains a bracket in double quotes.",
    )

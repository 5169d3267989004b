"""The fields of a request → the columns of its relation: each found, typed and checked, or refused.

Knows the catalogue's values and no SQL.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from server.errors import Forbidden, InvalidRequest
from server.query.catalogue import Column, Relation
from server.query.fields import CASTS, Field, embedding_error, write_field_name
from server.query.grammar import LONGEST_IN_MESSAGE, shorten
from server.query.selection import LONGEST_NAME, MOST_COLUMNS, SELECT_STOPS, SelectedColumn

# Times that a file may have the same column, or the same part of one, as it is or cast. A row may be as large as its
# largest value times this number and the number of its columns.
MOST_REPEATS = 10
# Names that an error message lists: more do not help, and a relation may have 1,600 columns.
MOST_NAMES = 50

_JSON_TYPES = ("json", "jsonb")
# Of CASTS, those whose text may be relative to the present.
_TIMES = ("date", "time", "timestamp", "timestamptz")
# Types of which to_jsonb() makes a value without parts, as format_type() writes them.
_WITHOUT_PARTS = re.compile(
    r"(smallint|integer|bigint|numeric|real|double precision|money|boolean|text|character|name|citext|bytea|xml|uuid"
    r"|date|time|timestamp|interval|inet|cidr|macaddr|macaddr8|bit|oid|\w+range|tsvector|tsquery"
    r"|point|line|lseg|box|path|polygon|circle)\b[^\[]*"
)


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of the file.

    name: in the header. field: where its values come from. column: that of the relation, with the type of the values.
    """

    name: str
    field: Field
    column: Column


def output_columns(select: Sequence[SelectedColumn] | None, relation: Relation) -> tuple[OutputColumn, ...]:
    """Return the columns of the file. select: None for all columns. Raise InvalidRequest, also if there are too many.

    The name of a column is its alias, or the last key of its path, or that of the relation's column.
    """
    items = (SelectedColumn(None),) if select is None else select
    columns = iter(find_columns((item.field for item in items if item.field is not None), relation))
    found: list[OutputColumn] = []
    for item in items:
        if item.field is None:
            found += [OutputColumn(column.name, Field(column.name), column) for column in relation.columns]
        else:
            column = next(columns)
            name = item.field.name if item.alias is None else item.alias
            found.append(OutputColumn(name, item.field, _typed(item.field, column)))
        if len(found) > MOST_COLUMNS:
            raise InvalidRequest(f'"select" names more than {MOST_COLUMNS:,} columns.', code="too_complex")
    if select is not None:
        _check_repeats(found)
    return tuple(found)


def _check_repeats(outputs: Iterable[OutputColumn]) -> None:
    """Raise InvalidRequest if a column, or a part of one, is repeated too often."""
    times = Counter((output.field.column, output.field.path) for output in outputs)
    for output in outputs:
        if times[output.field.column, output.field.path] > MOST_REPEATS:
            name = shorten(str(replace(output.field, cast=None)))
            raise InvalidRequest(
                f'"select" names "{name}" more than {MOST_REPEATS} times.',
                code="too_complex",
                hint="Select it fewer times, and repeat it where you read the file.",
            )


def find_columns(fields: Iterable[Field], relation: Relation) -> list[Column]:
    """Return the column of each field.

    Raise InvalidRequest if there is none of its name, or if a field is a part of a column that has no parts.
    """
    by_name = {column.name: column for column in relation.columns}
    found = []
    for field in fields:
        column = by_name.get(field.column)
        if column is None:
            raise _unknown(field.column, relation)
        if field.path and not _has_parts(column):
            raise InvalidRequest(
                f'The column "{column.name}" ({column.type}) holds no JSON, so there is no "{field}".',
                code="not_json",
                hint="Only json and jsonb, arrays and composite types have parts. A view can cast text to jsonb.",
            )
        found.append(column)
    return found


def type_of(field: Field, column: Column) -> str:
    """Return the type of the values of this field of this column, as format_type() writes it."""
    if field.cast is not None:
        return CASTS[field.cast]
    if not field.path:
        return column.type
    if field.path[-1].as_text:
        return "text"
    return base_type(column) if is_json(column) else "jsonb"


def base_type(column: Column) -> str:
    """Return the type of a column, for a domain the type under it."""
    return column.type if column.base is None else column.base


def casts_to_time(field: Field, relation: Relation) -> bool:
    """Return whether the values of this field are cast from text to a type of dates or times.

    Then a value such as `now` or `today` depends on when the transaction started.
    """
    if field.cast not in _TIMES:
        return False
    source = replace(field, cast=None)
    (column,) = find_columns([source], relation)
    return not re.match("date|time", type_of(source, column) if field.path else base_type(column))


def is_json(column: Column) -> bool:
    """Return whether PostgreSQL's arrows take the column as it is. Others become jsonb first."""
    return base_type(column) in _JSON_TYPES


def check_readable(used: Iterable[Column], relation: Relation, fields: Iterable[Field]) -> None:
    """Raise Forbidden if the database role may not SELECT one of these columns.

    fields: those that the request names. No other column that the role may not read is named.
    """
    unreadable = list(dict.fromkeys(column.name for column in used if not column.readable))
    if not unreadable:
        return
    asked = {field.column for field in fields}
    named = [name for name in unreadable if name in asked]
    what = f"the column{'s' * (len(named) > 1)} {_listed(named)}" if named else "all columns of the relation"
    readable = [write_field_name(name, SELECT_STOPS) for name in _readable(relation)]
    raise Forbidden(
        f"The database role may not read {what}.",
        code="columns_not_readable",
        hint=f"Select only the others: select={','.join(readable)}" if len(readable) <= MOST_NAMES else None,
    )


def check_json_names(outputs: Iterable[OutputColumn]) -> None:
    """Raise InvalidRequest if the columns cannot be the members of a JSON object, which is a line of ndjson."""
    names = Counter(output.name for output in outputs)
    repeated = [name for name, times in names.items() if times > 1]
    if repeated:
        raise InvalidRequest(
            f"More than one column has the name {_listed(repeated)}, which ndjson does not allow.",
            code="repeated_name",
            hint=f"Give one of them another name in select: new_name:{write_field_name(repeated[0], SELECT_STOPS)}",
        )
    for name in names:
        if not 0 < len(name.encode()) <= LONGEST_NAME:
            raise InvalidRequest(
                f"A column of ndjson needs a name of 1 to {LONGEST_NAME} bytes, not {_listed([name])}.",
                code="invalid_select",
                hint="Give it an alias in select: name:data->key",
            )


def _typed(field: Field, column: Column) -> Column:
    return column if field.plain else replace(column, type=type_of(field, column), values=None)


def _has_parts(column: Column) -> bool:
    return column.values is None and not _WITHOUT_PARTS.fullmatch(base_type(column))


def _readable(relation: Relation) -> list[str]:
    return [column.name for column in relation.columns if column.readable]


def _unknown(name: str, relation: Relation) -> InvalidRequest:
    if "(" in name:
        return embedding_error(f"the name {_listed([name])}")
    readable = _readable(relation)
    hint = f"Its columns are {_listed(readable)}." if readable else "It has no columns."
    if "::" in name:
        hint = "A value can be cast only in select, not in a filter or order."
    return InvalidRequest(
        f'The relation "{relation.name}" has no column {_listed([name])}.', code="unknown_column", hint=hint
    )


def _listed(names: list[str]) -> str:
    """Return the names in double quotes, at most MOST_NAMES of them."""
    shown = ", ".join(f'"{name[:LONGEST_IN_MESSAGE]}"' for name in names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"

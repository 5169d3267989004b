"""The kinds of columns: how the values of each type are written in a dialect. Pure."""

from __future__ import annotations

from collections.abc import Callable

from server.query.dialect import Dialect

# How the values of a column are written. `_encode.pyx` has the same numbers and says what each means.
PLAIN, SCAN, ALWAYS, GUARD, JSON, PROTECT, LONG = 0, 1, 2, 4, 8, 16, 32

# Types by OID (PostgreSQL's pg_type.dat). The output of the plain ones holds no delimiter, quote, CR or LF and is never
# empty, given the session's fixed DateStyle, IntervalStyle and bytea_output.
# bool int8 int2 int4 oid float4 float8 date time timestamp timestamptz interval timetz numeric uuid
_PLAIN_VALUES = frozenset((16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950))
# bytea
_PLAIN_TEXT = frozenset((17,))
TEXT = 25
# money: a number whose output may hold commas
_OTHER_VALUES = frozenset((790,))
# Text that holds nothing but numbers and times, in which a minus sign begins no formula: points and other shapes;
# arrays of the values above, such as {1,-2}; ranges and multiranges; int2vector, tid, oidvector.
_SHAPES = frozenset((600, 601, 602, 603, 604, 628, 718, 1017, 1018, 1019, 1020, 1027, 629, 719))
_ARRAYS_OF_VALUES = frozenset(
    (1000, 1016, 1005, 1007, 1028, 1021, 1022, 1182, 1183, 1115, 1185, 1187, 1270, 1231, 2951, 791)
)
_RANGES = frozenset((3904, 3906, 3908, 3910, 3912, 3926, 4451, 4532, 4533, 4534, 4535, 4536))
_ONLY_NUMBERS = _SHAPES | _ARRAYS_OF_VALUES | _RANGES | frozenset((22, 27, 30))
# int8, numeric: may have more digits than a spreadsheet keeps.
_LONG_NUMBERS = frozenset((20, 1700))


def kinds_for(dialect: Dialect, format: str) -> Callable[[int], int]:
    """Return a function from a type OID to the kind of a column of that type: how its values are written."""
    if format == "ndjson":
        return lambda oid: JSON

    def kind_of(oid: int) -> int:
        text = oid not in _PLAIN_VALUES and oid not in _OTHER_VALUES
        if dialect.quote_style == "all" or (dialect.quote_style == "strings" and text):
            kind = ALWAYS
        else:
            kind = PLAIN if oid in _PLAIN_VALUES or oid in _PLAIN_TEXT else SCAN
        return kind | for_spreadsheets(dialect, oid, text=text and kind != PLAIN)

    return kind_of


def for_spreadsheets(dialect: Dialect, oid: int, *, text: bool) -> int:
    """Return what is added to the kind of a column. text: whether its values are text that may need quotes."""
    if oid in _LONG_NUMBERS:
        return LONG if dialect.protect else 0
    if not text:
        return 0
    # Only text can be a formula: a negative number stays as it is.
    guard = dialect.guard and oid not in _ONLY_NUMBERS
    return (GUARD if guard else 0) | (PROTECT if dialect.protect else 0)

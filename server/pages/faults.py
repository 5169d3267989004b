"""Which field of the form an error is about, and what the page says beside it. Pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from server.errors import ExportError, InvalidRequest
from server.pages.expected import expected
from server.pages.form import OPTIONS, FilterRow, Form, parse_pair, query_pairs
from server.query.grammar import LONGEST_IN_MESSAGE, shorten
from server.query.parameters import MOST_ROWS
from server.query.selection import LONGEST_NAME
from server.visible import visible


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, and the field that it is about as `FieldPair` names it; "" if that is unknown.

    text: what the page says about it. hint: what to change, None if the text says it.
    """

    field: str
    error: ExportError
    text: str
    hint: str | None = None


def fault_of(error: ExportError, form: Form) -> Fault:
    """Return the fault behind the error that an export of this form raised."""
    field = _invalid_field(error, form) or _contradictory_field(error, form) or _named_field(error, form)
    text = _text(error, form, field)
    return Fault(field, error, error.detail, error.hint) if text is None else Fault(field, error, visible(text))


def _invalid_field(error: ExportError, form: Form) -> str:
    """Return the first field whose pair is invalid by itself."""
    if not isinstance(error, InvalidRequest):
        return ""
    return next((pair.field for pair in query_pairs(form) if parse_pair(pair.text) is None), "")


def _contradictory_field(error: ExportError, form: Form) -> str:
    """Return the first option that an error about options names."""
    if error.code != "contradiction":
        return ""
    if form.format == "tsv" and "delimiter" in form.options:  # the error names the format
        return "delimiter"
    options = (name for name in OPTIONS if name in form.options)
    return next((name for name in options if re.search(rf'"{name}["=]', error.detail)), "")


def _named_field(error: ExportError, form: Form) -> str:
    """Return the field whose column the error names in double quotes."""
    if error.code == "repeated_name" and not form.selects_elsewhere:
        return "columns"
    known = set(form.readable_columns)
    missing = error.code in ("unknown_column", "columns_not_readable")
    if missing and any(row.taken and row.column not in known for row in form.columns):
        return "columns"
    if error.code == "repeated_name":
        return "more" if form.selects_elsewhere or not _repeated_names(form) else "columns"
    candidates = [row for row in form.filters if _names(error, row.column) and (row.column not in known or not missing)]
    # Of several filters on the column, the one whose value the error repeats.
    candidates.sort(key=lambda row: -_likeness(error, row))
    if any(_names(error, row.column) for row in form.sorts) and ("sort" in error.detail or not candidates):
        return "sort"
    if candidates:
        return f"f{candidates[0].number}"
    return "more" if form.more and '"' in error.detail and error.code != "relation_not_found" else ""


def _repeated_names(form: Form) -> list[str]:
    """Return the names that more than one ticked column would have in the file."""
    names = Counter(row.alias or row.column for row in form.columns if row.taken)
    return [name for name, times in names.items() if times > 1]


def _likeness(error: ExportError, row: FilterRow) -> int:
    """Return 2 if the error repeats a value of this filter in double quotes, 1 if it holds one, else 0."""
    values = [visible(value) for value in _items(row) if value]
    return max((2 if f'"{value}"' in error.detail else int(value in error.detail) for value in values), default=0)


def _names(error: ExportError, column: str) -> bool:
    return any(f'"{visible(name)}"' in error.detail for name in (column, column[:LONGEST_IN_MESSAGE]))


# --- What the page says ---


def _text(error: ExportError, form: Form, field: str) -> str | None:
    """Return what to say at this field, or None if the error's own words fit: those of URLs fit only `more`."""
    if field == "columns":
        return _text_of_columns(error, form)
    if field == "sort":
        return _text_of_sort(error, form)
    if field in form.options:
        return _text_of_option(error, form, field)
    row = next((row for row in form.filters if f"f{row.number}" == field), None)
    return None if row is None else _text_of_filter(error, form, row)


def _text_of_columns(error: ExportError, form: Form) -> str | None:
    taken = [row for row in form.columns if row.taken]
    if not taken:
        return "Tick at least one column."
    known = set(form.readable_columns)
    missing = [shorten(row.column) for row in taken if row.column not in known]
    if error.code == "unknown_column" and missing:
        return f"There is no column “{missing[0]}”. Untick it."
    if error.code == "columns_not_readable" and missing:
        return f"The database role may not read the column “{missing[0]}”. Untick it."
    if error.code == "repeated_name":
        name = shorten(_repeated_names(form)[0])
        return f"JSON lines need different names, but two columns would be {name} in the file. Rename one of them."
    long = [shorten(row.alias) for row in taken if len(row.alias.encode()) > LONGEST_NAME]
    return f"The name {long[0]} is too long: it may have {LONGEST_NAME} bytes." if long else None


def _text_of_sort(error: ExportError, form: Form) -> str | None:
    named = next((row.column for row in form.sorts if _names(error, row.column)), None)
    if named is None:
        return None
    if error.code == "unknown_column":
        return f"There is no column “{shorten(named)}”. Remove this sort key."
    if error.code == "operator_not_supported":
        return f"{shorten(named)} cannot be sorted by: values of its type have no order."
    return None


def _text_of_option(error: ExportError, form: Form, name: str) -> str | None:
    value = form.options[name]
    shown = shorten(value)
    if error.code == "contradiction":
        if form.format == "ndjson":
            return "JSON lines do not have this option. Set it back, or choose CSV as the format."
        return _CONTRADICTIONS.get(name)
    if name in _COUNTS:
        if value.startswith("-"):
            return f"{_COUNTS[name]} cannot be less than 0."
        most = f" up to {MOST_ROWS}" if value.isascii() and value.isdigit() else ""
        return f"{_COUNTS[name]} takes a whole number{most}."
    if name == "timezone":
        return f"There is no time zone {shown}. Choose one from the list, for example Europe/Berlin."
    if name == "filename":
        return "A file name needs at least one visible character."
    if name == "null":
        return "The text for NULL is too long."
    return f"There is no such choice: {shown}. Choose one from the list."


def _text_of_filter(error: ExportError, form: Form, row: FilterRow) -> str | None:
    name = shorten(row.column)
    column = next((column for column in form.relation.columns if column.name == row.column), None)
    if column is None or error.code == "unknown_column":
        return f"There is no column “{name}”. Remove this filter."
    if error.code == "invalid_quotes":
        return 'A double quote in the list is not closed. Write "" for a quote inside quotes.'
    if error.code == "operator_not_supported":
        return f"{name} ({column.type}) cannot be compared with “{row.filled.comparison.label}”."
    if error.code == "operator_switched_off":
        return "This server does not take regular expressions. Choose another comparison."
    if error.code in ("too_complex", "plan_timeout"):
        return None
    operator = row.filled.comparison.operator
    if operator in ("match", "imatch"):
        return "This is not a valid regular expression."
    if operator in ("like", "ilike"):
        return "The pattern ends with a single backslash. Write two for a backslash."
    if error.code != "invalid_value":
        return None
    values = _items(row)
    return f"{name} takes {expected(column.base or column.type, values)}{_wrong_one(error, values)}."


def _items(row: FilterRow) -> tuple[str, ...]:
    """Return the values of this filter: of a list its items, unless it is not valid."""
    try:
        return row.items.values
    except InvalidRequest:
        return row.filled.values


def _wrong_one(error: ExportError, values: tuple[str, ...]) -> str:
    """Return which of several values is wrong, in words, if the error repeats it."""
    wrong = next((value for value in values if f'"{visible(value)}"' in error.detail), None)
    return f", not {shorten(wrong)}" if wrong and len(values) > 1 else ""


# The names of the fields for numbers of rows.
_COUNTS = {"limit": "Maximum rows", "offset": "Rows to skip"}
# What to change where options contradict each other or the format.
_CONTRADICTIONS = {
    "delimiter": "The delimiter of TSV is the tab. Choose the comma here, or CSV as the format.",
    "eol": "“For Excel” needs CRLF line endings.",
    "bom": "“For Excel” needs a byte order mark.",
    "guard": "“For Excel” prefixes formulas.",
    "null": "The text for NULL must not hold the delimiter, a quote or a line break, and must not begin like a formula "
    "while formulas are prefixed.",
}

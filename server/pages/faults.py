"""Which field of the form an error is about, so that the page can show it there. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import ExportError, InvalidRequest
from server.pages.form import OPTIONS, Form, parse_pair, query_pairs
from server.query.grammar import LONGEST_IN_MESSAGE


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, and the field that it is about as `FieldPair` names it; "" if that is unknown."""

    field: str
    error: ExportError


def fault_of(error: ExportError, form: Form) -> Fault:
    """Return the fault behind the error that an export of this form raised."""
    return Fault(_invalid_field(error, form) or _contradictory_field(error, form) or _named_field(error, form), error)


def _invalid_field(error: ExportError, form: Form) -> str:
    """Return the first field whose pair is invalid by itself."""
    if not isinstance(error, InvalidRequest):
        return ""
    return next((pair.field for pair in query_pairs(form) if parse_pair(pair.text) is None), "")


def _contradictory_field(error: ExportError, form: Form) -> str:
    """Return the first option that an error about options names."""
    if error.code != "contradiction":
        return ""
    options = (name for name in OPTIONS if name in form.options)
    return next((name for name in options if re.search(rf'"{name}["=]', error.detail)), "")


def _named_field(error: ExportError, form: Form) -> str:
    """Return the field whose column the error names in double quotes."""
    if error.code == "repeated_name" and not any(line.startswith("select=") for line in form.more):
        return "columns"
    known = set(form.readable_columns)
    missing = error.code in ("unknown_column", "columns_not_readable")
    if missing and any(row.taken and row.column not in known for row in form.columns):
        return "columns"
    candidates = [row for row in form.filters if _names(error, row.column) and (row.column not in known or not missing)]
    # Of several filters on the column, the one whose value the error repeats.
    candidates.sort(key=lambda row: not any(value and value in error.detail for value in row.filled.values))
    if any(_names(error, row.column) for row in form.sorts) and ("sort" in error.detail or not candidates):
        return "sort"
    if candidates:
        return f"f{candidates[0].number}"
    return "more" if form.more and '"' in error.detail and error.code != "relation_not_found" else ""


def _names(error: ExportError, column: str) -> bool:
    return f'"{column}"' in error.detail or f'"{column[:LONGEST_IN_MESSAGE]}"' in error.detail

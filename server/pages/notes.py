"""What the page says below a filter: the bounds of a day or a time, or that the filter is not used yet.

And what it says above the columns, if they are not those of the file. Pure.
"""

from __future__ import annotations

from server.errors import InvalidRequest
from server.pages import days
from server.pages.form import FilterRow, Form


def notes_of(form: Form, default_timezone: str) -> dict[int, str]:
    """Return the note of each filter by its number, "" where there is nothing to say.

    default_timezone: the one that PostgreSQL uses if the form does not choose another.
    """
    timezone = form.options.get("timezone") or f"{default_timezone}, the default"
    aware = {column.name for column in form.relation.columns if "with time zone" in (column.base or column.type)}
    return {row.number: _note(row, timezone if row.column in aware else "") for row in form.filters}


def columns_note(form: Form) -> str:
    """Return a note if another field selects the columns, else ""."""
    other = form.selects_elsewhere and all(row.taken and not row.alias for row in form.columns)
    return "The line that begins with select= in “More conditions” selects the columns." if other else ""


def _note(row: FilterRow, timezone: str) -> str:
    """Return the note of this filter. timezone: of its column, "" if that has none."""
    try:
        if row.filter is None:
            return "This filter is not used yet: it has no value."
        bounds = days.bounds(row.items) if row.kind == days.KIND else ""
    except InvalidRequest:
        return ""
    return f"{bounds} ({timezone})." if bounds and timezone else bounds and f"{bounds}."

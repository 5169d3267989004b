"""What the page says about an export beside its link: the number of rows, the size, and the field to correct.

Pure. A number that may contradict the rows in sight is not shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.export.preview import Preview
from server.pages.form import Form
from server.query.catalogue import Relation
from server.query.request import ExportRequest

# Relations of which PostgreSQL counts the rows. Without a count, its planner assumes ten pages.
_COUNTED_KINDS = ("table", "materialized view")
# The fields of the form other than filters, by their names in `FieldPair`, as their labels have them.
FIELD_LABELS = {
    "": "the form",
    "columns": "Columns",
    "sort": "Sort",
    "limit": "Maximum rows",
    "offset": "Rows to skip",
    "filename": "File name",
    "excel": "For Excel",
    "delimiter": "Delimiter",
    "quote": "Quotes",
    "header": "Header line",
    "eol": "Line endings",
    "bom": "Byte order mark",
    "guard": "Formulas in text",
    "text": "Keep text as it is",
    "null": "NULL is written as",
    "timezone": "Time zone",
    "more": "More conditions",
}


@dataclass(frozen=True, slots=True)
class RowCount:
    """A number of rows. word: "about" for an estimate, "at least" for the rows in sight, "" if it is exact."""

    rows: int
    word: str = ""


def rows_of_export(preview: Preview | None, relation: Relation) -> RowCount | None:
    """Return how many rows the export has, or None without a preview."""
    if preview is None:
        return None
    if preview.row_count is not None:
        return RowCount(preview.row_count)
    guessed = relation.estimated_rows is None and relation.kind in _COUNTED_KINDS
    if preview.estimated_rows is None or guessed or preview.estimated_rows <= len(preview.rows):
        return RowCount(len(preview.rows), "at least")
    return RowCount(preview.estimated_rows, "about")


def bytes_of_export(preview: Preview | None, rows: RowCount | None) -> float | None:
    """Return the estimated size of the file before compression, or None if it is not known."""
    if preview is None or rows is None or rows.word == "at least" or not preview.row_bytes:
        return None
    return rows.rows * preview.row_bytes


def rows_of_relation(preview: Preview | None, request: ExportRequest | None, relation: Relation) -> RowCount | None:
    """Return how many rows the relation has, or None if that is not known.

    preview, request: of the export shown beside it, None without one.
    """
    shown = rows_of_export(preview, relation)
    if shown is not None and request is not None and _has_all_rows(request):
        return shown
    estimated = relation.estimated_rows
    if estimated is None or (shown is not None and estimated < shown.rows):
        return None
    return RowCount(estimated, "about")


def bytes_of_relation(preview: Preview | None, relation: Relation) -> int | None:
    """Return the size of the relation in the database, or None if that is not known."""
    outdated = relation.bytes == 0 and preview is not None and preview.rows
    return None if outdated else relation.bytes


def field_label(field: str, form: Form) -> str:
    """Return what the page calls this field. field: as `FieldPair` names it."""
    for row in form.filters:
        if field == f"f{row.number}":
            return f"the filter on {row.column}"
    return FIELD_LABELS.get(field, field)


def _has_all_rows(request: ExportRequest) -> bool:
    return not request.filters and request.limit is None and not request.offset

"""A request and its relation → ExportPlan: every name resolved, every value decided.

The plan is immutable and is all that the later stages need. Runs nothing, and knows neither SQL nor HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.errors import RequestTooLarge
from server.query.catalogue import Relation
from server.query.columns import OutputColumn, check_json_names, check_readable, find_columns, output_columns
from server.query.dialect import Dialect
from server.query.filters import Filter, conditions_of
from server.query.plus_signs import check_plus_signs
from server.query.request import GZIP_SUFFIX, ExportRequest, full_format
from server.query.selection import MOST_COLUMNS, SortKey

# Rows of a preview: as many as fit on a screen.
PREVIEW_ROWS = 20


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An export with all names resolved. The fields of ExportRequest mean the same here.

    filename: without the suffix.
    """

    relation: Relation
    columns: tuple[OutputColumn, ...]
    filters: tuple[Filter, ...]
    order: tuple[SortKey, ...]
    limit: int | None
    offset: int
    format: str
    gzip: bool
    dialect: Dialect
    timezone: str | None
    filename: str
    parallel: int | None

    @property
    def full_format(self) -> str:
        """The end of the file's name without its dot: csv, csv.gz, …"""
        return full_format(self.format, self.gzip)


def make_plan(request: ExportRequest, relation: Relation) -> ExportPlan:
    """Return the plan of this request on this relation.

    Raise InvalidRequest (400) if the relation has no column of a name in the request, or if its columns cannot be those
    of the format. Raise Forbidden (403) if the database role may not SELECT a column that the request selects, filters
    or sorts by: each would reveal what is in it.
    """
    columns = output_columns(request.select, relation)
    used = [condition.field for condition in conditions_of(request.filters)] + [key.field for key in request.order]
    selected = [item.field for item in request.select or () if item.field is not None]
    check_readable([output.column for output in columns] + find_columns(used, relation), relation, selected + used)
    if request.order and len(columns) + len(request.order) > MOST_COLUMNS:
        _check_sorted_columns(columns, request.order)
    check_plus_signs(conditions_of(request.filters), relation)
    if request.format == "ndjson":
        check_json_names(columns)
    return ExportPlan(
        relation=relation,
        columns=columns,
        filters=request.filters,
        order=request.order,
        limit=request.limit,
        offset=request.offset,
        format=request.format,
        gzip=request.gzip,
        dialect=request.dialect,
        timezone=request.timezone,
        filename=file_stem(request),
        parallel=request.parallel,
    )


def _check_sorted_columns(columns: Sequence[OutputColumn], order: Sequence[SortKey]) -> None:
    """Raise RequestTooLarge if PostgreSQL has no room for what it sorts by beside the columns of the file."""
    selected = {output.field for output in columns}
    others = [key for key in order if key.field not in selected or not key.field.plain]
    if len(columns) + len(others) > MOST_COLUMNS:
        raise RequestTooLarge(
            f'"select" and "order" name more than {MOST_COLUMNS:,} columns in all.',
            hint="Select or sort by fewer columns. A sort key that is a selected column does not count twice.",
        )


def file_stem(request: ExportRequest) -> str:
    """Return the name of the file without its suffix, which a name that the user chose may already have."""
    filename = request.relation.name if request.filename is None else request.filename
    if request.filename is None:
        return filename
    if request.gzip:
        filename = filename.removesuffix(f".{GZIP_SUFFIX}")
    return filename.removesuffix(f".{request.format}")


def preview_of(plan: ExportPlan) -> ExportPlan:
    """Return the same plan for its first PREVIEW_ROWS rows only."""
    limit = PREVIEW_ROWS if plan.limit is None else min(plan.limit, PREVIEW_ROWS)
    return replace(plan, limit=limit)

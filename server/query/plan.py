"""A request and its relation → ExportPlan: every name resolved, every value decided.

The plan is immutable and is all that the later stages need. Runs nothing, and knows neither SQL nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from server.errors import Forbidden, InvalidRequest
from server.query.catalogue import Column, Relation
from server.query.dialect import Dialect
from server.query.filters import Filter, conditions_of
from server.query.grammar import LONGEST_IN_MESSAGE, write_name
from server.query.parameters import SortKey
from server.query.request import GZIP_SUFFIX, ExportRequest, full_format

# Rows of a preview: as many as fit on a screen.
PREVIEW_ROWS = 20
# Names that an error message lists: more do not help, and a relation may have 1,600 columns.
MOST_NAMES = 50


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of the file. name: in the header. column: the relation's column with its values."""

    name: str
    column: Column


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

    Raise InvalidRequest (400) if the relation has no column of a name in the request, and Forbidden (403) if the
    database role may not SELECT a column that the request selects, filters or sorts by.
    """
    columns = _output_columns(request, relation)
    _check_readable([output.column for output in columns] + _condition_columns(request, relation), relation)
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


def _output_columns(request: ExportRequest, relation: Relation) -> tuple[OutputColumn, ...]:
    if request.select is None:
        return tuple(OutputColumn(column.name, column) for column in relation.columns)
    found = _find_columns([selected.column for selected in request.select], relation)
    return tuple(
        OutputColumn(column.name if selected.alias is None else selected.alias, column)
        for selected, column in zip(request.select, found, strict=True)
    )


def _condition_columns(request: ExportRequest, relation: Relation) -> list[Column]:
    """Return the columns that the request filters and sorts by: either would reveal what is in them."""
    names = [condition.column for condition in conditions_of(request.filters)] + [key.column for key in request.order]
    return _find_columns(names, relation)


def _find_columns(names: Iterable[str], relation: Relation) -> list[Column]:
    by_name = {column.name: column for column in relation.columns}
    found = []
    for name in names:
        if name not in by_name:
            raise InvalidRequest(
                f'The relation "{relation.name}" has no column {_listed([name])}.',
                code="unknown_column",
                hint=f"Its columns are {_listed(list(by_name))}." if by_name else "It has no columns.",
            )
        found.append(by_name[name])
    return found


def _check_readable(used: Iterable[Column], relation: Relation) -> None:
    unreadable = list(dict.fromkeys(column.name for column in used if not column.readable))
    if not unreadable:
        return
    readable = [write_name(column.name, ",:") for column in relation.columns if column.readable]
    raise Forbidden(
        f"The database role may not read the column{'s' * (len(unreadable) > 1)} {_listed(unreadable)}.",
        code="columns_not_readable",
        hint=f"Select only the others: select={','.join(readable)}" if len(readable) <= MOST_NAMES else None,
    )


def _listed(names: list[str]) -> str:
    """Return the names in double quotes, at most MOST_NAMES of them."""
    shown = ", ".join(f'"{name[:LONGEST_IN_MESSAGE]}"' for name in names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"

"""Request + catalogue → ExportPlan: every name resolved, everything decided, nothing run.

The plan is immutable and is all that the later stages need. Knows no SQL text and no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.errors import Forbidden, InvalidRequest
from server.query.catalogue import Column, Relation
from server.query.dialect import Dialect
from server.query.filters import Filter, conditions_of
from server.query.grammar import write_name
from server.query.parameters import SortKey
from server.query.request import ExportRequest

# Relations with more than this many bytes out of line may hold single values of megabytes in any row, while
# one FETCH is held whole in memory: their batches stay short whatever the rows before looked like.
LARGE_TOAST_BYTES = 8 << 20
LARGE_TOAST_FETCH_ROWS = 32
# Matters for narrow rows only; wider ones are bounded by scan.BATCH_BYTES. Measured in docs/performance.md.
FETCH_ROWS = 4000


# Rows of a preview: what a person looks at.
PREVIEW_ROWS = 20


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of the file: its name in the header, and the column of the relation that fills it."""

    name: str
    column: Column


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """A whole export, decided. filename: without its suffix; fetch_rows: the most that one FETCH
    may ask for; parallel: the most readers that were asked for."""

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
    fetch_rows: int
    parallel: int | None

    @property
    def suffix(self) -> str:
        """What the file's name ends with."""
        return f".{self.format}.gz" if self.gzip else f".{self.format}"


def make_plan(request: ExportRequest, relation: Relation) -> ExportPlan:
    """The plan for this request on this relation. Raises InvalidRequest (400), Forbidden (403)."""
    by_name = {column.name: column for column in relation.columns}
    if request.select is None:
        columns = tuple(OutputColumn(column.name, column) for column in relation.columns)
    else:
        columns = tuple(
            OutputColumn(
                selected.column if selected.alias is None else selected.alias,
                _column(selected.column, by_name, relation),
            )
            for selected in request.select
        )
    used = [output.column for output in columns]
    used += [_column(condition.column, by_name, relation) for condition in conditions_of(request.filters)]
    used += [_column(key.column, by_name, relation) for key in request.order]
    unreadable = list(dict.fromkeys(column.name for column in used if not column.readable))
    if unreadable:
        readable = [column.name for column in relation.columns if column.readable]
        raise Forbidden(
            f"The database role may not read the columns {_listed(unreadable)}.",
            code="columns_not_readable",
            hint=f"Name the others: select={','.join(write_name(name, ',:') for name in readable)}"
            if len(readable) <= 50
            else None,
        )
    large = relation.toast_bytes is not None and relation.toast_bytes > LARGE_TOAST_BYTES
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
        fetch_rows=LARGE_TOAST_FETCH_ROWS if large else FETCH_ROWS,
        parallel=request.parallel,
    )


def file_stem(request: ExportRequest) -> str:
    """The name of the file without the suffixes that it gets anyway."""
    filename = request.relation.name if request.filename is None else request.filename
    if request.filename is None:
        return filename
    if request.gzip:
        filename = filename.removesuffix(".gz")
    return filename.removesuffix(f".{request.format}")


def preview_of(plan: ExportPlan) -> ExportPlan:
    """The same plan for the first rows only."""
    limit = PREVIEW_ROWS if plan.limit is None else min(plan.limit, PREVIEW_ROWS)
    return replace(plan, limit=limit)


def _column(name: str, by_name: dict[str, Column], relation: Relation) -> Column:
    column = by_name.get(name)
    if column is None:
        raise InvalidRequest(
            f'The relation "{relation.name}" has no column {_listed([name])}.',
            code="unknown_column",
            hint=f"Its columns are {_listed(list(by_name))}." if by_name else "It has no columns.",
        )
    return column


def _listed(names: list[str], most: int = 50) -> str:
    shown = ", ".join(f'"{name[:100]}"' for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"

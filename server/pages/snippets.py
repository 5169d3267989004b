"""The URL of an export → the lines that read it with curl, pandas, polars, R and DuckDB. Pure.

The lines keep every value that the file holds. Only the text for NULL becomes a missing value. Columns of text stay
text, of which these programs would otherwise make numbers (007), truth values or dates; the types of the others are
chosen after all rows have been seen. The URL is percent-encoded and needs no escapes in any of these languages. Other
values are quoted here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from server.pages.controls import kind_of
from server.query.dialect import Dialect
from server.query.plan import ExportPlan
from server.visible import is_visible, replace_invisible

# Kinds of columns whose type a program may choose from their values.
_TYPED = ("number", "boolean", "date", "timestamp")
# Columns of text that a line names. With more of them, all columns are read as text.
MOST_TEXT_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class Snippet:
    """A line to copy. key: the id of its element in the page. label: its title."""

    key: str
    label: str
    text: str


def snippets(url: str, filename: str, plan: ExportPlan) -> tuple[Snippet, ...]:
    """Return the URL itself and a line for each program. filename: of the file that curl writes, with suffix."""
    return (
        Snippet("url", "URL", url),
        Snippet("curl", "curl", f"curl --fail --globoff --output {shlex.quote(filename)} {shlex.quote(url)}"),
        Snippet("python", "Python, pandas", _pandas(url, plan)),
        Snippet("polars", "Python, polars", _polars(url, plan)),
        Snippet("r", "R", _r(url, plan)),
        Snippet("duckdb", "DuckDB", _duckdb(url, plan)),
    )


def _text_columns(plan: ExportPlan) -> list[str] | None:
    """Return the names of the columns to read as text, or None for all columns."""
    names = [output.name for output in plan.columns]
    if not all(map(is_visible, names)):  # a line that says something else than it shows is not to be copied
        return None
    found = [output.name for output in plan.columns if kind_of(output.column) not in _TYPED]
    # A name that stands for two columns names neither.
    return None if len(found) > MOST_TEXT_COLUMNS or (found and len(set(names)) < len(names)) else found


def _missing_names(plan: ExportPlan, texts: list[str] | None, quote: Callable[[str], str]) -> str:
    """Return the names of all columns as a list, if the line has to give them because the file does not. Else ""."""
    return "" if plan.dialect.header or not texts else ", ".join(quote(output.name) for output in plan.columns)


# --- pandas and polars ---


def _pandas(url: str, plan: ExportPlan) -> str:
    if plan.format == "ndjson":
        # By default pandas turns text such as 007 into numbers: JSON has told them apart already.
        reader, arguments = "read_json", [_quoted(url), "lines=True", "dtype=False"]
    else:
        reader, arguments = "read_csv", [_quoted(url), *_pandas_dialect(plan)]
    if plan.gzip:
        arguments.append('compression="gzip"')
    return f"import pandas; table = pandas.{reader}({', '.join(arguments)})"


def _pandas_dialect(plan: ExportPlan) -> list[str]:
    arguments = _python_dialect(plan.dialect, delimiter="sep", no_header="header=None")
    texts = _text_columns(plan)
    if names := _missing_names(plan, texts, _quoted):
        arguments.append(f"names=[{names}]")
    if texts is None:
        arguments.append("dtype=str")
    elif texts:
        arguments.append(f"dtype={{{', '.join(f'{_quoted(name)}: str' for name in texts)}}}")
    # By default pandas takes NA, null, None and fourteen other texts for missing values.
    return [*arguments, "keep_default_na=False", f"na_values=[{_quoted(plan.dialect.null.decode())}]"]


def _polars(url: str, plan: ExportPlan) -> str:
    # polars asks a URL for its Content-Length, which a stream has not.
    arguments = [f"urllib.request.urlopen({_quoted(url)}).read()", "infer_schema_length=None"]
    if plan.format == "ndjson":
        reader = "read_ndjson"
    else:
        reader = "read_csv"
        arguments += _python_dialect(plan.dialect, delimiter="separator", no_header="has_header=False")
        arguments += _polars_types(plan)
        if plan.dialect.null:  # otherwise polars tells NULL from the empty string, which is quoted
            arguments.append(f"null_values={_quoted(plan.dialect.null.decode())}")
    return f"import polars, urllib.request; table = polars.{reader}({', '.join(arguments)})"


def _polars_types(plan: ExportPlan) -> list[str]:
    texts = _text_columns(plan)
    if texts is None:
        return ["infer_schema=False"]
    names = _missing_names(plan, texts, _quoted)
    types = ", ".join(f"{_quoted(name)}: polars.String" for name in texts)
    return ([f"new_columns=[{names}]"] if names else []) + ([f"schema_overrides={{{types}}}"] if types else [])


def _python_dialect(dialect: Dialect, *, delimiter: str, no_header: str) -> list[str]:
    """Return the arguments that differ from the defaults. delimiter: the name of its argument."""
    arguments = []
    if dialect.delimiter != b",":
        arguments.append(f"{delimiter}={_quoted(dialect.delimiter.decode())}")
    if not dialect.header:
        arguments.append(no_header)
    return arguments


# --- R ---


def _r(url: str, plan: ExportPlan) -> str:
    if plan.format == "ndjson":
        source = f"gzcon(url({_quoted(url)}))" if plan.gzip else f"url({_quoted(url)})"
        return f"table <- jsonlite::stream_in({source})"
    arguments = ", ".join(_r_arguments(plan))
    if not plan.gzip:
        encoding = ', encoding = "UTF-8-BOM"' if plan.dialect.bom else ""
        return f"table <- read.csv(url({_quoted(url)}{encoding}), {arguments})"
    if not plan.dialect.bom:
        return f"table <- read.csv(gzcon(url({_quoted(url)}), text = TRUE), {arguments})"
    # A connection of gzcon() cannot remove the byte order mark; a file can, and read.csv decompresses it.
    download = f'download.file({_quoted(url)}, path <- tempfile(), mode = "wb")'
    return f'{download}; table <- read.csv(path, fileEncoding = "UTF-8-BOM", {arguments})'


def _r_arguments(plan: ExportPlan) -> list[str]:
    dialect = plan.dialect
    arguments = ['encoding = "UTF-8"']
    if dialect.delimiter != b",":
        arguments.append(f"sep = {_quoted(dialect.delimiter.decode())}")
    if not dialect.header:
        arguments.append("header = FALSE")
    arguments.append(f"na.strings = {_quoted(dialect.null.decode())}")
    texts = _text_columns(plan)
    if names := _missing_names(plan, texts, _quoted):
        arguments.append(f"col.names = c({names})")
    if texts is None:
        arguments.append('colClasses = "character"')
    elif texts:
        classes = ", ".join(f'{_quoted(name)} = "character"' for name in texts)
        arguments.append(f"colClasses = c({classes})")
    return [*arguments, "check.names = FALSE"]


# --- DuckDB ---


def _duckdb(url: str, plan: ExportPlan) -> str:
    arguments = [_sql_quoted(url)]
    if plan.format == "ndjson":
        reader = "read_json"
        arguments.append("format = 'newline_delimited'")
    else:
        reader = "read_csv"
        arguments += _duckdb_dialect(plan)
    arguments.append("sample_size = -1")
    if plan.gzip:
        arguments.append("compression = 'gzip'")
    return f"FROM {reader}({', '.join(arguments)});"


def _duckdb_dialect(plan: ExportPlan) -> list[str]:
    dialect = plan.dialect
    arguments = [
        f"header = {'true' if dialect.header else 'false'}",
        f"delim = {_sql_quoted(dialect.delimiter.decode())}",
        """quote = '"', escape = '"'""",
        f"nullstr = {_sql_quoted(dialect.null.decode())}, allow_quoted_nulls = false",
    ]
    texts = _text_columns(plan)
    if texts is None:
        return [*arguments, "all_varchar = true"]
    if names := _missing_names(plan, texts, _sql_quoted):
        arguments.append(f"names = [{names}]")
    types = ", ".join(f"{_sql_quoted(name)}: 'VARCHAR'" for name in texts)
    return [*arguments, f"types = {{{types}}}"] if types else arguments


def _quoted(text: str) -> str:
    """Return a literal of Python and R. JSON's escapes are theirs too, and so are these of four or eight digits."""
    return replace_invisible(
        json.dumps(text, ensure_ascii=False),
        lambda character: f"\\u{ord(character):04x}" if character <= "\uffff" else f"\\U{ord(character):08x}",
    )


def _sql_quoted(text: str) -> str:
    """Return an expression of DuckDB, which knows no escapes."""
    literal = "'" + text.replace("'", "''") + "'"
    return replace_invisible(literal, lambda character: f"' || chr({ord(character)}) || '")

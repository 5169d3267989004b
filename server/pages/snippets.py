"""The URL of an export → the lines that read it with curl, pandas, polars, R and DuckDB. Pure.

The lines keep every value that the file holds: only the text for NULL becomes a missing value, and the types of columns
are chosen after all rows have been seen. The URL is percent-encoded and needs no escapes in any of these languages.
Other values are quoted here.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from server.query.dialect import Dialect
from server.query.request import ExportRequest


@dataclass(frozen=True, slots=True)
class Snippet:
    """A line to copy. key: the id of its element in the page. label: its title."""

    key: str
    label: str
    text: str


def snippets(url: str, filename: str, request: ExportRequest) -> tuple[Snippet, ...]:
    """Return the URL itself and a line for each program. filename: of the file that curl writes, with suffix."""
    return (
        Snippet("url", "URL", url),
        Snippet("curl", "curl", f"curl --fail --globoff --output {shlex.quote(filename)} {shlex.quote(url)}"),
        Snippet("python", "Python, pandas", _pandas(url, request)),
        Snippet("polars", "Python, polars", _polars(url, request)),
        Snippet("r", "R", _r(url, request)),
        Snippet("duckdb", "DuckDB", _duckdb(url, request)),
    )


def _pandas(url: str, request: ExportRequest) -> str:
    if request.format == "ndjson":
        # By default pandas turns text such as 007 into numbers: JSON has told them apart already.
        reader, arguments = "read_json", [_quoted(url), "lines=True", "dtype=False"]
    else:
        reader, arguments = "read_csv", [_quoted(url), *_pandas_dialect(request.dialect)]
    if request.gzip:
        arguments.append('compression="gzip"')
    return f"import pandas; table = pandas.{reader}({', '.join(arguments)})"


def _pandas_dialect(dialect: Dialect) -> list[str]:
    arguments = _python_dialect(dialect, delimiter="sep", no_header="header=None")
    # By default pandas takes NA, null, None and fourteen other texts for missing values.
    return [*arguments, "keep_default_na=False", f"na_values=[{_quoted(dialect.null.decode())}]"]


def _polars(url: str, request: ExportRequest) -> str:
    # polars asks a URL for its Content-Length, which a stream has not.
    content = f"urllib.request.urlopen({_quoted(url)}).read()"
    arguments = [content, "infer_schema_length=None"]
    if request.format == "ndjson":
        reader = "read_ndjson"
    else:
        reader = "read_csv"
        arguments += _python_dialect(request.dialect, delimiter="separator", no_header="has_header=False")
        if request.dialect.null:  # otherwise polars tells NULL from the empty string, which is quoted
            arguments.append(f"null_values={_quoted(request.dialect.null.decode())}")
    return f"import polars, urllib.request; table = polars.{reader}({', '.join(arguments)})"


def _python_dialect(dialect: Dialect, *, delimiter: str, no_header: str) -> list[str]:
    """Return the arguments that differ from the defaults. delimiter: the name of its argument."""
    arguments = []
    if dialect.delimiter != b",":
        arguments.append(f"{delimiter}={_quoted(dialect.delimiter.decode())}")
    if not dialect.header:
        arguments.append(no_header)
    return arguments


def _r(url: str, request: ExportRequest) -> str:
    if request.format == "ndjson":
        source = f"gzcon(url({_quoted(url)}))" if request.gzip else f"url({_quoted(url)})"
        return f"table <- jsonlite::stream_in({source})"
    arguments = ", ".join(_r_arguments(request.dialect))
    if not request.gzip:
        encoding = ', encoding = "UTF-8-BOM"' if request.dialect.bom else ""
        return f"table <- read.csv(url({_quoted(url)}{encoding}), {arguments})"
    if not request.dialect.bom:
        return f"table <- read.csv(gzcon(url({_quoted(url)}), text = TRUE), {arguments})"
    # A connection of gzcon() cannot remove the byte order mark; a file can, and read.csv decompresses it.
    download = f'download.file({_quoted(url)}, path <- tempfile(), mode = "wb")'
    return f'{download}; table <- read.csv(path, fileEncoding = "UTF-8-BOM", {arguments})'


def _r_arguments(dialect: Dialect) -> list[str]:
    arguments = ['encoding = "UTF-8"']
    if dialect.delimiter != b",":
        arguments.append(f"sep = {_quoted(dialect.delimiter.decode())}")
    if not dialect.header:
        arguments.append("header = FALSE")
    return [*arguments, f"na.strings = {_quoted(dialect.null.decode())}"]


def _duckdb(url: str, request: ExportRequest) -> str:
    arguments = [_sql_quoted(url)]
    if request.format == "ndjson":
        reader = "read_json"
        arguments.append("format = 'newline_delimited'")
    else:
        reader = "read_csv"
        dialect = request.dialect
        arguments += [
            f"header = {'true' if dialect.header else 'false'}",
            f"delim = {_sql_quoted(dialect.delimiter.decode())}",
            """quote = '"', escape = '"'""",
            f"nullstr = {_sql_quoted(dialect.null.decode())}, allow_quoted_nulls = false",
        ]
    arguments.append("sample_size = -1")
    if request.gzip:
        arguments.append("compression = 'gzip'")
    return f"FROM {reader}({', '.join(arguments)});"


def _quoted(text: str) -> str:
    """Return a literal of Python and R. JSON's escapes are theirs too."""
    return json.dumps(text, ensure_ascii=False)


def _sql_quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

"""The URL of an export → one line for curl, Python and R that reads it. Pure.

The URL is percent-encoded and needs no escapes in any of the three languages. Other values are quoted here.
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
    """Return the URL itself and a line for each language. filename: of the file that curl writes, with suffix."""
    return (
        Snippet("url", "URL", url),
        Snippet("curl", "curl", f"curl --fail --globoff --output {shlex.quote(filename)} {shlex.quote(url)}"),
        Snippet("python", "Python, pandas", _pandas(url, request)),
        Snippet("r", "R", _r(url, request)),
    )


def _pandas(url: str, request: ExportRequest) -> str:
    arguments = [json.dumps(url)]
    if request.format == "ndjson":
        arguments.append("lines=True")
    else:
        dialect = request.dialect
        if dialect.delimiter != b",":
            arguments.append(f"sep={json.dumps(dialect.delimiter.decode())}")
        if not dialect.header:
            arguments.append("header=None")
        if dialect.null:
            arguments.append(f"na_values=[{json.dumps(dialect.null.decode())}]")
    if request.gzip:
        arguments.append('compression="gzip"')
    reader = "read_json" if request.format == "ndjson" else "read_csv"
    return f"import pandas; table = pandas.{reader}({', '.join(arguments)})"


def _r(url: str, request: ExportRequest) -> str:
    source = f"gzcon(url({json.dumps(url)}))" if request.gzip else f"url({json.dumps(url)})"
    if request.format == "ndjson":
        return f"table <- jsonlite::stream_in({source})"
    return f"table <- read.csv({', '.join([source, *_r_arguments(request.dialect)])})"


def _r_arguments(dialect: Dialect) -> list[str]:
    arguments = ['fileEncoding = "UTF-8-BOM"' if dialect.bom else 'encoding = "UTF-8"']
    if dialect.delimiter != b",":
        arguments.append(f"sep = {json.dumps(dialect.delimiter.decode())}")
    if not dialect.header:
        arguments.append("header = FALSE")
    arguments.append(f"na.strings = {json.dumps(dialect.null.decode(), ensure_ascii=False)}")
    return arguments

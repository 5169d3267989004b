"""Small queries: sent together, each with its values as parameters of the protocol, and their results as Python values.

Pure: queries → messages, messages → rows. `connection.py` sends and receives them.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from server.errors import InvalidRequest
from server.postgres import messages
from server.query.quoting import write_array

# A value of a parameter. A list becomes a one-dimensional array of text.
Value = str | int | None | Sequence[str]
Row = dict[str, Any]

# How the text of a result becomes a Python value, by type OID (PostgreSQL's pg_type.dat): bool, int8, int2, int4, oid,
# float4, float8, json, timestamptz. All other types stay text.
_DECODERS: dict[int, Callable[[str], Any]] = {
    16: lambda text: text == "t",
    **dict.fromkeys((20, 21, 23, 26), int),
    **dict.fromkeys((700, 701), float),
    114: json.loads,
    1184: datetime.datetime.fromisoformat,
}


class Query(NamedTuple):
    """One statement whose result is small.

    sql: with the parameters $1, $2, … values: theirs. prepare: keep the statement prepared on the connection; only for
    texts of which there are few. then: called with the rows, at least one, as soon as they are there. types: OIDs of
    the types of its first parameters, which the server infers otherwise. runs: False to have the statement parsed only:
    the rows are then its parameters, each with its `type`, an OID. as_text: return the values as text, which may be
    long JSON.
    """

    sql: str
    values: Sequence[Value] = ()
    prepare: bool = False
    then: Callable[[list[Row]], None] | None = None
    types: Sequence[int] = ()
    runs: bool = True
    as_text: bool = False


def encode_value(value: Value) -> bytes | None:
    """Return a value in text form, as Bind takes it."""
    if value is None or isinstance(value, str):
        return None if value is None else value.encode()
    return (str(value) if isinstance(value, int) else write_array(value)).encode()


def encode_values(values: Sequence[Value]) -> list[bytes | None]:
    """Return the values of one statement in text form. Raise InvalidRequest if there are too many for the protocol."""
    if len(values) > messages.MOST_VALUES:
        raise InvalidRequest(
            f"The query holds {len(values):,} values; PostgreSQL takes at most {messages.MOST_VALUES:,}.",
            code="too_complex",
        )
    return [encode_value(value) for value in values]


@functools.lru_cache(maxsize=64)  # there are fewer queries than that
def _decoders(description: bytes, *, as_text: bool) -> tuple[tuple[str, Callable[[str], Any]], ...]:
    """Return the name and the decoder of each column of a RowDescription. Raise ProtocolError if it is malformed."""
    decoders = {} if as_text else _DECODERS
    return tuple((name, decoders.get(oid, str)) for name, oid in messages.columns(description))


class Results:
    """The results of a pipeline of queries, from the messages that answer it.

    finished: the rows of each query so far. error: the body of the ErrorResponse that ended the pipeline, or None.
    parsed: the number of ParseComplete messages.
    """

    def __init__(self, queries: Sequence[Query], finished: list[list[Row]] | None = None) -> None:
        self._queries = queries
        self._columns: tuple[tuple[str, Callable[[str], Any]], ...] = ()
        self._rows: list[Row] = []
        self.finished: list[list[Row]] = [] if finished is None else finished
        self.parsed = 0
        self.error: bytes | None = None

    def take(self, kind: int, body: bytes) -> bool:
        """Take the next message. Return whether it was ReadyForQuery, which ends the pipeline. Raise ProtocolError."""
        if kind == messages.READY and self.error is None and len(self.finished) < len(self._queries):
            raise messages.ProtocolError("fewer results than queries")
        if kind == messages.DATA_ROW:
            self._rows.append(self._row(body))
        # That of a statement which is parsed only comes after its parameters, which are its rows.
        elif kind == messages.ROW_DESCRIPTION and len(self.finished) < len(self._queries):
            self._columns = _decoders(body, as_text=self._queries[len(self.finished)].as_text)
        elif kind in (messages.COMMAND_COMPLETE, messages.EMPTY_QUERY):
            self._finish()
        elif kind == messages.ERROR:
            self.error = self.error or body
        elif kind == messages.PARSE_COMPLETE:
            self.parsed += 1
        elif kind == messages.PARAMETERS:
            self._rows = [{"type": oid} for oid in messages.parameter_types(body)]
            self._finish()
        return kind == messages.READY

    def _row(self, body: bytes) -> Row:
        values = messages.fields(body, len(self._columns))
        try:
            return {
                name: None if value is None else decode(value.decode(errors="replace"))
                for (name, decode), value in zip(self._columns, values, strict=True)
            }
        except ValueError:
            raise messages.ProtocolError("a value that is not of the type of its column") from None

    def _finish(self) -> None:
        if len(self.finished) == len(self._queries):
            raise messages.ProtocolError("more results than queries")
        query, rows = self._queries[len(self.finished)], self._rows
        self.finished.append(rows)
        self._columns, self._rows = (), []
        if query.then is not None:
            if not rows:
                raise messages.ProtocolError("a result without its row")
            query.then(rows)

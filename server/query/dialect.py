"""The dialect of a CSV or TSV file as a value, and the combinations that are not allowed.

Formats nothing: the encoders do that.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import InvalidRequest

DELIMITERS = {",": b",", ";": b";", "|": b"|", "tab": b"\t"}
QUOTE_STYLES = ("minimal", "strings", "all")
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How values and lines are written. The defaults are those of `\\copy … csv header` (PostgreSQL manual, "COPY").

    delimiter, quote: one ASCII byte each. quote_style: which values are quoted: minimal (those that need it), strings
    (every non-NULL value of a text type) or all (every non-NULL value, as COPY's FORCE_QUOTE *). null: the text for
    NULL, never quoted. eol: the line ending. bom: whether the file begins with a byte order mark. guard: whether an
    apostrophe goes before text that a spreadsheet would evaluate as a formula. protect: whether text that a spreadsheet
    would change, and numbers that it would round, are written as formulas (`spreadsheets.py`).

    Raise InvalidRequest if the text for NULL contains a delimiter, a quote or a line break.
    """

    delimiter: bytes = b","
    quote: bytes = b'"'
    quote_style: str = "minimal"
    header: bool = True
    null: bytes = b""
    eol: bytes = b"\n"
    bom: bool = False
    guard: bool = False
    protect: bool = False

    def __post_init__(self) -> None:
        for name, forbidden in (
            ("the delimiter", self.delimiter),
            ("a quote", self.quote),
            ("a line break", b"\n"),
            ("a line break", b"\r"),
        ):
            if forbidden in self.null:
                raise InvalidRequest(
                    f'"null" holds {name}, so NULL could not be distinguished from other text.',
                    code="contradiction",
                    hint="Choose a text without it, for example null=\\N or null=NULL",
                )

"""The dialect of a file: how values become text. Values and their rules; the encoders do the work.

Contradictions are refused here, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.errors import InvalidRequest

DELIMITERS = {",": b",", ";": b";", "|": b"|", "tab": b"\t"}
QUOTE_STYLES = ("minimal", "strings", "all")
# What a spreadsheet takes for the beginning of a formula.
FORMULA_STARTS = (b"=", b"+", b"-", b"@", b"\t", b"\r")
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The default writes the very bytes of `\\copy … csv header`. delimiter, quote: one ASCII byte each.

    quote_style: minimal, strings (every non-NULL value that is text) or all (every non-NULL value, as COPY's
    FORCE_QUOTE *). null: what stands for NULL, never in quotes. guard: text that a spreadsheet would take for
    a formula gets a leading apostrophe. Raises InvalidRequest for contradictions.
    """

    delimiter: bytes = b","
    quote: bytes = b'"'
    quote_style: str = "minimal"
    header: bool = True
    null: bytes = b""
    eol: bytes = b"\n"
    bom: bool = False
    guard: bool = False

    def __post_init__(self) -> None:
        for name, forbidden in (
            ("the delimiter", self.delimiter),
            ("a quote", self.quote),
            ("a line break", b"\n"),
            ("a line break", b"\r"),
        ):
            if forbidden in self.null:
                raise InvalidRequest(
                    f'"null" holds {name}, so that NULL could not be told from other text.',
                    code="contradiction",
                    hint="Choose a text without it, for example null=\\N or null=NULL",
                )

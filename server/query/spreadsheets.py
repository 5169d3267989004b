"""What a spreadsheet does with text, and how text is written so that it does not.

A cell that begins like a formula is evaluated: an apostrophe before it prevents that. A cell that looks like a number,
a date, a time or a truth value becomes one: a formula whose value is the text keeps it. Bytes in, bytes out;
`server/encode/_encode.pyx` has the same rules in C.

Sources: OWASP, "CSV Injection"; Microsoft, "Keep leading zeros and large numbers", "Excel specifications and limits".
"""

from __future__ import annotations

import re

# = + - @ and their full-width forms.
_SIGN = rb"(?:[=+\-@]|\xef\xbc[\x8b\x8d\x9d\xa0])"
_FORMULA = re.compile(rb"[\t\r\n]|" + _SIGN)
# A spreadsheet may split at another character than the delimiter of the file. It then takes no notice of the quotes
# around a value, begins cells within it, and removes quotes where a cell begins. The space is left out: a spreadsheet
# splits at it only if told so, and a sign stands after one in too many texts.
_FORMULA_WITHIN = re.compile(rb'[,;|\t\r\n]"*(?=' + _SIGN + rb")")
_FORMULA_AFTER_QUOTES = re.compile(rb'"*(?=' + _SIGN + rb")")
_SEPARATORS = [bytes([byte]) for byte in b",;|\t\r\n"]

# Bytes of the longest text in a formula that Excel reads.
LONGEST_PROTECTED = 255
# A spreadsheet keeps the first 15 digits of a number.
_LONG_NUMBER = re.compile(rb"-?[0-9]{16,}")
_BETWEEN_DIGITS = re.compile(rb"[A-Za-z0-9 .,:/+\-()%'$\x80-\xff]*")
_DIGIT = re.compile(rb"[0-9]")
_WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
# How the names of months begin in languages of western Europe, and the English weekdays. A word with other letters than
# those of ASCII may always be one.
NAMES_IN_DATES = (
    b"jan feb mar apr may jun jul aug sep oct nov dec mrz mai okt dez fev avr jui aou ene abr ago dic gen mag giu lug "
    b"set ott out mrt mei mon tue wed thu fri sat sun"
)
_NAMES_IN_DATES = frozenset(NAMES_IN_DATES.split())
# An exponent, a.m. and p.m., the T and the Z of ISO 8601.
_AFTER_DIGITS = frozenset((b"e", b"a", b"am", b"p", b"pm", b"t", b"z"))
_TRUTH_VALUES = frozenset((b"true", b"false"))


def write_text(text: bytes, *, guard: bool, protect: bool) -> bytes:
    """Return the text as it is written for a spreadsheet.

    guard: an apostrophe goes before the beginning of each formula. protect: text that a spreadsheet would change is
    written as a formula; not if it is guarded within, since it is no number then.
    """
    guarded = _FORMULA_WITHIN.sub(rb"\g<0>'", text) if guard else text
    if protect and guarded == text and is_changed(text):
        return b'="' + text + b'"'
    return b"'" + guarded if guard and _FORMULA.match(text) else guarded


class GuardInParts:
    """Does what `write_text` does with the guard, to a text that comes in parts. Such a text is never protected."""

    def __init__(self) -> None:
        self._first = True
        # Whether a cell may begin at the next byte.
        self._begins = False
        # The end of the last part, if a full-width sign may begin with it.
        self._kept = b""

    def write(self, part: bytes) -> bytes:
        """Return the next bytes of the guarded text. part: not empty."""
        text = self._kept + part
        self._kept = b""
        for beginning in (b"\xef\xbc", b"\xef"):
            if text.endswith(beginning):
                text, self._kept = text.removesuffix(beginning), beginning
                break
        if not text:
            return b""
        guarded = _FORMULA_WITHIN.sub(rb"\g<0>'", text)
        if self._first and _FORMULA.match(text):
            guarded = b"'" + guarded
        elif self._begins and (quotes := _FORMULA_AFTER_QUOTES.match(text)):
            guarded = quotes[0] + b"'" + guarded[quotes.end() :]
        unquoted = text.rstrip(b'"')
        self._begins = unquoted[-1:] in _SEPARATORS if unquoted else self._begins
        self._first = False
        return guarded

    def end(self) -> bytes:
        """Return the end of the text."""
        return self._kept


def write_number(number: bytes) -> bytes:
    """Return the number as it is written for a spreadsheet that must not change it: long ones as a formula."""
    if _LONG_NUMBER.fullmatch(number) and len(number) <= LONGEST_PROTECTED:
        return b'="' + number + b'"'
    return number


def is_changed(text: bytes) -> bool:
    """Return whether a spreadsheet in some language may take the text for a number, a date, a time or a truth value."""
    if len(text) > LONGEST_PROTECTED or not _BETWEEN_DIGITS.fullmatch(text):
        return False
    digit = _DIGIT.search(text)
    if digit is None:
        return text.lower() in _TRUTH_VALUES
    return all(_may_be_in_a_date(word[0].lower(), word.start() > digit.start()) for word in _WORD.finditer(text))


def _may_be_in_a_date(word: bytes, after_digits: bool) -> bool:
    return not word.isascii() or word[:3] in _NAMES_IN_DATES or (after_digits and word in _AFTER_DIGITS)

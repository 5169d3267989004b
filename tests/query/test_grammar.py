"""The lexical parts of the grammar: percent-decoding, names, double quotes, and the positions in messages."""

from __future__ import annotations

from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.query.grammar import form_decode, percent_decode, read_name, read_names, read_quoted, shorten, write_name
from tests.support.cpu import cpu_limit

# Any text that PostgreSQL can store, and texts with many characters of the grammar.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.text('a."\\,:() é', max_size=12)


def refused(error: pytest.ExceptionInfo[InvalidRequest], code: str, detail: str) -> None:
    assert (error.value.status, error.value.code, error.value.detail) == (400, code, detail)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("", ""),
        ("abc", "abc"),
        ("a%62c", "abc"),
        ("%C3%BC%f0%9f%a6%a5", "ü🦥"),
        ("ü🦥", "ü🦥"),
        ("ü%C3%BC", "üü"),
        ("a+b", "a+b"),
        # Decoded once; a % that is not an escape stays.
        ("%2541", "%41"),
        ("100%", "100%"),
        ("%4", "%4"),
        ("%zz%", "%zz%"),
        # An escape may complete a character that a raw byte (given as a lone surrogate) starts.
        ("\udcc3%BC", "ü"),
        ("%01%7F%0D%0A", "\x01\x7f\r\n"),
        ("%EF%BF%BF%EF%BB%BF", "\uffff\ufeff"),
        ("%F4%8F%BF%BF", "\U0010ffff"),
    ],
)
def test_percent_encoding_is_decoded_once(text: str, decoded: str) -> None:
    assert percent_decode(text, "the path") == decoded


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%ff", "There are bytes in the path that are not UTF-8."),
        ("a%c3", "There are bytes in the path that are not UTF-8."),
        ("%c0%af", "There are bytes in the path that are not UTF-8."),  # an overlong slash
        ("%c0%80", "There are bytes in the path that are not UTF-8."),  # an overlong NUL
        ("%ed%a0%80", "There are bytes in the path that are not UTF-8."),  # a lone surrogate
        ("%ed%a0%bd%ed%b8%80", "There are bytes in the path that are not UTF-8."),  # a pair of them (CESU-8)
        ("%f4%90%80%80", "There are bytes in the path that are not UTF-8."),  # past the last code point
        ("%f8%88%80%80%80", "There are bytes in the path that are not UTF-8."),
        ("\udcff", "There are bytes in the path that are not UTF-8."),
        (chr(0xD800), "There are bytes in the path that are not UTF-8."),
        ("%00", "There is a NUL character in the path."),
        ("a\0b", "There is a NUL character in the path."),
    ],
)
def test_bytes_that_are_not_text_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        percent_decode(text, "the path")
    refused(error, "invalid_encoding", reason)


@given(TEXT)
def test_encoded_text_is_decoded(text: str) -> None:
    assert percent_decode(quote(text, safe=""), "x") == text
    assert percent_decode("".join(f"%{byte:02x}" for byte in text.encode()), "x") == text


@given(st.binary(max_size=12))
@example(b"\xed\xbf\xbf")
def test_bytes_are_decoded_as_python_decodes_utf_8(data: bytes) -> None:
    try:
        expected = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(InvalidRequest):
            percent_decode(quote_from_bytes(data), "x")
    else:
        if "\0" not in expected:
            assert percent_decode(quote_from_bytes(data), "x") == expected


@pytest.mark.parametrize(
    ("text", "decoded", "signs"),
    [
        ("", "", ()),
        ("a b", "a b", ()),
        ("a+b", "a b", ()),
        ("a+1", "a 1", (1,)),
        ("a%2B1", "a+1", ()),
        ("+1", " 1", ()),
        (".+1", ". 1", ()),
        ("a++1+x+2", "a  1 x 2", (2, 6)),
        ("a+%201", "a  1", ()),
        ("a%20%09+1", "a \t 1", (3,)),
        ("ü%C3%BC+1", "üü 1", (2,)),
        ("a+%31", "a 1", (1,)),
        ("1+1+1", "1 1 1", (1, 3)),
        ("a+٣", "a ٣", ()),
    ],
)
def test_a_plus_in_a_form_is_a_space_and_its_position_is_kept_where_a_sign_can_stand(
    text: str, decoded: str, signs: tuple[int, ...]
) -> None:
    assert form_decode(text, "x") == (decoded, signs)


@pytest.mark.parametrize("text", ["a+%00", "a+%ff1", "\udcff+1"])
def test_a_form_with_bytes_that_are_not_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        form_decode(text, "x")
    assert error.value.code == "invalid_encoding"


@pytest.mark.parametrize("text", ["+" * 120_000, "+1" * 60_000, "1+" * 60_000, "1" + "+" * 120_000])
def test_many_plus_signs_are_read_quickly(text: str) -> None:
    with cpu_limit(0.2):
        form_decode(text, "x")


@pytest.mark.parametrize(
    ("text", "start", "found", "end"),
    [
        ('""', 0, "", 2),
        ('"a"', 0, "a", 3),
        ('"a"b', 0, "a", 3),
        ('x."a.b",c', 2, "a.b", 7),
        # A quote inside is doubled or follows a backslash; a backslash may follow another.
        ('"a""b"', 0, 'a"b', 6),
        ('""""', 0, '"', 4),
        (r'"a\"b"', 0, 'a"b', 6),
        (r'"a\\"', 0, "a\\", 5),
        (r'"a\\\"b"', 0, 'a\\"b', 8),
        # So does any other character, which means itself.
        (r'"a\b"', 0, "ab", 5),
        (r'"\n"', 0, "n", 4),
        (r'"\ü"', 0, "ü", 4),
        ('"\\\n"', 0, "\n", 4),
        # Two in a row: each is read by itself.
        ('"a","b"', 0, "a", 3),
        ('"a","b"', 4, "b", 7),
        ('"(),.{}*"', 0, "(),.{}*", 9),
        ('"\r\n\t"', 0, "\r\n\t", 5),
    ],
)
def test_double_quotes_hold_any_text(text: str, start: int, found: str, end: int) -> None:
    assert read_quoted(text, start, "x") == (found, end)


@pytest.mark.parametrize(
    ("text", "start", "position"),
    [
        ('"', 0, 1),
        ('"a', 0, 1),
        ('"a""', 0, 1),
        ('"""', 0, 1),
        (r'"a\"', 0, 1),
        ('"a\\', 0, 1),
        ('ü,"a', 2, 3),
    ],
)
def test_an_unclosed_quote_is_reported_with_its_position(text: str, start: int, position: int) -> None:
    with pytest.raises(InvalidRequest) as error:
        read_quoted(text, start, '"select"')
    refused(error, "invalid_quotes", f'The double quote in "select" at position {position} is not closed.')


@pytest.mark.parametrize(
    ("text", "start", "stops", "name", "end"),
    [
        ("id", 0, ".,", "id", 2),
        ("id.desc", 0, ".,", "id", 2),
        ("id.desc", 3, ".,", "desc", 7),
        ("id.desc", 0, "", "id.desc", 7),
        ('"a.b".c', 0, ".,", "a.b", 5),
        ('"a"', 0, ".,", "a", 3),
        ('"a,"', 0, "", "a,", 4),
        ('a"b".c', 0, ".,", 'a"b"', 4),
        ("a b", 0, ".,", "a b", 3),
        (" ", 0, ".,", " ", 1),
        ("\n", 0, ".,", "\n", 1),
    ],
)
def test_a_name_ends_at_a_stop(text: str, start: int, stops: str, name: str, end: int) -> None:
    assert read_name(text, start, stops, "x") == (name, end)


@pytest.mark.parametrize(
    ("text", "start", "stops", "code", "detail"),
    [
        ("", 0, ".", "missing_name", "A name is missing in the path at position 1."),
        (".a", 0, ".", "missing_name", "A name is missing in the path at position 1."),
        ("a.", 2, ".", "missing_name", "A name is missing in the path at position 3."),
        ('ü.""', 2, ".", "missing_name", "A name is missing in the path at position 3."),
        ('"a', 0, ".", "invalid_quotes", "The double quote in the path at position 1 is not closed."),
        ('"a"b', 0, ".", "invalid_quotes", "Unexpected text after the closing quote in the path at position 4."),
        ('"a" ', 0, "", "invalid_quotes", "Unexpected text after the closing quote in the path at position 4."),
        ('"🦥"x', 0, ".", "invalid_quotes", "Unexpected text after the closing quote in the path at position 4."),
    ],
)
def test_an_invalid_name_has_its_position(text: str, start: int, stops: str, code: str, detail: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        read_name(text, start, stops, "the path")
    refused(error, code, detail)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", [("a", "")]),
        ("a,b:c", [("a", ","), ("b", ":"), ("c", "")]),
        ('"a,b":"c:d"', [("a,b", ":"), ("c:d", "")]),
    ],
)
def test_names_come_with_the_stops_between_them(text: str, names: list[tuple[str, str]]) -> None:
    assert list(read_names(text, ",:", "x")) == names


@pytest.mark.parametrize(("text", "position"), [("", 1), ("a,", 3), ("a,,b", 3), (",a", 1), ('a,"",b', 3)])
def test_a_missing_name_is_reported_with_its_position(text: str, position: int) -> None:
    with pytest.raises(InvalidRequest) as error:
        list(read_names(text, ",", '"order"'))
    refused(error, "missing_name", f'A name is missing in "order" at position {position}.')


@given(names=st.lists(TEXT.filter(bool), min_size=1, max_size=6), data=st.data())
def test_written_names_are_read_back(names: list[str], data: st.DataObject) -> None:
    stops = ".,:()"
    between = data.draw(st.lists(st.sampled_from(stops), min_size=len(names) - 1, max_size=len(names) - 1))
    text = "".join(write_name(name, stops) + stop for name, stop in zip(names, [*between, ""], strict=True))
    assert list(read_names(text, stops, "x")) == list(zip(names, [*between, ""], strict=True))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("id", "id"),
        ("a b", "a b"),
        ("a.b", '"a.b"'),
        ('"', r'"\""'),
        ('a"b', 'a"b'),
        ('a."b', r'"a.\"b"'),
        ("a\\b", "a\\b"),
        ("a.\\", '"a.\\\\"'),
    ],
)
def test_a_name_is_written_in_quotes_only_if_it_needs_them(name: str, written: str) -> None:
    assert write_name(name, ".,") == written


@pytest.mark.parametrize("length", [0, 99, 100, 101, 8192])
def test_long_text_is_shortened_for_a_message(length: int) -> None:
    text = "ü" * length
    assert shorten(text) == (text if length <= 100 else "ü" * 100 + "…")


@given(TEXT | st.text(st.characters(exclude_categories=[])), st.integers(0, 12), st.text('".,:()a', max_size=3))
def test_any_text_is_a_name_or_raises_invalid_request(text: str, start: int, stops: str) -> None:
    start = min(start, len(text))
    outcome: tuple[str, int] | InvalidRequest
    try:
        outcome = read_name(text, start, stops, "x")
    except InvalidRequest as error:
        outcome = error
    if isinstance(outcome, InvalidRequest):
        assert outcome.code in ("missing_name", "invalid_quotes")
    else:
        name, end = outcome
        assert name
        assert start < end <= len(text)
        assert end == len(text) or text[end] in stops

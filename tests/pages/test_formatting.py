"""Numbers, sizes and times as text."""

from __future__ import annotations

import pytest

from server.pages.formatting import duration, grouped, rounded, short_type, size, utc_time


@pytest.mark.parametrize(("number", "text"), [(None, ""), (0, "0"), (999, "999"), (1234567.6, "1,234,568")])
def test_a_number_has_separators(number: float | None, text: str) -> None:
    assert grouped(number) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (7, "7"), (1234, "1,230"), (1234567, "1,230,000")])
def test_an_estimate_has_three_digits(number: float, text: str) -> None:
    assert rounded(number) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (12_345_678, "12.3 MB"),
        (2_500_000_000, "2.5 GB"),
        (5_000_000_000_000, "5 TB"),
    ],
)
def test_a_size_has_a_suitable_unit(count: float | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (None, ""),
        ("2026-01-31T12:30:59Z", "2026-01-31 12:30 UTC"),
        ("2026-01-31T00:30:00.5+02:00", "2026-01-30 22:30 UTC"),
    ],
)
def test_a_time_is_shown_in_utc(time: str | None, text: str) -> None:
    assert utc_time(time) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_a_duration_has_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("type", "short"),
    [
        ("timestamp with time zone", "timestamptz"),
        ("timestamp(3) with time zone", "timestamptz(3)"),
        ("timestamp without time zone", "timestamp"),
        ("time(0) without time zone[]", "time(0)[]"),
        ("time with time zone", "timetz"),
        ("character varying(20)", "varchar(20)"),
        ("character varying[]", "varchar[]"),
        ("character(2)", "char(2)"),
        ("bit varying(8)", "varbit(8)"),
        ("double precision", "double"),
        ("numeric(10,2)", "numeric(10,2)"),
        ("text", "text"),
        ("characters", "characters"),
        ('"timestamp with time zone x"', '"timestamp with time zone x"'),
    ],
)
def test_a_type_has_a_short_name(type: str, short: str) -> None:
    assert short_type(type) == short

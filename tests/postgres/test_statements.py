"""The SQL of transactions as text: values in, statements out, no database."""

from __future__ import annotations

import re

import pytest

from server.postgres import statements


def test_the_settings_are_local_to_the_transaction() -> None:
    first, last = statements.begin(None)
    assert first == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    for name, value in statements.SETTINGS.items():
        assert f"pg_catalog.set_config('{name}', '{value}', true)" in last
    assert not re.search(r"set_config\([^()]*(\([^()]*\))?[^()]*, false\)", last)
    assert "pg_catalog.pg_backend_pid() AS pid, pg_catalog.now() AS started, " in last


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [((1.5, 0.25, 60), [1500, 250, 60000]), ((0, 0, 0), [0, 0, 0]), ((1e-6,) * 3, [1] * 3)]
)
def test_no_limit_is_zero_milliseconds_and_nothing_else_is(
    seconds: tuple[float, float, float], milliseconds: list[int]
) -> None:
    assert statements.Timeouts(*seconds).values == milliseconds


def test_a_snapshot_is_imported_before_anything_else_runs() -> None:
    opening, imported, last = statements.begin("00000003-1")
    assert opening == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    assert imported == "SET TRANSACTION SNAPSHOT '00000003-1'"
    assert last == statements.begin(None)[-1]


def test_the_server_checks_for_the_client() -> None:
    assert "pg_catalog.set_config('client_connection_check_interval', '1s', true)" in statements.begin(None)[-1]


def test_readers_take_over_what_the_first_session_has_pinned() -> None:
    assert statements.pin(["TimeZone", "search_path"]) == (
        "SELECT pg_catalog.set_config('TimeZone', $1, true), pg_catalog.set_config('search_path', $2, true)"
    )
    for name in statements.PINNED:
        assert (
            f"pg_catalog.set_config('{name}', pg_catalog.current_setting('{name}'), true)" in statements.begin(None)[-1]
        )
        assert f"pg_catalog.current_setting('{name}') AS \"{name}\"" in statements.EXPORT_SNAPSHOT


def test_the_check_of_the_snapshot_ends_the_timeouts_of_opening_and_changes_nothing_else() -> None:
    text = statements.CHECK_SNAPSHOT
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        assert f"pg_catalog.set_config('{name}', '0', true)" in text
    assert "pg_catalog.set_config('lock_timeout', NULL, true)" in text
    assert text.count("set_config") == 3


def test_a_reader_of_ranges_plans_each_range_as_a_scan_by_tuple_identifiers_in_order() -> None:
    text = statements.BY_BLOCKS
    for name, value in {"tidscan": "on", "indexscan": "off", "indexonlyscan": "off", "bitmapscan": "off"}.items():
        assert f"pg_catalog.set_config('enable_{name}', '{value}', true)" in text
    assert "pg_catalog.set_config('max_parallel_workers_per_gather', '0', true)" in text
    assert "pg_catalog.set_config('plan_cache_mode', 'force_custom_plan', true)" in text
    assert text.count("set_config") == 6

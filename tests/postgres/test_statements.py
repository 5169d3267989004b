"""The SQL of transactions as text: values in, statements out, no database."""

from __future__ import annotations

import pytest

from server.postgres import statements


def test_the_settings_are_local_to_the_transaction() -> None:
    settings = statements.session_settings(1.5, 0.25)
    assert settings["statement_timeout"] == "1500ms"
    assert settings["idle_in_transaction_session_timeout"] == "250ms"
    first, *others, last = statements.begin(settings, None, 140000).split("; ")
    assert first == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    assert others == [f"SET LOCAL {name} = '{value}'" for name, value in settings.items()]
    assert last.startswith("SELECT pg_backend_pid() AS pid, now() AS started, ")


def test_no_timeout_is_a_setting_of_zero() -> None:
    settings = statements.session_settings(0, 0)
    assert settings["statement_timeout"] == settings["idle_in_transaction_session_timeout"] == "0ms"


def test_a_snapshot_is_imported_before_anything_else_runs() -> None:
    assert statements.begin({"jit": "off"}, "00000003-1", 180000).split("; ")[:3] == [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        "SET TRANSACTION SNAPSHOT '00000003-1'",
        "SET LOCAL jit = 'off'",
    ]


@pytest.mark.parametrize(("version", "checked"), [(130013, False), (140000, True), (180001, True)])
def test_the_server_checks_for_the_client_from_version_14(version: int, checked: bool) -> None:
    assert ("client_connection_check_interval" in statements.begin({}, None, version)) == checked


def test_readers_take_over_what_the_first_session_has_pinned() -> None:
    assert statements.pin(["TimeZone", "search_path"]) == (
        "SELECT set_config('TimeZone', %(TimeZone)s, true), set_config('search_path', %(search_path)s, true)"
    )
    for name in statements.PINNED:
        assert f"set_config('{name}', current_setting('{name}'), true)" in statements.begin({}, None, 140000)
        assert f"current_setting('{name}') AS \"{name}\"" in statements.EXPORT_SNAPSHOT


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by_blocks", [False, True])
def test_settling_changes_only_the_settings_that_the_next_statements_need(streaming: bool, by_blocks: bool) -> None:
    text = statements.check_snapshot(streaming=streaming, by_blocks=by_blocks)
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        assert (f"set_config('{name}', '0', true)" in text) == streaming
    for name, value in {"tidscan": "on", "indexscan": "off", "indexonlyscan": "off", "bitmapscan": "off"}.items():
        assert (f"set_config('enable_{name}', '{value}', true)" in text) == by_blocks
    assert text.count("set_config") == 2 * streaming + 5 * by_blocks

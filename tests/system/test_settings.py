"""Settings from the environment: the values of each variable, the message for a wrong one, and secrets that are never
shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.settings import Settings, SettingsError, describe_settings, read_settings

SECRET = "gehe!m@/:?#%&=+ß"
# Text that a variable of the environment and a libpq parameter can hold.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("API_HOST", "0.0.0.0", "api_host", "0.0.0.0"),
        ("API_PORT", "0", "api_port", 0),
        ("API_PORT", "65535", "api_port", 65535),
        ("API_PORT", " 80 ", "api_port", 80),
        ("ALLOWED_HOSTS", "*", "allowed_hosts", ("*",)),
        (
            "ALLOWED_HOSTS",
            " Sluice.Example. ,.example.org,*.example.net,münchen.example,sluice.example,",
            "allowed_hosts",
            ("sluice.example", ".example.org", "*.example.net", "xn--mnchen-3ya.example"),
        ),
        (
            "ALLOWED_HOSTS",
            "192.0.2.7,[2001:DB8::1],2001:db8::2,10.0.0.0/8,fd00::/8,::ffff:192.0.2.9",
            "allowed_hosts",
            ("192.0.2.7", "2001:db8::1", "2001:db8::2", "10.0.0.0/8", "fd00::/8", "192.0.2.9"),
        ),
        (
            "CORS_ORIGINS",
            "https://App.example.org:443/, http://localhost:3000,http://[::1]:80,https://münchen.example:8443",
            "cors_origins",
            (
                *("https://app.example.org", "http://localhost:3000", "http://[::1]"),
                "https://xn--mnchen-3ya.example:8443",
            ),
        ),
        (
            "FORWARDED_ALLOW_IPS",
            "127.0.0.1, 10.0.0.0/8,::1,unix,*",
            "forwarded_allow_ips",
            ("127.0.0.1/32", "10.0.0.0/8", "::1/128", "unix", "*"),
        ),
        ("WEB_CONCURRENCY", "1", "workers", 1),
        ("WEB_CONCURRENCY", "256", "workers", 256),
        ("DATABASE_URL", "postgresql://h/d", "database_url", "postgresql://h/d"),
        ("DB_HOST", "/run/postgresql", "db_host", "/run/postgresql"),
        ("DB_PORT", "1", "db_port", 1),
        ("DB_PORT", "65535", "db_port", 65535),
        ("DB_USER", "größe", "db_user", "größe"),
        ("DB_PASSWORD", SECRET, "db_password", SECRET),
        ("DB_NAME", "my db", "db_name", "my db"),
        ("EXPORT_SCHEMAS", "public", "export_schemas", ("public",)),
        ("EXPORT_SCHEMAS", "b, a ,b,,Sales Data", "export_schemas", ("b", "a", "Sales Data")),
        ("MAX_CONCURRENT_EXPORTS", "1", "max_concurrent_exports", 1),
        ("MAX_CONCURRENT_EXPORTS", "1000", "max_concurrent_exports", 1000),
        ("PARALLEL_READERS", "1", "parallel_readers", 1),
        ("PARALLEL_READERS", "64", "parallel_readers", 64),
        ("MEMORY_LIMIT", "0", "memory_limit", 0),
        ("MEMORY_LIMIT", "256MiB", "memory_limit", 256 << 20),
        ("STATEMENT_TIMEOUT", "0", "statement_timeout", 0.0),
        ("STATEMENT_TIMEOUT", "1.5", "statement_timeout", 1.5),
        ("STATEMENT_TIMEOUT", "2000000", "statement_timeout", 2e6),
        ("LOCK_TIMEOUT", "0", "lock_timeout", 0.0),
        ("LOCK_TIMEOUT", "2.5", "lock_timeout", 2.5),
        ("PLAN_TIMEOUT", "0", "plan_timeout", 0.0),
        ("PLAN_TIMEOUT", "2.5", "plan_timeout", 2.5),
        ("REGULAR_EXPRESSIONS", "0", "regular_expressions", False),
        ("STALL_TIMEOUT", "0", "stall_timeout", 0.0),
        ("STALL_TIMEOUT", "0.25", "stall_timeout", 0.25),
        ("SHUTDOWN_TIMEOUT", "5", "shutdown_timeout", 5),
        ("SHUTDOWN_TIMEOUT", "86400", "shutdown_timeout", 86400),
        ("EXPORT_STORAGE_PATH", "/var/lib/my exports", "export_storage_path", Path("/var/lib/my exports")),
        ("MAX_RUNNING_EXPORTS", "1", "max_running_exports", 1),
        ("MAX_WAITING_EXPORTS", "5", "max_waiting_exports", 5),
        ("MAX_SAVED_EXPORTS", "50000", "max_saved_exports", 50_000),
        ("MAX_CONNECTIONS", "10", "max_connections", 10),
        ("MAX_CONNECTIONS_PER_CLIENT", "2", "max_connections_per_client", 2),
        ("EXPORT_RETENTION", "0", "export_retention", 0.0),
        ("EXPORT_RETENTION", "86400.5", "export_retention", 86400.5),
        ("EXPORT_STORAGE_LIMIT", "0", "export_storage_limit", 0),
        ("EXPORT_STORAGE_LIMIT", "123456789", "export_storage_limit", 123456789),
        ("EXPORT_STORAGE_LIMIT", "10GB", "export_storage_limit", 10**10),
        ("EXPORT_STORAGE_LIMIT", "10 gb", "export_storage_limit", 10**10),
        ("EXPORT_STORAGE_LIMIT", "7B", "export_storage_limit", 7),
        ("EXPORT_MIN_FREE_SPACE", "512MiB", "export_min_free_space", 512 << 20),
        ("EXPORT_MIN_FREE_SPACE", "2TiB", "export_min_free_space", 2 << 40),
        ("EXPORT_MIN_FREE_SPACE", "3kB", "export_min_free_space", 3000),
        ("EXPORT_MAX_ATTEMPTS", "1000", "export_max_attempts", 1000),
        ("EMBEDDED_DATA_PATH", "data", "embedded_data_path", Path("data")),
        ("SEED_ROWS", "1", "seed_rows", 1),
        ("SEED_ROWS", "1000000000", "seed_rows", 10**9),
        ("SLUICE_PURE_PYTHON", "1", "pure_python", True),
        ("SLUICE_PURE_PYTHON", "TRUE", "pure_python", True),
        ("SLUICE_PURE_PYTHON", "yes", "pure_python", True),
        ("SLUICE_PURE_PYTHON", "On", "pure_python", True),
        ("SLUICE_PURE_PYTHON", "0", "pure_python", False),
        ("SLUICE_PURE_PYTHON", "false", "pure_python", False),
        ("SLUICE_PURE_PYTHON", "no", "pure_python", False),
        ("SLUICE_PURE_PYTHON", "off", "pure_python", False),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("LOG_LEVEL", "WARNING", "log_level", "WARNING"),
    ],
)
def test_a_variable_sets_one_value(variable: str, text: str, name: str, value: Any) -> None:
    # Compared with all settings, to notice a variable that sets a second one.
    expected = dataclasses.asdict(Settings()) | {name: value}
    assert dataclasses.asdict(read_settings({variable: text})) == expected


BAD = [
    ("API_PORT", ["http", "-1", "65536", "80.5", "0x50", "80 81"]),
    (
        "ALLOWED_HOSTS",
        [
            *(
                "http://sluice.example",
                "sluice.example:8080",
                "[::1]:80",
                "two words",
                "a..b",
                ".",
                "*.",
                "*.192.0.2.7",
            ),
            *("sluice.*.example", "user@sluice.example", "10.0.0.1/8", "127.1", "192.0.2.256", "fe80::1::2", "a_ß_ "),
            *("x" * 254, "\u202e.example"),
        ],
    ),
    (
        "CORS_ORIGINS",
        ["*", "null", "app.example.org", "https://", "ftp://a.example", "https://a.example/app", "https://*"],
    ),
    ("FORWARDED_ALLOW_IPS", ["proxy.example", "10.0.0.1/8", "127.0.0.1:80", "UNIX"]),
    ("WEB_CONCURRENCY", ["auto", "0", "257", "-4"]),
    ("DB_PORT", ["postgres", "0", "65536", "-1"]),
    ("EXPORT_SCHEMAS", [",", " , ,"]),
    ("MAX_CONCURRENT_EXPORTS", ["many", "0", "1001", "1.5"]),
    ("PARALLEL_READERS", ["all", "0", "65", "-1", "2.5"]),
    ("MEMORY_LIMIT", ["much", "-1", "1.5GB", "10 %"]),
    ("STATEMENT_TIMEOUT", ["10s", "-1", "nan", "inf", "-inf", "2000001"]),
    ("LOCK_TIMEOUT", ["3s", "-1", "nan", "2000001"]),
    ("PLAN_TIMEOUT", ["2s", "-1", "nan", "2000001"]),
    ("REGULAR_EXPRESSIONS", ["never", "2"]),
    ("STALL_TIMEOUT", ["5 min", "-0.1", "nan", "inf"]),
    ("SHUTDOWN_TIMEOUT", ["soon", "4", "86401", "30.0"]),
    ("MAX_RUNNING_EXPORTS", ["0", "1001", "some"]),
    ("MAX_WAITING_EXPORTS", ["0", "50001", "all"]),
    ("MAX_SAVED_EXPORTS", ["0", "50001"]),
    ("MAX_CONNECTIONS", ["9", "100001", "many"]),
    ("MAX_CONNECTIONS_PER_CLIENT", ["1", "100001"]),
    ("EXPORT_RETENTION", ["7d", "-1", "nan", "inf"]),
    ("EXPORT_STORAGE_LIMIT", ["much", "-1", "1.5GB", "10G", "1iB", "GB", "10000PB", "٣", "1" * 19]),
    ("EXPORT_MIN_FREE_SPACE", ["10 %", "-1B", "1 000"]),
    ("EXPORT_MAX_ATTEMPTS", ["0", "1001"]),
    ("SEED_ROWS", ["1e6", "0", "-1", "1000000001"]),
    ("SLUICE_PURE_PYTHON", ["2", "maybe", "ja"]),
    ("LOG_FORMAT", ["xml", "JSON"]),
    ("LOG_LEVEL", ["debug", "TRACE", "10"]),
]


@pytest.mark.parametrize(("variable", "text"), [(variable, text) for variable, texts in BAD for text in texts])
def test_a_value_that_cannot_be_used_is_shown_with_its_variable(variable: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        # The message must not contain the secret of another setting.
        read_settings({"DB_PASSWORD": SECRET, "DATABASE_URL": f"postgresql://u:{SECRET}@h/d", variable: text})
    message = str(caught.value)
    assert message.startswith(f"{variable}={text.strip()!r} cannot be used: ")
    assert SECRET not in message


def test_every_variable_that_can_be_wrong_is_in_that_table() -> None:
    strict = {
        setting.metadata["variable"]
        for setting in dataclasses.fields(Settings)
        if setting.metadata["parse"] not in (str, Path)
    }
    assert {variable for variable, _ in BAD} == strict


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_not_set(text: str) -> None:
    variables = [setting.metadata["variable"] for setting in dataclasses.fields(Settings)]
    assert read_settings(dict.fromkeys(variables, text)) == Settings()


def test_other_variables_have_no_effect() -> None:
    assert read_settings({"PATH": "/bin", "API_PORTS": "x", "api_port": "x", "PGPASSWORD": "x"}) == Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().api_port = 1  # type: ignore[misc]


def test_secrets_are_in_no_repr() -> None:
    settings = read_settings({"DB_PASSWORD": SECRET, "DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "DB_HOST": "h"})
    assert settings.db_password == SECRET
    assert settings.database_url is not None
    assert SECRET in settings.database_url
    for shown in (repr(settings), str(settings), f"{settings}", repr([settings])):
        assert "gehe" not in shown
        assert "api_port=8080" in shown


def test_a_password_is_used_unchanged() -> None:
    # Spaces may be part of it, as in libpq's PGPASSWORD.
    assert read_settings({"DB_PASSWORD": "  two blanks on either side  "}).db_password == (
        "  two blanks on either side  "
    )


@pytest.mark.parametrize(
    ("given", "embedded"),
    [
        ({}, True),
        ({"DB_USER": "u", "DB_PASSWORD": "p", "DB_NAME": "d", "DB_PORT": "1"}, True),
        ({"DB_HOST": "h"}, False),
        ({"DATABASE_URL": "postgresql://h/d"}, False),
    ],
)
def test_the_embedded_database_is_used_if_none_is_configured(given: dict[str, str], embedded: bool) -> None:
    assert read_settings(given).embedded is embedded


def test_without_a_database_there_is_no_dsn() -> None:
    with pytest.raises(SettingsError, match="neither DATABASE_URL nor DB_HOST is set"):
        _ = Settings(db_user="u", db_password="p").dsn


def test_database_url_overrides_the_others_unchanged() -> None:
    url = "postgresql://u:p%40@h:1/d?sslmode=require"
    assert Settings(database_url=url, db_host="other", db_user="other", db_name="other").dsn == url


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (Settings(db_host="db"), {"host": "db", "port": "5432"}),
        (Settings(db_host="db", db_port=6432), {"host": "db", "port": "6432"}),
        (Settings(db_host="db", db_user="u"), {"host": "db", "port": "5432", "user": "u"}),
        (Settings(db_host="db", db_name="d"), {"host": "db", "port": "5432", "dbname": "d"}),
        # libpq then uses the name of the operating system's user, with this password.
        (Settings(db_host="db", db_password="p"), {"host": "db", "port": "5432", "password": "p"}),
        (
            Settings(db_host="db", db_user="u", db_password="p", db_name="d"),
            {"host": "db", "port": "5432", "user": "u", "password": "p", "dbname": "d"},
        ),
        (Settings(db_host="db", db_user="", db_password="", db_name=""), {"host": "db", "port": "5432"}),
        (
            Settings(db_host="/run/my sockets", db_user="a@b", db_password=SECRET, db_name="x/y?host=evil"),
            {
                "host": "/run/my sockets",
                "port": "5432",
                "user": "a@b",
                "password": SECRET,
                "dbname": "x/y?host=evil",
            },
        ),
        (Settings(db_host="::1"), {"host": "::1", "port": "5432"}),
        (Settings(db_host="@abstract"), {"host": "@abstract", "port": "5432"}),
        (Settings(db_host="one,two"), {"host": "one,two", "port": "5432"}),
    ],
)
def test_the_dsn_passes_the_settings_to_libpq(settings: Settings, parts: dict[str, str]) -> None:
    assert psycopg2.extensions.parse_dsn(settings.dsn) == parts


@given(host=TEXT, user=TEXT, password=TEXT, name=TEXT)
@example(host="%", user="%40", password="%00", name="%zz")
@example(host="h&port=1", user="u:p@x", password="@evil/", name="d?host=evil#x")
def test_any_character_reaches_libpq(host: str, user: str, password: str, name: str) -> None:
    settings = Settings(db_host=host, db_user=user, db_password=password, db_name=name)
    assert psycopg2.extensions.parse_dsn(settings.dsn) == {
        "host": host,
        "port": "5432",
        "user": user,
        "password": password,
        "dbname": name,
    }


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("fe80::1", False),
        ("128.0.0.1", False),
        ("localhost.example.org", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
        ("127.1", False),  # no address for `ipaddress`; a superfluous warning does no harm
    ],
)
def test_only_loopback_counts_as_safe(host: str, loopback: bool) -> None:
    assert Settings(api_host=host).loopback_only is loopback


def test_the_default_is_reachable_from_this_machine_only() -> None:
    assert Settings().loopback_only


def test_the_description_has_every_setting_once_with_its_meaning() -> None:
    table = describe_settings()
    assert [variable for variable, _, _ in table] == [
        setting.metadata["variable"] for setting in dataclasses.fields(Settings)
    ]
    assert len({variable for variable, _, _ in table}) == len(table)
    assert all(meaning and not meaning.endswith(".") for _, _, meaning in table)


def test_the_description_shows_the_real_defaults() -> None:
    shown = {variable: default for variable, default, _ in describe_settings()}
    assert read_settings(shown) == Settings()
    # Settings without a default show none; the others show it as it is written in the environment.
    assert {variable for variable, default in shown.items() if not default} == {
        "ALLOWED_HOSTS",
        "CORS_ORIGINS",
        "FORWARDED_ALLOW_IPS",
        "DATABASE_URL",
        "DB_HOST",
        "DB_USER",
        "DB_PASSWORD",
        "DB_NAME",
        "PARALLEL_READERS",
        "MEMORY_LIMIT",
    }
    assert (shown["API_PORT"], shown["STATEMENT_TIMEOUT"], shown["SLUICE_PURE_PYTHON"]) == ("8080", "600", "0")
    assert (shown["EXPORT_SCHEMAS"], shown["EMBEDDED_DATA_PATH"]) == ("public", ".data/postgres")

"""The settings: one frozen value, read once from the environment when the process starts.

Each setting is a field of `Settings` with its variable, description, default and parser. A test compares the README's
table with them. No other module reads a setting from the environment.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.cpus import available_cpus
from server.network_names import parse_allowed_hosts, parse_origins, parse_proxies
from server.ram import memory_for_values
from server.setting_values import byte_count, flag, names, one_of, retention, seconds, whole


class SettingsError(ValueError):
    """A variable of the environment has a value that cannot be used. The message names the variable."""


def _setting(variable: str, doc: str, default: Any, parse: Callable[[str], Any] = str, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"variable": variable, "doc": doc, "parse": parse})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. Times are in seconds, sizes in bytes."""

    api_host: str = _setting("API_HOST", "Address to listen on", "127.0.0.1")
    api_port: int = _setting("API_PORT", "Port to listen on; 0 selects a free one", 8080, whole(0, 65535))
    allowed_hosts: tuple[str, ...] = _setting(
        "ALLOWED_HOSTS",
        "Hosts that a request may name besides this machine, separated by commas: `sluice.example.org`, `.example.org` "
        "with all names below it, `192.0.2.7`, `10.0.0.0/8`; `*` allows any",
        (),
        parse_allowed_hosts,
    )
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS",
        "Other sites whose pages may send any request, such as `https://app.example.org`, separated by commas",
        (),
        parse_origins,
    )
    forwarded_allow_ips: tuple[str, ...] = _setting(
        "FORWARDED_ALLOW_IPS",
        "Proxies whose `X-Forwarded-…` headers are believed: addresses and networks, separated by commas; `unix`: all "
        "peers on a Unix socket; `*`: all peers",
        (),
        parse_proxies,
    )
    workers: int = _setting("WEB_CONCURRENCY", "Worker processes, each with its own connections", 1, whole(1, 256))
    database_url: str | None = _setting(
        "DATABASE_URL", "libpq URI of the database; overrides the `DB_…` variables", None, secret=True
    )
    db_host: str | None = _setting("DB_HOST", "Host name or socket folder of the database", None)
    db_port: int = _setting("DB_PORT", "Port of the database", 5432, whole(1, 65535))
    db_user: str | None = _setting("DB_USER", "Role to connect as", None)
    db_password: str | None = _setting("DB_PASSWORD", "Password of the role", None, secret=True)
    db_name: str | None = _setting("DB_NAME", "Name of the database", None)
    export_schemas: tuple[str, ...] = _setting(
        "EXPORT_SCHEMAS",
        "Schemas whose relations may be exported, in search order, separated by commas",
        ("public",),
        names,
    )
    max_concurrent_exports: int = _setting(
        "MAX_CONCURRENT_EXPORTS",
        "Export slots of each worker: downloads and running saved exports at once, one connection each; further "
        "downloads get a 503. Each worker has up to 8 + 2 × (`PARALLEL_READERS` - 1) connections more, for the "
        "catalogue, previews, health checks, cancellation and parallel readers",
        8,
        whole(1, 1000),
    )
    parallel_readers: int | None = _setting(
        "PARALLEL_READERS",
        "Maximum number of connections that read one large table in parallel; default: the processors that the process "
        "may use, at most 4",
        None,
        whole(1, 64),
    )
    memory_limit: int | None = _setting(
        "MEMORY_LIMIT",
        "Bytes that each worker may use for values of more than 1 MiB that have to be held, such as `256MiB`; default: "
        "a quarter of the memory of the machine or the container, divided by the workers, at most 1 GiB",
        None,
        byte_count,
    )
    statement_timeout: float = _setting(
        "STATEMENT_TIMEOUT",
        "Longest wait for the next rows of a query, in seconds; 0 disables it. A shorter `statement_timeout` of the "
        "database role takes its place",
        600.0,
        seconds,
    )
    lock_timeout: float = _setting(
        "LOCK_TIMEOUT",
        "Longest wait for a table that another session has locked, in seconds; then the answer is 503. 0: as long as "
        "`STATEMENT_TIMEOUT`. A shorter `lock_timeout` of the database role takes its place",
        3.0,
        seconds,
    )
    plan_timeout: float = _setting(
        "PLAN_TIMEOUT",
        "Longest time in which PostgreSQL may plan a query, in seconds, without its waits for locks; 0 disables it",
        1.5,
        seconds,
    )
    regular_expressions: bool = _setting(
        "REGULAR_EXPRESSIONS",
        "0 refuses the operators `match` and `imatch`, which can keep PostgreSQL busy with a few characters",
        True,
        flag,
    )
    stall_timeout: float = _setting(
        "STALL_TIMEOUT",
        "Time after which a client that reads nothing is disconnected, in seconds; 0 disables it",
        300.0,
        seconds,
    )
    max_connections: int = _setting(
        "MAX_CONNECTIONS",
        "Connections that clients may have with each worker, as far as its limit of open files allows; beyond it the "
        "one that has been idle longest is closed. Half of them may be event streams",
        1000,
        whole(10, 100_000),
    )
    max_connections_per_client: int = _setting(
        "MAX_CONNECTIONS_PER_CLIENT",
        "The same for one address (IPv6: one /64 network). It does not count connections from this machine, where a "
        "proxy may run, and from trusted proxies",
        100,
        whole(2, 100_000),
    )
    shutdown_timeout: int = _setting(
        "SHUTDOWN_TIMEOUT",
        "How long running downloads may continue after SIGTERM, in seconds",
        30,
        whole(5, 86400),
    )
    export_storage_path: Path = _setting(
        "EXPORT_STORAGE_PATH", "Folder of the saved exports; servers may share it", Path("exports"), Path
    )
    max_running_exports: int = _setting(
        "MAX_RUNNING_EXPORTS",
        "Saved exports that run at once, in all processes on the folder together; the others wait in the queue",
        2,
        whole(1, 1000),
    )
    max_waiting_exports: int = _setting(
        "MAX_WAITING_EXPORTS",
        "Saved exports that wait or run at once; beyond it a POST gets a 429",
        1000,
        whole(1, 50_000),
    )
    max_saved_exports: int = _setting(
        "MAX_SAVED_EXPORTS",
        "Saved exports that are kept; beyond it the oldest failed and cancelled ones are removed, and if there are "
        "none, a POST gets a 507",
        10_000,
        whole(1, 50_000),
    )
    export_retention: float = _setting(
        "EXPORT_RETENTION",
        "Time for which a finished export is kept, in seconds; 0 keeps it without limit",
        604800.0,
        retention,
    )
    export_storage_limit: int = _setting(
        "EXPORT_STORAGE_LIMIT",
        "Bytes that saved exports and their manifests may use, such as `10GB`; beyond it the oldest finished ones are "
        "removed; 0: no limit",
        0,
        byte_count,
    )
    export_min_free_space: int = _setting(
        "EXPORT_MIN_FREE_SPACE",
        "Bytes that saved exports leave free on the disk, such as `10GB`",
        500_000_000,
        byte_count,
    )
    export_max_attempts: int = _setting(
        "EXPORT_MAX_ATTEMPTS",
        "Attempts at a saved export that are killed or end with a transient error, before the export counts as failed",
        3,
        whole(1, 1000),
    )
    embedded_data_path: Path = _setting(
        "EMBEDDED_DATA_PATH", "Data folder of the embedded PostgreSQL", Path(".data/postgres"), Path
    )
    seed_rows: int = _setting(
        "SEED_ROWS", "Users in the sample data of an empty embedded database", 1_000_000, whole(1, 10**9)
    )
    pure_python: bool = _setting(
        "SLUICE_PURE_PYTHON", "1 selects the pure-Python encoder even if the native one is built", False, flag
    )
    log_format: str = _setting("LOG_FORMAT", "`text` (key=value) or `json`", "text", one_of("text", "json"))
    log_level: str = _setting(
        "LOG_LEVEL",
        "Least severe level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`. "
        "`DEBUG` adds PostgreSQL's own error messages, which may hold values of rows",
        "INFO",
        one_of("DEBUG", "INFO", "WARNING", "ERROR"),
    )

    @property
    def embedded(self) -> bool:
        """Whether no database is configured, so that the embedded one is used."""
        return self.database_url is None and self.db_host is None

    @functools.cached_property
    def most_readers(self) -> int:
        """Most connections that read one relation in parallel. The processors are counted once."""
        return self.parallel_readers or min(available_cpus(), 4)

    @functools.cached_property
    def most_memory(self) -> int:
        """Bytes that each worker may use for large values. The memory of the machine is looked up once."""
        return memory_for_values(self.workers) if self.memory_limit is None else self.memory_limit

    @property
    def dsn(self) -> str:
        """The libpq URI to connect to (PostgreSQL manual, "Connection URIs"), with the password.

        Raise SettingsError if no database is configured.
        """
        if self.database_url is not None:
            return self.database_url
        if self.db_host is None:
            raise SettingsError("neither DATABASE_URL nor DB_HOST is set")
        login = quote(self.db_user, safe="") if self.db_user else ""
        if self.db_password:
            login += ":" + quote(self.db_password, safe="")
        name = quote(self.db_name, safe="") if self.db_name else ""
        return (
            f"postgresql://{login}{'@' if login else ''}/{name}?host={quote(self.db_host, safe='')}&port={self.db_port}"
        )

    @property
    def loopback_only(self) -> bool:
        """Whether only processes of this machine can reach the port."""
        if self.api_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.api_host).is_loopback
        except ValueError:
            return False


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings of this environment. An empty variable counts as not set. Raise SettingsError."""
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        variable = setting.metadata["variable"]
        text = environment.get(variable, "")
        if text.strip():
            if setting.repr:  # a password may begin or end with a space
                text = text.strip()
            try:
                values[setting.name] = setting.metadata["parse"](text)
            except ValueError as error:
                shown = "" if not setting.repr else f"={text!r}"
                raise SettingsError(f"{variable}{shown} cannot be used: {error}") from None
    return Settings(**values)


def describe_settings() -> list[tuple[str, str, str]]:
    """Return (variable, default, description) of every setting, in the order of the README's table."""
    table = []
    for setting in fields(Settings):
        default = setting.default
        assert default is not MISSING
        if default is None:
            shown = ""
        elif isinstance(default, tuple):
            shown = ",".join(default)
        elif isinstance(default, bool):
            shown = str(int(default))
        elif isinstance(default, float):
            shown = f"{default:g}"
        else:
            shown = str(default)
        table.append((setting.metadata["variable"], shown, setting.metadata["doc"]))
    return table

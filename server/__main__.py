"""The command line: `python -m server serve | dsn | seed`. Parses arguments; the commands' work is elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from server.process.children import ended_by_exceptions
from server.process.data_folder import EmbeddedError
from server.process.embedded import EmbeddedPostgres
from server.process.sample_data import seed
from server.settings import Settings, SettingsError, read_settings
from server.visible import visible


class _Parser(argparse.ArgumentParser):
    """A parser whose errors control no terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status. arguments: those of the process if None."""
    parser = _Parser(prog="python -m server", description="Stream PostgreSQL relations as CSV.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve; start an embedded PostgreSQL if no database is configured")
    commands.add_parser("dsn", help="print the libpq URI of the configured or the running embedded database")
    commands.add_parser("seed", help="fill the embedded database with sample data, if it is empty")
    command = parser.parse_args(arguments).command
    try:
        settings = read_settings(os.environ)
        return {"serve": _serve, "dsn": _dsn, "seed": _seed}[command](settings)
    except (SettingsError, EmbeddedError) as error:
        print(f"sluice: {visible(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(settings: Settings) -> int:
    # Importing the driver and gunicorn takes half a second, which the other commands do not need.
    from server.app import create_app_runner
    from server.process.serve import serve

    serve(settings, create_app_runner)
    return 0


def _dsn(settings: Settings) -> int:
    print(settings.dsn if not settings.embedded else EmbeddedPostgres(settings.embedded_data_path).uri)
    return 0


def _seed(settings: Settings) -> int:
    if not settings.embedded:
        raise SettingsError('a database is configured: seed it with psql --file seeds/init.sql "$DATABASE_URL"')
    with ended_by_exceptions(), EmbeddedPostgres(settings.embedded_data_path) as embedded:
        seed(embedded, settings.seed_rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

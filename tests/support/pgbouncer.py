"""A real PgBouncer in transaction mode, for one test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions

from tests.support.optional import skip_or_fail
from tests.support.proxies import free_port
from tests.support.relay import forwarded

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def pgbouncer(database_url: str, pool_size: int) -> Iterator[str]:
    """Yield the URI of the database through a PgBouncer whose pool has so many server connections."""
    if PGBOUNCER is None:
        skip_or_fail("pgbouncer is not installed")
    parts = psycopg2.extensions.parse_dsn(database_url)
    folder = Path(tempfile.mkdtemp(prefix="sluice-pgbouncer-"))
    folder.chmod(0o755)
    port = free_port()
    stack = contextlib.ExitStack()
    # PgBouncer refuses to run as root, and the embedded database refuses everyone else.
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    host, server_port = parts["host"], parts.get("port", "5432")
    if host.startswith("/") and os.geteuid() == 0:
        host, server_port = "127.0.0.1", stack.enter_context(forwarded(Path(f"{host}/.s.PGSQL.{server_port}")))
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
pooled = host={host} port={server_port} dbname={parts["dbname"]} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
"""
    )
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(folder / "pgbouncer.ini")],
        stderr=subprocess.DEVNULL,
        user=account.pw_uid,
        group=account.pw_gid,
    )
    url = f"postgresql://postgres@127.0.0.1:{port}/pooled"
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                psycopg2.connect(url).close()
                break
            except psycopg2.OperationalError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)
        stack.close()
        shutil.rmtree(folder, ignore_errors=True)

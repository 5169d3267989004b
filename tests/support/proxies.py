"""nginx for tests, and ports for programs that do not choose one themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.live_server import wait_until
from tests.support.optional import skip_or_fail

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_nginx(server: str) -> Iterator[str]:
    """Run an nginx with its default settings and yield its URL. server: directives of its one `server` block.

    Skip the test if nginx is not installed.
    """
    if NGINX is None:
        skip_or_fail("nginx is not installed")
    folder = Path(tempfile.mkdtemp(prefix="sluice-nginx-"))
    port = free_port()
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {folder}/pid; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; {server} }} }}\n"
    )
    errors = folder / "error.log"
    process = subprocess.Popen([NGINX, "-p", folder, "-c", configuration, "-e", errors], stderr=subprocess.DEVNULL)

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, errors.read_text()
            return False
        return True

    try:
        wait_until("nginx listens", listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)

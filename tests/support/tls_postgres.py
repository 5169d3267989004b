"""A PostgreSQL that accepts only TLS, with certificates that are made for it.

The PostgreSQL of the embedded package is built without OpenSSL. So this one is the system's, in a data folder of its
own, started as the embedded one is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from server.process.data_folder import Account, account_for
from server.process.embedded import EmbeddedPostgres
from tests.support.folders import made_folder
from tests.support.optional import skip_or_fail
from tests.support.proxies import free_port

OPENSSL = shutil.which("openssl")
# Where Debian's packages keep the programs of the server, outside the PATH.
DEBIAN = Path("/usr/lib/postgresql")

# The password in every URI. PostgreSQL does not ask for it, so only a leak makes it appear anywhere.
PASSWORD = "geheim"

# `-config` replaces the system's file, whose extensions differ between systems.
EXTENSIONS = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
[server]
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


@dataclass(frozen=True)
class Installation:
    """A PostgreSQL of the system. folder: holds its `bin`. version: its major version."""

    folder: Path
    version: int


class InstalledPostgres(EmbeddedPostgres):
    """A PostgreSQL like the embedded one, from the programs of an installation."""

    def __init__(self, data_path: Path, installation: Installation, settings: dict[str, str]) -> None:
        super().__init__(data_path, version=installation.version, settings=settings)
        self._found = installation

    def _installation(self) -> Path:
        return self._found.folder


@dataclass(frozen=True)
class TlsPostgres:
    """A running PostgreSQL that accepts only TLS.

    port: on 127.0.0.1. authority: the certificate that signed the server's. stranger: one that did not.
    """

    port: int
    authority: Path
    stranger: Path

    def url(self, **parameters: str) -> str:
        """Return the libpq URI of the database, which verifies the server. parameters: to add to it or to replace."""
        chosen = {
            "host": "127.0.0.1",
            "port": str(self.port),
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
            **parameters,
        }
        return f"postgresql://postgres:{PASSWORD}@/postgres?{urlencode(chosen)}"


def find_installation() -> Installation | None:
    """Return the newest PostgreSQL server of this system that was built with OpenSSL."""
    found: dict[int, Path] = {}
    on_path = shutil.which("postgres")
    for program in [*DEBIAN.glob("*/bin/postgres"), *([Path(on_path).resolve()] if on_path else [])]:
        built = subprocess.run([program.with_name("pg_config")], capture_output=True, text=True, check=True).stdout
        version = re.search(r"^VERSION = PostgreSQL (\d+)", built, re.MULTILINE)
        assert version, built
        if "openssl" in built:
            found[int(version[1])] = program.parent.parent
    return Installation(found[max(found)], max(found)) if found else None


@contextlib.contextmanager
def running_tls_postgres() -> Iterator[TlsPostgres]:
    """Start a PostgreSQL that accepts only TLS. Skip the test if this system has no such PostgreSQL or no openssl."""
    installation = find_installation()
    missing = [name for name, there in (("openssl", OPENSSL), ("postgresql with OpenSSL", installation)) if not there]
    if missing or installation is None:
        skip_or_fail(f"not installed: {', '.join(missing)}")
    with made_folder() as folder:
        # PostgreSQL requires that the owner of its key is its own account.
        account = account_for(folder / "postgres")
        _make_certificates(folder, account)
        (folder / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "fsync": "off",
            "hba_file": str(folder / "pg_hba.conf"),
            "ssl": "on",
            "ssl_cert_file": str(folder / "server.crt"),
            "ssl_key_file": str(folder / "server.key"),
        }
        with InstalledPostgres(folder / "postgres", installation, settings):
            yield TlsPostgres(port, folder / "authority.crt", folder / "stranger.crt")


def _make_certificates(folder: Path, account: Account | None) -> None:
    """Make the certificates of two authorities, and one of a server that the first of them has signed."""
    (folder / "extensions").write_text(EXTENSIONS)
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("authority", "stranger"):
        own = ["-config", "extensions", "-extensions", "authority", "-subj", f"/CN={name} of the tests"]
        _openssl(folder, "req", "-x509", *own, *new_key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "2")
    # The subject names no host: libpq has to find the names among the extensions.
    subject = ["-config", "extensions", "-subj", "/CN=server of the tests"]
    _openssl(folder, "req", "-new", *subject, *new_key, "-keyout", "server.key", "-out", "server.csr")
    signed = ["-CA", "authority.crt", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2"]
    names = ["-extfile", "extensions", "-extensions", "server"]
    _openssl(folder, "x509", "-req", "-in", "server.csr", *signed, *names, "-out", "server.crt")
    key = folder / "server.key"
    key.chmod(0o600)
    if account is not None:
        os.chown(key, account.uid, account.gid)


def _openssl(folder: Path, *arguments: str) -> None:
    assert OPENSSL is not None
    done = subprocess.run([OPENSSL, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

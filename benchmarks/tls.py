"""The worker's CPU for the whole table over TLS, compared with TCP without TLS.

The PostgreSQL of the other measurements is built without OpenSSL. So this one is the system's, with the same sample
data in a data folder of its own. It listens on a port of this machine and asks for a password there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measure import Download, served
from benchmarks.processes import SLUICE, BenchmarkError, Server
from benchmarks.report import spread, verdict
from benchmarks.sample import Sample, seeded
from server.process.data_folder import Account, account_for
from tests.support.tls_postgres import InstalledPostgres, find_installation

# The target for the worker's CPU, relative to TCP without TLS.
MOST_TIMES_PLAIN = 1.6
_HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@dataclass(frozen=True)
class Figures:
    """The downloads, by round. why_not: the reason if there are none."""

    encrypted: list[Download]
    plain: list[Download]
    why_not: str = ""

    @property
    def cpu(self) -> list[float]:
        """The worker's CPU over that without TLS, by round."""
        return [ours.cpu / plain.cpu for ours, plain in zip(self.encrypted, self.plain, strict=True) if plain.cpu]


def measure(path: Path, rows: int, rounds: int, say: Callable[[str], None]) -> Figures:
    """Download the users in turn with and without TLS. path: the data folder. rows: users in the sample data."""
    installation = find_installation()
    if installation is None or shutil.which("openssl") is None:
        return Figures([], [], "TLS needs a PostgreSQL of the system, built with OpenSSL, and the program openssl")
    with tempfile.TemporaryDirectory(prefix="sluice-benchmark-") as folder:
        settings = _settings(Path(folder), account_for(path.absolute()))
        with InstalledPostgres(path, installation, settings) as postgres:
            sample = seeded(postgres, path, rows)
            if sample.query("SHOW port") != settings["port"]:
                raise BenchmarkError(f"another process uses {path}")
            password = secrets.token_hex(16)
            sample.query(f"ALTER ROLE postgres PASSWORD '{password}'", "VACUUM (ANALYZE) users")
            url = f"postgresql://postgres:{password}@127.0.0.1:{settings['port']}/postgres?sslmode="
            return _take_turns(sample, url, rounds, say)


def _settings(folder: Path, account: Account | None) -> dict[str, str]:
    """Make a certificate in this folder, and return the settings of a server that uses it. account: of that server."""
    key, certificate, hba = folder / "server.key", folder / "server.crt", folder / "pg_hba.conf"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise BenchmarkError(f"openssl: {made.stderr.strip()}")
    hba.write_text(_HBA)
    key.chmod(0o600)
    if account is not None:  # PostgreSQL requires that it owns the key
        for each in (folder, key, certificate, hba):
            os.chown(each, account.uid, account.gid)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "ssl": "on",
        "ssl_cert_file": str(certificate),
        "ssl_key_file": str(key),
        "hba_file": str(hba),
    }


def _take_turns(sample: Sample, url: str, rounds: int, say: Callable[[str], None]) -> Figures:
    with Server(SLUICE, url + "require") as encrypted, Server(SLUICE, url + "disable") as plain:
        figures = Figures([], [])
        for number in range(-1, rounds):  # the first is not counted
            turns = [(encrypted, figures.encrypted), (plain, figures.plain)]
            for server, downloads in turns if number % 2 else reversed(turns):
                download = served(sample, server)
                if number >= 0:
                    downloads.append(download)
            if number >= 0:
                latest = f"{figures.encrypted[-1].cpu:.2f} s, without {figures.plain[-1].cpu:.2f} s"
                say(f"round {number + 1}: worker's CPU with TLS {latest}")
        kinds = (
            "SELECT count(DISTINCT ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr NOTNULL"
        )
        if sample.query(kinds) != "2":
            raise BenchmarkError("one server should use TLS and the other should not")
    return figures


def table(figures: Figures) -> str:
    """Return the medians as Markdown."""
    lines = [
        "| whole table over TCP | wall time, s | worker's CPU, s | × without TLS (range) | PostgreSQL's CPU, s |",
        "|---|--:|--:|--:|--:|",
    ]
    rows = (("without TLS", figures.plain, "1.00"), ("with TLS", figures.encrypted, spread(figures.cpu)))
    lines += [
        f"| {name} | {median(each.seconds for each in downloads):.2f} | {median(each.cpu for each in downloads):.2f} "
        f"| {times} | {median(each.postgres_cpu for each in downloads):.2f} |"
        for name, downloads, times in rows
        if downloads
    ]
    return "\n".join(lines)


def verdicts(figures: Figures) -> list[str]:
    """Compare the worker's CPU with its target. Return a line with PASS or MISS."""
    if not figures.cpu:
        return [f"- not measured: {figures.why_not or 'the CPU with TLS needs more rows'}"]
    times = median(figures.cpu)
    return [
        verdict(
            times <= MOST_TIMES_PLAIN,
            f"the worker's CPU with TLS: {times:.2f} × without (at most {MOST_TIMES_PLAIN})",
        )
    ]

"""Others for comparison: servers with typed rows and csv.writer, asyncpg's COPY, Express on Node.js; and DuckDB."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT, BenchmarkError, Server

SOURCES = ROOT / "benchmarks" / "node"
DUCKDB = ROOT / "benchmarks" / "duckdb_copy.py"


def gunicorn(module: str) -> tuple[str, ...]:
    """Return the arguments of Python that serve `make_app` of this module, with the worker that Sluice uses."""
    return (
        *("-m", "gunicorn", "--worker-class", "aiohttp.worker.GunicornUVLoopWebWorker"),
        *("--bind", "127.0.0.1:0", "--no-control-socket", f"{module}:make_app"),
    )


def obvious(database_url: str) -> Server:
    """Return a server that writes typed rows with csv.writer."""
    return Server(gunicorn("benchmarks.obvious"), database_url)


def asyncpg_copy(database_url: str) -> Server:
    """Return a server that passes on the output of PostgreSQL's COPY."""
    return Server(gunicorn("benchmarks.asyncpg_copy"), database_url)


def node(database_url: str, folder: Path) -> Server | None:
    """Return Express with pg-query-stream and csv-stringify, installed with npm, or None without Node.js."""
    executable, npm = shutil.which("node"), shutil.which("npm")
    if executable is None or npm is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "server.js"):
        shutil.copyfile(SOURCES / name, folder / name)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise BenchmarkError(f"npm install: {done.stderr}")
    return Server(("server.js",), database_url, executable=executable, folder=folder)


def duckdb_extension() -> Path | None:
    """Return the path of DuckDB's scanner for PostgreSQL, or None if one of the two packages is not installed."""
    package = importlib.util.find_spec("duckdb_extension_postgres_scanner")
    if package is None or package.origin is None or importlib.util.find_spec("duckdb") is None:
        return None
    return next(Path(package.origin).parent.glob("extensions/*/postgres_scanner.duckdb_extension"), None)


def start_duckdb(database_url: str, extension: Path, threads: int) -> subprocess.Popen[str]:
    """Start DuckDB with a copy of the users to /dev/null. It prints the number of rows and the statement's seconds."""
    return subprocess.Popen(
        [sys.executable, str(DUCKDB), database_url, str(extension), str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

"""Saved exports: their cost compared with streaming, their effect on other requests, and the time of the list."""

from __future__ import annotations

import datetime
import http.client
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.processes import SLUICE, BenchmarkError, Server, start_curl, timed
from benchmarks.report import spread, verdict

# The targets: saving relative to streaming, and seconds.
MOST_TIMES_STREAMING = 1.15
MOST_SECONDS_ALIVE = 0.100
MOST_SECONDS_LISTED = 0.100

RUNNING = 3
LISTED = 1000
LISTINGS = 20
# Seconds between two requests: short enough for a p99, long enough not to be the load.
BETWEEN_REQUESTS = 0.005


@dataclass(frozen=True)
class Figures:
    """The measurements. ratios: seconds of saving over those of streaming. alive, listed: seconds of each response."""

    ratios: list[float]
    alive: list[float]
    listed: list[float]


def measure(database_url: str, rounds: int, say: Callable[[str], None]) -> Figures:
    """Measure everything on a server of its own. rounds: the number of times to save and to stream."""
    with (
        tempfile.TemporaryDirectory(prefix="sluice-benchmark-", dir=Path.cwd()) as folder,
        Server(SLUICE, database_url, EXPORT_STORAGE_PATH=folder, MAX_RUNNING_EXPORTS=str(RUNNING)) as server,
    ):
        api = Api(server.port)
        ratios = [_round(api, server, number, say) for number in range(-1, rounds)][1:]
        alive = _alive(api)
        return Figures(ratios, alive, _listed(api, Path(folder)))


class Api:
    """A client of the server's API, with one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, method: str, path: str) -> bytes:
        """Return the body of the response. Raise BenchmarkError for an error status."""
        self._connection.request(method, path)
        response = self._connection.getresponse()
        body = response.read()
        if response.status >= 400:
            raise BenchmarkError(f"{method} {path}: {response.status} {body[:300]!r}")
        return body

    def save(self) -> str:
        """Create an export of the users and return its path."""
        return "/exports/" + str(json.loads(self.ask("POST", "/export/users.csv"))["exportId"])

    def status(self, path: str) -> dict[str, Any]:
        """Return the status of an export. Raise BenchmarkError if it failed or was cancelled."""
        document: dict[str, Any] = json.loads(self.ask("GET", path))
        if document["status"] in ("failed", "cancelled"):
            raise BenchmarkError(f"an export {document['status']}: {document['error']}")
        return document


def _round(api: Api, server: Server, number: int, say: Callable[[str], None]) -> float:
    """Return the seconds of saving the users over those of streaming them to curl, in alternating order."""

    def streaming() -> float:
        return timed(start_curl, server.url("users")).seconds

    if number % 2:
        streamed = streaming()
        saved = seconds_to_save(api)
    else:
        saved = seconds_to_save(api)
        streamed = streaming()
    if number >= 0:
        say(f"round {number + 1}: saved {saved:.2f} s, streamed {streamed:.2f} s")
    return saved / streamed


def seconds_to_save(api: Api) -> float:
    """Save the users once and remove the export. Return the seconds from the request to `completedAt`."""
    started = datetime.datetime.now(datetime.UTC)
    path = api.save()
    while (document := api.status(path))["status"] != "completed":
        time.sleep(0.05)
    ended = datetime.datetime.fromisoformat(document["completedAt"])
    api.ask("DELETE", path)
    return (ended - started).total_seconds()


def _alive(api: Api) -> list[float]:
    """Return the seconds of each response of /health/live while all export slots for saved exports are in use."""
    paths = [api.save() for _ in range(RUNNING)]
    while any(api.status(path)["status"] == "pending" for path in paths):
        time.sleep(0.01)
    seconds: list[float] = []
    looked = time.perf_counter()
    while True:
        seconds.append(_timed(api, "/health/live"))
        time.sleep(BETWEEN_REQUESTS)
        if time.perf_counter() - looked > 0.1:
            looked = time.perf_counter()
            if any(api.status(path)["status"] == "completed" for path in paths):
                break  # fewer exports run from here on
    while any(api.status(path)["status"] != "completed" for path in paths):
        time.sleep(0.05)
    for path in paths:
        api.ask("DELETE", path)
    return seconds


def _listed(api: Api, folder: Path) -> list[float]:
    """Return the seconds of each list of LISTED exports: copies of one small export, each with its own id."""
    path = "/exports/" + str(json.loads(api.ask("POST", "/export/users.csv?limit=1"))["exportId"])
    while api.status(path)["status"] != "completed":
        time.sleep(0.01)
    one = folder / path.removeprefix("/exports/")
    manifest = json.loads((one / "manifest.json").read_text())
    for _ in range(LISTED - 1):
        id = secrets.token_urlsafe(16)
        shutil.copytree(one, folder / id)
        (folder / id / "manifest.json").write_text(json.dumps({**manifest, "id": id}))
    seconds = [_timed(api, f"/exports?limit={LISTED}") for _ in range(LISTINGS)]
    found = len(json.loads(api.ask("GET", f"/exports?limit={LISTED}"))["exports"])
    if found != LISTED:
        raise BenchmarkError(f"{found} exports are listed, not {LISTED}")
    return seconds


def _timed(api: Api, path: str) -> float:
    started = time.perf_counter()
    api.ask("GET", path)
    return time.perf_counter() - started


def _p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98]


def table(figures: Figures) -> str:
    """Return the figures as Markdown."""
    ratios, alive, listed = figures.ratios, figures.alive, figures.listed
    return "\n".join(
        [
            "| saved exports | measured |",
            "|---|--:|",
            f"| saving the users, × streaming them to curl (range) | {spread(ratios)} |",
            (
                f"| `/health/live` while {RUNNING} run, ms: median, p99 of {len(alive)} | {median(alive) * 1e3:.1f}, "
                f"{_p99(alive) * 1e3:.1f} |"
            ),
            (
                f"| list of {LISTED:,}, ms: median, slowest of {len(listed)} | {median(listed) * 1e3:.1f}, "
                f"{max(listed) * 1e3:.1f} |"
            ),
        ]
    )


def verdicts(figures: Figures) -> list[str]:
    """Compare each figure with its target. Return a line with PASS or MISS for each."""
    return [
        verdict(
            median(figures.ratios) <= MOST_TIMES_STREAMING,
            f"saving: {median(figures.ratios):.2f} × streaming (at most {MOST_TIMES_STREAMING})",
        ),
        verdict(
            _p99(figures.alive) <= MOST_SECONDS_ALIVE,
            f"/health/live while {RUNNING} exports run: p99 {_p99(figures.alive) * 1e3:.1f} ms "
            f"(at most {MOST_SECONDS_ALIVE * 1e3:.0f} ms)",
        ),
        verdict(
            median(figures.listed) <= MOST_SECONDS_LISTED,
            f"list of {LISTED:,} saved exports: {median(figures.listed) * 1e3:.1f} ms "
            f"(at most {MOST_SECONDS_LISTED * 1e3:.0f} ms)",
        ),
    ]

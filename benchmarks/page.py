"""The web page: first paint and size of a list of 1,000 tables in Chromium, and the time of a preview.

Without Chromium the paint is not measured. Times are medians of visits in a browser that is already open.
"""

from __future__ import annotations

import http.client
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.processes import SLUICE, BenchmarkError, Server
from benchmarks.report import verdict
from benchmarks.sample import Sample

TABLES = 1000
SCHEMA = "benchmark_thousand"
# The targets.
MOST_SECONDS_TO_PAINT = 0.300
MOST_BYTES = 100_000
MOST_SECONDS_TO_PREVIEW = 0.150

# Previews of the users: that of the API, and the part of the page that follows a change of the form.
PREVIEWS = {
    "`/relations/users/preview`": ("/relations/users/preview", {}),
    "the same with a filter and a sort key": ("/relations/users/preview?signup_date=gte.2024-01-01&order=id.desc", {}),
    "the page after a change, with estimate and links": (
        "/shape/users?c=id&a=&t=0&c=name&a=&t=1&f0.column=signup_date&f0.op=gte&f0.value=2024-01-01&format=csv",
        {"X-Sluice-Live": "1", "Accept": "text/html"},
    ),
}
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_PAINT = """new Promise((done) => new PerformanceObserver((list) => {
    for (const entry of list.getEntriesByName("first-contentful-paint")) done(entry.startTime);
}).observe({ type: "paint", buffered: true }))"""
_WEIGHT = """[...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""


@dataclass(frozen=True)
class Measured:
    """The measurements. paints: seconds by visit. weight: bytes before compression. previews: seconds.

    paints and weight are empty without Chromium.
    """

    paints: list[float]
    weight: int | None
    previews: dict[str, list[float]]


def measure(sample: Sample, server: Server, visits: int, say: Callable[[str], None]) -> Measured:
    """Measure everything. server: exports the users. visits: the number of measurements of each."""
    paints, weight = _paints(sample, visits, say)
    previews = {name: [_seconds(server, *request) for _ in range(visits + 2)][2:] for name, request in PREVIEWS.items()}
    return Measured(paints, weight, previews)


def _paints(sample: Sample, visits: int, say: Callable[[str], None]) -> tuple[list[float], int | None]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        say("there is no Chromium: the first paint is not measured")
        return [], None
    from playwright.sync_api import sync_playwright

    if sample.query(f"SELECT to_regnamespace('{SCHEMA}') IS NULL") == "t":
        columns = "id bigint PRIMARY KEY, name text, made timestamptz, amount numeric, note text"
        tables = (f"CREATE TABLE {SCHEMA}.customer_{number:04} ({columns})" for number in range(TABLES))
        sample.query(f"CREATE SCHEMA {SCHEMA}", *tables)
    paints = []
    with (
        Server(SLUICE, sample.embedded.uri, EXPORT_SCHEMAS=SCHEMA) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS)) as browser,
    ):
        page = browser.new_page()
        address = f"http://127.0.0.1:{server.port}/"
        for number in range(-2, visits):  # the first two visits start processes
            page.goto("about:blank")
            page.goto(address)
            seconds = page.evaluate(_PAINT) / 1000
            if number >= 0:
                paints.append(seconds)
        if page.locator("tbody tr").count() != TABLES:
            raise BenchmarkError("the page does not list all tables")
        weight = int(page.evaluate(_WEIGHT))
    return paints, weight


def _seconds(server: Server, path: str, headers: dict[str, str]) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    seconds = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        raise BenchmarkError(f"{path} answered {response.status}")
    return seconds


def table(found: Measured) -> str:
    """Return the medians and the slowest as Markdown."""
    lines = ["| web page | median, ms | slowest, ms |", "|---|--:|--:|"]
    if found.paints:
        name = f"first paint of the list, {TABLES:,} tables, {found.weight or 0:,} bytes in all"
        lines.append(f"| {name} | {median(found.paints) * 1e3:.0f} | {max(found.paints) * 1e3:.0f} |")
    for name, seconds in found.previews.items():
        lines.append(f"| preview of the users: {name} | {median(seconds) * 1e3:.0f} | {max(seconds) * 1e3:.0f} |")
    return "\n".join(lines)


def verdicts(found: Measured) -> list[str]:
    """Compare each figure with its target. Return a line with PASS or MISS for each."""
    preview = max(median(seconds) for seconds in found.previews.values())
    lines = [_line(preview <= MOST_SECONDS_TO_PREVIEW, "preview", preview * 1e3, MOST_SECONDS_TO_PREVIEW * 1e3, "ms")]
    if found.weight is None:
        return [*lines, "- not measured: the first paint and the weight of the page need a Chromium"]
    paint = median(found.paints)
    return [
        *lines,
        _line(paint <= MOST_SECONDS_TO_PAINT, "first paint", paint * 1e3, MOST_SECONDS_TO_PAINT * 1e3, "ms"),
        _line(found.weight <= MOST_BYTES, "page weight", found.weight / 1e3, MOST_BYTES / 1e3, "kB"),
    ]


def _line(reached: bool, what: str, value: float, most: float, unit: str) -> str:
    return verdict(reached, f"web page, {what}: {value:.0f} {unit} (at most {most:.0f} {unit})")

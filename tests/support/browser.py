"""Chromium for the tests. A page fails the test if the browser reports an error on its console.

Needs Chromium on the PATH. Without it the tests are skipped; with CI=true they fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Playwright, sync_playwright

from tests.support.optional import skip_or_fail

ROOT = Path(__file__).parents[2]
# Screenshots that the tests take, for people to look at.
ARTEFACTS = ROOT / "artefacts"
# No sandbox, because Chromium has none for root. No connections to servers other than the one under test.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
# Milliseconds to wait for what a page should show: generous, for machines under load.
PATIENCE = 60_000


def find_chromium() -> str | None:
    """Return the path of Chromium, or None if it is not installed."""
    return next(filter(None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))), None)


def launch(playwright: Playwright, *arguments: str) -> Browser:
    """Start Chromium with these further arguments. Without it, skip the test, or fail it if CI=true."""
    path = find_chromium()
    if path is None:
        skip_or_fail("Chromium is not installed: apt-get install chromium")
    return playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])


@contextmanager
def browsing(*arguments: str) -> Iterator[Browser]:
    """Start Chromium with these further arguments, for the tests of one module or for one test."""
    with sync_playwright() as playwright:
        browser = launch(playwright, *arguments)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, base_url: str, **options: Any) -> Iterator[Page]:
    """Open a page without cookies or history.

    Fail at the end if a script failed, a dialog opened, or the Content-Security-Policy blocked anything.
    """
    context = browser.new_context(**{"base_url": base_url, "locale": "en-GB", "timezone_id": "UTC", **options})
    context.set_default_timeout(PATIENCE)
    errors: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # The console also reports responses with an error status, which tests ask for.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            errors.append(message.text)

    def refuse(dialog: Dialog) -> None:
        errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    try:
        page = context.new_page()
        page.on("console", listen)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", refuse)
        yield page
        assert errors == []
    finally:
        context.close()


def keep_picture(page: Page, name: str) -> None:
    """Save a screenshot of the whole page in artefacts/."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)

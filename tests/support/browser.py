"""A real Chromium for the tests, and pages of it that fail the test for whatever the browser complains about.

Needs a Chromium on the PATH: without one the tests are skipped, but under CI=true they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Playwright

ROOT = Path(__file__).parents[2]
# Pictures of the pages as the tests saw them, kept for people to look at.
ARTEFACTS = ROOT / "artefacts"
# Without a sandbox: root has none. Without whatever would talk to somebody else's servers.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
# Milliseconds that anything a page should show may take: generous, for machines with other work to do.
PATIENCE = 60_000


def find_chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))), None)


def launch(playwright: Playwright) -> Browser:
    """A browser of its own. Skips the tests where there is none, and says so; fails where there has to be one."""
    path = find_chromium()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium, and CI needs one: apt-get install chromium")
        pytest.skip("there is no Chromium: apt-get install chromium")
    return playwright.chromium.launch(executable_path=path, args=ARGUMENTS)


@contextmanager
def open_page(browser: Browser, base_url: str, **options: Any) -> Iterator[Page]:
    """A page with no past. Fails at the end if a script failed or the Content-Security-Policy stopped anything."""
    context = browser.new_context(**{"base_url": base_url, "locale": "en-GB", "timezone_id": "UTC", **options})
    context.set_default_timeout(PATIENCE)
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # A status that is an error is in the console too, and meant.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def refuse(dialog: Dialog) -> None:
        complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    try:
        page = context.new_page()
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", refuse)
        yield page
        assert complaints == []
    finally:
        context.close()


def keep_picture(page: Page, name: str) -> None:
    """A picture of the whole page in artefacts/."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)

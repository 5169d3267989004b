"""The time that stopping takes: each step has its limit, and together they end before gunicorn kills the worker.

How long a server really takes after SIGTERM and after Ctrl-C is tested in tests/http/test_disconnect.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server import shutdown
from server.app import create_app
from server.http.transfer import Downloads
from server.saved.runner import Runner
from server.settings import Settings
from server.shutdown import Shutdown
from tests.system.test_architecture import LEAVES, MODULES, imported

SOURCE = Path(shutdown.__file__).read_text()
LIMITS = [name for name in vars(shutdown) if name.isupper()]


def test_the_steps_of_stopping_fit_before_the_worker_is_killed() -> None:
    # aiohttp waits twice; saved exports are given back while downloads drain and are cancelled.
    after_the_drain = max(shutdown.CANCEL_SECONDS, shutdown.GIVE_BACK_SECONDS)
    steps = (after_the_drain, 2 * shutdown.HTTP_SECONDS, shutdown.DATABASE_SECONDS, shutdown.THREAD_SECONDS)
    assert sum(steps) < shutdown.STOP_MARGIN


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_used_by_the_modules_that_its_comment_names(limit: str) -> None:
    comment = re.search(rf"((?:^#.*\n)+){limit} = ", SOURCE, re.MULTILINE)
    assert comment is not None
    named = set(re.findall(r"[\w/]+\.py", comment[1]))
    users = {name for name in LEAVES if f"server.shutdown.{limit}" in imported(MODULES[name])}
    assert {name.replace(".", "/") + ".py" for name in users} == named
    assert named


def test_every_limit_of_stopping_is_checked() -> None:
    assert len(LIMITS) == 6


@pytest.mark.parametrize(("immediate", "drain"), [(False, 17), (True, 0)], ids=["SIGTERM", "Ctrl-C"])
async def test_downloads_drain_on_sigterm_only_and_saved_exports_get_their_own_limit(
    immediate: bool, drain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, float] = {}

    async def stop_exports(self: Runner, seconds: float) -> None:
        limits["exports"] = seconds

    async def drain_downloads(self: Downloads, seconds: float) -> None:
        limits["downloads"] = seconds

    monkeypatch.setattr(Runner, "stop", stop_exports)
    monkeypatch.setattr(Downloads, "drain", drain_downloads)
    settings = Settings(
        database_url="postgresql://db.example/", shutdown_timeout=17, export_storage_path=tmp_path / "exports"
    )
    app = create_app(settings, Shutdown(immediate=immediate))
    app.freeze()
    await app.shutdown()
    assert limits == {"exports": shutdown.GIVE_BACK_SECONDS, "downloads": drain}

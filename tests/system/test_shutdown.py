"""The time that stopping takes: every step has its limit, and all together end before gunicorn kills the worker."""

from __future__ import annotations

from server import shutdown


def test_the_steps_of_stopping_fit_before_the_worker_is_killed() -> None:
    # aiohttp waits twice; saved exports are given back while downloads drain and are cancelled.
    after_the_drain = max(shutdown.CANCEL_SECONDS, shutdown.GIVE_BACK_SECONDS)
    steps = (after_the_drain, 2 * shutdown.HTTP_SECONDS, shutdown.DATABASE_SECONDS, shutdown.THREAD_SECONDS)
    assert sum(steps) < shutdown.STOP_MARGIN

"""`PlanningLimit`: what becomes of the session of a statement that was cancelled. No database."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Coroutine
from typing import Any

import pytest

from server import errors
from server.postgres.planning import PlanningLimit


class FakeSession:
    backend_pid = 7
    snapshot_at: datetime.datetime | None = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    abandoned = False

    def abandon(self) -> None:
        self.abandoned = True


class Others:
    """Sees no wait for a lock. cancelled: set when it cancels the statement."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def waits_for_lock(self, backend_pid: int, snapshot_at: datetime.datetime) -> bool:
        return False

    async def cancel(self, backend_pid: int, snapshot_at: datetime.datetime) -> None:
        self.cancelled.set()

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work)


@pytest.mark.parametrize(
    ("ends_with", "expected"),
    [
        (None, errors.PlanTimeout),
        (errors.QueryCancelled("cancelled"), errors.PlanTimeout),
        (errors.QueryFailed("failed at the same moment"), errors.QueryFailed),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
)
async def test_the_cancel_request_meets_no_later_statement(
    ends_with: BaseException | None, expected: type[BaseException]
) -> None:
    session, others = FakeSession(), Others()

    async def plan() -> None:
        async with PlanningLimit(0.02, others).planning(session, relation_alone=False):
            await others.cancelled.wait()
            if ends_with is not None:
                raise ends_with

    with pytest.raises(expected):
        await plan()
    assert session.abandoned


async def test_a_statement_that_ends_in_time_keeps_its_session() -> None:
    session, others = FakeSession(), Others()
    async with PlanningLimit(60.0, others).planning(session, relation_alone=False):
        pass
    assert not session.abandoned
    assert not others.cancelled.is_set()

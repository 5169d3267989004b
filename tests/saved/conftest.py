"""Fixtures of the tests of saved exports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server import events
from server.events import Event
from tests.support.postgres import Postgres
from tests.support.saved_exports import Gate


@pytest.fixture
def gate(postgres: Postgres) -> Iterator[Gate]:
    """A view that gives some of its rows and then waits until the test opens it."""
    gate = Gate(postgres)
    yield gate
    gate.open()


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events that the test emits."""
    found: list[Event] = []
    monkeypatch.setattr(events, "_observers", [found.append])
    return found

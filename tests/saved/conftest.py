"""Fixtures of the tests of saved exports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Postgres
from tests.support.saved_exports import Gate


@pytest.fixture
def gate(postgres: Postgres) -> Iterator[Gate]:
    """A view that gives some of its rows and then waits until the test opens it."""
    made = Gate(postgres)
    yield made
    made.open()

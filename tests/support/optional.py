"""What a test needs and a machine may lack."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

# .ci/run sets it, and installs everything that the tests need.
CI = os.environ.get("CI") == "true"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test on a user's machine, and fail it in CI. reason: what is missing here."""
    if CI:
        pytest.fail(f"{reason}; .ci/run installs it")
    pytest.skip(reason)

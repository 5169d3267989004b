"""How the process is asked to stop, as the application and the process see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Shutdown:
    """immediate: whether it is to be at once (Ctrl-C), so that running downloads are cut instead of finished."""

    immediate: bool = False

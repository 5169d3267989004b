"""How the process was asked to stop: set by the process, read by the application."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Shutdown:
    """The kind of shutdown. immediate: running downloads are cut at once (Ctrl-C), not drained (SIGTERM)."""

    immediate: bool = False

"""What is worth observing, as values: one class for each kind of event, with named fields.

An event is made where it happens; the module `events.py` of each package holds its classes. `emit` hands an event to
every observer. The log line is made in `server/process/logs.py`; metrics and an audit trail are to be observers too. An
event never holds SQL text, a password or a value of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event. name: what the log calls it. level: its severity, as in `logging`. error: the exception to log."""

    name: ClassVar[str]
    level: ClassVar[int] = logging.INFO

    error: BaseException | None = None

    def fields(self) -> dict[str, object]:
        """Return the fields that have a value, by name in camel case."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "error")
        return {_camel_case(name): value for name, value in values if value is not None}


Observer = Callable[[Event], None]

_observers: list[Observer] = []


def subscribe(observer: Observer) -> None:
    """Call the observer with every event from now on. An observer must not block or raise."""
    if observer not in _observers:
        _observers.append(observer)


def emit(event: Event) -> None:
    """Hand the event to every observer. Safe in any thread."""
    for observer in _observers:
        observer(event)


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)

"""What is worth observing, as values: one class for each kind of event, with named fields.

The module `events.py` of each package holds the classes. An event is created where it happens, and `emit` passes it to
every observer. `server/process/logs.py` makes the log line from it; metrics or an audit trail would be further
observers. An event must not hold SQL text, a password or a value of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event. name: its name in the log. level: its severity, as in `logging`. error: the exception to log."""

    name: ClassVar[str]
    level: ClassVar[int] = logging.INFO

    error: BaseException | None = None

    def fields(self) -> dict[str, object]:
        """Return the fields that are not None, by name in camel case, without `error`."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "error")
        return {_camel_case(name): value for name, value in values if value is not None}


Observer = Callable[[Event], None]

_observers: list[Observer] = []


def subscribe(observer: Observer) -> None:
    """Call the observer once with every event from now on, however often it subscribes. It must not block or raise."""
    if observer not in _observers:
        _observers.append(observer)


def emit(event: Event) -> None:
    """Pass the event to every observer, in the thread of the caller."""
    for observer in _observers:
        observer(event)


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)

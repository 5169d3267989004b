"""Events, as values with named fields: one class for each kind.

The module `events.py` of each package holds the classes. An event is created where it happens, and `emit` passes it to
every observer. `server/process/logs.py` makes the log line from it; metrics or an audit trail would be further
observers. An event must not hold SQL text or a password, nor a value of a row unless its level is DEBUG.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import ClassVar

_context: ContextVar[Mapping[str, object]] = ContextVar("context", default=MappingProxyType({}))


def set_context(**fields: object) -> None:
    """Give these fields to every event of the current task from now on, and of the tasks and threads that it starts.

    They replace those of an earlier call: the id of the request, or the export that a task saves.
    """
    _context.set({_camel_case(name): value for name, value in fields.items()})


def add_context(**fields: object) -> None:
    """Add these fields to those of `set_context`."""
    _context.set({**_context.get(), **{_camel_case(name): value for name, value in fields.items()}})


def current_context() -> Mapping[str, object]:
    """Return the fields that the current task gives to its events, by name in camel case."""
    return _context.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event. name: its name in the log. level: its severity, as in `logging`, unless the class overrides `severity`.

    error: the exception to log. context: the fields that the task had when it created the event.
    """

    name: ClassVar[str]
    level: ClassVar[int] = logging.INFO

    error: BaseException | None = None
    context: Mapping[str, object] = field(default_factory=current_context, compare=False, repr=False)

    @property
    def severity(self) -> int:
        """How severe this event is, as in `logging`."""
        return self.level

    def fields(self) -> dict[str, object]:
        """Return the fields that are not None, by name in camel case, then those of the context, without `error`."""
        names = [each.name for each in fields(self) if each.name not in ("error", "context")]
        own = {_camel_case(name): value for name in names if (value := getattr(self, name)) is not None}
        return own | {name: value for name, value in self.context.items() if name not in own}


Observer = Callable[[Event], None]

_observers: list[Observer] = []


def subscribe(observer: Observer) -> None:
    """Call the observer once with every event from now on, even if it subscribes again. It must not block or raise."""
    if observer not in _observers:
        _observers.append(observer)


def emit(event: Event) -> None:
    """Pass the event to every observer, in the thread of the caller."""
    for observer in _observers:
        observer(event)


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)

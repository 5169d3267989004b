"""`server/events.py`: the fields of an event, and the observers that get it."""

from __future__ import annotations

import contextvars
import importlib
import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass

import pytest

import server
from server import events
from server.events import Event, emit, subscribe
from server.http.events import ExportStreamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Event):
    name = "measured"
    rows: int = 0
    total_rows_read: int | None = None
    empty: str = ""


@pytest.fixture(autouse=True)
def observers(monkeypatch: pytest.MonkeyPatch) -> list[events.Observer]:
    """Remove all observers for one test and return the list of those that it adds."""
    made: list[events.Observer] = []
    monkeypatch.setattr(events, "_observers", made)
    return made


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Measured(), {"rows": 0, "empty": ""}),  # only None counts as absent
        (Measured(rows=3, total_rows_read=7), {"rows": 3, "totalRowsRead": 7, "empty": ""}),
        (Measured(error=ValueError("x")), {"rows": 0, "empty": ""}),
        (Event(), {}),
    ],
)
def test_fields_are_named_in_camel_case_and_absent_ones_left_out(event: Event, expected: dict[str, object]) -> None:
    assert event.fields() == expected


def test_the_default_level_is_info() -> None:
    assert Measured.level == logging.INFO
    assert Measured().severity == logging.INFO


def test_added_context_keeps_what_there_was() -> None:
    def task() -> None:
        events.set_context(request_id="abc", relation="first")
        events.add_context(relation="second", snapshot_at="now")
        assert Measured().fields() == {
            "rows": 0,
            "empty": "",
            "requestId": "abc",
            "relation": "second",
            "snapshotAt": "now",
        }

    contextvars.copy_context().run(task)
    assert Measured().fields() == {"rows": 0, "empty": ""}


@pytest.mark.parametrize(
    ("outcome", "status", "severity"),
    [
        ("complete", None, logging.INFO),
        ("client_left", None, logging.INFO),
        ("stalled", None, logging.INFO),
        ("shutdown", None, logging.INFO),
        ("rejected", 400, logging.INFO),
        ("rejected", 404, logging.INFO),
        ("rejected", 500, logging.WARNING),
        ("rejected", 503, logging.WARNING),
        ("rejected", 504, logging.WARNING),
        ("rejected", None, logging.WARNING),  # an unexpected error
        ("failed", None, logging.WARNING),
        ("failed", 500, logging.WARNING),
        ("failed", 403, logging.WARNING),  # a privilege that was lost on the way
    ],
)
def test_a_download_that_fails_is_a_warning_unless_its_request_is_the_cause(
    outcome: str, status: int | None, severity: int
) -> None:
    streamed = ExportStreamed(
        relation="users", format="csv", outcome=outcome, rows=0, bytes=0, scan="", seconds=0.0, status=status
    )
    assert streamed.severity == severity


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Measured().rows = 1  # type: ignore[misc]


def test_every_observer_gets_every_event_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    subscribe(first.append)
    one, two = Measured(rows=1), Measured(rows=2)
    emit(one)
    subscribe(second.append)
    emit(two)
    assert first == [one, two]
    assert second == [two]


def test_an_observer_that_subscribes_twice_gets_an_event_once() -> None:
    seen: list[Event] = []

    def observe(event: Event) -> None:
        seen.append(event)

    subscribe(observe)
    subscribe(observe)
    emit(Measured())
    assert len(seen) == 1


def test_without_observers_an_event_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    emit(Measured())
    assert capsys.readouterr() == ("", "")


def event_classes() -> Iterator[type[Event]]:
    """Yield every class of event in the modules `events` of the packages."""
    for package in pkgutil.iter_modules(server.__path__):
        if package.ispkg and importlib.util.find_spec(f"server.{package.name}.events"):
            module = importlib.import_module(f"server.{package.name}.events")
            for found in vars(module).values():
                if isinstance(found, type) and issubclass(found, Event) and found is not Event:
                    yield found


EVENT_CLASSES = list(event_classes())


def test_there_are_events() -> None:
    assert len(EVENT_CLASSES) > 10


@pytest.mark.parametrize("event_class", EVENT_CLASSES)
def test_each_event_has_a_name_and_is_a_frozen_value_without_reserved_fields(event_class: type[Event]) -> None:
    assert isinstance(event_class.name, str)
    assert event_class.name
    assert is_dataclass(event_class)
    assert event_class.__dataclass_params__.frozen  # type: ignore[attr-defined]
    # Other fields of the log line, which a field of the same name would overwrite.
    reserved = {"time", "level", "event", "exception", "requestId", "name"}
    assert not {field.name for field in fields(event_class)} & reserved
    assert event_class.__doc__


def test_no_two_events_have_one_name() -> None:
    names = [event_class.name for event_class in EVENT_CLASSES]
    assert len(set(names)) == len(names)

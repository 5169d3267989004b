"""The log: an event becomes one line with its fields, in both formats, and nothing in a value can break the line."""

from __future__ import annotations

import contextvars
import json
import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gunicorn.config
import pytest
import structlog
from aiohttp.http_exceptions import BadStatusLine

from server import events
from server.process.logs import GunicornLogger, configure_logging
from server.settings import Settings

FORMATS = ["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRead(events.Event):
    name = "table read"
    relation: str
    total_rows: int
    snapshot_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFailed(events.Event):
    name = "read failed"
    level = logging.ERROR
    reason: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(events.Event):
    name = "judged"
    bad: bool

    @property
    def severity(self) -> int:
        return logging.ERROR if self.bad else logging.DEBUG


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail(events.Event):
    name = "detail"
    level = logging.DEBUG


Lines = Callable[[], list[dict[str, Any]]]
Configure = Callable[..., Lines]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Configure]:
    """Return a function that configures logging for one test; it returns one that reads the new lines as fields."""
    monkeypatch.setattr(events, "_observers", [])
    loggers = [logging.getLogger(name) for name in ("", "aiohttp.server", "aiopg", "gunicorn.error", "gunicorn.access")]
    kept = [(each, each.handlers[:], each.filters[:], each.level, each.propagate) for each in loggers]
    configuration = structlog.get_config()

    def configured(log_format: str, log_level: str = "INFO") -> Lines:
        configure_logging(Settings(log_format=log_format, log_level=log_level))
        return lambda: [parse(line, log_format) for line in capsys.readouterr().err.splitlines()]

    yield configured
    structlog.configure(**configuration)
    for logger, handlers, filters, level, propagate in kept:
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        logger.setLevel(level)


def parse(line: str, log_format: str) -> dict[str, Any]:
    if log_format == "json":
        fields: dict[str, Any] = json.loads(line)
        return fields
    return dict(field.partition("=")[::2] for field in shlex.split(line))


def without_time(fields: dict[str, Any]) -> dict[str, Any]:
    assert fields["time"].endswith("Z")
    return {name: value for name, value in fields.items() if name != "time"}


def test_an_event_is_one_line_of_text_with_its_fields_in_camel_case(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("text")
    events.emit(TableRead(relation="sales orders", total_rows=7))
    line = capsys.readouterr().err
    assert line.startswith("time=20")
    assert line.endswith('Z level=info event="table read" relation="sales orders" totalRows=7\n')


def test_an_event_is_one_line_of_json_whose_numbers_are_numbers(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("json")
    events.emit(TableRead(relation="größe", total_rows=7, snapshot_at="now"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "größe" in line  # readable, not escaped
    assert without_time(json.loads(line)) == {
        "level": "info",
        "event": "table read",
        "relation": "größe",
        "totalRows": 7,
        "snapshotAt": "now",
    }


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_error_is_a_traceback_within_the_line(configure: Configure, log_format: str) -> None:
    lines = configure(log_format)
    try:
        raise ZeroDivisionError("one\nby zero")
    except ZeroDivisionError as error:
        caught = error
    events.emit(ReadFailed(error=caught))
    (line,) = lines()
    assert (line["level"], line["event"], line["reason"]) == ("error", "read failed", "none")
    assert line["exception"].startswith("Traceback (most recent call last):\\n")
    assert line["exception"].endswith("ZeroDivisionError: one\\nby zero")
    assert "error" not in line


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_event_without_an_error_has_no_traceback(configure: Configure, log_format: str) -> None:
    lines = configure(log_format)
    events.emit(ReadFailed())
    (line,) = lines()
    assert set(line) == {"time", "level", "event", "reason"}


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize(
    "control", ["\n", "\r", "\r\n", "\t", "\0", "\x1b[31m", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"]
)
def test_control_characters_of_a_value_are_escaped(configure: Configure, log_format: str, control: str) -> None:
    lines = configure(log_format)
    events.emit(TableRead(relation=f"a{control}event=forged", total_rows=0))
    (line,) = lines()
    assert line["event"] == "table read"
    escaped = control.encode("unicode_escape").decode()
    assert escaped != control
    assert line["relation"] == f"a{escaped}event=forged"


@pytest.mark.parametrize(
    ("log_level", "logged"),
    [
        ("DEBUG", ["detail", "table read", "read failed"]),
        ("INFO", ["table read", "read failed"]),
        ("WARNING", ["read failed"]),
        ("ERROR", ["read failed"]),
    ],
)
@pytest.mark.parametrize("log_format", FORMATS)
def test_only_events_of_the_level_and_above_are_logged(
    configure: Configure, log_format: str, log_level: str, logged: list[str]
) -> None:
    lines = configure(log_format, log_level)
    for event in (Detail(), TableRead(relation="users", total_rows=1), ReadFailed()):
        events.emit(event)
    assert [line["event"] for line in lines()] == logged


def test_an_event_may_decide_on_its_own_level(configure: Configure) -> None:
    lines = configure("text", "INFO")
    events.emit(Judged(bad=False))
    events.emit(Judged(bad=True))
    assert [(line["event"], line["level"]) for line in lines()] == [("judged", "error")]


@pytest.mark.parametrize("log_format", FORMATS)
def test_the_context_of_the_task_is_on_each_line(configure: Configure, log_format: str) -> None:
    lines = configure(log_format)

    def request() -> None:
        events.set_context(request_id="abc")
        events.emit(ReadFailed())
        logging.getLogger("somebody").warning("a library")

    contextvars.copy_context().run(request)
    events.emit(ReadFailed())
    assert [line.get("requestId") for line in lines()] == ["abc", "abc", None]


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_line_of_a_library_has_the_same_format(configure: Configure, log_format: str) -> None:
    lines = configure(log_format)
    logging.getLogger("somebody").warning("two %s", "words\nforged")
    (line,) = lines()
    assert without_time(line) == {"level": "warning", "event": "two words\\nforged"}


def test_configuring_twice_logs_an_event_once(configure: Configure) -> None:
    configure("text")
    lines = configure("text")
    events.emit(ReadFailed())
    assert len(lines()) == 1


def test_a_request_that_is_not_http_is_a_line_without_traceback(configure: Configure) -> None:
    lines = configure("json")
    try:
        raise BadStatusLine("\x16\x03" + "secret" * 200)
    except BadStatusLine:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    (line,) = lines()
    assert without_time(line) == {"level": "error", "event": "not an HTTP request", "kind": "BadStatusLine"}


def test_another_error_of_the_http_server_keeps_its_traceback(configure: Configure) -> None:
    lines = configure("json")
    try:
        raise ValueError("unexpected")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    (line,) = lines()
    assert line["event"] == "Error handling request"
    assert "ValueError: unexpected" in line["exception"]


def test_warnings_of_the_driver_are_left_to_our_own_events(configure: Configure) -> None:
    lines = configure("text", "DEBUG")
    logging.getLogger("aiopg").warning("Fatal error on aiopg connection")
    logging.getLogger("aiopg").error("worse")
    assert [line["event"] for line in lines()] == ["worse"]


def test_gunicorn_logs_warnings_through_the_same_handler_and_no_accesses(configure: Configure) -> None:
    lines = configure("text")
    logger = GunicornLogger(gunicorn.config.Config())
    logger.info("Booting worker")
    logger.warning("Worker was sent SIGKILL")
    logger.access_log.info("GET /")
    assert [line["event"] for line in lines()] == ["Worker was sent SIGKILL"]

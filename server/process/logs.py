"""The log: one line for each event on standard error, as key=value or JSON. Lines of libraries have the same format.

The only module that turns an event into a line. Must not depend on the class of an event.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import gunicorn.glogging
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from server import events
from server.settings import Settings
from server.visible import visible

# Errors whose text repeats bytes of a request, which may be a password.
_REPEAT_A_REQUEST = (HttpProcessingError, web.RequestPayloadError)


def configure_logging(settings: Settings) -> None:
    """Write every event and every record of `logging` through one handler.

    settings: give the format and the least severe level.
    """
    shared: list[structlog.typing.Processor] = [
        _add_context,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _name_malformed_requests,
        structlog.processors.format_exc_info,
        escape_invisible,
    ]
    renderer: structlog.typing.Processor
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.processors.LogfmtRenderer(key_order=["time", "level", "event"], drop_missing=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # The driver warns of each lost connection and cancelled statement; Sluice logs them itself, with the request.
    logging.getLogger("aiopg").setLevel(logging.ERROR)
    events.subscribe(log_event)


def log_event(event: events.Event) -> None:
    """Write the log line of an event: its name, its fields in camel case, and the traceback of its error."""
    log = structlog.stdlib.get_logger("sluice")
    error = {} if event.error is None else {"exc_info": event.error}
    log.log(event.severity, event.name, **event.fields(), **error)


def _add_context(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the fields of the current task to the lines of libraries. The events of Sluice have them already."""
    return {**event, **{name: value for name, value in events.current_context().items() if name not in event}}


def _name_malformed_requests(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Log an error about the bytes of a request by its class alone. Sluice does so itself; this is for libraries."""
    named = [type(error).__name__ for error in _chain(event.get("exc_info")) if isinstance(error, _REPEAT_A_REQUEST)]
    if not named:
        return event
    kept = {name: value for name, value in event.items() if name != "exc_info"}
    return {**kept, "event": "not an HTTP request", "kind": named[0]}


def _chain(exc_info: Any) -> Iterator[BaseException]:
    """Return the error of `exc_info`, as `logging` and structlog take it, and those from which it came."""
    error = sys.exc_info()[1] if exc_info is True else exc_info[1] if isinstance(exc_info, tuple) else exc_info
    seen: set[BaseException] = set()
    while isinstance(error, BaseException) and error not in seen:
        seen.add(error)
        yield error
        error = error.__cause__ or error.__context__


def escape_invisible(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape invisible characters, so that no value can start a new line, control a terminal or hide what it says."""
    return {name: value if name.startswith("_") else _shown(value) for name, value in event.items()}


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {visible(str(name)): _shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return visible(str(value))


class GunicornLogger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """Gunicorn's logger: warnings and errors go to the root handler. There is no access log, only events."""

    def setup(self, cfg: Any) -> None:
        """Replace gunicorn's handlers. Called by gunicorn. cfg: not used."""
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.access_log.handlers[:] = []
        self.access_log.propagate = False

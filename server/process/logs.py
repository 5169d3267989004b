"""The log: one line for each event on standard error, as key=value or JSON. Lines of libraries have the same format.

The only module that turns an event into a line. Must not depend on the class of an event.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import gunicorn.glogging
import structlog
from aiohttp.http_exceptions import HttpProcessingError

from server import events
from server.settings import Settings

# C0 and C1 control characters, and Unicode's line and paragraph separators.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logging(settings: Settings) -> None:
    """Write every event and every record of `logging` through one handler.

    settings: give the format and the least severe level.
    """
    shared: list[structlog.typing.Processor] = [
        _add_context,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _escape_controls,
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
    logging.getLogger("aiohttp.server").addFilter(_shorten_bad_requests)
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


def _escape_controls(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters, so that no value from a URL can start a new line or control a terminal."""
    for key, value in event.items():
        if isinstance(value, str) and _CONTROLS.search(value):
            event[key] = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return event


def _shorten_bad_requests(record: logging.LogRecord) -> bool:
    """Log a request that is not HTTP as one line without traceback, since any client can send one."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.msg, record.args = f"not an HTTP request: {record.exc_info[1].message[:200]!r}", None
        record.exc_info = None
    return True


class GunicornLogger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """Gunicorn's logger: warnings and errors go to the root handler. There is no access log, only events."""

    def setup(self, cfg: Any) -> None:
        """Replace gunicorn's handlers. Called by gunicorn. cfg: not used."""
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.access_log.handlers[:] = []
        self.access_log.propagate = False

"""How every program of ours logs: as text, or as one JSON object a line."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stream_scorer.config import Logging

_log = logging.getLogger(__name__)

_JSON: Final = "json"


def set_up(settings: Logging) -> None:
    """Have all that this process logs go to standard error, as the settings ask for it."""
    handler = logging.StreamHandler()
    if settings.as_json:
        handler.set_name(_JSON)
        handler.setFormatter(_json_formatter())
        _log_what_is_printed()
    else:
        handler.setFormatter(logging.Formatter(settings.format))
    logging.basicConfig(level=settings.level, handlers=[handler], force=True)


def is_json() -> bool:
    """Whether ``set_up`` was asked for JSON, so that nothing else belongs on standard error."""
    return any(handler.name == _JSON for handler in logging.getLogger().handlers)


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonEncoder, JsonFormatter

    # PERF: one for all lines, of which each would make its own. ASCII, so that whatever is in a
    # text, a half of a surrogate pair too, can be written.
    encoder = JsonEncoder()
    formatter = JsonFormatter(
        ["asctime", "levelname", "name", "message"],
        rename_fields={
            "asctime": "time",
            "levelname": "level",
            "name": "logger",
            "exc_info": "exception",
            "stack_info": "stack",
        },
        json_serializer=lambda fields, **_: encoder.encode(fields),
    )
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    return formatter


def _log_what_is_printed() -> None:
    """Log what Python, and MLflow, would write to standard error by themselves."""

    def uncaught(error: BaseException | None, where: object) -> None:
        _log.critical("uncaught exception in %s", where, exc_info=error)

    sys.excepthook = lambda _kind, error, _trace: uncaught(error, "the main thread")
    sys.unraisablehook = lambda found: uncaught(found.exc_value, repr(found.object))
    threading.excepthook = lambda found: uncaught(found.exc_value, found.thread)
    logging.captureWarnings(True)
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")

"""How programs log, seen on standard error of a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

TEXTS = ("two\nlines", "\x1b[31m", '"}{"', "\u2028", "\ud800", "\xe9")

SET_UP = """
import logging, os, sys, threading, time, warnings
os.environ["TZ"] = "Asia/Tokyo"
time.tzset()
from stream_scorer import logs
from stream_scorer.config import Logging
assert not logs.is_json()
logs.set_up(Logging.model_validate({settings}))
log = logging.getLogger("a.b")
"""

PROGRAM = """
assert logs.is_json()
log.debug("not this")
log.warning("n %d", 5, extra={"request_id": "x", "status": 200})
record = log.makeRecord("a.b", logging.INFO, "", 0, "long ago", (), None)
record.created = record.msecs = 0.0
log.handle(record)
for text in TEXTS:
    log.info("text %s", text, extra={"more": text})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
warnings.warn("old")
def run(): raise KeyError("in a thread")
thread = threading.Thread(target=run, name="one")
thread.start()
thread.join()
class Bad:
    def __del__(self): raise KeyError("in a finalizer")
Bad()
import mlflow
logging.getLogger("mlflow.models").warning("from there")
raise KeyError("at the end")
""".replace("TEXTS", ascii(TEXTS))

Line = dict[str, Any]


def told(program: str, **settings: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SET_UP.format(settings=settings) + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    """All that one process writes, the format notwithstanding."""
    return [json.loads(line) for line in told(PROGRAM, json=True, format="|%(message)s")]


def the(lines: list[Line], words: str) -> Line:
    (found,) = [line for line in lines if words in f"{line['message']} {line.get('exception')}"]
    return found


def test_text_is_as_the_format_says() -> None:
    program = "log.info('one %s', 1); log.debug('not this'); assert not logs.is_json()"
    assert told(program, format="|%(name)s|%(message)s") == ["|a.b|one 1"]


def test_a_line_of_json_has_what_is_known_in_fields(lines: list[Line]) -> None:
    line = dict(lines[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "WARNING",
        "logger": "a.b",
        "message": "n 5",
        "request_id": "x",
        "status": 200,
    }


def test_the_time_is_that_of_utc(lines: list[Line]) -> None:
    assert the(lines, "long ago")["time"] == "1970-01-01T00:00:00.000Z"


def test_whatever_is_in_a_text_is_one_line(lines: list[Line]) -> None:
    found = [line for line in lines if line["message"].startswith("text ")]
    assert [(line["message"], line["more"]) for line in found] == [
        (f"text {text}", text) for text in TEXTS
    ]


def test_an_exception_is_a_field(lines: list[Line]) -> None:
    line = the(lines, "failed")
    assert line["message"] == "failed"
    assert "ZeroDivisionError: division by zero" in line["exception"]


@pytest.mark.parametrize(
    ("error", "where"),
    [("at the end", "main thread"), ("in a thread", "one"), ("in a finalizer", "__del__")],
)
def test_an_exception_that_nobody_catches_is_a_line_too(
    lines: list[Line], error: str, where: str
) -> None:
    line = the(lines, f"KeyError: '{error}'")
    assert line["level"] == "CRITICAL"
    assert where in line["message"]


def test_a_warning_is_a_line_too(lines: list[Line]) -> None:
    line = the(lines, "UserWarning: old")
    assert (line["level"], line["logger"]) == ("WARNING", "py.warnings")


def test_mlflow_logs_as_all_others(lines: list[Line]) -> None:
    assert the(lines, "from there")["logger"] == "mlflow.models"

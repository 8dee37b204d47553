"""``stream-scorer dev``: broker, worker and facade from one command, for trying things."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from stream_scorer.cli.options import conf_option, read_settings, tell
from stream_scorer.errors import OperationError

if TYPE_CHECKING:
    from stream_scorer.config import Settings

_TICK: Final = 0.2
_STOP_TIMEOUT: Final = 15.0


@click.command("dev", short_help="Broker, worker and facade in one command, for trying things.")
@conf_option
def command(conf: Path | None) -> None:
    """Start an embedded broker, a worker and the facade; needs neither Docker nor Java.

    The broker lives in memory and keeps about 5 MB a partition: for trying things, never for
    keeping them. Stops on Ctrl-C.
    """
    settings = read_settings(conf)
    from stream_scorer.config import ConfigError
    from stream_scorer.kafka.embedded import EmbeddedBroker

    if settings.worker.delivery == "exactly_once":
        raise ConfigError("the embedded broker keeps no transactions @ worker.delivery")
    _check_port(settings)
    broker = EmbeddedBroker()
    topics = settings.topics
    broker.create_topics([topics.requests, topics.results, topics.replies, topics.dead_letters])
    tell(
        "stream-scorer dev: embedded broker, worker and facade.\n"
        "The broker is in memory and keeps about 5 MB a partition: for trying things, "
        "never for keeping them.\n"
        "For producers and consumers of your own:\n"
        f"  export SCORER_KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap}"
    )
    with tempfile.TemporaryDirectory(prefix="stream-scorer-") as folder:
        environment = _environment(broker.bootstrap, Path(folder) / "worker-ready")
        arguments = ["--conf", str(conf)] if conf is not None else []
        stopping = _stop_on_signals()
        with (
            _child("worker", [*arguments, "--supervised"], environment) as worker,
            _child("facade", arguments, environment) as facade,
        ):
            code = _watch({"worker": worker, "facade": facade}, settings, conf, stopping)
    sys.exit(code)


def _check_port(settings: Settings) -> None:
    # Somebody else's server there would answer in the facade's place.
    host = settings.host or None
    try:
        place = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(place[0], place[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place[4])
    except OSError as error:
        raise OperationError(f"{settings.host}:{settings.port}: {error.strerror}") from None


def _environment(bootstrap: str, ready_file: Path) -> dict[str, str]:
    # All of the conf's kafka section is about another broker.
    kept = {name: v for name, v in os.environ.items() if not name.startswith("SCORER_KAFKA")}
    return kept | {
        "SCORER_KAFKA": f"{{bootstrap.servers: '{bootstrap}', consumer: {{fetch.wait.max.ms: 5}}}}",
        "SCORER_TOPICS_CREATE": "false",
        "SCORER_WORKER_READY_FILE": str(ready_file),
        "SCORER_FACADE_READY_FILE": str(ready_file),
    }


def _stop_on_signals() -> list[int]:
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)  # the terminal was closed
    return received


@contextmanager
def _child(
    name: str, arguments: list[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_scorer", name, *arguments],
        env=environment,
        # It ends with this process, also if that is killed: a worker sees that.
        stdin=subprocess.PIPE,
        # Ctrl-C reaches this process alone, which then stops them in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _watch(
    children: Mapping[str, subprocess.Popen[bytes]],
    settings: Settings,
    conf: Path | None,
    stopping: list[int],
) -> int:
    told = False
    while not stopping:
        for name, process in children.items():
            if (code := process.poll()) is not None:
                tell(f"stream-scorer dev: the {name} ended with {code}", error=True)
                return code if code > 0 else 1
        if not told and _is_ready(settings):
            told = True
            tell(f"Ready. Try:\n  {_curl_line(settings, conf)}")
        time.sleep(_TICK)
    tell("stopping")
    return 0


def _address(settings: Settings) -> str:
    host = "localhost" if settings.host in {"0.0.0.0", "::", ""} else settings.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _is_ready(settings: Settings) -> bool:
    try:
        with urllib.request.urlopen(f"{_address(settings)}/readyz", timeout=2):  # noqa: S310
            return True
    except (urllib.error.URLError, OSError):
        return False


def _curl_line(settings: Settings, conf: Path | None) -> str:
    from stream_scorer.cli.check import guess_content_type

    file = _example(conf)
    content_type = guess_content_type(file) if file else "TYPE"
    return (
        f'curl -X POST -H "Content-Type:{content_type}" '
        f"--data-binary @{file or 'FILE'} {_address(settings)}/api/predict"
    )


def _example(conf: Path | None) -> Path | None:
    # A sample keeps a payload in data/, beside its conf or one folder up.
    folder = (conf or Path("conf.yaml")).parent
    for place in (folder / "data", folder.parent / "data"):
        files = sorted(path for path in place.glob("*") if path.is_file())
        if files:
            return files[0]
    return None

"""``stream-scorer worker``: score requests until told to stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from stream_scorer.cli.environment import enter_environment, make_environment
from stream_scorer.cli.options import conf_option, read_settings

if TYPE_CHECKING:
    from stream_scorer.config import Settings
    from stream_scorer.supervisor import Supervisor
    from stream_scorer.worker import Worker

_log = logging.getLogger(__name__)

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
"""What BLAS libraries and TensorFlow read once, when they are loaded."""

GARBAGE_THRESHOLD: Final = 50_000
"""Objects made and not freed, after which Python looks for garbage: about a turn's."""


@click.command("worker", short_help="Consume requests, score them, publish the answers.")
@conf_option
@click.option("--supervised", is_flag=True, hidden=True, help="Stop when standard input is closed.")
def command(conf: Path | None, supervised: bool) -> None:
    """Consume requests, score them, publish the answers.

    With worker.processes above 1, that many processes do so under a supervisor. Stops on SIGTERM
    and SIGINT: the requests in hand are finished within worker.drain_timeout, then the group is
    left. A second signal ends it at once.
    """
    # From the first moment: as process 1 of a container nothing else would end it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    settings = read_settings(conf)
    from stream_scorer.kafka.clients import check_properties

    if settings.worker.ready_file is not None:
        settings.worker.ready_file.unlink(missing_ok=True)  # of one that was killed
    check_properties(settings)
    if settings.worker.processes > 1:
        # Before they start: each then enters it by itself, as it is when that one starts.
        make_environment(settings)
        _supervise(settings, conf)
    else:
        enter_environment(settings)
        _work(settings, supervised)


def _supervise(settings: Settings, conf: Path | None) -> None:
    from stream_scorer.supervisor import Supervisor

    arguments = ["--conf", str(conf)] if conf is not None else []
    supervisor = Supervisor(
        settings, [sys.executable, "-m", "stream_scorer", "worker", "--supervised", *arguments]
    )
    _stop_on_signals(supervisor)
    sys.exit(supervisor.run())


def _work(settings: Settings, supervised: bool) -> None:
    # Before a library reads them: each worker computes in one thread, more workers use more cores.
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    from stream_scorer import failpoints, health
    from stream_scorer.cli.loading import load_scorer
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.metrics import Metrics
    from stream_scorer.worker import DrainTimeout, Worker

    failpoints.arm(os.environ)
    metrics = Metrics(settings.worker.slot)
    pulse = health.Pulse(settings.worker.ready_file)
    if settings.worker.metrics_port:
        health.serve(
            settings.worker.metrics_host,
            settings.worker.metrics_port,
            pulse,
            lambda: metrics.registry,
        )
    topics = Topics(settings)
    # Before the model, which may take minutes: a wrong password is told at once.
    topics.wait_for_broker(settings.worker.startup_timeout)
    loaded = load_scorer(settings, metrics)
    topics.ensure()
    # What is loaded stays, and the objects of a turn, tens of thousands, stay until its end: to
    # look through them for garbage every few hundred finds nothing (docs/performance.md).
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    worker = Worker(
        settings,
        topics,
        loaded.scorer,
        loaded.model.header,
        loaded.plugin.content_types,
        metrics,
        pulse,
    )
    _stop_on_signals(worker)
    if supervised:
        threading.Thread(target=_stop_on_end_of_input, args=[worker], daemon=True).start()
    _log.info("scoring %s with %s", settings.topics.requests, loaded.model.header)
    try:
        worker.run()
    except DrainTimeout as error:
        # The scoring thread hangs in the model's own code: a normal exit could wait for it.
        _log.error("%s", error)
        logging.shutdown()
        os._exit(error.exit_code)
    _log.info("stopped")


def _stop_on_end_of_input(worker: Worker) -> None:
    # Not through sys.stdin: its lock, held by a thread that waits, aborts the interpreter's exit.
    while os.read(0, 1024):
        pass
    _log.warning("the supervisor is gone")
    worker.stop()


def _stop_on_signals(worker: Worker | Supervisor) -> None:
    def stop(number: int, _: FrameType | None) -> None:
        worker.stop()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

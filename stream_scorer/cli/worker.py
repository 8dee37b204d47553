"""``stream-scorer worker``: score requests until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from stream_scorer.cli.options import conf_option, read_settings

if TYPE_CHECKING:
    from stream_scorer.worker import Worker

_log = logging.getLogger(__name__)


@click.command("worker", short_help="Consume requests, score them, publish the answers.")
@conf_option
def command(conf: Path | None) -> None:
    """Consume requests, score them, publish the answers.

    Stops on SIGTERM and SIGINT: the requests in hand are finished within worker.drain_timeout,
    then the group is left. A second signal ends it at once.
    """
    # From the first moment: as process 1 of a container nothing else would end it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    settings = read_settings(conf)
    from stream_scorer import failpoints
    from stream_scorer.cli.loading import load_scorer
    from stream_scorer.config import ConfigError
    from stream_scorer.kafka.clients import check_properties
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.worker import DrainTimeout, Worker

    if settings.worker.ready_file is not None:
        settings.worker.ready_file.unlink(missing_ok=True)  # of one that was killed
    failpoints.arm(os.environ)
    if settings.worker.processes != 1:
        raise ConfigError("only 1 is there in this version: start more workers @ worker.processes")
    check_properties(settings)
    topics = Topics(settings)
    loaded = load_scorer(settings)
    topics.wait_for_broker(settings.worker.startup_timeout)
    topics.ensure()
    worker = Worker(settings, topics, loaded.scorer, loaded.model.header)
    _stop_on_signals(worker)
    _log.info("scoring %s with %s", settings.topics.requests, loaded.model.header)
    try:
        worker.run()
    except DrainTimeout as error:
        # The scoring thread hangs in the model's own code: a normal exit could wait for it.
        _log.error("%s", error)
        logging.shutdown()
        os._exit(error.exit_code)
    _log.info("stopped")


def _stop_on_signals(worker: Worker) -> None:
    def stop(number: int, _: FrameType | None) -> None:
        worker.stop()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

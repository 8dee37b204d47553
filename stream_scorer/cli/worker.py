"""``stream-scorer worker``: score requests until told to stop."""

from __future__ import annotations

import logging
import os
import signal
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
    settings = read_settings(conf)
    from stream_scorer.cli.loading import load_scorer
    from stream_scorer.config import ConfigError
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.worker import DrainTimeout, Worker

    if settings.worker.delivery != "at_least_once":
        raise ConfigError("only at_least_once is there in this version @ worker.delivery")
    if settings.worker.processes != 1:
        raise ConfigError("only 1 is there in this version: start more workers @ worker.processes")
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

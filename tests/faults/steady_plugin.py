"""The numbers plugin at a steady pace, so that faults hit workers that are at work.

It leaves marks for the test: ``$FAULTS_MARK.loaded`` once the model is loaded, ``.predicting``
when a prediction begins. While the file ``$FAULTS_HOLD`` is there, no prediction ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tests import numbers_plugin


class Plugin(numbers_plugin.Plugin):
    """Takes ``$FAULTS_PREDICT_MS`` for each number."""

    def load_model(self, model_uri: str) -> None:
        _mark("loaded")

    def predict(self, model: None, instances: Sequence[str]) -> Sequence[str]:
        _mark("predicting")
        time.sleep(float(os.environ["FAULTS_PREDICT_MS"]) / 1000 * len(instances))
        while (hold := os.environ.get("FAULTS_HOLD")) and Path(hold).exists():
            time.sleep(0.02)
        return super().predict(model, instances)


def _mark(name: str) -> None:
    Path(f"{os.environ['FAULTS_MARK']}.{name}").touch()

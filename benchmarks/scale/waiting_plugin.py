"""A plugin whose model waits 20 ms for each batch and computes nothing.

It stands for a model that is elsewhere: on a GPU, or behind a service that is asked for each batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from benchmarks import echo_plugin

_SECONDS: Final = 0.02


class Plugin(echo_plugin.Plugin):
    """Takes any bytes and answers the same."""

    def predict(self, model: None, instances: Sequence[bytes]) -> Sequence[bytes]:
        time.sleep(_SECONDS)
        return instances

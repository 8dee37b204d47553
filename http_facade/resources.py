"""The one table of routes."""

from __future__ import annotations

from collections.abc import Mapping

from http_facade.calls import Caller
from http_facade.documentation import OpenApi, Swagger
from http_facade.examples import read_examples
from http_facade.exposition import Exposition
from http_facade.operations import Resource
from http_facade.page import page
from http_facade.predict import Predict
from http_facade.predictions import Predictions
from http_facade.probes import Liveness, Readiness
from http_facade.status import ServerStatus
from stream_scorer.config import Settings


def routes(client: Caller, settings: Settings) -> Mapping[str, Resource]:
    """The one table of routes: path and resource.

    Raises:
        SetupError: a file that the documentation is made of cannot be used.
    """
    table: dict[str, Resource] = {
        "/api/predict": Predict(client, settings),
        "/api/predictions/{id}": Predictions(client),
        "/api/status": ServerStatus(client),
        "/livez": Liveness(client),
        "/metrics": Exposition(client.metrics),
        "/readyz": Readiness(client, settings.facade.ready_file),
    }
    keys = bool(settings.facade.api_keys)
    table["/api/swagger"] = Swagger(table, keys=keys)
    table["/api/openapi"] = OpenApi(table, client, read_examples(settings), keys=keys)
    table.update(page())
    return table

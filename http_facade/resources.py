"""The one table of routes."""

from __future__ import annotations

from collections.abc import Mapping

from http_facade.calls import Caller
from http_facade.documentation import Swagger
from http_facade.exposition import Exposition
from http_facade.predict import Predict
from http_facade.predictions import Predictions
from http_facade.probes import Liveness, Readiness
from http_facade.status import ServerStatus
from http_facade.swagger import Resource
from stream_scorer.config import Settings


def routes(client: Caller, settings: Settings) -> Mapping[str, Resource]:
    """The one table of routes: path and resource."""
    table: dict[str, Resource] = {
        "/api/predict": Predict(client, settings),
        "/api/predictions/{id}": Predictions(client),
        "/api/status": ServerStatus(client),
        "/livez": Liveness(client),
        "/metrics": Exposition(client.metrics),
        "/readyz": Readiness(client, settings.facade.ready_file),
    }
    table["/api/swagger"] = Swagger(table)
    return table

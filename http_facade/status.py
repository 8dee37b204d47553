"""The state of the process that answers, for people."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

import falcon.asgi

from http_facade.calls import Caller
from http_facade.known import known
from http_facade.operations import Operation, Response, problem

_PRIVATE: Final[Mapping[str, frozenset[str]]] = {
    "system": frozenset({"pid", "current_dir", "python.version"}),
    # What went wrong names the broker.
    "kafka": frozenset({"bootstrap.servers", "trouble"}),
    # A model's URI is a path, or names the registry's entry and version.
    "model": frozenset({"name"}),
}
"""What callers without a key do not see, where keys are set."""


class ServerStatus:
    """``GET``: the process, its Kafka clients, and the model that answered last."""

    operations: ClassVar = (
        Operation(
            method="get",
            summary="State of the process",
            needs_key=False,
            description="The state of the process that answers, of its Kafka clients, and the "
            "model that answered last. Where keys are set, callers without one see less.",
            responses={
                200: Response(
                    "Success",
                    {
                        "type": "object",
                        "required": ["system", "kafka", "model"],
                        "properties": {
                            "system": {
                                "type": "object",
                                "properties": {
                                    "pid": {"type": "integer"},
                                    "current_dir": {"type": "string"},
                                    "python.version": {"type": "string"},
                                    "request": {
                                        "type": "object",
                                        "properties": {
                                            "url_root": {"type": "string"},
                                            "remote_addr": {"type": "string"},
                                        },
                                    },
                                    "current_logging_level": {"type": "string"},
                                },
                            },
                            "kafka": {"type": "object"},
                            "model": {
                                "type": "object",
                                "properties": {
                                    "name": {"type": "string"},
                                    "accepts": {"type": "string"},
                                },
                            },
                        },
                    },
                ),
                500: problem(500),
            },
        ),
    )

    def __init__(self, client: Caller) -> None:
        self._client = client

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        found = known(self._client)
        resp.media = {
            "system": {
                "pid": os.getpid(),
                "current_dir": str(Path.cwd()),
                "python.version": sys.version,
                "request": {
                    "url_root": f"{req.prefix}/",
                    # The connection's other end, whatever the headers say of it.
                    "remote_addr": req.remote_addr,
                },
                "current_logging_level": logging.getLevelName(
                    logging.getLogger().getEffectiveLevel()
                ),
            },
            "kafka": self._client.snapshot(),
            "model": {"name": found.model, "accepts": found.accepts},
        }
        if not req.context.trusted:
            for section, names in _PRIVATE.items():
                resp.media[section] = {
                    name: value for name, value in resp.media[section].items() if name not in names
                }

    on_head = on_get

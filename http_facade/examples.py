"""Payloads to try, from ``facade.examples``: read at start, shown where they are text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from stream_scorer.config import ConfigError, Settings


@dataclass(frozen=True)
class Example:
    """A payload as a document shows it: JSON as what it says, other text as it is."""

    value: object


Examples = Mapping[str, Example | None]
"""By media type; ``None`` where there is nothing to show, since it is not text."""


def read_examples(settings: Settings) -> Examples:
    """Read the files of ``facade.examples``.

    Raises:
        ConfigError: one is not there, is not what its type says, or could not be scored for its
            size.
    """
    return {type_: _read(settings, type_, name) for type_, name in settings.facade.examples.items()}


def is_json(media_type: str) -> bool:
    """Whether such a payload is JSON."""
    essence = _essence(media_type)
    return essence == "application/json" or essence.endswith("+json")


def is_text(media_type: str) -> bool:
    """Whether such a payload can be read by people."""
    essence = _essence(media_type)
    return (
        is_json(media_type)
        or essence.startswith("text/")
        or essence == "application/xml"
        or essence.endswith("+xml")
    )


def _essence(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def _read(settings: Settings, media_type: str, name: str) -> Example | None:
    where = f"@ facade.examples.{media_type}"
    limit = settings.limits.payload_bytes
    path = settings.locate(name)
    try:
        if (size := path.stat().st_size) > limit:
            raise ConfigError(
                f"file {name} has {size} bytes; limits.payload_bytes is {limit} {where}"
            )
        payload = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"file {name}: {error.strerror} {where}") from None
    try:
        if is_json(media_type):
            return Example(orjson.loads(payload))
        return Example(payload.decode()) if is_text(media_type) else None
    except ValueError:
        kind = "JSON" if is_json(media_type) else "text in UTF-8"
        raise ConfigError(f"file {name} is not {kind} {where}") from None

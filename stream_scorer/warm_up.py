"""A model's first predictions, on the example that was saved with it, before anybody waits.

What a library makes at the first prediction (graphs, threads, caches) is then there, and a model
that does not do what it did when it was saved is found before it answers a caller.
"""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from typing import Any, Final

from stream_scorer.errors import SetupError
from stream_scorer.plugins.description import describe, example_payloads
from stream_scorer.plugins.loading import AnyPlugin
from stream_scorer.plugins.models import ModelFolder
from stream_scorer.plugins.original import Adapted
from stream_scorer.plugins.pyfunc import Plugin as AnyModel
from stream_scorer.protocol import Answer, Request, Status
from stream_scorer.scorer import Scorer

_log = logging.getLogger(__name__)

OUTPUT_EXAMPLE: Final = "output_example.json"
"""The file in a model's folder with the answer to its input example, where somebody saved it."""

_RELATIVE: Final = 1e-4
"""How far a number may be from the saved one: libraries and machines round differently."""


class WarmUpFailed(SetupError):
    """The model cannot score the example that it was saved with, or answers something else."""


def warm_up(scorer: Scorer, plugin: AnyPlugin, folder: ModelFolder) -> None:
    """Score the model's input example, alone and twice together, where the plugin takes it.

    Args:
        scorer: of the plugin and the model, with nobody told of what is scored here.
        plugin: what reads the example.
        folder: the model's.

    Raises:
        WarmUpFailed: without a plugin of one's own, the example is not scored, or the answer
            differs from the saved one.
    """
    if isinstance(plugin, Adapted):
        return  # it takes what the caller's payload was made for, and says so of no other
    refused: Answer | None = None
    for payload, content_type in example_payloads(describe(folder)):
        request = Request.local(payload, content_type)
        answer, *_ = scorer.score([request])
        if answer.status is Status.OK:
            both = scorer.score([request, request])
            if isinstance(plugin, AnyModel) and not all(_same(answer, each) for each in both):
                plugin.predict_alone()
                _log.warning(
                    "requests are predicted alone: the model answers otherwise when it is given "
                    "several"
                )
            _check_answer(plugin, folder, answer)
            _log.info("warmed up with the model's input example")
            return
        refused = refused or answer
    if refused is None:
        return
    if type(plugin) is AnyModel:
        raise WarmUpFailed(
            f"model_uri {folder.uri}: it cannot score its own input example: {_detail(refused)}"
        )
    # A plugin of one's own takes payloads of its own.
    _log.info("not warmed up: the plugin does not take the model's input example")


def _same(alone: Answer, among: Answer) -> bool:
    if among.status is not Status.OK or alone.body == among.body:
        return among.status is Status.OK
    try:
        return _alike(json.loads(among.body), json.loads(alone.body))
    except ValueError:
        return False


def _check_answer(plugin: AnyPlugin, folder: ModelFolder, answer: Answer) -> None:
    try:
        _compare(folder, answer)
    except WarmUpFailed as error:
        if type(plugin) is AnyModel:
            raise
        # A plugin of one's own gives answers of its own.
        _log.warning("%s", error)


def _compare(folder: ModelFolder, answer: Answer) -> None:
    file = folder.path / OUTPUT_EXAMPLE
    if not file.is_file():
        return
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WarmUpFailed(f"model_uri {folder.uri}: {OUTPUT_EXAMPLE} is not JSON") from error
    given: Any = None
    with suppress(ValueError):
        given = json.loads(answer.body or b"")
    if not _alike(_bare(given), _bare(saved)):
        raise WarmUpFailed(
            f"model_uri {folder.uri}: to its input example it does not answer what is saved in "
            f"{OUTPUT_EXAMPLE}"
        )


def _bare(answer: Any) -> Any:
    """Predictions without the name that MLflow's server puts around them."""
    return answer["predictions"] if isinstance(answer, dict) and "predictions" in answer else answer


def _alike(given: Any, saved: Any) -> bool:
    match given, saved:
        case dict(), dict():
            return given.keys() == saved.keys() and all(
                _alike(given[name], saved[name]) for name in saved
            )
        case list(), list():
            return len(given) == len(saved) and all(map(_alike, given, saved))
        case (bool(), _) | (_, bool()):
            return given is saved
        case ((int() | float()), (int() | float())):
            both_nan = given != given and saved != saved
            return both_nan or math.isclose(given, saved, rel_tol=_RELATIVE, abs_tol=_RELATIVE)
    return bool(given == saved)


def _detail(answer: Answer) -> str:
    told = json.loads(answer.body or b"{}")
    return " ".join(str(told.get("detail", answer.status.value)).split())

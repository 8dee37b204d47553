"""A model's own example is scored before anybody else's payload, and its answer compared."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stream_scorer.plugins.loading import AnyPlugin
from stream_scorer.plugins.models import ModelFolder, fetch_model
from stream_scorer.plugins.original import adapted
from stream_scorer.plugins.pyfunc import Plugin
from stream_scorer.scorer import Scorer
from stream_scorer.warm_up import OUTPUT_EXAMPLE, WarmUpFailed, warm_up
from tests.fakes import EchoPlugin
from tests.model_folders import make_model
from tests.summing_model import save_summing_model

EXAMPLE = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, 0.25]})
ANSWER = [[1.5, 2], [2.25, 2]]

Save = Callable[[object], ModelFolder]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        # MLflow writes examples in a way that pandas will change.
        warnings.simplefilter("ignore")
        return save_summing_model(tmp_path_factory.mktemp("model"), EXAMPLE, input_example=EXAMPLE)


@pytest.fixture
def folder(saved: Path) -> ModelFolder:
    return fetch_model(str(saved))


def save(folder: ModelFolder, answer: object) -> None:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    (folder.path / OUTPUT_EXAMPLE).write_text(text, encoding="utf-8")


class Counting(Plugin):
    """Notes how many requests each prediction was for."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def predict(self, model: Any, instances: Any) -> Any:
        self.batches.append(len(instances))
        return super().predict(model, instances)


def warm(folder: ModelFolder, plugin: AnyPlugin) -> None:
    model = plugin.load_model(str(folder.path))
    scorer = Scorer(plugin, model, payload_bytes=10_000, result_bytes=10_000, max_batch_size=8)
    warm_up(scorer, plugin, folder)


def test_the_example_is_scored_alone_and_with_another(
    folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Counting()
    with caplog.at_level(logging.INFO):
        warm(folder, plugin)
    assert plugin.batches == [1, 2]
    # The model tells how many rows it was given at once.
    assert [record.message for record in caplog.records] == [
        "requests are predicted alone: the model answers otherwise when it is given several",
        "warmed up with the model's input example",
    ]
    model = plugin.load_model(str(folder.path))
    payload = json.dumps({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}).encode()
    instance = plugin.decode(payload, "application/json")
    both = plugin.predict(model, [instance, instance])
    assert [each.values for each in both] == [[[3, 1]], [[3, 1]]]


@pytest.mark.parametrize(
    "answer", [{"predictions": ANSWER}, ANSWER, [[1.500001, 2], [2.25, 2.0]]], ids=str
)
def test_the_answer_that_was_saved_is_given(folder: ModelFolder, answer: object) -> None:
    save(folder, answer)
    warm(folder, Plugin())


@pytest.mark.parametrize(
    "answer",
    [
        {"predictions": [[1.5, 2], [2.26, 2]]},
        {"predictions": [[1.5, 2]]},
        {"predictions": [[1.5, 2], [2.25, None]]},
        {"predictions": [[1.5, True], [2.25, 2]]},
        {"other": ANSWER},
        "1.5",
    ],
    ids=str,
)
def test_another_answer_than_the_saved_one_ends_it(folder: ModelFolder, answer: object) -> None:
    save(folder, answer)
    with pytest.raises(WarmUpFailed, match="it does not answer what is saved in"):
        warm(folder, Plugin())


def test_a_plugin_of_one_s_own_may_answer_otherwise(
    folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, [[0, 0], [0, 0]])
    with caplog.at_level(logging.INFO):
        warm(folder, Counting())
    _alone, differs, warmed = (record.message for record in caplog.records)
    assert differs.endswith(f"it does not answer what is saved in {OUTPUT_EXAMPLE}")
    assert warmed == "warmed up with the model's input example"


def test_a_plugin_made_of_mlflow_s_may_take_other_payloads(
    folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    class OfText(Plugin):
        content_types = ("text/plain",)

    with caplog.at_level(logging.INFO):
        warm(folder, OfText())
    assert [record.message for record in caplog.records] == [
        "not warmed up: the plugin does not take the model's input example"
    ]


def test_a_saved_answer_that_is_none_ends_it(folder: ModelFolder) -> None:
    save(folder, "{")
    with pytest.raises(WarmUpFailed, match=r"output_example\.json is not JSON"):
        warm(folder, Plugin())


def test_a_model_that_cannot_score_its_own_example_ends_it(
    tmp_path: Path, folder: ModelFolder
) -> None:
    example = json.dumps({"dataframe_split": {"columns": ["z"], "data": [[1]]}})
    (folder.path / "serving_input_example.json").write_text(example, encoding="utf-8")
    with pytest.raises(
        WarmUpFailed, match=r"cannot score its own input example: .*missing"
    ) as told:
        warm(folder, Plugin())
    assert "\n" not in str(told.value)


def test_a_plugin_with_payloads_of_its_own_is_not_warmed_up(
    folder: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    class Pictures(EchoPlugin):
        content_types = ("image/png", "image/jpeg")

        def load_model(self, model_uri: str) -> Any:
            return None

    with caplog.at_level(logging.INFO):
        warm(folder, Pictures())
    assert [record.message for record in caplog.records] == [
        "not warmed up: the plugin does not take the model's input example"
    ]


def test_a_plugin_of_the_original_gets_no_payload_that_it_did_not_ask_for(
    folder: ModelFolder,
) -> None:
    class Original:
        def load_model(self, model_uri: str) -> Any:
            return None

        def predict(self, model: Any, data: bytes) -> str:
            raise AssertionError("not asked for")

    warm(folder, adapted(Original(), "application/json"))


def test_a_model_without_an_example_is_not_warmed_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Loading(EchoPlugin):
        def load_model(self, model_uri: str) -> Any:
            return None

    with caplog.at_level(logging.INFO):
        warm(fetch_model(str(make_model(tmp_path / "m"))), Loading())
    assert caplog.records == []


@pytest.fixture(autouse=True)
def restored(saved: Path) -> Any:
    """Each test finds the folder as it was saved."""
    example = saved / "serving_input_example.json"
    before = example.read_text(encoding="utf-8")
    yield
    example.write_text(before, encoding="utf-8")
    (saved / OUTPUT_EXAMPLE).unlink(missing_ok=True)

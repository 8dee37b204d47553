"""The documents say what is true: names in them exist, tables match the code, code in them runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from http_facade.metrics import Metrics as FacadeMetrics
from stream_scorer.config import load_settings
from stream_scorer.metrics import Metrics
from stream_scorer.plugins import InvalidPayload
from stream_scorer.plugins.loading import load_plugin
from stream_scorer.protocol import Status

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_architecture_names_every_module_and_none_that_is_not_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([a-z_/]+\.py)` \|", text, re.MULTILINE))
    there = {
        str(path.relative_to(ROOT))
        for package in ("stream_scorer", "http_facade")
        for path in (ROOT / package).rglob("*.py")
        if not path.name.startswith("__") and "cli" not in path.parts
    }
    assert named == there


def test_the_contract_lists_the_statuses_as_they_are() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| (\d{3}) \|", text, re.MULTILINE)
    assert rows == [(status.value, str(status.http)) for status in Status]


@pytest.mark.parametrize("file", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]), ids=str)
def test_links_lead_somewhere(file: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (file.parent / link).exists()] == []


def test_the_readme_s_plugin_works(tmp_path: Path) -> None:
    (code,) = [block for block in _blocks("python") if "class Plugin" in block]
    file = tmp_path / "plugin.py"
    file.write_text(code, encoding="utf-8")
    plugin = load_plugin(str(file))
    assert plugin.decode(b"[1,2,3,4,5,6,7,8,9,10,11.5]", "application/json")[-1] == 11.5
    for wrong in (b"{", b"[1]", b'["a"]'):
        with pytest.raises(InvalidPayload):
            plugin.decode(wrong, "application/json")


class Sums:
    """A model: the sum of each row of numbers, the length of each text."""

    def predict(self, rows: Any, params: object = None) -> Any:
        if isinstance(rows, pd.DataFrame):
            return rows["review"].str.len().to_numpy()
        return np.asarray(rows).sum(axis=1)


@pytest.mark.filterwarnings("ignore:.*type hint")  # what MLflow says of itself as it is imported
@pytest.mark.parametrize(
    ("number", "sent", "answer", "refused"),
    [
        (0, (b"calls,months\n3,24\n1,2\n", "text/csv"), [27, 3], b"months,calls\n24,\n"),
        (1, (b"24 3", "text/plain"), 27, b"24"),
        (2, (b"good\nvery bad", "text/plain"), {"predictions": [4, 8]}, None),
    ],
)
def test_the_plugins_of_the_walk_work(
    tmp_path: Path, number: int, sent: tuple[bytes, str], answer: object, refused: bytes | None
) -> None:
    blocks = _blocks("python", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8"))
    assert len(blocks) == 3
    file = tmp_path / "plugin.py"
    file.write_text(blocks[number], encoding="utf-8")
    plugin = load_plugin(str(file))
    instance = plugin.decode(*sent)
    for prediction in plugin.predict(Sums(), [instance, instance]):
        body, content_type = plugin.encode(prediction, None)
        assert (json.loads(body), content_type) == (answer, "application/json")
    if refused is not None:
        with pytest.raises(InvalidPayload):
            plugin.decode(refused, sent[1])


def test_the_confs_of_the_walk_are_confs(tmp_path: Path) -> None:
    for block in _blocks("yaml", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")):
        (tmp_path / "conf.yaml").write_text(block, encoding="utf-8")
        assert load_settings(tmp_path / "conf.yaml", {}).model_uri


def test_the_readme_names_settings_that_exist_with_their_defaults() -> None:
    defaults = load_settings(None, {}).model_dump(by_alias=True)
    for names, default in re.findall(r"^\| (`[^|]+`) \| ([^|]*) \|", README, re.MULTILINE):
        keys = re.findall(r"`([^`]+)`", names)
        values = [yaml.safe_load(text) for text in re.findall(r"`([^`]+)`", default)]
        section = keys[0].rpartition(".")[0]
        for number, key in enumerate(keys):
            path = f"{section}{key}" if key.startswith(".") else key
            value = _setting(defaults, path)
            if number < len(values) and not isinstance(values[number], dict):
                expected = values[min(number, len(values) - 1)]
                assert (list(value) if isinstance(value, tuple) else value) == expected, path


def _setting(settings: dict[str, Any], path: str) -> object:
    value: Any = settings
    for part in path.split("."):
        assert part in value, f"no setting {path}"
        value = value[part]
    return value


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_metric_is_told_of() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(scorer_[a-z_]+)` \|", text, re.MULTILINE))
    families = [*Metrics(0).registry.collect(), *FacadeMetrics().registry.collect()]
    there = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    assert told == there

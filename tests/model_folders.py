"""MLflow model folders made by hand, and what is said of those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stream_scorer.plugins.models import ModelError


def make_model(
    folder: Path,
    flavors: object = None,
    files: dict[str, bytes] | None = None,
    **description: object,
) -> Path:
    """An MLflow model folder: its description, and files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    tree = {"flavors": {} if flavors is None else flavors, **description}
    (folder / "MLmodel").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def refusal(action: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        action(*arguments, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)

"""The committed model folders: small, free of pickle, and nobody's in particular."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "samples").rglob("MLmodel"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_each_sample_has_its_model() -> None:
    confs = (ROOT / "samples").rglob("conf.yaml")
    named = {ROOT / yaml.safe_load(c.read_text())["model_uri"].removeprefix("file:") for c in confs}
    assert named == set(FOLDERS)


def test_models_together_are_small() -> None:
    assert 0 < sum(path.stat().st_size for folder in FOLDERS for path in files(folder)) < 3_000_000


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
class TestModelFolder:
    def test_holds_no_pickle(self, folder: Path) -> None:
        assert not {".pkl", ".pickle", ".cloudpickle", ".joblib"}.intersection(
            path.suffix for path in files(folder)
        )
        text = (folder / "MLmodel").read_text()
        assert "serialization_format: cloudpickle" not in text
        assert "serialization_format: pickle" not in text

    def test_names_no_machine(self, folder: Path) -> None:
        for path in files(folder):
            content = path.read_bytes()
            assert not re.search(rb"/(home|root|work|Users|tmp|opt|usr)/", content), path
            if path.suffix in (".txt", ".yaml", ""):
                assert b"://" not in content, path
                assert b"--" not in content, path  # pip's options: an index, a host to trust

    def test_says_how_well_it_does(self, folder: Path) -> None:
        metadata = yaml.safe_load((folder / "MLmodel").read_text())["metadata"]
        assert {"test_rmse", "test_accuracy"}.intersection(metadata)
        assert "CC BY" in metadata["data"]

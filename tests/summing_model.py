"""A model of Python code that sums each row, and gives the sums in the form it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ParamSchema, ParamSpec, Schema

MODEL = '''
import mlflow, numpy as np, pandas as pd

class Model(mlflow.pyfunc.PythonModel):
    """Sums each row; tells how many rows it was given at once in `seen`."""

    def predict(self, context, model_input, params=None):
        params = params or {}
        if isinstance(model_input, dict):
            sums = sum(value.reshape(len(value), -1).sum(axis=1) for value in model_input.values())
        elif isinstance(model_input, pd.DataFrame):
            sums = model_input.sum(axis=1).to_numpy()
        else:
            sums = model_input.reshape(len(model_input), -1).sum(axis=1)
        sums = sums * params.get("factor", 1)
        seen = [len(sums)] * len(sums)
        if params.get("form") == "sum":
            return float(sums.sum())
        if params.get("form") == "frame":
            return pd.DataFrame({"sum": sums, "seen": seen})
        if params.get("form") == "series":
            return pd.Series(sums, index=getattr(model_input, "index", None))
        if params.get("form") == "dict":
            return {"sum": np.asarray(sums), "seen": np.asarray(seen)}
        if params.get("form") == "lists":
            return {"sum": [float(a) for a in sums], "seen": np.asarray(seen)}
        if params.get("form") == "ragged":
            return [[len(sums)] * int(a) for a in sums]
        if params.get("form") == "bounds":
            return [float(sums.min()), float(sums.max())]
        if params.get("form") == "columns":
            return np.stack([sums, seen])
        return [[float(a), b] for a, b in zip(sums, seen)]

mlflow.models.set_model(Model())
'''
PARAMS = ParamSchema([ParamSpec("factor", "double", 1.0), ParamSpec("form", "string", "list")])


def save_summing_model(folder: Path, example: Any = None, **options: Any) -> Path:
    """Save it in a folder, with a schema or that of an example, or without a signature."""
    code = folder / "code.py"
    code.write_text(MODEL, encoding="utf-8")
    signature = None
    if example is not None:
        signature = (
            ModelSignature(example) if isinstance(example, Schema) else infer_signature(example)
        )
        signature.params = PARAMS
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=str(code),
        signature=signature,
        pip_requirements=[],
        **options,
    )
    return folder / "model"

"""Trains the tree of the wine samples and writes their model folders.

The same data and the same versions of the libraries give the same files again; only model.skops
differs, in the object ids and times that its format records.
"""

import shutil
from pathlib import Path
from typing import Any

import click
import mlflow.onnx
import mlflow.sklearn
import numpy as np
import onnxruntime
import pandas as pd
import skl2onnx
from mlflow.models import Model, ModelSignature, infer_signature
from numpy.typing import NDArray
from skl2onnx.common.data_types import FloatTensorType
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeRegressor

HERE = Path(__file__).parent
ORIGINAL = (
    "https://archive.ics.uci.edu/ml/machine-learning-databases/wine-quality/winequality-white.csv"
)
TARGET = "quality"


def read_wines(source: str) -> pd.DataFrame:
    """Read the data set from a path or an address, its columns named as in the original."""
    # The original is separated by semicolons, many copies by commas.
    wines = pd.read_csv(source, sep=None, engine="python")
    return wines.rename(columns=lambda name: name.replace("_", " "))


def train(wines: pd.DataFrame) -> tuple[DecisionTreeRegressor, dict[str, Any]]:
    """Fit the tree; returns it with what is worth knowing about it."""
    training, test = train_test_split(wines, test_size=0.3, random_state=42)
    # Fitted on arrays, without column names: scikit-learn would warn at each prediction from a
    # plain array otherwise, and those are what makes serving fast.
    tree = DecisionTreeRegressor(max_depth=5, random_state=42)
    tree.fit(training.drop(columns=TARGET).to_numpy(), training[TARGET].to_numpy())
    predicted = tree.predict(test.drop(columns=TARGET).to_numpy())
    card = {
        "data": "Wine Quality, white wines (Cortez et al., 2009), CC BY 4.0, doi:10.24432/C56S3T",
        "columns": [name for name in wines.columns if name != TARGET],
        "rows_trained_on": len(training),
        "rows_tested_on": len(test),
        "test_rmse": round(float(root_mean_squared_error(test[TARGET], predicted)), 4),
    }
    return tree, card


def save_sklearn(
    tree: DecisionTreeRegressor, signature: ModelSignature, card: dict[str, Any], folder: Path
) -> None:
    """Write the MLflow model folder with the tree in skops' format, which holds no code."""
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.sklearn.save_model(
        tree,
        str(folder),
        mlflow_model=_described(card),
        signature=signature,
        serialization_format="skops",
        skops_trusted_types=["sklearn.tree._tree.Tree"],
        # Named here, because MLflow would otherwise list what this process happens to import.
        pip_requirements=mlflow.sklearn.get_default_pip_requirements(include_skops=True),
    )


def save_onnx(
    tree: DecisionTreeRegressor,
    signature: ModelSignature,
    card: dict[str, Any],
    folder: Path,
    measurements: NDArray[np.float64],
) -> float:
    """Convert the tree and write it as an MLflow model folder.

    Returns:
        The largest difference between its predictions for ``measurements`` and the tree's own.
    """
    onnx = skl2onnx.to_onnx(
        tree,
        name="wine-quality",
        # float32 is exact here: scikit-learn's trees compare their inputs as float32 themselves,
        # and the converter rounds each threshold so that it parts the same numbers.
        initial_types=[("wines", FloatTensorType([None, measurements.shape[1]]))],
    )
    session = onnxruntime.InferenceSession(
        onnx.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (converted,) = session.run(None, {"wines": measurements.astype(np.float32)})
    difference = float(np.abs(converted.reshape(-1) - tree.predict(measurements)).max())
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.onnx.save_model(
        onnx,
        str(folder),
        mlflow_model=_described({**card, "largest_difference_from_sklearn": difference}),
        signature=signature,
        onnx_execution_providers=["CPUExecutionProvider"],
        # For pyfunc: a second thread would spin, waiting, between the calls of a tree this small.
        onnx_session_options={"inter_op_num_threads": 1, "intra_op_num_threads": 1},
        save_as_external_data=False,
        pip_requirements=mlflow.onnx.get_default_pip_requirements(),
    )
    return difference


def _described(card: dict[str, Any]) -> Model:
    # Neither a time nor a random id, so that the same model is the same files.
    description = Model(metadata=card, model_uuid=None)
    description.utc_time_created = None  # type: ignore[assignment]  # written as null
    return description


@click.command(help=__doc__)
@click.option("--data", metavar="PATH", default=ORIGINAL, help="The CSV file; else it is fetched.")
@click.option("--onnx", is_flag=True, help="Also convert the tree for the ONNX sample.")
def main(data: str, onnx: bool) -> None:
    """Train, save, and say how far the predictions are off."""
    wines = read_wines(data)
    tree, card = train(wines)
    measurements = wines[card["columns"]].to_numpy()
    signature = infer_signature(measurements, tree.predict(measurements))
    save_sklearn(tree, signature, card, HERE / "model")
    click.echo(f"RMSE on {card['rows_tested_on']} wines kept out: {card['test_rmse']}")
    if onnx:
        difference = save_onnx(tree, signature, card, HERE / "onnx" / "model", measurements)
        click.echo(f"ONNX differs from scikit-learn by at most {difference:.1e} on all wines")


if __name__ == "__main__":
    main()

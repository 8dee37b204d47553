"""The quality of white wines: rows of named measurements into a scikit-learn tree."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream_scorer import plugins
from stream_scorer.plugins.rows import predict_rows
from stream_scorer.plugins.tables import decode_split_json

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

Rows = NDArray[np.float64]

COLUMNS = (
    *("fixed acidity", "volatile acidity", "citric acid", "residual sugar", "chlorides"),
    *("free sulfur dioxide", "total sulfur dioxide", "density", "pH", "sulphates", "alcohol"),
)


class Plugin(plugins.Plugin["DecisionTreeRegressor", Rows, Rows]):
    """Takes pandas-split JSON of any number of wines; answers a list with each one's quality."""

    content_types = ("application/json",)

    def load_model(self, model_uri: str) -> "DecisionTreeRegressor":
        """Load scikit-learn's own model, not its pyfunc wrapper: that needs a DataFrame a call."""
        import mlflow.sklearn

        return mlflow.sklearn.load_model(model_uri)

    def decode(self, payload: bytes, content_type: str) -> Rows:
        """An array of shape (wines, 11). The quality may come along, as in the training data."""
        return decode_split_json(payload, COLUMNS, ignored=("quality",))

    def predict(self, model: "DecisionTreeRegressor", instances: Sequence[Rows]) -> list[Rows]:
        """Qualities of shape (wines,) for each instance, all predicted in one call."""
        return predict_rows(model.predict, instances)

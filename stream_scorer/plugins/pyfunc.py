"""The plugin for every MLflow model: MLflow's own payloads in, and its own answers out.

Used where a conf names no plugin. What it takes and gives is what ``mlflow models serve`` of the
same MLflow does, read and written by the same functions of MLflow.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from email.message import Message
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stream_scorer import plugins
from stream_scorer.plugins.joining import Records, Split, joined, kind_of, parted, rows_of, types_of
from stream_scorer.plugins.parquet import check_size
from stream_scorer.plugins.plugin import InvalidPayload

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

_JSON: Final = "application/json"
_CSV: Final = "text/csv"
_PARQUET: Final = "application/vnd.apache.parquet"

_LONGEST_MESSAGE: Final = 4_000
"""Characters of what MLflow says that the caller is told; it quotes the payload."""

_FLOATS: Final = frozenset({"double", "float"})

_MOST_CELLS: Final = 1_000_000
_MOST_BYTES: Final = 64 * 1024 * 1024
"""What a file of Parquet may unpack to."""

_MOST_KINDS: Final = 1_000
"""Kinds of requests remembered; callers make them, by columns and params."""


class Instance(NamedTuple):
    """One request: what the model's ``predict`` takes, or a table that is still to be read.

    ``kind`` is what requests must have in common to be predicted as one; ``None``: it is predicted
    alone. ``wrapped``: its answer is ``{"predictions": …}``.
    """

    data: Any
    params: dict[str, Any] | None = None
    kind: object | None = None
    wrapped: bool = True


class Prediction(NamedTuple):
    """What the model gave for one request."""

    values: Any
    wrapped: bool


class Plugin(plugins.Plugin["PyFuncModel", Instance, Prediction]):
    """Takes MLflow's JSON, CSV and, where pyarrow is there, Parquet; answers its JSON.

    The JSON is an object with one of ``dataframe_split``, ``dataframe_records``, ``instances`` and
    ``inputs``, and perhaps ``params``; or bare pandas-split JSON. Payloads are read with the
    model's signature, which is known once the model is loaded.

    Requests of the same columns and params are predicted as one table. A model must then give each
    row its own prediction, whatever the other rows are; where it gives another number of rows than
    it got, each request is predicted alone, and so is one without rows.
    ``worker.max_batch_size: 1`` has it so from the start.
    """

    content_types = (_JSON, _CSV, *((_PARQUET,) if find_spec("pyarrow") else ()))

    _metadata: Any = None
    _schema: Any = None
    _is_joined = True
    _floats: frozenset[str] = frozenset()

    @cached_property
    def _by_row(self) -> dict[int, bool]:
        """Whether the model gives each row its own prediction, by the hashes of kinds."""
        return {}

    def load_model(self, model_uri: str) -> PyFuncModel:
        """Load the model as pyfunc, and remember how its payloads are to be read."""
        model = super().load_model(model_uri)
        self._metadata = model.metadata
        self._schema = self._metadata.get_input_schema()
        if self._schema is not None and self._schema.is_tensor_spec():
            # An array whose first dimension is fixed has no room for other requests' rows.
            self._is_joined = all(spec.shape[:1] == (-1,) for spec in self._schema.inputs)
        elif self._schema is not None:
            kinds = {str(each.name): str(each.type) for each in self._schema.inputs}
            self._floats = frozenset(name for name, kind in kinds.items() if kind in _FLOATS)
        if "keras" in sys.modules:
            _stop_progress_bars()
        return model

    def decode(self, payload: bytes, content_type: str) -> Instance:
        """A table, an array, named arrays, or what else the model takes.

        A table of JSON is read when it is predicted, with others in one go.
        """
        scoring_server, refusal = _mlflow()
        media_type, charset = _parsed(content_type)
        if charset.lower() != "utf-8":
            raise InvalidPayload(f"the charset {charset} is not taken; send UTF-8")
        try:
            if media_type == _PARQUET:
                check_size(payload, _MOST_CELLS, _MOST_BYTES)
                return self._instance(scoring_server.parse_parquet_input(BytesIO(payload)))
            text = payload.decode()
            if media_type == _CSV:
                return self._instance(scoring_server.parse_csv_input(StringIO(text), self._schema))
            return self._from_json(json.loads(text))
        except UnicodeDecodeError as error:
            raise InvalidPayload(f"the payload is not UTF-8: {error}") from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidPayload(f"the payload is not JSON: {error}") from None
        except refusal as error:
            raise InvalidPayload(_said(error)) from None

    def _from_json(self, sent: Any) -> Instance:
        scoring_server, _ = _mlflow()
        if not isinstance(sent, dict):
            raise InvalidPayload(
                f"{scoring_server.REQUIRED_INPUT_FORMAT}. Received a {type(sent).__name__}."
            )
        if scoring_server.is_unified_llm_input(sent):
            known = self._metadata.get_params_schema()
            names = {param.name for param in known.params} if known else set()
            params = {name: value for name, value in sent.items() if name in names}
            rest = {name: value for name, value in sent.items() if name not in names}
            return Instance(rest, params, wrapped=False)
        params = sent.pop(scoring_server.SERVING_PARAMS_KEY, None)
        named = scoring_server.SUPPORTED_FORMATS & sent.keys()
        if self._metadata._is_signature_from_type_hint():
            if scoring_server.INPUTS not in sent:
                raise InvalidPayload('expected a JSON object with "inputs"')
            return Instance(sent[scoring_server.INPUTS], params)
        if not named and {"columns", "data"} <= sent.keys():
            # What DataFrame.to_json(orient="split") writes, with no name around it.
            sent = {scoring_server.DF_SPLIT: sent}
        else:
            # MLflow leaves out what else is there, as clients of TensorFlow Serving send.
            sent = {name: value for name, value in sent.items() if name in named}
        data: Any = None
        match sent:
            case {scoring_server.DF_SPLIT: {"columns": list(), "data": list()} as table}:
                data = _split(table)
            case {scoring_server.DF_RECORDS: list() as records}:
                data = Records(records)
        if data is None or len(named) > 1 or kind_of(data) is None:
            data = scoring_server.infer_and_parse_data(sent, self._schema)
        return self._instance(data, params)

    def _instance(self, data: Any, params: dict[str, Any] | None = None) -> Instance:
        # Of named arrays that no signature tells of, one may be no array of rows.
        is_joined = self._is_joined and not (isinstance(data, dict) and self._schema is None)
        kind = kind_of(data) if is_joined else None
        if kind is None or rows_of(data) == 0:
            return Instance(data, params)
        types = types_of(data, self._floats)
        given = None if params is None else json.dumps(params, sort_keys=True)
        return Instance(data, params, (kind, types, given))

    def predict_alone(self) -> None:
        """Join no requests from now on: the model's answers depend on what else it is given."""
        self._is_joined = False

    def predict(self, model: PyFuncModel, instances: Sequence[Instance]) -> list[Prediction]:
        """Predictions of each request, those of one kind in one call of the model."""
        alike: dict[object, list[int]] = defaultdict(list)
        for number, instance in enumerate(instances):
            alike[number if instance.kind is None else (instance.kind,)].append(number)
        predicted: list[Any] = [None] * len(instances)
        for numbers in alike.values():
            group = [instances[number] for number in numbers]
            for number, values in zip(numbers, self._predict_alike(model, group), strict=True):
                predicted[number] = Prediction(values, instances[number].wrapped)
        return predicted

    def _predict_alike(self, model: PyFuncModel, group: Sequence[Instance]) -> list[Any]:
        if len(group) > 1 and self._by_row.get(hash(group[0].kind), True):
            data = [instance.data for instance in group]
            rows = [rows_of(each) for each in data]
            parts = parted(self._call(model, joined(data), group[0].params), rows)
            if parts is None:
                self._remember(hash(group[0].kind), False)
            elif self._is_by_row(model, group[0]):
                return parts
        return [self._call(model, instance.data, instance.params) for instance in group]

    def _is_by_row(self, model: PyFuncModel, instance: Instance) -> bool:
        """Whether a model gives as many rows for one request as it has, as it did for several.

        For several it may be by coincidence: two outputs, or a least and a largest, are as many as
        the rows of two requests. What is so for two numbers of rows is none. Asked once a kind.
        """
        # Kinds hold what callers sent, of any length: their hashes do.
        kind = hash(instance.kind)
        if kind not in self._by_row:
            values = self._call(model, instance.data, instance.params)
            self._remember(kind, parted(values, [rows_of(instance.data)]) is not None)
        return self._by_row[kind]

    def _remember(self, kind: int, is_by_row: bool) -> None:
        if len(self._by_row) >= _MOST_KINDS:
            self._by_row.clear()
        self._by_row[kind] = is_by_row

    def _call(self, model: PyFuncModel, data: Any, params: dict[str, Any] | None) -> Any:
        _, refusal = _mlflow()
        try:
            return model.predict(self._read(data), params=params)
        except refusal as error:
            if error.error_code in _REFUSALS:
                raise InvalidPayload(_said(error)) from error
            raise

    def _read(self, data: Any) -> Any:
        scoring_server, _ = _mlflow()
        match data:
            case Split(columns, rows, labels):
                table = {"columns": columns, "data": rows}
                if labels is not None:
                    table["index"] = labels
                sent: dict[str, Any] = {scoring_server.DF_SPLIT: table}
            case Records(rows):
                sent = {scoring_server.DF_RECORDS: rows}
            case _:
                return data
        try:
            return scoring_server.infer_and_parse_data(sent, self._schema)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InvalidPayload(f"the table cannot be read ({type(error).__name__})") from error

    def encode(self, prediction: Prediction, accept: str | None) -> tuple[bytes, str]:
        """The JSON that ``mlflow models serve`` answers with."""
        scoring_server, _ = _mlflow()
        if not prediction.wrapped:
            body = StringIO()
            scoring_server.unwrapped_predictions_to_json(prediction.values, body)
            return body.getvalue().encode(), _JSON
        # PERF: as predictions_to_json() does, but for json.dump(), which is Python where this is C.
        values = scoring_server._get_jsonable_obj(prediction.values, pandas_orient="records")
        text = json.dumps({"predictions": values}, cls=scoring_server.NumpyEncoder)
        return text.encode(), _JSON


_REFUSALS: Final = frozenset({"BAD_REQUEST", "INVALID_PARAMETER_VALUE"})
"""MLflow's codes of errors that are the caller's."""


@cache
def _mlflow() -> tuple[Any, type[Any]]:
    """MLflow's reading and writing of payloads, and the error by which it refuses one."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server

    return scoring_server, MlflowException


@lru_cache(maxsize=256)  # callers send the same few again and again
def _parsed(content_type: str) -> tuple[str, str]:
    """The media type and the charset."""
    sent = Message()
    sent["content-type"] = content_type
    return sent.get_content_type(), str(sent.get_param("charset", "utf-8"))


def _stop_progress_bars() -> None:
    """Keep Keras from drawing one for each call."""
    import keras

    # Then it draws them in the log.
    keras.utils.disable_interactive_logging()
    logging.getLogger("absl").setLevel(logging.WARNING)


def _said(error: Any) -> str:
    text = str(error.message)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _split(table: dict[str, Any]) -> Split | None:
    if not table.keys() <= {"columns", "index", "data"}:
        return None
    columns, data, labels = table["columns"], table["data"], table.get("index")
    if labels == list(range(len(data))):
        labels = None
    return Split(columns, data, labels) if labels is None or isinstance(labels, list) else None

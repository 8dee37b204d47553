"""Which models may be loaded: pickles, code and places, and what a refusal says."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.sklearn
import pytest
from sklearn.tree import DecisionTreeRegressor

from stream_scorer.plugins.loading import DEFAULT_PLUGIN, load_plugin
from stream_scorer.plugins.models import ModelError, fetch_model, load_model
from stream_scorer.plugins.trust import (
    PICKLE_SWITCH,
    TRUSTED_TYPES,
    check_model,
    check_root,
)
from tests.model_folders import make_model, refusal


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow's switch unset now and again afterwards, and a current folder without models."""
    monkeypatch.setenv(PICKLE_SWITCH, "")
    monkeypatch.delenv(PICKLE_SWITCH)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def checked(
    path: Path,
    *,
    allow_pickle: bool = False,
    allow_code: bool = False,
    trusted: tuple[str, ...] = (),
) -> None:
    check_model(
        fetch_model(str(path)),
        allow_pickle=allow_pickle,
        allow_code=allow_code,
        trusted_types=trusted,
    )


HARMLESS = {
    "empty": b"",
    "one": b"\x80",
    "text": b"hello",
    "model.onnx": b"\x08\x07\x12\x08skl2onnx",
    "weights.h5": b"\x89HDF\r\n\x1a\n",
    "odd": b"\x80\x01x",
    "future": b"\x80\x06x",
}


def archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        for name, held in files.items():
            opened.writestr(name, held)
    return content.getvalue()


def test_what_holds_no_code_is_loaded(tmp_path: Path) -> None:
    keras = archive({"config.json": b"{}", "model.weights.h5": b"\x89HDF"})
    folder = make_model(tmp_path / "m", {"onnx": {}}, {**HARMLESS, "model.keras": keras})
    checked(folder)
    assert os.environ[PICKLE_SWITCH] == "false"


@pytest.mark.parametrize("form", ["pickle", "cloudpickle"])
def test_pickled_flavors_are_refused_with_the_way_to_allow_them(tmp_path: Path, form: str) -> None:
    folder = make_model(tmp_path / "m", {"sklearn": {"serialization_format": form}})
    told = refusal(checked, folder)
    assert told == (
        f"model_uri {folder}: its sklearn flavor is saved as {form}, and a pickle can run any "
        "code; if you trust where it comes from, allow it with `model: {allow_pickle: true}` "
        "in the conf"
    )


PICKLES = {
    **{
        f"data/model{suffix}": b"anything"
        for suffix in (".pkl", ".PKL", ".pickle", ".cloudpickle", ".joblib", ".dill", ".pt", ".pth")
    },
    **{f"weights.{n}": pickle.dumps([1, 2], n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
    "weights.npz": archive({"a.npy": b"x", "data.pkl": b"x"}),
    "model.bin": archive({"archive/data.PKL": b"x"}),
    "model.zip": archive({"a": b"x", "innocent": pickle.dumps([1])}),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_found_by_its_name_and_by_its_content(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "m", {"python_function": {}}, {**HARMLESS, name: PICKLES[name]})
    assert f"its file {name} is a pickle, and" in refusal(checked, folder)


def test_a_pickle_is_found_behind_a_link(tmp_path: Path) -> None:
    """As folders are mounted in containers."""
    make_model(tmp_path / "elsewhere", files={"deep/weights": pickle.dumps([1])})
    folder = make_model(tmp_path / "m")
    (folder / "data").symlink_to(tmp_path / "elsewhere" / "deep")
    assert "its file data/weights is a pickle" in refusal(checked, folder)


def test_a_folder_that_links_to_itself_is_looked_through_once(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", files=HARMLESS)
    (folder / "again").symlink_to(folder)
    checked(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x05\x06" + b"\xff" * 16 + b"\0\0",
        archive({"a": b"x" * 100}).replace(b"PK\x01\x02", b"PK\x01\x03"),
        archive({"a": b"x" * 100}).replace(b"PK\x03\x04", b"PK\x03\x05"),
    ],
)
def test_an_archive_that_cannot_be_looked_into_is_refused(tmp_path: Path, content: bytes) -> None:
    """Another reader may be less particular."""
    folder = make_model(tmp_path / "m", files={"weights": content})
    assert "its file weights cannot be looked into" in refusal(checked, folder)


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_can_be_allowed(tmp_path: Path, name: str) -> None:
    folder = make_model(
        tmp_path / "m", {"sklearn": {"serialization_format": "pickle"}}, {name: PICKLES[name]}
    )
    checked(folder, allow_pickle=True)
    assert os.environ[PICKLE_SWITCH] == "true"


def test_a_users_own_switch_does_not_open_what_the_conf_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PICKLE_SWITCH, "true")
    checked(make_model(tmp_path / "m"))
    assert os.environ[PICKLE_SWITCH] == "false"


# Models in skops' format.


@pytest.fixture(scope="module")
def tree() -> bytes:
    """A decision tree, as skops writes it."""
    import skops.io
    from sklearn.tree import DecisionTreeRegressor

    dumped: bytes = skops.io.dumps(DecisionTreeRegressor().fit([[0.0], [1.0]], [0.0, 1.0]))
    return dumped


@pytest.fixture(scope="module")
def hostile() -> bytes:
    """What would call a function of its choosing, as skops writes it."""
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    dumped: bytes = skops.io.dumps(FunctionTransformer(os.system))
    return dumped


def skops_flavors(name: str = "model.skops") -> dict[str, dict[str, Any]]:
    return {
        "sklearn": {"serialization_format": "skops", "pickled_model": name},
        "python_function": {"loader_module": "mlflow.sklearn", "model_path": name},
    }


@pytest.mark.parametrize("name", ["model.skops", "model.dat", "data/model"])
def test_a_skops_model_of_known_types_is_loaded(tmp_path: Path, tree: bytes, name: str) -> None:
    checked(make_model(tmp_path / "m", skops_flavors(name), {name: tree}))
    assert os.environ[PICKLE_SWITCH] == "true", "MLflow refuses skops files too without it"


@pytest.mark.parametrize(
    "name", ["model.skops", "model.SKOPS", "model.dat", "data/model", "model.pkl.bak"]
)
@pytest.mark.parametrize("described", [False, True])
def test_a_skops_file_of_other_types_is_refused_naming_them(
    tmp_path: Path, tree: bytes, hostile: bytes, name: str, described: bool
) -> None:
    """Whatever it is called, and whatever the description says."""
    flavors = skops_flavors(name) if described else skops_flavors("ok.skops")
    folder = make_model(tmp_path / "m", flavors, {"ok.skops": tree, name: hostile})
    told = refusal(checked, folder)
    assert "it holds types that are not trusted: posix.system; " in told
    assert "`model: {trusted_types: […]}` in the conf" in told


def test_types_can_be_trusted_by_the_conf(tmp_path: Path, hostile: bytes) -> None:
    folder = make_model(tmp_path / "m", skops_flavors(), {"model.skops": hostile})
    checked(folder, trusted=("posix.system", "other.Type"))


def test_types_cannot_be_trusted_by_the_model_itself(tmp_path: Path, hostile: bytes) -> None:
    flavors = skops_flavors()
    flavors["sklearn"]["skops_trusted_types"] = ["posix.system"]
    folder = make_model(tmp_path / "m", flavors, {"model.skops": hostile})
    assert "posix.system" in refusal(checked, folder)


def test_with_pickles_allowed_types_are_not_asked(tmp_path: Path, hostile: bytes) -> None:
    folder = make_model(tmp_path / "m", skops_flavors(), {"model.skops": hostile})
    checked(folder, allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"not a zip", archive({"a": b"x"})])
def test_what_is_called_skops_and_is_not_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = make_model(tmp_path / "m", skops_flavors(), {"model.skops": content})
    assert "model.skops is not a skops file" in refusal(checked, folder)


@pytest.mark.parametrize("name", ["../outside.skops", "/outside.skops", "data/../../outside.skops"])
@pytest.mark.parametrize("flavor", ["sklearn", "python_function"])
def test_a_description_cannot_lead_out_of_the_folder(
    tmp_path: Path, tree: bytes, hostile: bytes, name: str, flavor: str
) -> None:
    (tmp_path / "outside.skops").write_bytes(hostile)
    flavors = skops_flavors()
    place = str(tmp_path / name.lstrip("/")) if name.startswith("/") else name
    flavors[flavor]["pickled_model" if flavor == "sklearn" else "model_path"] = place
    folder = make_model(tmp_path / "m", flavors, {"model.skops": tree, "data/x": b""})
    assert "outside its folder" in refusal(checked, folder)


class Ran(Exception):
    """A model's own code was run."""


class Payload:
    """Raises when it is unpickled."""

    def __reduce__(self) -> tuple[type[Ran], tuple[str]]:
        return raise_ran, ()  # type: ignore[return-value]  # any callable will do


def raise_ran() -> None:
    raise Ran


OLD_PICKLE = pickle.dumps(Payload(), 0)

DISGUISES: dict[str, dict[str, Any]] = {
    # No format means pickle to MLflow.
    "sklearn": {"sklearn": {"pickled_model": "model.dat"}},
    "loader": {
        "sklearn": {"pickled_model": "decoy.skops", "serialization_format": "skops"},
        "python_function": {"loader_module": "mlflow.pyfunc.model", "python_model": "model.dat"},
    },
    "other": {
        "sklearn": {"pickled_model": "decoy.skops", "serialization_format": "skops"},
        "statsmodels": {"data": "model.dat"},
    },
    "named as skops": skops_flavors("model.dat"),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_trusted_file_does_not_open_the_door_to_a_pickle_beside_it(
    tmp_path: Path, tree: bytes, disguise: str
) -> None:
    """A pickle of the oldest protocols begins like text, so only MLflow's switch stops it."""
    files = {"decoy.skops": tree, "model.dat": OLD_PICKLE}
    folder = make_model(tmp_path / "m", DISGUISES[disguise], files)
    try:
        checked(folder)
    except ModelError:
        return
    assert os.environ[PICKLE_SWITCH] == "false"


def test_mlflow_itself_then_refuses_the_pickle(tmp_path: Path, tree: bytes) -> None:
    import mlflow.sklearn

    files = {"decoy.skops": tree, "model.dat": OLD_PICKLE}
    folder = make_model(tmp_path / "m", DISGUISES["sklearn"], files)
    with pytest.raises(Exception, match=r"disallowed|refused|pickle"):
        checked(folder)
        mlflow.sklearn.load_model(str(folder))
    checked(folder, allow_pickle=True)
    with pytest.raises(Ran):
        mlflow.sklearn.load_model(str(folder))


def test_every_trusted_type_is_a_class_and_not_a_function() -> None:
    import importlib

    for name in TRUSTED_TYPES:
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue  # of another version of scikit-learn
        assert isinstance(found, type), name


# Loading.


# ---- as MLflow's flavors save them ------------------------------------------------------------

PICKLE = pickle.dumps({"weights": [1.0]})

FLAVORS = {
    "sklearn": ({"pickled_model": "model.pkl", "serialization_format": "cloudpickle"}, "model.pkl"),
    "python_function": (
        {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"},
        "python_model.pkl",
    ),
    "pytorch": ({"model_data": "data"}, "data/model.pth"),
    "statsmodels": ({"data": "model.statsmodels"}, "model.statsmodels"),
    "pmdarima": ({}, "model.pmd"),
    "lightgbm": ({"data": "model.pkl"}, "model.pkl"),
    "sktime": ({"pickled_model": "model.pkl"}, "model.pkl"),
    "fastai": ({"data": "model.fastai"}, "model.fastai"),
    "langchain": ({"model_data": "model.pkl"}, "model.pkl"),
    "tensorflow": ({"data": "data"}, "data/global_custom_objects.cloudpickle"),
    "keras": ({"data": "data"}, "data/custom_objects.cloudpickle"),
    "paddle": ({"pickled_model": "model"}, "model/params.pdparams"),
}


@pytest.mark.parametrize("name", FLAVORS)
def test_each_flavor_that_holds_a_pickle_is_refused_until_it_is_allowed(
    tmp_path: Path, name: str
) -> None:
    flavor, file = FLAVORS[name]
    folder = make_model(tmp_path / "m", {name: flavor}, {file: PICKLE})
    told = refusal(checked, folder)
    assert "model: {allow_pickle: true}" in told
    checked(folder, allow_pickle=True)


def test_a_pickled_model_that_mlflow_saved_is_refused(tmp_path: Path) -> None:
    tree = DecisionTreeRegressor().fit([[0.0], [1.0]], [0.0, 1.0])
    mlflow.sklearn.save_model(
        tree, tmp_path / "m", serialization_format="cloudpickle", pip_requirements=[]
    )
    assert "its sklearn flavor is saved as cloudpickle" in refusal(checked, tmp_path / "m")


# ---- code -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flavor", "told"),
    [
        ({"loader_module": "mlflow.pyfunc.loaders.code_model", "model_code_path": "m.py"}, "is"),
        ({"loader_module": "mlflow.sklearn", "code": "code"}, "brings Python code along"),
        *(
            ({"loader_module": name}, f"is loaded by {name}, which reads more than data")
            for name in ("my_loader", "mlflow_evil", "mlflow.transformers", "mlflow.sklearn.other")
        ),
        ({"keras_module": "my_keras"}, "is loaded by my_keras, which is not Keras"),
        *(
            ({key: place}, f"names {place}, outside its folder")
            for key in ("data", "model_path", "saved_model_dir")
            for place in ("/elsewhere", "..", "data/../../elsewhere")
        ),
    ],
)
def test_code_that_a_model_brings_is_refused_until_it_is_allowed(
    tmp_path: Path, flavor: dict[str, str], told: str
) -> None:
    folder = make_model(tmp_path / "m", {"python_function": flavor})
    refused = refusal(checked, folder)
    assert f"its python_function flavor {told}" in refused
    assert "model: {allow_code: true}" in refused
    checked(folder, allow_code=True)
    # Pickles are still none of it.
    assert os.environ[PICKLE_SWITCH] == "false"
    (folder / "weights").write_bytes(PICKLE)
    assert "is a pickle" in refusal(checked, folder, allow_code=True)
    # Who trusts any pickle trusts any code.
    checked(folder, allow_pickle=True)


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_a_class_of_another_library_is_refused(tmp_path: Path, name: str) -> None:
    """It is imported and called when the model is loaded."""
    folder = make_model(tmp_path / "m", {name: {"model_class": f"{name}.sklearn.Model"}})
    checked(folder)
    make_model(folder, {name: {"model_class": "os.abort"}})
    told = refusal(checked, folder)
    assert f"its {name} flavor is a os.abort, not a class of {name}" in told
    assert "model: {allow_code: true}" in told


SAVED_MODEL = "is a graph of TensorFlow"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("data/MLmodel", b"flavors: {}", "describes another model"),
        *((f"sm/saved_model.{form}", b"", SAVED_MODEL) for form in ("pb", "pbtxt", "cpb")),
        ("data/keras_module.txt", b"my_keras", "names a module that is not Keras"),
        ("data/keras_module.txt", b"kerasx", "names a module that is not Keras"),
        ("data/pickle_module_info.txt", b"my_pickle", "names a module that reads pickles"),
    ],
)
def test_files_that_lead_to_code_are_refused_until_it_is_allowed(
    tmp_path: Path, file: str, content: bytes, told: str
) -> None:
    folder = make_model(tmp_path / "m", {"tensorflow": {"data": "data"}}, {file: content})
    refused = refusal(checked, folder)
    assert f"its file {file} {told}, and so it can run any code; " in refused
    assert "model: {allow_code: true}" in refused
    checked(folder, allow_code=True)


@pytest.mark.parametrize("module", ["keras", "tensorflow.keras", "tf_keras", "keras.api._v2.keras"])
def test_a_module_of_keras_may_be_named(tmp_path: Path, module: str) -> None:
    flavor = {"keras_module": module, "data": "data"}
    files = {"data/keras_module.txt": module.encode()}
    checked(make_model(tmp_path / "m", {"tensorflow": flavor}, files))


def test_the_description_may_be_a_link_within_the_folder(tmp_path: Path) -> None:
    """As Kubernetes mounts its volumes."""
    folder = make_model(tmp_path / "m", {"onnx": {}})
    (folder / "..2026").mkdir()
    (folder / "MLmodel").rename(folder / "..2026" / "MLmodel")
    (folder / "..data").symlink_to("..2026")
    (folder / "MLmodel").symlink_to("..data/MLmodel")
    checked(folder)


def planted(name: str, folder: Path, ran: Path, decoy: bytes) -> Path:
    """A model that makes the file ``ran`` when MLflow loads it."""
    code = f"open({str(ran)!r}, 'w')\n".encode()
    from_code = b"flavors: {python_function: {model_code_path: code.py}}"
    inner = {"sub/MLmodel": from_code, "sub/code.py": code}
    pyfunc = {"loader_module": "mlflow.pyfunc.model"}
    match name:
        case "a model within":
            return make_model(folder, {"python_function": {**pyfunc, "data": "sub"}}, inner)
        case "a model outside":
            make_model(folder.parent, None, inner)
            return make_model(folder, {"python_function": {**pyfunc, "data": "../sub"}})
        case "another loader":
            pyfunc["loader_module"] = "mlflow.pyfunc.loaders.code_model"
            return make_model(folder, {"python_function": {**pyfunc, "data": "sub"}}, inner)
        case "a pickle within":
            flavors = skops_flavors()
            flavors["python_function"]["data"] = "sub"
            described = b"flavors: {sklearn: {}, python_function: {model_path: x.bin}}"
            old = f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode()
            files = {"model.skops": decoy, "sub/MLmodel": described, "sub/x.bin": old}
            return make_model(folder, flavors, files)
        case "a module":
            pyfunc = {"loader_module": "mlflow.tensorflow", "data": "data"}
            flavors = {"tensorflow": {"model_type": "keras"}, "python_function": pyfunc}
            (folder.parent / "planted_module.py").write_bytes(code)
            return make_model(folder, flavors, {"data/keras_module.txt": b"planted_module"})
        case _:
            flavors = {
                "xgboost": {"model_class": "stream_scorer.plugins.pyfunc.Plugin", "data": "sub"},
                "python_function": {"loader_module": "mlflow.xgboost"},
            }
            described = (
                b"flavors: {python_function: "
                b"{loader_module: mlflow.pyfunc.model, model_code_path: code.py}}"
            )
            return make_model(folder, flavors, {**inner, "sub/MLmodel": described})


@pytest.mark.parametrize(
    "name",
    [
        *("a model within", "a model outside", "another loader", "a pickle within", "a module"),
        "a class",
    ],
)
def test_what_a_model_leads_to_is_not_run(
    name: str, tmp_path: Path, tree: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = planted(name, tmp_path / "m", tmp_path / "ran", tree)
    with pytest.raises(ModelError) as caught:
        checked(folder)
        load_model(load_plugin(DEFAULT_PLUGIN), fetch_model(str(folder)))
    assert not (tmp_path / "ran").exists()
    assert "model: {allow_code: true}" in str(caught.value)


def test_mlflow_s_switch_stays_closed_for_a_folder_within(tmp_path: Path, tree: bytes) -> None:
    """Whose description need not be of a skops file."""
    folder = planted("a pickle within", tmp_path / "m", tmp_path / "ran", tree)
    checked(folder, allow_code=True)
    assert os.environ[PICKLE_SWITCH] == "false"


def test_code_that_mlflow_saved_is_refused(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        "import mlflow\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None): return model_input\n"
        "mlflow.models.set_model(Model())\n",
        encoding="utf-8",
    )
    mlflow.pyfunc.save_model(tmp_path / "m", python_model=str(code), pip_requirements=[])
    assert "its python_function flavor is Python code" in refusal(checked, tmp_path / "m")


# ---- places -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("{path}/models/wine", "{path}/models"),
        ("file:{path}/models/wine", "{path}/models"),
        ("{path}/models/wine", "file:{path}/models/wine"),
        ("{path}/models/../models/wine", "{path}/models"),
        ("models:/wine/1", "models:/"),
        ("models:/wine/1", "models:/wine"),
        ("models:/wine@best", "models:/wine"),
        ("models:/wine/1", "models:/wine/1"),
        ("runs:/0123/model", "runs:"),
    ],
)
def test_a_model_from_an_allowed_place(uri: str, root: str, tmp_path: Path) -> None:
    check_root(uri.format(path=tmp_path), ["/elsewhere", root.format(path=tmp_path)])


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("{path}/models2/wine", "{path}/models"),
        ("{path}/models/../other", "{path}/models"),
        ("{path}/models/link", "{path}/models"),
        ("models:/wine2/1", "models:/wine"),
        ("models:/wine/1", "models:/wine/10"),
        ("models:/wine/10", "models:/wine/1"),
        ("models:/wine/1", "{path}"),
        ("{path}/models", "models:/"),
        ("runs:/0123/model", "models:/"),
        ("MODELS:/wine/1", "{path}"),
        (" models:/wine/1", "{path}"),
        ("mod\tels:/wine/1", "{path}"),
        ("Models:/wine/1", "models:/"),
        ("models:/wine/1/../../2", "models:/wine/1"),
        ("runs:/0123/%2e%2e/4567/model", "runs:/0123"),
    ],
)
def test_a_model_from_elsewhere_is_refused_naming_the_rule(
    uri: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    root = root.format(path=tmp_path)
    told = refusal(check_root, uri.format(path=tmp_path), [root])
    assert told.endswith(f"not within `model: {{roots: [{root}]}}` of the conf")


def test_what_is_no_uri_is_told_with_roots_too() -> None:
    assert refusal(check_root, "file://[oops", ["models"]).startswith("model_uri file://[oops: ")


def test_without_roots_models_come_from_anywhere() -> None:
    check_root("/anywhere", [])


def test_a_skops_file_without_skops_is_told(
    tmp_path: Path, hostile: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "m", skops_flavors(), {"model.skops": hostile})
    monkeypatch.setitem(sys.modules, "skops.io", None)
    told = refusal(checked, folder)
    assert "model.skops is a skops file" in told
    assert "`packages` in the conf" in told

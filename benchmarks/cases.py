"""The cases, and who takes part in each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from benchmarks.contender import faststream, floor, mlserver, product, quix, without_plugin
from benchmarks.topic_to_topic import TopicToTopic, Variant
from benchmarks.workload import blobs, pictures, poisoned, wine

_ONNX: Final = "samples/sklearn_wine/onnx/conf.yaml"
_SKLEARN: Final = "samples/sklearn_wine/conf.yaml"
_MNIST: Final = "samples/keras_mnist/conf.yaml"
_ECHO: Final = "benchmarks/echo.yaml"

_WINE: Final = partial(wine, "wine-onnx")
_POISONED: Final = partial(lambda make: poisoned(make()), _WINE)


def _wine_onnx() -> TopicToTopic:
    contenders = (
        floor("wine-onnx"),
        product(_ONNX),
        floor("wine-onnx", exactly_once=True),
        product(_ONNX, exactly_once=True),
        without_plugin(_ONNX, "wine-onnx"),
        quix("wine-onnx"),
        quix("wine-onnx", exactly_once=True),
        faststream("wine-onnx"),
        mlserver(),
    )
    return TopicToTopic("wine-onnx", (Variant("", _WINE, 200_000, contenders),))


def _wine_sklearn() -> TopicToTopic:
    contenders = (
        floor("wine-sklearn"),
        product(_SKLEARN),
        product(_SKLEARN, exactly_once=True),
        without_plugin(_SKLEARN, "wine-sklearn"),
    )
    workload = partial(wine, "wine-sklearn")
    return TopicToTopic("wine-sklearn", (Variant("", workload, 200_000, contenders),))


def _mnist() -> TopicToTopic:
    contenders = (floor("mnist"), product(_MNIST), product(_MNIST, exactly_once=True))
    return TopicToTopic("mnist", (Variant("", pictures, 50_000, contenders),))


def _payload() -> TopicToTopic:
    # The last: what the floor takes at once, so that it does not wait for more than is fetched.
    sizes = (
        ("1 KB", 1_000, 100_000, 512),
        ("100 KB", 100_000, 4_000, 64),
        ("800 KB", 800_000, 500, 8),
    )
    return TopicToTopic(
        "payload",
        tuple(
            Variant(name, partial(blobs, size), count, (floor("echo", batch=batch), product(_ECHO)))
            for name, size, count, batch in sizes
        ),
    )


def _partitions() -> TopicToTopic:
    contenders = (floor("wine-onnx"), product(_ONNX))
    return TopicToTopic(
        "partitions",
        tuple(
            Variant(
                f"{count}", _WINE, 200_000, contenders, partitions=count, quick=count in {1, 16}
            )
            for count in (1, 4, 16, 64)
        ),
    )


def _processes() -> TopicToTopic:
    contenders = tuple(
        product(_MNIST, name=f"{count} process{'es' if count > 1 else ''}", processes=count)
        for count in (1, 2)
    )
    return TopicToTopic("processes", (Variant("", pictures, 100_000, contenders),))


def _poison() -> TopicToTopic:
    return TopicToTopic(
        "poison",
        (
            Variant("none", _WINE, 200_000, (product(_ONNX),)),
            Variant("1 %", _POISONED, 200_000, (product(_ONNX),)),
        ),
    )


def _batch_size() -> TopicToTopic:
    return TopicToTopic(
        "batch-size",
        tuple(
            Variant(
                f"{size}",
                _WINE,
                requests,
                (floor("wine-onnx", batch=size), product(_ONNX, batch=size)),
                quick=size in {8, 512},
            )
            for size, requests in (
                (1, 50_000),
                (8, 100_000),
                *((n, 200_000) for n in (64, 512, 4096)),
            )
        ),
    )


CASES: Final[Mapping[str, TopicToTopic]] = {
    case.name: case
    for case in (
        _wine_onnx(),
        _wine_sklearn(),
        _mnist(),
        _payload(),
        _partitions(),
        _processes(),
        _poison(),
        _batch_size(),
    )
}
"""The cases from topic to topic, by name."""

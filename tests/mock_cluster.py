"""librdkafka's mock cluster, told which requests to fail, and with which error.

It stands for the protocol, not for a log: aborted records are visible on it, and offsets in a
transaction are not committed. So tests on it are about what a client *does* after an error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Final

import confluent_kafka

DISCONNECT: Final = -195
"""In the place of an error code: the connection is closed instead of an answer."""

_PRODUCER: Final = 0


class Api(IntEnum):
    """The requests of the protocol, by their numbers there."""

    PRODUCE = 0
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


@cache
def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class MockCluster:
    """One broker in this process; it lives as long as the block of ``mock_cluster``."""

    def __init__(self, library: ctypes.CDLL, cluster: int) -> None:
        self._library = library
        self._cluster = cluster
        self.bootstrap: str = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()

    def create_topic(self, name: str, partitions: int) -> None:
        error = self._library.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, 1
        )
        assert error == 0, f"librdkafka error {error}"

    def fail(self, api: Api, *codes: int) -> None:
        """Have the next requests of this kind answered with these errors, one each."""
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, api, len(codes), (ctypes.c_int * len(codes))(*codes)
        )


@contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    library = _library()
    text = ctypes.create_string_buffer(512)
    conf = library.rd_kafka_conf_new()
    assert library.rd_kafka_conf_set(conf, b"log_level", b"0", text, 512) == 0, text.value
    owner = library.rd_kafka_new(_PRODUCER, conf, text, 512)
    assert owner, text.value
    cluster = library.rd_kafka_mock_cluster_new(owner, 1)
    assert cluster, "no mock cluster"
    # Groups form at once instead of after three seconds.
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
    try:
        yield MockCluster(library, cluster)
    finally:
        library.rd_kafka_mock_cluster_destroy(cluster)
        library.rd_kafka_destroy(owner)

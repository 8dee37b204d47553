"""Records that confluent-kafka would not send: header names that are not UTF-8.

Written with librdkafka itself, the library that the client brings along.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka


def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_new.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.rd_kafka_conf_set.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    library.rd_kafka_headers_new.restype = ctypes.c_void_p
    library.rd_kafka_headers_new.argtypes = [ctypes.c_size_t]
    library.rd_kafka_header_add.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_ssize_t,
        ctypes.c_char_p,
        ctypes.c_ssize_t,
    ]
    library.rd_kafka_flush.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.rd_kafka_destroy.argtypes = [ctypes.c_void_p]
    return library


_PRODUCER = 0
_END, _TOPIC, _PARTITION, _VALUE, _MSGFLAGS, _HEADERS = 0, 1, 3, 4, 7, 10
_COPY = 2


def produce(
    bootstrap: str, topic: str, value: bytes, headers: list[tuple[bytes, bytes]], partition: int = 0
) -> None:
    """Send one record, header names as they are, and wait until it is there."""
    library = _library()
    text = ctypes.create_string_buffer(512)
    conf = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap.encode(), text, 512)
    client = library.rd_kafka_new(_PRODUCER, conf, text, 512)
    assert client, text.value
    try:
        list_of_headers = library.rd_kafka_headers_new(len(headers))
        for name, content in headers:
            library.rd_kafka_header_add(list_of_headers, name, len(name), content, len(content))
        error = library.rd_kafka_producev(
            ctypes.c_void_p(client),
            ctypes.c_int(_TOPIC),
            ctypes.c_char_p(topic.encode()),
            ctypes.c_int(_PARTITION),
            ctypes.c_int32(partition),
            ctypes.c_int(_MSGFLAGS),
            ctypes.c_int(_COPY),
            ctypes.c_int(_VALUE),
            ctypes.c_char_p(value),
            ctypes.c_size_t(len(value)),
            ctypes.c_int(_HEADERS),
            ctypes.c_void_p(list_of_headers),
            ctypes.c_int(_END),
        )
        assert error == 0, f"librdkafka error {error}"
        assert library.rd_kafka_flush(client, 30_000) == 0
    finally:
        library.rd_kafka_destroy(client)

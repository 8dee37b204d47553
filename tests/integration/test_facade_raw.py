"""Requests as no client would send them, over raw sockets, at one running facade with keys.

What is malformed is refused and its connection closed, so that the two sides of a proxy cannot
take one request for two. Nothing of it reaches Kafka, and the next caller is answered.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from tests.echo_worker import EchoWorker
from tests.facade_server import PATIENCE, Server, running, until
from tests.kafka_server import MakeTopics

KEY = "canary-0123456789abcdef"
TIMEOUT = 2.0
MALFORMED = [400]

AUTHORIZED = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
CLOSE = b"Connection: close\r\n"
POST = b"POST /api/predict HTTP/1.1\r\n" + AUTHORIZED
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class Facade:
    """The running server, and the worker behind it that sees what reaches Kafka."""

    def __init__(self, server: Server, worker: EchoWorker) -> None:
        self.server = server
        self.worker = worker

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)

    def send(self, data: bytes) -> bytes:
        """All that the server says to this until it closes the connection."""
        with self.connect() as client:
            client.sendall(data)
            return rest(client)

    def predict(self, body: bytes, **headers: str) -> int:
        return self.server.predict(body, Authorization=f"Bearer {KEY}", **headers).status


def rest(client: socket.socket) -> bytes:
    said = b""
    while part := client.recv(65536):
        said += part
    return said


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", said)]


@pytest.fixture(scope="module")
def shared(
    kafka: str, module_topics: MakeTopics, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Facade]:
    requests, results, replies, dead = module_topics(4, "requests", "results", "replies", "dlq")
    log = tmp_path_factory.mktemp("raw") / "facade.log"
    environ = {
        "SCORER_KAFKA_BOOTSTRAP_SERVERS": kafka,
        "SCORER_TOPICS_REQUESTS": requests,
        "SCORER_TOPICS_RESULTS": results,
        "SCORER_TOPICS_REPLIES": replies,
        "SCORER_TOPICS_DEAD_LETTERS": dead,
        "SCORER_FACADE_TIMEOUT": str(TIMEOUT),
        "SCORER_FACADE_API_KEYS": f"[an-older-key-of-ours, {KEY}]",
        "SCORER_LOGGING_LEVEL": "DEBUG",
    }
    with running(log, environ) as server, EchoWorker(kafka, requests) as worker:
        until(server.is_ready)
        until(lambda: server.predict(b"", Authorization=f"Bearer {KEY}").status == 200)
        yield Facade(server, worker)


@pytest.fixture
def facade(shared: Facade) -> Iterator[Facade]:
    """The shared server; after the test it has to answer, and Kafka to have seen no more."""
    before = len(shared.worker.asked)
    yield shared
    marker = f"after {uuid.uuid4()}".encode()
    assert shared.predict(marker) == 200
    found = [asked.payload for asked in shared.worker.asked[before:]]
    assert [payload for payload in found if not payload.startswith((b"after ", b"good"))] == []
    assert found[-1] == marker
    assert shared.server.process.poll() is None


REFUSED: dict[str, tuple[bytes, list[int]]] = {
    # ---- where does the body end?
    "both lengths": (
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    "both lengths, the other way": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    "two lengths": (POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", MALFORMED),
    "one length twice": (POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", MALFORMED),
    "a list of lengths": (POST + b"Content-Length: 4, 4\r\n\r\nabcd", MALFORMED),
    "chunked, identity": (
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    "identity alone": (POST + b"Transfer-Encoding: identity\r\n\r\n", MALFORMED),
    "chunked twice": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", [501]),
    "gzip, chunked": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
        [415],
    ),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", MALFORMED),
    "coding after a vertical tab": (
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    "space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", MALFORMED),
    "chunked in HTTP/1.0": (
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
        MALFORMED,
    ),
    # ---- lengths that are none
    "letters": (POST + b"Content-Length: abc\r\n\r\na", MALFORMED),
    "plus": (POST + b"Content-Length: +5\r\n\r\nabcde", MALFORMED),
    "minus": (POST + b"Content-Length: -5\r\n\r\nabcde", MALFORMED),
    "underscore": (POST + b"Content-Length: 1_0\r\n\r\nabcdeabcde", MALFORMED),
    "hexadecimal": (POST + b"Content-Length: 0x5\r\n\r\nabcde", MALFORMED),
    "no digits": (POST + b"Content-Length: \r\n\r\nabcde", MALFORMED),
    # ---- chunks
    "negative chunk": (CHUNKED + b"-1\r\na\r\n0\r\n\r\n", MALFORMED),
    "0x chunk": (CHUNKED + b"0x1\r\na\r\n0\r\n\r\n", MALFORMED),
    "chunk size of spaces": (CHUNKED + b" 1\r\na\r\n0\r\n\r\n", MALFORMED),
    "chunk size without end": (CHUNKED + b"0" * 9000, MALFORMED),
    "chunk longer than it says": (CHUNKED + b"1\r\nab\r\n0\r\n\r\n", MALFORMED),
    "chunk ended by LF": (CHUNKED + b"1\na\r\n0\r\n\r\n", MALFORMED),
    "LF in an extension": (CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n", MALFORMED),
    "length as a trailer": (CHUNKED + b"1\r\na\r\n0\r\nContent-Length: 5\r\n\r\n", MALFORMED),
    # ---- lines and characters
    "bare LF": (POST.replace(b"\r\n", b"\n") + b"Content-Length: 1\n\na", MALFORMED),
    "one bare LF": (POST + b"X-A: b\nContent-Length: 1\r\n\r\na", MALFORMED),
    "folded line": (POST + b"X-A: b\r\n c\r\nContent-Length: 1\r\n\r\na", MALFORMED),
    "NUL in a value": (POST + b"X-A: b\0c\r\nContent-Length: 1\r\n\r\na", MALFORMED),
    "CR in a value": (POST + b"X-A: b\rc\r\nContent-Length: 1\r\n\r\na", MALFORMED),
    "NUL in a name": (POST + b"X\0A: b\r\nContent-Length: 1\r\n\r\na", MALFORMED),
    "large header": (POST + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n", [431]),
    "many headers": (POST + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n", [431]),
    "two hosts": (b"POST /api/predict HTTP/1.1\r\nHost: y\r\n" + POST[28:] + b"\r\n", MALFORMED),
    # ---- first lines
    "HTTP/0.9": (b"GET /livez\r\n", MALFORMED),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MALFORMED),
    "HTTP/3.1": (LIVEZ.replace(b"1.1", b"3.1"), MALFORMED),
    "not HTTP": (b"\0\xff" * 50 + b"\r\n\r\n", MALFORMED),
    "lower case method": (LIVEZ.lower(), MALFORMED),
    "method that is no word": (LIVEZ.replace(b"GET", b"G@T"), MALFORMED),
    "NUL in the path": (LIVEZ.replace(b"z", b"z\0"), MALFORMED),
    "path that is not ASCII": (LIVEZ.replace(b"z", b"\xc3\xa9"), MALFORMED),
    "authority alone": (LIVEZ.replace(b"/livez", b"x:80"), MALFORMED),
    "very long path": (LIVEZ.replace(b"z", b"z" * 9000), [414]),
    # ---- other protocols
    "a websocket": (
        LIVEZ[:-2]
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        [403],
    ),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\n" + AUTHORIZED + CLOSE + b"\r\n", [404]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_malformed_is_refused_and_the_connection_closed(name: str, facade: Facade) -> None:
    data, expected = REFUSED[name]
    # A second request behind it is part of what nobody can tell the end of.
    said = facade.send(data + POST + b"Content-Length: 8\r\n\r\nsmuggled")
    assert statuses(said) == expected
    assert b"gunicorn" not in said.lower()


ANSWERED: dict[str, tuple[bytes, list[int]]] = {
    "HTTP/1.0 without Host": (b"GET /livez HTTP/1.0\r\n\r\n", [200]),
    "an empty line before": (b"\r\nGET /livez HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n", [200]),
    "extension of a chunk": (
        POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n4;a=b\r\ngood\r\n0\r\n\r\n",
        [200],
    ),
    "trailer": (
        POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\nX-A: b\r\n\r\n",
        [200],
    ),
    "identity, chunked": (
        POST + CLOSE + b"Transfer-Encoding: identity, chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n",
        [200],
    ),
    "another expectation": (
        POST + CLOSE + b"Expect: something-else\r\nContent-Length: 4\r\n\r\ngood",
        [200],
    ),
    "two requests at once": (
        POST
        + b"Content-Length: 6\r\n\r\ngood 1"
        + POST
        + CLOSE
        + b"Content-Length: 6\r\n\r\ngood 2",
        [200, 200],
    ),
    "a refused one, then a good one": (
        POST
        + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(LIVEZ), LIVEZ)
        + POST
        + CLOSE
        + b"Content-Length: 4\r\n\r\ngood",
        [415, 200],
    ),
    "a stranger's body that looks like a request": (
        b"POST /api/predict HTTP/1.1\r\nHost: x\r\n"
        + CLOSE
        + b"Content-Length: %d\r\n\r\n%b" % (len(LIVEZ), LIVEZ),
        [401],
    ),
    "a body that nobody wants": (
        LIVEZ[:-2]
        + b"Content-Length: %d\r\n\r\n%b" % (len(LIVEZ), LIVEZ)
        + LIVEZ[:-2]
        + CLOSE
        + b"\r\n",
        [200, 200],
    ),
    "upgrade to HTTP/2": (
        LIVEZ[:-2]
        + b"Connection: close, Upgrade, HTTP2-Settings\r\n"
        + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        [200],
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_only_unusual_is_answered_in_order(name: str, facade: Facade) -> None:
    data, expected = ANSWERED[name]
    said = facade.send(data)
    assert statuses(said) == expected
    assert said.count(b"server: facade\r\n") == len(expected)
    bodies = [body.partition(b"HTTP/1.1")[0] for body in said.split(b"\r\n\r\n")[1:]]
    assert [body for body in bodies if body.startswith(b"good ")] == (
        [b"good 1", b"good 2"] if name == "two requests at once" else []
    )


@pytest.mark.parametrize(
    ("target", "key", "status"),
    [
        ("http://evil/livez", True, 404),
        ("http://evil/livez", False, 401),
        ("/livez/../api/predict", False, 401),
        ("/api/../livez", True, 404),
        ("/../../etc/passwd", True, 404),
        ("/%2e%2e/%2e%2e/etc/passwd", True, 404),
        ("/livez%00", True, 404),
        ("/livez%0d%0aX-Evil:%20yes", True, 404),
        ("/livez%ff", True, 404),
        ("/%zz", True, 404),
        ("//livez", False, 401),
        ("/" + "a" * 3000, True, 404),
        ("*", True, 404),
    ],
)
def test_a_path_is_taken_as_it_stands(target: str, key: bool, status: int, facade: Facade) -> None:
    method = "OPTIONS" if target == "*" else "GET"
    said = facade.send(
        f"{method} {target} HTTP/1.1\r\n".encode()
        + (AUTHORIZED if key else b"Host: x\r\n")
        + CLOSE
        + b"\r\n"
    )
    assert statuses(said) == [status]
    assert b"\r\nX-Evil" not in said
    assert b"server: facade\r\n" in said


@pytest.mark.parametrize(
    ("method", "status"), [("BREW", 400), ("WEBSOCKET", 400), ("TRACE", 405), ("DELETE", 405)]
)
def test_a_method_that_is_not_there(method: str, status: int, facade: Facade) -> None:
    path = b" /api/predict HTTP/1.1\r\n"
    said = facade.send(method.encode() + path + AUTHORIZED + CLOSE + b"\r\n")
    assert statuses(said) == [status]
    assert b"application/problem+json" in said
    assert KEY.encode() not in said


@pytest.mark.parametrize(
    "data", [b"Content-Length: 9\r\n\r\nbad", b"Transfer-Encoding: chunked\r\n\r\n9\r\nbad"]
)
def test_a_body_that_breaks_off_is_not_scored(data: bytes, facade: Facade) -> None:
    with facade.connect() as client:
        client.sendall(POST + data)
        client.shutdown(socket.SHUT_WR)
        assert statuses(rest(client)) in ([], [408])


def test_what_never_ends_is_ended(facade: Facade) -> None:
    """All at once, since each takes the time that it may."""
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(100)  # of TLS
    never = {
        "half a request line": (b"GET /liv", [408]),
        "half the headers": (POST, [408]),
        "TLS": (hello, [408]),
        "half a body": (POST + b"Content-Length: 9\r\n\r\nbad", [408]),
        "half a chunk": (CHUNKED + b"9\r\nbad", [408]),
        "a chunk of 2**72 bytes": (CHUNKED + b"ffffffffffffffffff\r\nbad", [408]),
        "no last chunk": (CHUNKED + b"3\r\nbad\r\n", [408]),
        "a length of 26 digits": (POST + b"Content-Length: " + b"9" * 26 + b"\r\n\r\nbad", [413]),
        "5,000 digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\na", [413]),
        "a large body that is another request": (
            POST + b"Content-Length: 2000000\r\n\r\n" + POST + b"Content-Length: 3\r\n\r\nbad",
            [413],
        ),
    }
    clients = {name: facade.connect() for name in never}
    began = time.monotonic()
    for name, client in clients.items():
        client.sendall(never[name][0])
    assert {name: statuses(rest(client)) for name, client in clients.items()} == {
        name: expected for name, (_, expected) in never.items()
    }
    assert time.monotonic() - began >= TIMEOUT
    for client in clients.values():
        client.close()


SLOW = 200


def test_who_sends_a_byte_a_second_harms_nobody(facade: Facade) -> None:
    begun = [
        *(POST + b"Content-Length: 100\r\n\r\n", CHUNKED + b"64\r\n"),
        *(POST, b"POST /api/predict HTTP/1.1\r\n"),
    ]
    with ThreadPoolExecutor(4) as others, ExitStack() as stack:
        slow = [stack.enter_context(facade.connect()) for _ in range(SLOW)]
        for number, client in enumerate(slow):
            client.sendall(begun[number % len(begun)])
            client.setblocking(False)
        began = time.monotonic()
        over = threading.Event()
        stack.callback(over.set)

        def call(number: int) -> list[int]:
            found = []
            while not over.is_set():
                found.append(facade.predict(b"good %d" % number))
            return found

        callers = [others.submit(call, number) for number in range(4)]
        ends: dict[socket.socket, list[int]] = {}
        while len(ends) < SLOW:
            assert time.monotonic() - began < PATIENCE
            for client in set(slow) - set(ends):
                if (said := trickle(client)) is not None:
                    ends[client] = statuses(said)
            time.sleep(1)
        over.set()
        answered = [status for caller in callers for status in caller.result()]
    # Not before their time was over, and told so.
    assert time.monotonic() - began > TIMEOUT
    assert {(408,)} <= set(map(tuple, ends.values())) <= {(408,), ()}
    assert set(answered) == {200}
    sys.stdout.write(f"{len(answered)} others were answered beside {SLOW} slow ones\n")


def trickle(client: socket.socket) -> bytes | None:
    """Send one more byte; what the server said, once it has said something."""
    try:
        said = client.recv(65536)
    except BlockingIOError:
        pass
    except OSError:
        return b""  # closed as a byte was under way, and what it said is lost with that
    else:
        return said
    with suppress(OSError):
        client.send(b"x")
    return None


# ---- headers, and who sees them ---------------------------------------------------------------


def test_reserved_headers_never_come_from_a_caller(facade: Facade) -> None:
    forged = [
        *("correlation-id", "reply-topic", "reply-partition", "deadline", "status", "request"),
        *("correlation_id", "reply_topic", "reply_partition", "content_type", "x_request_id"),
        *("model", "server-timing", "__scorer.errors.topic", "__scorer.replayed", "x-other"),
    ]
    lines = b"".join(f"{name}: forged\r\n".encode() for name in forged)
    said = facade.send(POST + CLOSE + lines + b"Content-Length: 4\r\n\r\ngood")
    assert statuses(said) == [200]
    asked = next(asked for asked in facade.worker.asked[::-1] if asked.payload == b"good")
    ours = {"x-request-id", "reply-topic", "reply-partition", "correlation-id", "deadline"}
    assert asked.headers.keys() == ours
    assert b"forged" not in b"".join(asked.headers.values())


def test_a_key_stays_in_the_facade(facade: Facade) -> None:
    """No key, right or wrong, and no cookie is in a log line, a record or an answer."""
    wrong = "canary-and-not-a-key-of-ours"
    cookie = b"Cookie: session=canary-in-a-cookie\r\n"
    for line in (f"Bearer {wrong}", f"Basic {wrong}", f"canary {wrong}"):
        head = f"POST /api/predict?key={wrong} HTTP/1.1\r\nHost: x\r\nAuthorization: {line}\r\n"
        said = facade.send(head.encode() + CLOSE + cookie + b"Content-Length: 4\r\n\r\ngood")
        assert statuses(said) == [401]
        assert b"canary" not in said
    said = facade.send(POST + CLOSE + cookie + b"Content-Length: 4\r\n\r\ngood")
    assert statuses(said) == [200]
    assert b"canary" not in said
    for asked in facade.worker.asked:
        assert "canary" not in repr(asked)
    log = facade.server.log.read_text(errors="replace")
    assert "canary" not in log
    sys.stdout.write(f"{len(log)} characters of log\n")


def test_nothing_went_wrong_inside(facade: Facade) -> None:
    """Last: whatever was sent above, the log has no error and no stack trace."""
    log = facade.server.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert " ERROR " not in log

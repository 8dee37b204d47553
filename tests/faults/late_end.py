"""A proxy before the broker, through which one EndTxn arrives when the next transaction has begun.

A client that gives a request up repeats it on a new connection, and cannot take back what is still
under way. Brokers tell the two apart only by the producer's epoch.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedIOBase
from types import TracebackType
from typing import Final, Self

PRODUCE: Final = 0
END_TXN: Final = 26
FLEXIBLE_END_TXN: Final = 3
"""The version from which on an answer has tagged fields behind its correlation id."""

_HOST: Final = "127.0.0.1"


@dataclass(slots=True)
class _Held:
    """Which transaction's EndTxn is held back, and how far that has come."""

    number: int
    reset: bool
    begun: int = 0
    open: bool = False
    frame: bytes = b""
    repeated: bool = False
    produce: tuple[object, int] | None = None
    """Connection and correlation id of the next transaction's first Produce."""


class LateEnd(socketserver.ThreadingTCPServer):
    """Forwards the Kafka protocol, request by request, until it is told to hold one back.

    It listens from the beginning, since the broker has to be started with its ``port``. A ``with``
    block around that of the broker ends when every connection has.

    Attributes:
        port: where clients connect.
        upstream: the port that the broker listens at for what comes from here.
        answer: the error code in the answer to the late EndTxn, ``None`` until it was sent.
    """

    def __init__(self) -> None:
        super().__init__((_HOST, 0), _Connection)
        self.port: int = self.server_address[1]
        self.upstream = 0
        self.answer: int | None = None
        self._held: _Held | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="proxy").start()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()
        super().__exit__(kind, value, traceback)

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return f"{_HOST}:{self.port}"

    def hold_back(self, number: int, *, reset: bool) -> None:
        """Hold back an EndTxn until the next transaction has its first records in the log.

        Args:
            number: of which transaction, from here on; all clients serve one process.
            reset: whether its connection breaks at once, or nothing ever answers.
        """
        with self._lock:
            self.answer = None
            self._held = _Held(number, reset)

    def connect(self) -> socket.socket:
        """A connection of its own to the broker."""
        connection = socket.create_connection((_HOST, self.upstream))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def request(self, connection: object, frame: bytes) -> bool:
        """Whether a request is to be forwarded.

        Raises:
            ConnectionResetError: its connection is to break.
        """
        key, _, correlation = struct.unpack_from(">hhi", frame, 4)
        # A client ends a transaction once all of it is produced, and begins the next one once
        # that was answered: here they come one after the other, whatever the connections.
        with self._lock:
            held = self._held
            if held is None:
                return True
            if key == PRODUCE:
                held.begun += not held.open
                held.open = True
                if held.repeated and held.produce is None:
                    held.produce = (connection, correlation)
            elif key == END_TXN:
                held.open = False
                if held.frame:
                    held.repeated = True
                elif held.begun == held.number:
                    held.frame = frame
                    if held.reset:
                        raise ConnectionResetError
                    return False
            return True

    def answered(self, connection: object, frame: bytes) -> None:
        """Send what was held back, if this is the answer that it waits for."""
        (correlation,) = struct.unpack_from(">i", frame, 4)
        with self._lock:
            if self._held is None or self._held.produce != (connection, correlation):
                return
            late, self._held = self._held.frame, None
        (version,) = struct.unpack_from(">h", late, 6)
        with self.connect() as own, own.makefile("rb") as answers:
            own.sendall(late)
            # Behind its size, correlation id and throttle time.
            (self.answer,) = struct.unpack_from(
                ">h", _frame(answers), 12 + (version >= FLEXIBLE_END_TXN)
            )


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection, and the broker's end of it."""

    server: LateEnd
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with self.server.connect() as broker:
            answers = threading.Thread(target=self._answers, args=(broker,), name="proxy, answers")
            answers.start()
            try:
                while frame := _frame(self.rfile):
                    if self.server.request(self, frame):
                        broker.sendall(frame)
            except OSError:
                pass  # one of the two is gone, and with it the connection
            finally:
                _end(self.connection)
                _end(broker)
                answers.join()

    def _answers(self, broker: socket.socket) -> None:
        try:
            with broker.makefile("rb") as answers:
                while frame := _frame(answers):
                    self.server.answered(self, frame)
                    self.connection.sendall(frame)
        except OSError:
            pass  # and handle() is woken for it
        finally:
            _end(self.connection)


def _frame(stream: BufferedIOBase) -> bytes:
    """The next request or answer with its size before it, nothing at the stream's end."""
    size = stream.read(4)
    if len(size) < 4:
        return b""
    (length,) = struct.unpack(">i", size)
    body = stream.read(length)
    return size + body if len(body) == length else b""


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # ended already
        connection.shutdown(socket.SHUT_RDWR)

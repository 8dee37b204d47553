"""A real Apache Kafka for the tests, from Maven's jars: one node that can be killed and paused."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

KAFKA_VERSION: Final = "4.1.1"

SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    # One node keeps the only copy of everything.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    # Internal topics as small as a test needs: each partition is a folder to create and to load.
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.num.partitions": "5",
    # Groups form at once, and a test about a dead member need not wait for long.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A killed node takes up its work again once its former self is given up.
    "broker.heartbeat.interval.ms": "1000",
    "broker.session.timeout.ms": "6000",
    # What times out is aborted soon after, for tests of transactions that were left open.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # The program creates its topics; a topic that a typing error made would hide that it did not.
    "auto.create.topics.enable": "false",
    "num.partitions": "4",
    "log.retention.ms": "-1",
}
"""What any Kafka started for the tests is set to, whichever way it is started."""

_CLUSTER_ID: Final = base64.urlsafe_b64encode(b"stream-scorer-ts").rstrip(b"=").decode()
_JAVA_MIN: Final = 17
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 30.0
_DOWNLOAD_TIMEOUT: Final = 600.0
_PORT_ATTEMPTS: Final = 5
# Below what Linux and macOS give to outgoing connections: while the node is down, no client takes
# its port, and no client that tries to reach it is connected to itself.
_PORTS: Final = range(20_000, 32_000)

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of random name is made in it
_MUCH_MEMORY: Final = 8 * 2**30

_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>stream-scorer</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka-tools</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <!-- Kafka's jars hold no logger; without one a node that cannot start dies in silence. -->
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that a test runs on.

    ``real`` is false for librdkafka's mock cluster, which speaks the protocol from memory: no
    transactions to speak of, topics that appear when they are named, always with 4 partitions.
    """

    bootstrap: str
    real: bool


class MakeTopics(Protocol):
    """Creates topics for one test, with a name of its own before each of ``names``."""

    def __call__(self, partitions: int, *names: str) -> tuple[str, ...]: ...


class KafkaUnavailable(Exception):
    """This machine lacks what it takes to run Kafka in this way; its text says what."""


def java() -> str:
    """The Java to run Kafka with: that of ``JAVA_HOME``, else that of ``PATH``.

    Raises:
        KafkaUnavailable: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=f"{home}/bin" if home else None)
    if program is None:
        raise KafkaUnavailable("no Java")
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', said.stderr)
    if version is None or int(version[1]) < _JAVA_MIN:
        raise KafkaUnavailable(f"Java older than {_JAVA_MIN}")
    return program


def jars() -> Path:
    """The folder with Kafka's jars, fetched by Maven when it is not in the cache yet.

    Raises:
        KafkaUnavailable: they are not in the cache and cannot be fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stream-scorer"
    folder = cache / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("no Maven to fetch Kafka with")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=cache) as name:
        pom = Path(name, "pom.xml")
        pom.write_text(_POM, encoding="utf-8")
        fetched = Path(name, "jars")
        fetch = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        try:
            done = subprocess.run(
                [*fetch, "-DincludeScope=runtime", f"-DoutputDirectory={fetched}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_DOWNLOAD_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise KafkaUnavailable("Maven did not fetch Kafka in time") from late
        if done.returncode != 0:
            said = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason")
            raise KafkaUnavailable(f"Maven could not fetch Kafka: {said}")
        # The folder appears whole or not at all, also when another session fetches it as well.
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of this machine, all different, that nobody listened on a moment ago."""
    sockets: list[socket.socket] = []
    try:
        for port in random.sample(_PORTS, len(_PORTS)):
            candidate = socket.socket()
            sockets.append(candidate)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                sockets.pop().close()
            if len(sockets) == count:
                return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()
    raise OSError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def answers(bootstrap: str, timeout: float = 1.0) -> bool:
    """Whether a broker answers a metadata request at ``bootstrap`` within ``timeout`` seconds."""
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=timeout).brokers)
    except KafkaException:
        return False


class KafkaServer:
    """One Kafka node, broker and controller in one process, with its data in a temporary folder.

    The node listens on 127.0.0.1, at the same ports after each ``start``, and its data outlive
    ``stop`` and ``kill`` until ``close`` (or the end of a ``with`` block) removes them. It runs in
    a session of its own, so that a Ctrl-C reaches the tests and not the broker under them, and
    dies with the process that started it where the system can promise that.

    Args:
        proxy_port: the port of a proxy. Clients that come from there, by a listener of their own,
            are told that the node is at this port, so that they stay with the proxy.

    Attributes:
        bootstrap: the ``host:port`` it listens on; known once it was started.
        upstream: the port that the proxy connects to; known once it was started.
        folder: where its data, its settings and its log are.

    Raises:
        KafkaUnavailable: no Java, or no Kafka and no way to fetch it.
    """

    def __init__(self, proxy_port: int | None = None) -> None:
        self.bootstrap = ""
        self.upstream = 0
        self._proxy_port = proxy_port
        self._java = java()
        self._classpath = f"{jars()}/*"
        self.folder = Path(tempfile.mkdtemp(prefix="stream-scorer-kafka-", dir=self._home()))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def log(self) -> str:
        """What the node has logged since it was first started."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether the process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the node, on the data it has, and return once it answers.

        Raises:
            RuntimeError: it is running already, or does not start; the text ends with its log.
        """
        if self.running:
            raise RuntimeError("this Kafka is running already")
        if self.bootstrap:
            self._run()
            return
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            bootstrap = self._format()
            try:
                self._run(bootstrap)
            except RuntimeError:
                # Somebody else took a port between our look and the node's own.
                if attempt == _PORT_ATTEMPTS or "BindException" not in self.log:
                    raise
            else:
                self.bootstrap = bootstrap
                return

    def stop(self) -> None:
        """End the node as an operator would; by force if it does not end."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the node with SIGKILL: no goodbye to anybody, nothing flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze the node with SIGSTOP: its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            # On a busy machine its threads go on for a moment.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused node go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop the node if it runs, and start it on the same data and ports."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the node and remove its data. A second call does nothing."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _home(self) -> Path | None:
        """Memory, where there is plenty.

        A node whose data are on a slow disk, to which other tests write much, stands still for many
        seconds.
        """
        try:
            plenty = shutil.disk_usage(_MEMORY).free >= _MUCH_MEMORY
        except OSError:
            plenty = False
        return _MEMORY if plenty else None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _format(self) -> str:
        """Choose ports and make an empty data folder for them; return the address of the broker."""
        port, controller, *proxied = free_ports(2 if self._proxy_port is None else 3)
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        (self.folder / "log").unlink(missing_ok=True)
        properties = {
            **SETTINGS,
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "log.dirs": str(data),
        }
        self._add_listeners(properties)
        if proxied:
            (self.upstream,) = proxied
            properties["listeners"] += f",PROXIED://127.0.0.1:{self.upstream}"
            properties["advertised.listeners"] += f",PROXIED://127.0.0.1:{self._proxy_port}"
            properties["listener.security.protocol.map"] += ",PROXIED:PLAINTEXT"
        lines = "".join(f"{name}={value}\n" for name, value in properties.items())
        self._properties.write_text(lines, encoding="utf-8")
        storage = [self._java, "-cp", self._classpath, "kafka.tools.StorageTool", "format"]
        done = subprocess.run(
            [*storage, "-t", _CLUSTER_ID, "-c", str(self._properties), "--standalone"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_START_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"Kafka's storage cannot be formatted:\n{done.stdout}")
        return f"127.0.0.1:{port}"

    def _add_listeners(self, properties: dict[str, str]) -> None:
        """Add to the node's properties what a kind of server with more listeners needs."""

    def _run(self, bootstrap: str | None = None) -> None:
        """Start the process and wait until it answers at ``bootstrap``, by default its own."""
        command = [self._java, "-Xmx512m", "-cp", self._classpath, "kafka.Kafka"]
        # A test session that is itself killed leaves no broker behind, where setpriv is there.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, *command, str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not answers(bootstrap or self.bootstrap):
            if not self.running or time.monotonic() > deadline:
                state = "does not answer" if self.running else "has ended"
                self.kill()
                last = "\n".join(self.log.splitlines()[-40:])
                raise RuntimeError(f"Kafka {state}; the end of its log:\n{last}")

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

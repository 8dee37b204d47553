"""Finding the brokers, and the topics on them: created when missing, counted, sized."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from stream_scorer.config import Settings
from stream_scorer.errors import OperationError
from stream_scorer.kafka.clients import (
    DEAD_LETTER_ROOM,
    DEFAULT_RECORD_BYTES,
    BrokerTrouble,
    client_properties,
    record_bytes,
    wrong_property,
)

_log = logging.getLogger(__name__)

MOCK_CLUSTER = "mockCluster"
"""How the cluster id of librdkafka's mock cluster begins; it leaves DescribeConfigs unanswered."""

_NO_LEADER_YET = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)
_ATTEMPT = 2.0
_REQUEST_TIMEOUT = 10.0
_PAUSE = 0.1


class BrokerUnreachable(OperationError):
    """No broker answered in time; the text names the address and the reason."""


class TopicError(OperationError):
    """A topic is missing, cannot be created or is not fit for requests."""


def end_offset(consumer: Consumer, topic: str, partition: int) -> int:
    """The offset that a partition's next record will have, asked of its leader.

    To assign it explicitly is the only way to read from here on that misses nothing: after
    ``assign(OFFSET_END)`` a record that comes before the first fetch is skipped.

    Raises:
        TopicError: nobody answers, or the partition is not there.
    """
    deadline = time.monotonic() + _REQUEST_TIMEOUT
    place = TopicPartition(topic, partition)
    while True:
        try:
            return consumer.get_watermark_offsets(place, _REQUEST_TIMEOUT, cached=False)[1]
        except KafkaException as error:
            # A partition that was just created has no leader for a moment.
            if error.args[0].code() not in _NO_LEADER_YET or time.monotonic() >= deadline:
                raise TopicError(
                    f"the end of topic {topic} is not known: {error.args[0].str()}"
                ) from None
        time.sleep(0.05)


class Topics:
    """The cluster's topics, as seen at the last look. Used by one thread at a time.

    Args:
        settings: the settings.
        trouble: told what goes wrong; one for several in a row, so that none tells it anew.
        patience: seconds that one request may take.

    Raises:
        ConfigError: librdkafka refuses a property.
    """

    def __init__(
        self,
        settings: Settings,
        trouble: BrokerTrouble | None = None,
        patience: float = _REQUEST_TIMEOUT,
    ) -> None:
        self._settings = settings
        self._patience = patience
        self._trouble = trouble or BrokerTrouble()
        self._partitions: dict[str, int] = {}
        self.largest_request = DEFAULT_RECORD_BYTES
        """The largest record that the requests topic takes, in bytes; known after ``ensure``."""
        try:
            self._admin = AdminClient(
                client_properties(settings.kafka) | {"error_cb": self._trouble}
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error) from None

    def wait_for_broker(self, timeout: float, stopping: Callable[[], bool] = lambda: False) -> None:
        """Try until a broker answers.

        Args:
            timeout: seconds to go on trying.
            stopping: asked between tries; true ends the wait.

        Raises:
            BrokerUnreachable: none answered, or ``stopping`` said so.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = self._admin.list_topics(timeout=min(_ATTEMPT, max(0.1, timeout)))
                if found.brokers:
                    return
                reason = "its cluster has no brokers"  # as one that hung says when it comes back
                time.sleep(_PAUSE)
            except KafkaException as error:
                self._admin.poll(0)
                reason = self._trouble.reason or error.args[0].str()
            if stopping() or time.monotonic() >= deadline:
                raise BrokerUnreachable(
                    f"cannot reach Kafka at {self._settings.kafka.bootstrap}: {reason}"
                )

    def ensure(self) -> None:
        """Create the four topics where they are missing, if ``topics.create`` allows it.

        Raises:
            TopicError: one is missing and cannot be created, or the requests are compacted.
        """
        topics = self._settings.topics
        names = [topics.requests, topics.results, topics.replies, topics.dead_letters]
        missing = [name for name in names if self.look_up(name) == 0]
        if missing and not topics.create:
            raise TopicError(f"topics missing (topics.create is false): {', '.join(missing)}")
        self._create(missing)
        self._check(names)

    def look_up(self, topic: str) -> int:
        """Ask the broker how many partitions a topic has; 0 where it is not there."""
        try:
            metadata = self._admin.list_topics(topic, timeout=self._patience)
        except KafkaException as error:
            raise TopicError(f"topic {topic}: {error.args[0].str()}") from None
        found = metadata.topics.get(topic)
        count = 0 if found is None or found.error is not None else len(found.partitions)
        if count:
            self._partitions[topic] = count
        else:
            self._partitions.pop(topic, None)
        return count

    def partitions(self, topic: str) -> int:
        """How many partitions a topic had at the last look."""
        return self._partitions.get(topic, 0)

    def _create(self, missing: list[str]) -> None:
        topics = self._settings.topics
        largest = record_bytes(self._settings)
        new = [
            NewTopic(
                name,
                num_partitions=topics.partitions,
                replication_factor=topics.replication,
                config={
                    "cleanup.policy": "delete",
                    "max.message.bytes": str(
                        largest + (DEAD_LETTER_ROOM if name == topics.dead_letters else 0)
                    ),
                },
            )
            for name in missing
        ]
        if not new:
            return
        for name, future in self._admin.create_topics(new, request_timeout=self._patience).items():
            try:
                future.result()
                _log.info("created topic %s with %d partitions", name, topics.partitions)
            except KafkaException as error:
                # Another process may have been quicker.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicError(
                        f"topic {name} cannot be created: {error.args[0].str()}"
                    ) from None
        self._await(missing)

    def _await(self, names: list[str]) -> None:
        # A created topic reaches every broker's metadata a moment later.
        deadline = time.monotonic() + self._patience
        for name in names:
            while self.look_up(name) == 0:
                if time.monotonic() >= deadline:
                    raise TopicError(f"topic {name} was created but does not appear")
                time.sleep(0.05)

    def _check(self, names: list[str]) -> None:
        for name, config in self._describe(names).items():
            if "compact" in config.get("cleanup.policy", ""):
                raise TopicError(
                    f"topic {name} is compacted: records with equal keys would be lost; "
                    "set its cleanup.policy to delete"
                )
            if name == self._settings.topics.requests and "max.message.bytes" in config:
                self.largest_request = int(config["max.message.bytes"])

    def _describe(self, names: list[str]) -> dict[str, dict[str, str]]:
        cluster = self._admin.list_topics(timeout=self._patience).cluster_id
        if str(cluster).startswith(MOCK_CLUSTER):
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        described = self._admin.describe_configs(resources, request_timeout=self._patience)
        configs = {}
        for resource, future in described.items():
            try:
                entries = future.result()
            except KafkaException as error:
                # Not every principal may describe topics; then Kafka's defaults are assumed.
                _log.debug("the configuration of topic %s is not known: %s", resource.name, error)
                continue
            configs[resource.name] = {
                name: entry.value for name, entry in entries.items() if entry.value is not None
            }
        return configs

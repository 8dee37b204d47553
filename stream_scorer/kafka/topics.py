"""Finding the brokers, and the topics on them: created when missing, counted, sized."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclOperation,
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
    REPEAT_AFTER,
    client_properties,
    record_bytes,
    wrong_property,
)
from stream_scorer.kafka.refusals import in_words, is_refusal, right_missing, wants_tls

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
_REFUSED_FOR = 3.0
"""Seconds after which a broker that does not let us in is not asked again: one that is starting may
know its users and certificates a little later than it listens."""


class BrokerUnreachable(OperationError):
    """No broker answered in time, or let us in; the text names the address and the reason."""


class TopicError(OperationError):
    """A topic is missing, cannot be created, is not ours to use or not fit for requests."""


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


class _Trouble:
    """What a client last had against its brokers: an ``error_cb``.

    Not a method of who has the client: in such a cycle the client would stay, with its threads,
    until garbage is looked for, which an idle process seldom does.
    """

    def __init__(self) -> None:
        self.last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        # That all brokers are down says less than why one was.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self.last is None:
            self.last = error


class Topics:
    """The cluster's topics, as seen at the last look. Used by one thread at a time.

    Args:
        settings: the settings.
        patience: seconds that one request may take.

    Raises:
        ConfigError: librdkafka refuses a property.
    """

    def __init__(self, settings: Settings, patience: float = _REQUEST_TIMEOUT) -> None:
        self._settings = settings
        self._patience = patience
        self._trouble = _Trouble()
        self._partitions: dict[str, int] = {}
        self.largest_request = DEFAULT_RECORD_BYTES
        """The largest record that the requests topic takes, in bytes; known after ``ensure``."""
        try:
            self._admin = AdminClient(
                client_properties(settings.kafka) | {"error_cb": self._trouble}
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise wrong_property(error, settings.kafka) from None

    def wait_for_broker(self, timeout: float, stopping: Callable[[], bool] = lambda: False) -> None:
        """Try until a broker answers.

        Args:
            timeout: seconds to go on trying; no more than ``_REFUSED_FOR`` where a broker does not
                let us in.
            stopping: asked between tries; true ends the wait.

        Raises:
            BrokerUnreachable: none answered or let us in, or ``stopping`` said so.
        """
        kafka = self._settings.kafka
        began = time.monotonic()
        deadline = began + timeout
        log_at = began + _ATTEMPT
        refused_until: float | None = None
        self._trouble.last = None
        while True:
            refusal = None
            try:
                left = min(deadline, refused_until or deadline) - time.monotonic()
                found = self._admin.list_topics(timeout=min(_ATTEMPT, max(0.1, left)))
                if found.brokers:
                    return
                reason = "its cluster has no brokers"  # as one that hung says when it comes back
                time.sleep(_PAUSE)
            except KafkaException as error:
                self._admin.poll(0)
                trouble = self._trouble.last or error.args[0]
                reason = trouble.str()
                if is_refusal(trouble):
                    refusal = in_words(trouble, kafka)
                elif trouble.code() == KafkaError._ALL_BROKERS_DOWN:
                    # Connections were closed without a reason.
                    refusal = wants_tls(kafka)
            told = refusal or f"cannot reach Kafka at {kafka.bootstrap}: {reason}"
            now = time.monotonic()
            refused_until = (refused_until or now + _REFUSED_FOR) if refusal else None
            if stopping() or now >= min(deadline, refused_until or deadline):
                raise BrokerUnreachable(told)
            if refusal is None and now >= log_at:
                log_at = now + REPEAT_AFTER
                _log.warning("%s; trying again", told)

    def ensure(self) -> None:
        """See that a worker can use its four topics.

        What is missing is created, if ``topics.create`` allows it.

        Raises:
            TopicError: one is missing and cannot be created, is compacted, or a right is missing.
        """
        topics = self._settings.topics
        written = (topics.results, topics.replies, topics.dead_letters)
        self._ensure(
            {topics.requests: AclOperation.READ, **dict.fromkeys(written, AclOperation.WRITE)}
        )

    def ensure_for_caller(self) -> None:
        """The same for who sends requests and reads replies, and uses no other topic.

        Raises:
            TopicError: as for ``ensure``.
        """
        topics = self._settings.topics
        self._ensure({topics.requests: AclOperation.WRITE, topics.replies: AclOperation.READ})

    def look_up(self, topic: str) -> int:
        """Ask the broker how many partitions a topic has; 0 where it is not there, or not ours."""
        return self._count(topic) or 0

    def _ensure(self, rights: Mapping[str, AclOperation]) -> None:
        counts = {name: self._count(name) for name in rights}
        if refused := [name for name, count in counts.items() if count is None]:
            raise _rights_missing({name: rights[name] for name in refused})
        missing = [name for name, count in counts.items() if count == 0]
        if missing and not self._settings.topics.create:
            raise TopicError(f"topics missing (topics.create is false): {', '.join(missing)}")
        self._create(missing)
        if not self._cluster().startswith(MOCK_CLUSTER):
            self._check_rights(rights)
            self._check([*rights])

    def _cluster(self) -> str:
        try:
            return str(self._admin.list_topics(timeout=self._patience).cluster_id)
        except KafkaException as error:
            raise TopicError(f"the cluster is not known: {error.args[0].str()}") from None

    def _count(self, topic: str) -> int | None:
        """As ``look_up``, but ``None`` where we may not know whether the topic is there."""
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
        if found is None or found.error is None:
            return count
        return None if found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED else count

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
                if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    continue
                if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise _rights_missing(dict.fromkeys(missing, AclOperation.CREATE)) from None
                raise TopicError(f"topic {name} cannot be created: {error.args[0].str()}") from None
        self._await(missing)

    def _await(self, names: list[str]) -> None:
        # A created topic reaches every broker's metadata a moment later.
        deadline = time.monotonic() + self._patience
        for name in names:
            while self.look_up(name) == 0:
                if time.monotonic() >= deadline:
                    raise TopicError(f"topic {name} was created but does not appear")
                time.sleep(0.05)

    def _check_rights(self, rights: Mapping[str, AclOperation]) -> None:
        # Otherwise the lack of one is found when the first request comes.
        described = self._admin.describe_topics(
            TopicCollection([*rights]),
            include_authorized_operations=True,
            request_timeout=self._patience,
        )
        missing = {}
        for name, future in described.items():
            try:
                allowed = future.result().authorized_operations
            except KafkaException as error:
                _log.debug("the rights on topic %s are not known: %s", name, error)
                continue
            # Nothing from brokers that do not tell.
            if allowed and rights[name] not in allowed:
                missing[name] = rights[name]
        if missing:
            raise _rights_missing(missing)

    def _check(self, names: Sequence[str]) -> None:
        for name, config in self._describe(names).items():
            if "compact" in config.get("cleanup.policy", ""):
                raise TopicError(
                    f"topic {name} is compacted: records with equal keys would be lost; "
                    "set its cleanup.policy to delete"
                )
            if name == self._settings.topics.requests and "max.message.bytes" in config:
                self.largest_request = int(config["max.message.bytes"])

    def _describe(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
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


def _rights_missing(rights: Mapping[str, AclOperation]) -> TopicError:
    return TopicError(
        right_missing(*(f"{operation.name} on topic {name}" for name, operation in rights.items()))
    )

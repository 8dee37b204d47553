"""conf.yaml and the environment, read into one checked value: ``Settings``.

Every error says what is wrong and where: ``message @ path.to.key``.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from stream_scorer.errors import SetupError
from stream_scorer.masking import MASK, mask_credentials

DEFAULT_PATH: Final = Path("conf.yaml")
ENVIRONMENT_PREFIX: Final = "SCORER_"

OWNED_PROPERTIES: Final = {
    "group.id": "set worker.group instead",
    "group.instance.id": "set worker.instance_id instead",
    "transactional.id": "it follows from worker.group and worker.instance_id",
    "message.max.bytes": "it follows from limits",
    "enable.auto.commit": "the worker commits what is answered",
    "enable.auto.offset.store": "the worker commits what is answered",
    "enable.idempotence": "without it a retry could answer twice",
    "delivery.report.only.error": "the program follows deliveries itself",
    "enable.partition.eof": "the worker has no use for it",
    "auto.offset.reset": "a new group starts at the earliest request, so that none is lost",
    "isolation.level": "it follows from worker.delivery",
    "partition.assignment.strategy": "it follows from worker.delivery",
    "allow.auto.create.topics": "set topics.create instead",
    "metadata.broker.list": "set bootstrap.servers instead",
}
"""librdkafka properties that the program sets itself, and what to do instead."""

CODE_PROPERTIES: Final = frozenset(
    {"plugin.library.paths", "ssl.engine.location", "ssl.providers", "sasl.kerberos.kinit.cmd"}
)
"""librdkafka properties that load a library or run a command."""

_REFERENCE: Final = re.compile(r"\$\{(env|file):([^}]*)\}")
# Certificates are public, and so is the address that tokens come from.
_SECRET_KEY: Final = re.compile(
    r"^(?!.*\.(ca\.pem|certificate\.pem|token\.endpoint\.url)$)"
    r".*(password|passphrase|secret|token|api_keys|jaas|oauthbearer\.config|\.(pem|key)$)",
    re.IGNORECASE | re.DOTALL,
)
_TOPIC_NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}")
_HEADER_TEXT: Final = re.compile(r"[!-~]*")
_SHORTEST_KEY: Final = 16
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
_NOT_SETTINGS: Final = frozenset({"SCORER_CONF", "SCORER_ENVIRONMENTS", "SCORER_FAILPOINT"})
_OF_CODE: Final = frozenset({"plugin", "plugin_roots", "model_uri", "model", "packages"})
"""Which code and model: the references there name versions, and places, rather than secrets."""
_OF_NAMES: Final = frozenset({("kafka",), ("facade", "examples")})
"""Where the keys are anybody's, and what a validator refuses is one of them."""


class ConfigError(SetupError):
    """The configuration cannot be used; the text says what and where."""


def _topic_name(name: str) -> str:
    if not _TOPIC_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a topic name")
    return name


def _topic_pattern(name: str) -> str:
    _topic_name(name.removesuffix("*") or "-")
    return name


def _api_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if len(text) < _SHORTEST_KEY:
        raise ValueError(f"a key has at least {_SHORTEST_KEY} characters")
    if not _HEADER_TEXT.fullmatch(text):
        raise ValueError("a key has only characters from ! to ~, as a header takes them")
    return key


TopicName = Annotated[str, AfterValidator(_topic_name)]
TopicPattern = Annotated[str, AfterValidator(_topic_pattern)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _property(value: object) -> object:
    if isinstance(value, (str, int, float)):
        return value
    raise ValueError("must be text, a number, true or false")


Property = Annotated[str | int | float | bool, BeforeValidator(_property)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Logging(_Section):
    """What is logged, and how a line looks (``logging.Formatter`` with ``%``, or JSON)."""

    level: str = "INFO"
    # Its own name is that of a method of pydantic's.
    as_json: bool = Field(default=False, alias="json")
    format: str = "%(asctime)s %(levelname)s %(name)s: %(message)s"

    @field_validator("level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        if level.upper() not in logging.getLevelNamesMapping():
            raise ValueError(f"{level!r} is not a log level")
        return level.upper()

    @field_validator("format")
    @classmethod
    def _formats(cls, text: str) -> str:
        try:
            logging.Formatter(text).format(logging.makeLogRecord({}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"cannot format a log record: {error}") from None
        return text


class Model(_Section):
    """How far a model's files are trusted."""

    allow_pickle: bool = False
    allow_code: bool = False
    install_requirements: bool = False
    trusted_types: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    """Folders and beginnings of registry URIs that models may come from; none: any."""


class Kafka(BaseModel):
    """librdkafka properties by their own names; ``consumer`` and ``producer`` for one client only.

    Names and values are checked by librdkafka itself, when a client is made.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Property] = Field(init=False)

    consumer: dict[str, Property] = {}
    producer: dict[str, Property] = {}

    @model_validator(mode="after")
    def _refuse_owned(self) -> Kafka:
        for name in [*self.__pydantic_extra__, *self.consumer, *self.producer]:
            if name in OWNED_PROPERTIES:
                raise ValueError(f"{name} cannot be set: {OWNED_PROPERTIES[name]}")
            if name in CODE_PROPERTIES:
                raise ValueError(f"{name} cannot be set: it loads code")
            if name.startswith("test.mock."):
                raise ValueError(f"{name} cannot be set: use `stream-scorer dev`")
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [*_masked(self.model_dump()).items()]

    @property
    def common(self) -> dict[str, Property]:
        """The properties that every client takes."""
        return {"bootstrap.servers": "localhost:9092", **self.__pydantic_extra__}

    @property
    def bootstrap(self) -> str:
        """The brokers' addresses, for messages."""
        return str(self.common["bootstrap.servers"])


class Topics(_Section):
    """The topics' names, and how missing ones are created."""

    requests: TopicName = "score-requests"
    results: TopicName = "score-results"
    replies: TopicName = "score-replies"
    dead_letters: TopicName = "score-requests.dlq"
    reply_allow: tuple[TopicPattern, ...] = ()
    create: bool = True
    partitions: Count = 4
    replication: int = -1
    default_content_type: str | None = None

    @field_validator("replication")
    @classmethod
    def _possible_replication(cls, replication: int) -> int:
        if replication == -1 or replication >= 1:
            return replication
        raise ValueError("must be -1 (the broker's default) or at least 1")

    @model_validator(mode="after")
    def _distinct(self) -> Topics:
        names = [self.requests, self.results, self.replies, self.dead_letters]
        if len(set(names)) != len(names):
            raise ValueError("requests, results, replies and dead_letters must be four topics")
        return self

    def allows_reply(self, topic: str) -> bool:
        """Whether an answer may be sent to this topic because a request asked for it."""
        if topic == self.replies:
            return True
        # A pattern may match what no topic can be called, and the client fails on looking that up.
        if topic in {self.requests, self.dead_letters} or not _TOPIC_NAME.fullmatch(topic):
            return False
        return any(
            topic.startswith(allowed[:-1]) if allowed.endswith("*") else topic == allowed
            for allowed in self.reply_allow
        )


class Worker(_Section):
    """The loop: how much it takes at once, what it promises, how long it waits (seconds)."""

    group: Annotated[str, Field(min_length=1)] = "stream-scorer"
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    processes: Count = 1
    instance_id: str | None = None
    slot: Annotated[int, Field(ge=0)] = 0
    max_turn: Count = 4096
    max_turn_bytes: Count = 16 * 1024 * 1024
    max_batch_size: Count = 512
    drain_timeout: Seconds = 8
    startup_timeout: Seconds = 60
    metrics_port: Port = 0
    metrics_host: str = "localhost"
    ready_file: Path | None = None


class Facade(_Section):
    """The HTTP side. Times in seconds."""

    timeout: Seconds = 10
    async_timeout: Seconds = 3600
    max_pending: Count = 1000
    max_pending_bytes: Count = 64 * 1024 * 1024
    processes: Count = 1
    api_keys: tuple[ApiKey, ...] = ()
    ready_file: Path | None = None
    examples: dict[str, str] = {}

    @field_validator("examples")
    @classmethod
    def _media_types(cls, examples: dict[str, str]) -> dict[str, str]:
        for name in examples:
            if not _MEDIA_TYPE.fullmatch(name):
                raise ValueError(f"{name!r} is not a media type")
        return examples


class Limits(_Section):
    """What is refused for its size: payloads and results in bytes, images in pixels."""

    payload_bytes: Annotated[int, Field(ge=1, le=100_000_000)] = 900_000
    result_bytes: Annotated[int, Field(ge=1, le=100_000_000)] = 900_000
    image_pixels: Count = 25_000_000


class Settings(_Section):
    """Everything that can be set; the keys of the original server keep their names."""

    host: str = "localhost"
    port: Port = 5005
    plugin: str | None = None
    plugin_roots: tuple[str, ...] = ()
    model_uri: str | None = None
    packages: tuple[str, ...] = ()
    model: Model = Model()
    logging: Logging = Logging()
    kafka: Kafka = Field(default_factory=Kafka)
    topics: Topics = Topics()
    worker: Worker = Worker()
    facade: Facade = Facade()
    limits: Limits = Limits()

    _folder: Path = PrivateAttr(default=Path())

    def locate(self, path: str) -> Path:
        """Find a relative path: in the current directory, then in the conf file's folder.

        Where it is in neither, the path is returned as it stands, for the error message.
        """
        return _locate(path, self._folder)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [*_masked(self.model_dump(mode="json")).items()]

    @property
    def member_id(self) -> str:
        """This process's lasting name in the group: that of its host and its slot on it."""
        return f"{self.worker.instance_id or socket.gethostname()}-{self.worker.slot}"

    def shown(self) -> str:
        """The effective settings as YAML, secrets masked."""
        tree = self.model_dump(mode="json", by_alias=True)
        tree["kafka"] = {**self.kafka.common, **tree["kafka"]}
        shown: str = yaml.safe_dump(_masked(tree), sort_keys=False)
        return shown


def load_settings(
    path: Path | None, environ: Mapping[str, str], *, secrets: bool = True
) -> Settings:
    """Read the settings from a conf file, then from ``SCORER_…`` variables, which win.

    Args:
        path: the file; ``None`` takes ``./conf.yaml`` where it exists, and defaults elsewhere.
        environ: the environment, also for ``${env:NAME}``.
        secrets: whether what references stand for is at hand. Where it is not, settings that hold
            one keep their defaults, but for those that name the plugin, its packages and the model;
            their names are checked all the same.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    tree = read_conf(path) if path is not None else {}
    _override(tree, environ)
    if not secrets:
        _check_keys(tree)
        code = {key: tree[key] for key in tree.keys() & _OF_CODE}
        tree = {**_without_references(tree), **code}
    errors: list[str] = []
    folder = Path() if path is None else path.parent
    resolved = _resolve(tree, environ, folder, "", errors)
    if errors:
        raise ConfigError("; ".join(errors))
    try:
        settings = _validated(resolved)
    except ValidationError as error:
        raise ConfigError("; ".join(_messages(error))) from None
    settings._folder = folder
    return settings


def _validated(tree: Mapping[str, Any]) -> Settings:
    # A key with nothing under it, as when all below is commented out, means the defaults.
    return Settings.model_validate({k: v for k, v in tree.items() if v is not None})


def _check_keys(tree: Mapping[str, Any]) -> None:
    """Refuse keys that no setting has, whatever their values are."""
    try:
        _validated(tree)
    except ValidationError as error:
        if told := "; ".join(_messages(error, of_keys=True)):
            raise ConfigError(told) from None


def literal_secrets(conf: Mapping[str, Any]) -> list[str]:
    """Where a conf has secrets in its own text, whole or in part, rather than references to them.

    Args:
        conf: as ``read_conf`` returns it.

    Returns:
        The paths of the keys, such as ``kafka.sasl.password``.
    """
    return list(_literal_secrets(conf, "", secret=False))


def _literal_secrets(value: Any, path: str, *, secret: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            inside = secret or bool(_SECRET_KEY.search(str(key)))
            yield from _literal_secrets(item, f"{path}.{key}" if path else str(key), secret=inside)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _literal_secrets(item, f"{path}.{number}", secret=secret)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        text = str(value)
        literal = _REFERENCE.sub("", text).strip() if secret else ""
        if literal or (not _refers(text) and mask_credentials(text) != text):
            yield path


def _without_references(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_references(item) if isinstance(item, dict) else item
        for key, item in tree.items()
        if not _refers(item)
    }


def _refers(value: Any) -> bool:
    if isinstance(value, list):
        return any(_refers(item) for item in value)
    return isinstance(value, str) and _REFERENCE.search(value) is not None


def _locate(path: str, folder: Path) -> Path:
    here = Path(path)
    with suppress(RuntimeError):  # a home that cannot be found
        here = here.expanduser()
    there = folder / here
    return there if not here.exists() and there.exists() else here


def read_conf(path: Path) -> dict[str, Any]:
    """Read a conf file as it is written, references and all.

    Raises:
        ConfigError: it cannot be read, or is not a map.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}{line}: {problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got a {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def _override(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _NOT_SETTINGS:
            continue
        (*sections, key), kind = _setting(variable)
        place = tree
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[key] = _value(variable, kind, text)


def _setting(variable: str) -> tuple[list[str], Any]:
    """The path of keys that a variable stands for, and the type of what is there."""
    name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    if name in Settings.model_fields:
        return [name], Settings.model_fields[name].annotation
    section, _, rest = name.partition("_")
    field = Settings.model_fields.get(section)
    if field is None or not rest or not isinstance(field.annotation, type):
        raise ConfigError(f"unknown setting @ {variable}")
    if section == "kafka":
        client, _, property_name = rest.partition("_")
        if client not in Kafka.model_fields:
            return [section, rest.replace("_", ".")], str
        if property_name:
            return [section, client, property_name.replace("_", ".")], str
        return [section, client], dict
    if not issubclass(field.annotation, BaseModel):
        raise ConfigError(f"unknown setting @ {variable}")
    known = {each.alias or key: each for key, each in field.annotation.model_fields.items()}
    if rest not in known:
        raise ConfigError(f"unknown setting @ {variable}")
    return [section, rest], known[rest].annotation


def _value(variable: str, kind: Any, text: str) -> Any:
    # Text stays as it is: a password or a log format may begin as a YAML list does.
    if kind is str:
        return text
    if text == "null":
        return None
    if kind == str | None or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"a list or map must be YAML @ {variable}") from None


def _resolve(
    value: Any, environ: Mapping[str, str], folder: Path, path: str, errors: list[str]
) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _resolve(item, environ, folder, f"{path}.{key}" if path else str(key), errors)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            _resolve(item, environ, folder, f"{path}.{number}", errors)
            for number, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        kind, name = match.groups()
        try:
            if kind == "env":
                return environ[name]
            return _locate(name, folder).read_text(encoding="utf-8").rstrip("\n")
        except KeyError:
            errors.append(f"environment variable {name} is not set @ {path}")
        except (OSError, ValueError):
            errors.append(f"file {name} cannot be read @ {path}")
        return ""

    return _REFERENCE.sub(look_up, value)


def _messages(error: ValidationError, *, of_keys: bool = False) -> Iterator[str]:
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        named = item["type"] == "value_error" and item["loc"] in _OF_NAMES
        if of_keys and not named and item["type"] != "extra_forbidden":
            continue
        path = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "tuple_type":
            message = "must be a list"
        yield f"{message} @ {path}" if path else message


def _masked(value: Any, key: str = "") -> Any:
    if key and _SECRET_KEY.search(key) and value:
        return MASK
    if isinstance(value, dict):
        return {name: _masked(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return mask_credentials(value) if isinstance(value, str) else value

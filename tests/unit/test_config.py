from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_scorer.config import (
    CODE_PROPERTIES,
    OWNED_PROPERTIES,
    ConfigError,
    Settings,
    Topics,
    literal_secrets,
    load_settings,
    read_conf,
)
from stream_scorer.masking import MASK

CANARY = "canary-7f3a"

# Every setting and its default, as the README's table has them.
DEFAULTS = yaml.safe_load(
    """
    host: localhost
    port: 5005
    plugin: null
    plugin_roots: []
    model_uri: null
    packages: []
    model: {allow_pickle: false, allow_code: false, install_requirements: false,
            trusted_types: [], roots: []}
    logging: {level: INFO, json: false,
              format: "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    kafka: {bootstrap.servers: "localhost:9092", consumer: {}, producer: {}}
    topics: {requests: score-requests, results: score-results, replies: score-replies,
             dead_letters: score-requests.dlq, reply_allow: [], create: true, partitions: 4,
             replication: -1, default_content_type: null}
    worker: {group: stream-scorer, delivery: at_least_once, processes: 1, instance_id: null,
             max_turn: 4096, max_turn_bytes: 16777216, max_batch_size: 512, drain_timeout: 8,
             startup_timeout: 60, metrics_port: 0}
    facade: {timeout: 10, async_timeout: 3600, max_pending: 1000, max_pending_bytes: 67108864,
             processes: 1, api_keys: [], examples: {}}
    limits: {payload_bytes: 900000, result_bytes: 900000, image_pixels: 25000000}
    """
)

# What one process of ours tells another.
INTERNAL = {"ready_file", "slot", "metrics_host"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No conf.yaml of the checkout is found by chance."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def load(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    path = tmp_path / "conf.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, environ or {})


def refusal(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environ)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_has_its_default() -> None:
    shown = yaml.safe_load(load_settings(None, {}).shown())
    for section in ("worker", "facade"):
        for name in INTERNAL & set(shown[section]):
            del shown[section][name]
    assert shown == DEFAULTS


def test_a_conf_that_holds_only_the_original_keys_works(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        port: 8000
        host: scorer.local
        plugin: samples/sklearn_wine/plugin.py
        model_uri: file:samples/sklearn_wine/model
        packages: [scikit-learn, "pandas<3"]
        logging: {level: debug, format: "[%(asctime)s] %(message)s"}
        """,
    )
    assert (settings.port, settings.host) == (8000, "scorer.local")
    assert settings.packages == ("scikit-learn", "pandas<3")
    assert settings.logging.level == "DEBUG"
    assert settings.kafka.bootstrap == "localhost:9092"


@pytest.mark.parametrize("text", ["", "# nothing\n", "worker:\ntopics:\nkafka:\n"])
def test_what_holds_nothing_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).shown() == Settings().shown()


def test_the_conf_of_the_current_directory_is_taken_where_there_is_one(tmp_path: Path) -> None:
    assert load_settings(None, {}).port == 5005
    Path("conf.yaml").write_text("port: 1\n", encoding="utf-8")
    assert load_settings(None, {}).port == 1
    assert load(tmp_path, "port: 2").port == 2


def test_a_replication_can_be_set(tmp_path: Path) -> None:
    assert load(tmp_path, "topics: {replication: 3}").topics.replication == 3


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "unknown key @ prot"),
        ("worker: {grup: a}", "unknown key @ worker.grup"),
        ("null: 1", "unknown key @ None"),
        ("port: many", "@ port"),
        ("port: 65536", "@ port"),
        ("port: -1", "@ port"),
        ("packages: numpy", "@ packages"),
        ("packages: [1]", "@ packages.0"),
        ("worker: none", "@ worker"),
        ("worker: {delivery: maybe}", "@ worker.delivery"),
        ("worker: {group: ''}", "@ worker.group"),
        ("worker: {max_turn: 0}", "@ worker.max_turn"),
        ("worker: {max_batch_size: 0}", "@ worker.max_batch_size"),
        ("worker: {drain_timeout: 0}", "@ worker.drain_timeout"),
        ("worker: {drain_timeout: .inf}", "@ worker.drain_timeout"),
        ("worker: {startup_timeout: .nan}", "@ worker.startup_timeout"),
        ("facade: {timeout: -1}", "@ facade.timeout"),
        ("facade: {max_pending_bytes: 0}", "@ facade.max_pending_bytes"),
        ("facade: {api_keys: one-key-of-many-characters}", "must be a list @ facade.api_keys"),
        ("facade: {examples: [a]}", "@ facade.examples"),
        ("facade: {examples: {a/b: 1}}", "@ facade.examples.a/b"),
        ("facade: {examples: {json: a}}", "'json' is not a media type @ facade.examples"),
        ("facade: {examples: {image/*: a}}", "'image/*' is not a media type @ facade.examples"),
        ("limits: {payload_bytes: 0}", "@ limits.payload_bytes"),
        ("logging: {level: loud}", "'loud' is not a log level @ logging.level"),
        ("logging: {json: perhaps}", "@ logging.json"),
        ("logging: {as_json: true}", "unknown key @ logging.as_json"),
        ("logging: {format: '{message}'}", "@ logging.format"),
        ("logging: {format: '%(nothing)s'}", "@ logging.format"),
        ("logging: {format: '%(message)'}", "@ logging.format"),
        ("topics: {requests: 'a b'}", "'a b' is not a topic name @ topics.requests"),
        ("topics: {requests: ''}", "@ topics.requests"),
        ("topics: {requests: ..}", "@ topics.requests"),
        (f"topics: {{requests: {'a' * 250}}}", "@ topics.requests"),
        ("topics: {reply_allow: ['a b']}", "@ topics.reply_allow.0"),
        ("topics: {reply_allow: ['a*b']}", "@ topics.reply_allow.0"),
        ("topics: {replication: -2}", "must be -1 (the broker's default) or at least 1"),
        ("topics: {replication: 0}", "must be -1 (the broker's default) or at least 1"),
        ("topics: {results: score-requests}", "must be four topics @ topics"),
        ("kafka: {linger.ms: [1]}", "must be text, a number, true or false @ kafka.linger.ms"),
        ("kafka: {linger.ms: null}", "@ kafka.linger.ms"),
        ("kafka: {consumer: {linger.ms: {}}}", "@ kafka.consumer.linger.ms"),
        ("kafka: {test.mock.num.brokers: 1}", "use `stream-scorer dev`"),
    ],
)
def test_an_error_says_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_every_error_is_told_at_once(tmp_path: Path) -> None:
    told = refusal(tmp_path, "port: many\nworker: {grup: a}\n")
    assert "@ port; " in told
    assert told.endswith("unknown key @ worker.grup")


@pytest.mark.parametrize("client", ["", "consumer", "producer"])
@pytest.mark.parametrize("name", sorted({*OWNED_PROPERTIES, *CODE_PROPERTIES}))
def test_owned_and_code_loading_properties_are_refused_by_name(
    tmp_path: Path, name: str, client: str
) -> None:
    kafka: dict[str, Any] = {name: "x"}
    told = refusal(tmp_path, yaml.safe_dump({"kafka": {client: kafka} if client else kafka}))
    assert f"{name} cannot be set: " in told
    assert "@ kafka" in told
    variable = f"SCORER_KAFKA_{client}_{name}".replace(".", "_").replace("__", "_").upper()
    assert f"{name} cannot be set: " in refusal(tmp_path, "", {variable: "x"})


@pytest.mark.parametrize(
    "name",
    [
        *("group.id", "enable.auto.commit", "transactional.id", "isolation.level"),
        *("enable.auto.offset.store", "plugin.library.paths", "ssl.engine.location"),
        *("ssl.providers", "sasl.kerberos.kinit.cmd"),
    ],
)
def test_what_would_break_a_promise_or_load_code_is_on_the_lists(name: str) -> None:
    assert name in OWNED_PROPERTIES or name in CODE_PROPERTIES


def test_kafka_properties_pass_through_by_their_own_names(tmp_path: Path) -> None:
    kafka = load(
        tmp_path,
        """
        kafka:
          security.protocol: ssl
          linger.ms: 5
          socket.keepalive.enable: true
          consumer: {fetch.min.bytes: 1}
          producer: {compression.type: zstd}
        """,
    ).kafka
    assert kafka.common == {
        "bootstrap.servers": "localhost:9092",
        "security.protocol": "ssl",
        "linger.ms": 5,
        "socket.keepalive.enable": True,
    }
    assert kafka.consumer == {"fetch.min.bytes": 1}
    assert kafka.producer == {"compression.type": "zstd"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: [", ":1: "),
        ("port: 1\nhost: 'a\n", "conf.yaml:"),
        ("- a\n- b\n", "expected keys and values, got a list"),
        ("just words", "expected keys and values, got a str"),
        ("a: \x01", "conf.yaml"),
        ("a: !!python/object/apply:os.getcwd []", "conf.yaml:1: could not determine"),
    ],
)
def test_a_file_that_is_not_a_conf_is_told_with_its_name(
    tmp_path: Path, text: str, message: str
) -> None:
    told = refusal(tmp_path, text)
    assert told.startswith(str(tmp_path / "conf.yaml"))
    assert message in told


def test_a_file_that_cannot_be_read_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: No such file"):
        load_settings(tmp_path / "missing.yaml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_settings(tmp_path, {})
    (tmp_path / "latin").write_bytes(b"host: \xe9")
    with pytest.raises(ConfigError, match="latin: not a text file in UTF-8"):
        load_settings(tmp_path / "latin", {})


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("SCORER_PORT", "8000", "port", 8000),
        ("SCORER_HOST", "scorer.local", "host", "scorer.local"),
        ("SCORER_MODEL_URI", "models:/wine@champion", "model_uri", "models:/wine@champion"),
        ("SCORER_MODEL_ALLOW_PICKLE", "true", "model.allow_pickle", True),
        ("SCORER_MODEL_INSTALL_REQUIREMENTS", "true", "model.install_requirements", True),
        ("SCORER_MODEL_TRUSTED_TYPES", "[a.B, c.D]", "model.trusted_types", ("a.B", "c.D")),
        ("SCORER_MODEL", "{allow_pickle: true}", "model.allow_pickle", True),
        ("SCORER_PACKAGES", " [numpy]", "packages", ("numpy",)),
        ("SCORER_WORKER_DELIVERY", "exactly_once", "worker.delivery", "exactly_once"),
        ("SCORER_WORKER_MAX_TURN_BYTES", "1", "worker.max_turn_bytes", 1),
        ("SCORER_WORKER_INSTANCE_ID", "7", "worker.instance_id", "7"),
        ("SCORER_WORKER_INSTANCE_ID", "null", "worker.instance_id", None),
        ("SCORER_TOPICS_REQUESTS", "other", "topics.requests", "other"),
        ("SCORER_TOPICS_DEAD_LETTERS", "dlq", "topics.dead_letters", "dlq"),
        ("SCORER_TOPICS_CREATE", "false", "topics.create", False),
        ("SCORER_FACADE_TIMEOUT", "2.5", "facade.timeout", 2.5),
        ("SCORER_FACADE_ASYNC_TIMEOUT", "60", "facade.async_timeout", 60),
        ("SCORER_FACADE_MAX_PENDING_BYTES", "1", "facade.max_pending_bytes", 1),
        ("SCORER_FACADE_EXAMPLES", "{text/csv: a.csv}", "facade.examples", {"text/csv": "a.csv"}),
        ("SCORER_LOGGING_FORMAT", "[%(asctime)s] x", "logging.format", "[%(asctime)s] x"),
        ("SCORER_LOGGING_JSON", "true", "logging.as_json", True),
        ("SCORER_HOST", "null", "host", "null"),
        ("SCORER_KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2", "kafka.bootstrap", "a:1,b:2"),
    ],
)
def test_the_environment_wins_over_the_file(
    tmp_path: Path, variable: str, text: str, path: str, value: object
) -> None:
    conf = """
    port: 1
    host: file
    model_uri: file
    model: {trusted_types: [file]}
    packages: [file]
    worker: {instance_id: file}
    topics: {create: true, requests: file}
    kafka: {bootstrap.servers: "file:1"}
    """
    not_settings = {"SCORER_CONF": "x", "SCORER_ENVIRONMENTS": "y"}
    found: Any = load(tmp_path, conf, {variable: text, "OTHER_PORT": "2", **not_settings})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_without_secrets_what_holds_a_reference_has_its_default(tmp_path: Path) -> None:
    conf = """
    port: ${env:PORT}
    model_uri: models:/wine/${env:VERSION}
    model: {trusted_types: ["${env:TYPE}"]}
    kafka: {bootstrap.servers: "a:1", sasl.password: "x${env:NOT_SET}", producer: {linger.ms: 7}}
    facade: {api_keys: [0123456789abcdef, "${file:missing}"], max_pending: 3}
    """
    (tmp_path / "conf.yaml").write_text(conf, encoding="utf-8")
    environ = {"VERSION": "3", "TYPE": "t", "PORT": "7", "SCORER_HOST": "${env:NOT_SET}"}
    settings = load_settings(tmp_path / "conf.yaml", environ, secrets=False)
    assert (settings.port, settings.host) == (5005, "localhost")
    assert settings.model_uri == "models:/wine/3"
    assert settings.model.trusted_types == ("t",)
    assert settings.kafka.common == {"bootstrap.servers": "a:1"}
    assert settings.kafka.producer == {"linger.ms": 7}
    assert (settings.facade.api_keys, settings.facade.max_pending) == ((), 3)
    with pytest.raises(ConfigError, match="variable VERSION is not set @ model_uri"):
        load_settings(tmp_path / "conf.yaml", {"TYPE": "t"}, secrets=False)


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ("facade: {apikeys: '${env:K}'}", "unknown key @ facade.apikeys"),
        ("facade: {apikeys: ['${env:K}']}", "unknown key @ facade.apikeys"),
        ("prt: '${env:K}'", "unknown key @ prt"),
        ("facade: {max_pending: '${env:K}', timout: '${env:K}'}", "unknown key @ facade.timout"),
        ("facade: {examples: {csv: '${env:K}'}}", "'csv' is not a media type @ facade.examples"),
        ("kafka: {group.id: '${env:K}'}", "group.id cannot be set: set worker.group instead"),
        ("kafka: {producer: {ssl.engine.location: '${env:K}'}}", "cannot be set: it loads code"),
    ],
)
def test_without_secrets_the_names_of_keys_are_checked_all_the_same(
    tmp_path: Path, conf: str, told: str
) -> None:
    (tmp_path / "conf.yaml").write_text(conf, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "conf.yaml", {}, secrets=False)
    assert told in str(caught.value)
    assert ";" not in str(caught.value)


@pytest.mark.parametrize(
    "conf", ["topics: {requests: '${env:T}'}\nlimits: '${env:L}'", "kafka: '${env:K}'"]
)
def test_without_secrets_the_values_behind_references_are_not(tmp_path: Path, conf: str) -> None:
    (tmp_path / "conf.yaml").write_text(conf, encoding="utf-8")
    assert load_settings(tmp_path / "conf.yaml", {}, secrets=False).shown() == Settings().shown()


@pytest.mark.parametrize(
    ("conf", "found"),
    [
        ("kafka: {sasl.password: '${env:A}', ssl.ca.location: a.pem, enable.token: true}", []),
        ("kafka: {sasl.password: 42, sasl.username: me}", ["kafka.sasl.password"]),
        ("kafka: {producer: {ssl.key.pem: a}}", ["kafka.producer.ssl.key.pem"]),
        ("kafka: {proxy: 'http://me:it@host:1', sasl.password: ''}", ["kafka.proxy"]),
        ("kafka: {proxy: 'http://${env:ME}:${env:PASSWORD}@host:1'}", []),
        ("facade: {api_keys: ['${env:A}', b]}", ["facade.api_keys.1"]),
        ("kafka: {sasl.password: 'hunter2${env:A}'}", ["kafka.sasl.password"]),
        ("kafka: {sasl.password: '${env:A}${file:b}', ssl.key.pem: '${file:c} '}", []),
        ("kafka: {sasl.password: 4.2}", ["kafka.sasl.password"]),
        ("kafka: {ssl.ca.pem: a, consumer: {ssl.certificate.pem: b}}", []),
        ("kafka: {sasl.oauthbearer.token.endpoint.url: 'https://host/token'}", []),
        (
            "kafka: {sasl.oauthbearer.token.endpoint.url: 'https://me:it@host/token'}",
            ["kafka.sasl.oauthbearer.token.endpoint.url"],
        ),
    ],
)
def test_secrets_in_the_text_of_a_conf_are_found(
    tmp_path: Path, conf: str, found: list[str]
) -> None:
    (tmp_path / "conf.yaml").write_text(conf, encoding="utf-8")
    assert literal_secrets(read_conf(tmp_path / "conf.yaml")) == found


def test_an_override_leaves_what_is_beside_it(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "worker: {group: mine, max_turn: 7}\nkafka: {client.id: mine}",
        {"SCORER_WORKER_MAX_TURN": "8", "SCORER_KAFKA_BOOTSTRAP_SERVERS": "a:1"},
    )
    assert (settings.worker.group, settings.worker.max_turn) == ("mine", 8)
    assert settings.kafka.common == {"client.id": "mine", "bootstrap.servers": "a:1"}


def test_under_kafka_underscores_become_dots() -> None:
    settings = load_settings(
        None,
        {
            "SCORER_KAFKA": "{client.id: whole, linger.ms: 7}",
            "SCORER_KAFKA_CLIENT_ID": "part",
            "SCORER_KAFKA_CONSUMER_FETCH_MIN_BYTES": "2",
            "SCORER_KAFKA_PRODUCER": "{linger.ms: 1}",
            "SCORER_KAFKA_PRODUCER_COMPRESSION_TYPE": "zstd",
        },
    )
    assert settings.kafka.common["client.id"] == "part"
    assert settings.kafka.common["linger.ms"] == 7
    assert settings.kafka.consumer == {"fetch.min.bytes": "2"}
    assert settings.kafka.producer == {"linger.ms": 1, "compression.type": "zstd"}


@pytest.mark.parametrize("password", ["{curly", "[square", "null", "[a]", "{a: b}", "true", "123"])
def test_a_kafka_property_of_the_environment_is_taken_as_it_stands(password: str) -> None:
    """A password may begin as YAML does."""
    settings = load_settings(None, {"SCORER_KAFKA_SASL_PASSWORD": password})
    assert settings.kafka.common["sasl.password"] == password


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SCORER_", "unknown setting @ SCORER_"),
        ("SCORER_NOTHING", "unknown setting @ SCORER_NOTHING"),
        ("SCORER_WORKER_NOTHING", "unknown setting @ SCORER_WORKER_NOTHING"),
        ("SCORER_WORKER_", "unknown setting @ SCORER_WORKER_"),
        ("SCORER_LOGGING_AS_JSON", "unknown setting @ SCORER_LOGGING_AS_JSON"),
        ("SCORER_KAFKA_", "unknown setting @ SCORER_KAFKA_"),
        ("SCORER_PORT_NUMBER", "unknown setting @ SCORER_PORT_NUMBER"),
        ("SCORER_HOST_NAME", "unknown setting @ SCORER_HOST_NAME"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(
    tmp_path: Path, variable: str, message: str
) -> None:
    assert refusal(tmp_path, "", {variable: "1"}) == message


@pytest.mark.parametrize("text", ["[", "{a: b", "[%a]"])
def test_a_list_that_is_not_yaml_names_its_variable(tmp_path: Path, text: str) -> None:
    told = refusal(tmp_path, "", {"SCORER_PACKAGES": text})
    assert told == "a list or map must be YAML @ SCORER_PACKAGES"


def test_references_are_resolved_in_values(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n", encoding="utf-8")
    settings = load(
        tmp_path,
        f"""
        port: ${{env:PORT}}
        host: "${{env:A}}-${{env:B}}"
        packages: ["${{env:A}}"]
        kafka: {{sasl.password: "${{file:{secret}}}", client.id: "$x {{env:A}} ${{other:A}}"}}
        """,
        {"PORT": "8000", "A": "a", "B": "${env:A}"},
    )
    assert settings.port == 8000
    assert settings.host == "a-${env:A}"  # what a reference gives is not looked through again
    assert settings.packages == ("a",)
    assert settings.kafka.common["sasl.password"] == "s3cret"
    assert settings.kafka.common["client.id"] == "$x {env:A} ${other:A}"


def test_references_are_resolved_in_variables_too() -> None:
    environ = {"SCORER_KAFKA_SASL_PASSWORD": "${env:PASSWORD}", "PASSWORD": CANARY}
    assert load_settings(None, environ).kafka.common["sasl.password"] == CANARY


def test_an_overridden_reference_need_not_resolve(tmp_path: Path) -> None:
    assert load(tmp_path, "host: ${env:MISSING}", {"SCORER_HOST": "a"}).host == "a"


def test_a_reference_that_leads_nowhere_is_told_with_its_place(tmp_path: Path) -> None:
    told = refusal(
        tmp_path,
        """
        host: ${env:MISSING}
        packages: [a, "${env:}"]
        kafka: {consumer: {client.id: "${file:missing}"}}
        """,
    )
    assert told == (
        "environment variable MISSING is not set @ host; "
        "environment variable  is not set @ packages.1; "
        "file missing cannot be read @ kafka.consumer.client.id"
    )


@pytest.mark.parametrize("content", [b"\xff", None])
def test_a_file_that_is_no_text_cannot_be_referred_to(
    tmp_path: Path, content: bytes | None
) -> None:
    place = tmp_path / "there"
    place.mkdir() if content is None else place.write_bytes(content)
    assert "cannot be read @ host" in refusal(tmp_path, f"host: ${{file:{place}}}")


def test_relative_paths_are_looked_up_here_then_beside_the_conf(tmp_path: Path) -> None:
    for folder in (Path(), tmp_path):
        (folder / "both").write_text(f"{folder.name or 'here'}\n", encoding="utf-8")
    (tmp_path / "beside").write_text("beside\n", encoding="utf-8")
    settings = load(tmp_path, "host: ${file:both}\nkafka: {client.id: '${file:beside}'}")
    assert settings.locate("both") == Path("both")
    assert settings.locate("beside") == tmp_path / "beside"
    assert settings.locate("nowhere") == Path("nowhere")
    assert settings.locate(str(tmp_path / "beside")) == tmp_path / "beside"
    assert settings.host == "here"
    assert settings.kafka.common["client.id"] == "beside"


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "name").write_text("home", encoding="utf-8")
    assert load_settings(None, {}).locate("~/model") == tmp_path / "model"
    assert load(tmp_path, "host: ${file:~/name}").host == "home"


SECRETS = [
    *("sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem"),
    *("sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.credentials.client.secret"),
    *("sasl.oauthbearer.config", "sasl.jaas.config"),
    *(
        "sasl.oauthbearer.assertion.private.key.pem",
        "sasl.oauthbearer.assertion.private.key.passphrase",
    ),
]


@pytest.mark.parametrize("name", [*SECRETS, "SASL.PASSWORD"])
@pytest.mark.parametrize("client", [None, "consumer", "producer"])
def test_secrets_are_masked_where_settings_are_shown(
    tmp_path: Path, name: str, client: str | None
) -> None:
    kafka = {name: CANARY, "client.id": "plain"}
    settings = load(tmp_path, yaml.safe_dump({"kafka": {client: kafka} if client else kafka}))
    shown = settings.shown()
    assert CANARY not in shown
    assert MASK in shown
    assert "plain" in shown
    assert CANARY not in repr(settings)
    assert CANARY not in str(settings.kafka)


def keys_of(settings: Settings) -> list[str]:
    return [key.get_secret_value() for key in settings.facade.api_keys]


def test_api_keys_come_from_files_and_variables_and_are_masked(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}-of-a-file\n", encoding="utf-8")
    conf = "facade: {api_keys: ['${file:key}', '${env:KEY}']}"
    settings = load(tmp_path, conf, {"KEY": f"{CANARY}-of-a-variable"})
    assert keys_of(settings) == [f"{CANARY}-of-a-file", f"{CANARY}-of-a-variable"]
    assert f"api_keys: {MASK!r}" in settings.shown()
    assert CANARY not in settings.shown() + repr(settings) + str(settings.facade)


def test_api_keys_of_the_environment_win() -> None:
    environ = {"SCORER_FACADE_API_KEYS": "['${env:KEY}', another-key-of-22-chars]", "KEY": "k" * 16}
    assert keys_of(load_settings(None, environ)) == ["k" * 16, "another-key-of-22-chars"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{CANARY}abc", "a key has at least 16 characters"),
        ("", "a key has at least 16 characters"),
        (f"{CANARY} and a space", "a key has only characters from ! to ~"),
        (f"{CANARY}\nanother-line", "a key has only characters from ! to ~"),
        (f"{CANARY}-not-äscii", "a key has only characters from ! to ~"),
        (f"{CANARY}-and-control\x7f", "a key has only characters from ! to ~"),
        (1234567890123456, "valid string"),
        ([f"{CANARY}-in-a-list"], "valid string"),
    ],
)
def test_a_key_that_is_no_key_is_refused_and_not_told(
    tmp_path: Path, key: object, message: str
) -> None:
    keys = ["a-key-of-many-characters", key]
    told = refusal(tmp_path, yaml.safe_dump({"facade": {"api_keys": keys}}))
    assert message in told
    assert told.endswith("@ facade.api_keys.1")
    assert "canary" not in told
    assert "1234" not in told


def test_credentials_in_addresses_are_masked_where_settings_are_shown(tmp_path: Path) -> None:
    address = f"https://me:{CANARY}@example.org/x.whl?sig={CANARY}"
    settings = load(tmp_path, yaml.safe_dump({"packages": ["numpy", f"x @ {address}"]}))
    assert settings.packages[1].endswith(address)
    assert CANARY not in settings.shown()
    assert CANARY not in repr(settings)
    shown = yaml.safe_load(settings.shown())["packages"]
    assert shown == ["numpy", f"x @ https://{MASK}@example.org/x.whl?{MASK}"]


def test_what_has_no_secret_is_shown_whole() -> None:
    environ = {"SCORER_KAFKA_SASL_USERNAME": "me", "SCORER_KAFKA_SSL_KEY_LOCATION": "/k.pem"}
    shown = load_settings(None, environ).shown()
    assert MASK not in shown
    assert "sasl.username: me" in shown
    assert "ssl.key.location: /k.pem" in shown


def test_an_error_tells_no_secret(tmp_path: Path) -> None:
    told = refusal(
        tmp_path, f"kafka: {{sasl.password: [{CANARY}]}}\nport: ${{env:S}}", {"S": CANARY}
    )
    assert "@ kafka.sasl.password" in told
    assert "@ port" in told
    assert CANARY not in told


@pytest.mark.parametrize(
    ("allowed", "topic", "answer"),
    [
        ([], "score-replies", True),
        ([], "score-results", False),
        ([], "other", False),
        (["other"], "other", True),
        (["other"], "other2", False),
        (["other*"], "other2", True),
        (["other*"], "othe", False),
        (["*"], "anything", True),
        # Never back into the loop, nor among the dead letters.
        (["*"], "score-requests", False),
        (["*", "score-requests"], "score-requests", False),
        (["*"], "score-requests.dlq", False),
        # What is no topic's name cannot be looked up: some of these end the client's process.
        (["*"], "", False),
        (["*"], "a b", False),
        (["*"], "a\0b", False),
        (["*"], "é", False),
        (["*"], "..", False),
        (["*"], "a" * 249, True),
        (["*"], "a" * 250, False),
        (["a*"], "a" * 600, False),
    ],
)
def test_answers_go_only_to_topics_on_the_list(
    allowed: list[str], topic: str, answer: bool
) -> None:
    assert Topics.model_validate({"reply_allow": allowed}).allows_reply(topic) is answer


def test_the_default_log_format_formats() -> None:
    record = logging.makeLogRecord({"name": "a", "msg": "b"})
    assert logging.Formatter(Settings().logging.format).format(record).endswith("a: b")

"""The manifests in deploy/kubernetes: what Kubernetes takes, and what agrees with the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr

from http_facade import keys
from stream_scorer import supervisor
from stream_scorer.config import Settings, load_settings

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy" / "kubernetes"
WAYS: Final = ("at-least-once", "scaled", "exactly-once")
"""The folders to apply, one of them."""

VERSIONS: Final = ("1.30", kubernetes_validate.latest_version())
GUNICORN_GOODBYE: Final = 5
"""Seconds that gunicorn_conf.py adds to ``facade.timeout``."""

Manifest = dict[str, Any]


def files() -> list[Path]:
    """Every file with manifests in it."""
    return [
        path
        for path in sorted(FOLDER.rglob("*.yaml"))
        if path.name not in {"kustomization.yaml", "conf.yaml"}
    ]


def documents(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def listed(folder: Path) -> Iterator[Path]:
    """The files that a kustomization leads to."""
    for name in documents(folder / "kustomization.yaml")[0]["resources"]:
        path = (folder / name).resolve()
        if path.is_dir():
            yield from listed(path)
        else:
            yield path


def manifests(way: str) -> list[Manifest]:
    return [document for path in listed(FOLDER / way) for document in documents(path)]


def of_kind(kind: str, way: str) -> list[Manifest]:
    return [manifest for manifest in manifests(way) if manifest["kind"] == kind]


def workloads(way: str) -> list[Manifest]:
    return [item for item in manifests(way) if item["kind"] in {"Deployment", "StatefulSet"}]


def workload(way: str, component: str) -> Manifest:
    (found,) = [each for each in workloads(way) if each["metadata"]["name"].endswith(component)]
    return found


def pod(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]["template"]["spec"]
    return spec


def container(manifest: Manifest) -> Manifest:
    (only,) = pod(manifest)["containers"]
    found: Manifest = only
    return found


def labels(manifest: Manifest) -> set[tuple[str, str]]:
    return set(manifest["spec"]["template"]["metadata"]["labels"].items())


def selected(selector: dict[str, str], way: str) -> list[str]:
    """The workloads whose pods a selector takes."""
    wanted = set(selector.items())
    return [each["metadata"]["name"] for each in workloads(way) if wanted <= labels(each)]


def ports(manifest: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(manifest)["ports"]}


def settings_of(manifest: Manifest, disk: Path, *, secrets: bool = False) -> Settings:
    """What the container reads, in a folder that stands for its file system.

    Args:
        manifest: its workload.
        disk: the folder.
        secrets: whether the conf's lines about Kafka's passwords are in force.
    """
    conf = (FOLDER / "base" / "conf.yaml").read_text(encoding="utf-8")
    if secrets:
        conf, lines = re.subn(r"(?m)^  # ((sasl|security|ssl)\.)", r"  \1", conf)
        assert lines == 5
    volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
    places = []
    for mount in container(manifest)["volumeMounts"]:
        volume = volumes.pop(mount["name"])
        place = disk / mount["mountPath"].lstrip("/")
        place.mkdir(parents=True)
        places.append((mount["mountPath"], str(place)))
        if "configMap" in volume:
            assert volume["configMap"]["name"] == "stream-scorer"
            (place / "conf.yaml").write_text(moved(conf, disk), encoding="utf-8")
        for source in volume.get("projected", {}).get("sources", ()):
            if secrets or not source["secret"].get("optional"):
                for item in source["secret"]["items"]:
                    (place / item["path"]).write_text(f"value-of-{item['key']}\n")
    assert not volumes, "volumes that nobody mounts"
    name = manifest["metadata"]["name"]
    fields = {"metadata.name": f"{name}-0"}
    environ = {
        each["name"]: (
            moved(each["value"], disk)
            if "value" in each
            else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        )
        for each in container(manifest)["env"]
    }
    return load_settings(Path(environ["SCORER_CONF"]), environ)


def moved(text: str, disk: Path) -> str:
    """The same paths on the disk that stands for the container's."""
    return re.sub(r"/(etc|run)/", rf"{disk}/\1/", text)


def test_every_file_belongs_to_one_way_at_least_or_is_named_where_it_may_be_added() -> None:
    used = {path for way in WAYS for path in listed(FOLDER / way)}
    optional = FOLDER / "scaled" / "trigger-authentication.yaml"
    assert set(files()) == used | {optional}
    assert f"# - {optional.name}" in (FOLDER / "scaled" / "kustomization.yaml").read_text("utf-8")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(FOLDER)))
def test_kubernetes_takes_it(path: Path, version: str) -> None:
    for manifest in documents(path):
        if not manifest["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_key_that_kubernetes_does_not_know_would_be_found() -> None:
    (manifest,) = documents(FOLDER / "at-least-once" / "worker.yaml")
    container(manifest)["readynessProbe"] = container(manifest).pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@pytest.mark.parametrize("way", WAYS)
def test_kustomize_makes_the_same_of_it(way: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    made = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / way)], capture_output=True, text=True, check=True
    )
    rendered = {
        (item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(made.stdout)
    }
    (conf,) = [name for kind, name in rendered if kind == "ConfigMap"]
    assert rendered.pop(("ConfigMap", conf))["data"] == {
        "conf.yaml": (FOLDER / "base" / "conf.yaml").read_text(encoding="utf-8")
    }
    ours = {(item["kind"], item["metadata"]["name"]): item for item in manifests(way)}
    for item in ours.values():
        for volume in item["spec"]["template"]["spec"]["volumes"] if item in workloads(way) else ():
            if "configMap" in volume:
                volume["configMap"]["name"] = conf
    assert rendered == ours


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("secrets", [False, True], ids=["plain", "with-passwords"])
def test_the_containers_find_settings_that_are_right(
    way: str, secrets: bool, tmp_path: Path
) -> None:
    worker = settings_of(workload(way, "worker"), tmp_path / "worker", secrets=secrets)
    facade = settings_of(workload(way, "facade"), tmp_path / "facade", secrets=secrets)
    assert worker.worker.delivery == ("exactly_once" if way == "exactly-once" else "at_least_once")
    assert (facade.topics, facade.kafka.bootstrap) == (worker.topics, worker.kafka.bootstrap)
    assert [key.get_secret_value() for key in facade.facade.api_keys] == ["value-of-api-key"]
    assert worker.facade.api_keys == (), "the worker need not know them"
    password = "value-of-kafka-password" if secrets else None
    assert worker.kafka.common.get("sasl.password") == password
    assert facade.kafka.common.get("sasl.password") == password


def test_a_worker_with_a_lasting_name_is_called_as_its_pod(tmp_path: Path) -> None:
    settings = settings_of(workload("exactly-once", "worker"), tmp_path)
    assert settings.member_id == "stream-scorer-worker-0-0"


def test_the_worker_is_the_same_in_either_mode_but_for_its_name_and_promise() -> None:
    often, once = workload("at-least-once", "worker"), workload("exactly-once", "worker")
    assert (often["kind"], once["kind"]) == ("Deployment", "StatefulSet")
    assert container(once)["env"][:1] == container(often)["env"]
    container(once)["env"] = container(often)["env"]
    assert once["spec"]["template"] == often["spec"]["template"]


@pytest.mark.parametrize("way", WAYS)
def test_ports_are_those_of_the_conf_and_reached_from_outside_the_pod(
    way: str, tmp_path: Path
) -> None:
    worker, facade = workload(way, "worker"), workload(way, "facade")
    settings = settings_of(worker, tmp_path)
    assert ports(worker) == {"metrics": settings.worker.metrics_port}
    assert ports(facade) == {"http": settings.port}
    assert settings.worker.metrics_host == settings.host == "0.0.0.0"  # noqa: S104
    annotations = worker["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.worker.metrics_port)


@pytest.mark.parametrize("way", WAYS)
def test_probes_ask_what_is_served_without_a_key(way: str) -> None:
    for manifest in workloads(way):
        probes = [container(manifest)[f"{kind}Probe"] for kind in ("startup", "readiness")]
        probes.append(live := container(manifest)["livenessProbe"])
        for probe in probes:
            assert set(ports(manifest)) == {probe["httpGet"]["port"]}
            assert probe["httpGet"]["path"] in {"/livez", "/readyz"} & keys._OPEN
        assert live["httpGet"]["path"] == "/livez", "who waits for a broker is not started again"


@pytest.mark.parametrize("way", ["at-least-once", "exactly-once"])
def test_while_a_model_loads_no_probe_ends_the_worker(way: str) -> None:
    probe = container(workload(way, "worker"))["startupProbe"]
    assert probe["httpGet"]["path"] == "/readyz", "/livez fails after 30 s without a turn"
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


@pytest.mark.parametrize("way", WAYS)
def test_there_is_time_to_stop(way: str, tmp_path: Path) -> None:
    worker, facade = workload(way, "worker"), workload(way, "facade")
    settings = settings_of(facade, tmp_path)
    drained = settings.worker.drain_timeout + supervisor.SPARE
    assert pod(worker)["terminationGracePeriodSeconds"] > drained
    (program, seconds) = container(facade)["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    stopped = int(seconds) + settings.facade.timeout + GUNICORN_GOODBYE
    assert pod(facade)["terminationGracePeriodSeconds"] > stopped
    text = (ROOT / "http_facade" / "gunicorn_conf.py").read_text(encoding="utf-8")
    assert f"graceful_timeout = _timeout + {GUNICORN_GOODBYE}\n" in text


@pytest.mark.parametrize("way", WAYS)
def test_selectors_take_the_pods_that_are_meant(way: str) -> None:
    for manifest in workloads(way):
        name = [manifest["metadata"]["name"]]
        assert selected(manifest["spec"]["selector"]["matchLabels"], way) == name
        (spread,) = pod(manifest)["topologySpreadConstraints"]
        assert selected(spread["labelSelector"]["matchLabels"], way) == name
    for budget in of_kind("PodDisruptionBudget", way):
        own = [budget["metadata"]["name"]]
        assert selected(budget["spec"]["selector"]["matchLabels"], way) == own
    for service in of_kind("Service", way):
        assert selected(service["spec"]["selector"], way) == [service["metadata"]["name"]]
        (port,) = service["spec"]["ports"]
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        assert port["targetPort"] in ports(workload(way, component))
    budgets = {each["metadata"]["name"] for each in of_kind("PodDisruptionBudget", way)}
    assert budgets == {each["metadata"]["name"] for each in workloads(way)}


def test_the_stateful_set_names_a_headless_service() -> None:
    name = workload("exactly-once", "worker")["spec"]["serviceName"]
    (service,) = [
        each for each in of_kind("Service", "exactly-once") if each["metadata"]["name"] == name
    ]
    assert service["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("way", WAYS)
def test_the_network_lets_through_what_is_needed_and_no_more(way: str, tmp_path: Path) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind("NetworkPolicy", way)}
    assert set(policies) == {
        "stream-scorer-egress",
        "stream-scorer-facade",
        "stream-scorer-worker",
    }
    for component in ("facade", "worker"):
        spec = policies[f"stream-scorer-{component}"]
        assert spec["policyTypes"] == ["Ingress"]
        assert selected(spec["podSelector"]["matchLabels"], way) == [f"stream-scorer-{component}"]
        (rule,) = spec["ingress"]
        assert {port["port"] for port in rule["ports"]} == set(ports(workload(way, component)))
        assert bool(rule.get("from")) == (component == "worker")
    egress = policies["stream-scorer-egress"]
    assert egress["policyTypes"] == ["Egress"]
    assert len(selected(egress["podSelector"]["matchLabels"], way)) == len(workloads(way)) == 2
    names, kafka = egress["egress"]
    assert {(port["protocol"], port["port"]) for port in names["ports"]} == {
        ("UDP", 53),
        ("TCP", 53),
    }
    settings = settings_of(workload(way, "worker"), tmp_path)
    broker_port = int(settings.kafka.bootstrap.rpartition(":")[2])
    assert broker_port in {port["port"] for port in kafka["ports"]} == {9092, 9093}


@pytest.mark.parametrize("way", WAYS)
def test_pods_may_do_nothing_that_they_need_not(way: str) -> None:
    accounts = {each["metadata"]["name"]: each for each in of_kind("ServiceAccount", way)}
    for manifest in workloads(way):
        spec, inner = pod(manifest), container(manifest)
        account = accounts[spec["serviceAccountName"]]
        assert account["automountServiceAccountToken"] is False
        assert spec["automountServiceAccountToken"] is False
        outer = spec["securityContext"]
        assert outer["runAsNonRoot"] is True
        dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        assert f"USER {outer['runAsUser']}:{outer['runAsGroup']}\n" in dockerfile
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert inner["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} == set(inner["resources"]["requests"])
        assert "memory" in inner["resources"]["limits"]
        writable = [each for each in inner["volumeMounts"] if not each.get("readOnly")]
        assert [each["mountPath"] for each in writable] == ["/tmp"]  # noqa: S108


@pytest.mark.parametrize("way", WAYS)
def test_images_and_commands_are_those_of_the_project(way: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for manifest in workloads(way):
        target = container(manifest)["image"].removeprefix("stream-scorer-")
        assert f"FROM runtime AS {target}\n" in dockerfile
        assert container(manifest)["args"] == [target] == [container(manifest)["name"]]


class Strict(BaseModel):
    """Nothing but these keys, and nothing that only looks like their values."""

    model_config = ConfigDict(extra="forbid")


class Target(Strict):
    """A workload; a Deployment where no kind is named."""

    name: StrictStr


class Trigger(Strict):
    """``metadata`` is text throughout: Kubernetes refuses the whole where one is not."""

    type: StrictStr
    metadata: dict[str, StrictStr]
    authenticationRef: Target | None = None  # noqa: N815


class ScaledObject(Strict):
    """The part of KEDA's kind that is used here; times in seconds."""

    scaleTargetRef: Target  # noqa: N815
    pollingInterval: StrictInt  # noqa: N815
    cooldownPeriod: StrictInt  # noqa: N815
    minReplicaCount: StrictInt  # noqa: N815
    maxReplicaCount: StrictInt  # noqa: N815
    triggers: tuple[Trigger, ...]


def test_workers_are_scaled_by_the_lag_of_their_own_group(tmp_path: Path) -> None:
    (manifest,) = of_kind("ScaledObject", "scaled")
    assert manifest["apiVersion"] == "keda.sh/v1alpha1"
    scaled = ScaledObject.model_validate(manifest["spec"])
    worker = workload("scaled", "worker")
    settings = settings_of(worker, tmp_path)
    assert worker["kind"] == "Deployment"
    assert scaled.scaleTargetRef.name == worker["metadata"]["name"]
    assert "replicas" not in worker["spec"], "to apply it again would undo the scaling"
    assert (scaled.minReplicaCount, scaled.maxReplicaCount) == (0, settings.topics.partitions)
    (trigger,) = scaled.triggers
    metadata = dict(trigger.metadata)
    assert trigger.type == "kafka"
    assert metadata.pop("bootstrapServers") == settings.kafka.bootstrap
    assert metadata.pop("consumerGroup") == settings.worker.group
    assert metadata.pop("topic") == settings.topics.requests
    assert int(metadata.pop("lagThreshold")) > 0
    assert metadata == {
        "activationLagThreshold": "0",
        "offsetResetPolicy": "earliest",
        "scaleToZeroOnInvalidOffset": "false",
        "allowIdleConsumers": "false",
    }


@pytest.mark.parametrize("way", ["at-least-once", "exactly-once"])
def test_only_what_says_so_needs_keda(way: str) -> None:
    assert {each["apiVersion"].partition("/")[0] for each in manifests(way)} == {
        *("apps", "networking.k8s.io", "policy", "v1")
    }


class SecretKey(Strict):
    """Which parameter of a trigger comes from where."""

    parameter: StrictStr
    name: StrictStr
    key: StrictStr


class TriggerAuthentication(Strict):
    """The part of KEDA's kind that is used here."""

    secretTargetRef: tuple[SecretKey, ...]  # noqa: N815


def test_keda_gets_a_kafka_user_where_the_comments_are_taken_for_text() -> None:
    (manifest,) = documents(FOLDER / "scaled" / "trigger-authentication.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == (
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
    )
    given = TriggerAuthentication.model_validate(manifest["spec"]).secretTargetRef
    assert {each.parameter for each in given} == {"username", "password"}
    text = (FOLDER / "scaled" / "scaled-object.yaml").read_text(encoding="utf-8")
    text, lines = re.subn(r"(?m)^( +)# ((sasl|tls|authenticationRef|  name):)", r"\1\2", text)
    assert lines == 4
    (trigger,) = ScaledObject.model_validate(yaml.safe_load(text)["spec"]).triggers
    assert (trigger.metadata["sasl"], trigger.metadata["tls"]) == ("scram_sha512", "enable")
    assert trigger.authenticationRef == Target(name=manifest["metadata"]["name"])

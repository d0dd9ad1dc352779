"""The manifests: valid by Kubernetes' own schemas, and in agreement with the image, the server and one another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from app.ingress.admission import Admission
from app.ingress.middleware import PUBLIC
from app.settings import Settings
from app.telemetry.metrics import IngressMetrics
from tests.deploy.metrics import names_in
from tests.deploy.prometheus import DEPLOY

FOLDER = DEPLOY / "kubernetes"
VERSION = "1.33"
NO_MANIFESTS = {"adapter.yaml", "kustomization.yaml"}
FOREIGN = {"monitor.yaml"}  # the Prometheus operator's; its schema is not among Kubernetes' own
FILES = sorted(file for file in FOLDER.glob("*.yaml") if file.name not in NO_MANIFESTS)


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture
def pod() -> Any:
    return read("deployment.yaml")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    (only,) = pod["containers"]
    return only


def completed(content: Any) -> Any:
    """As kustomize writes it: selectors and the pods' labels are its work."""
    labels = {"app.kubernetes.io/name": "hguard"}
    if content["kind"] == "Deployment":
        content["spec"]["selector"] = {"matchLabels": labels}
        content["spec"]["template"]["metadata"] = {"labels": labels}
    return content


@pytest.mark.parametrize("file", [file for file in FILES if file.name not in FOREIGN], ids=lambda file: file.stem)
def test_each_is_valid(file: Path) -> None:
    content = completed(yaml.safe_load(file.read_text()))
    kubernetes_validate.validate(content, VERSION, strict=True)


def test_a_wrong_one_is_not() -> None:
    content = completed(read("deployment.yaml"))
    content["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGett"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(content, VERSION, strict=True)


def test_the_kustomization_has_them_all() -> None:
    listed = set(read("kustomization.yaml")["resources"])
    assert listed == {file.name for file in FILES} - {"keys.example.yaml"}


def test_settings_are_settings() -> None:
    (generated,) = read("kustomization.yaml")["configMapGenerator"]
    names = {literal.split("=")[0] for literal in generated["literals"]}
    assert {name.removeprefix("HGUARD_").lower() for name in names} <= set(Settings.model_fields)
    Settings(
        **{
            name.removeprefix("HGUARD_").lower(): value
            for name, value in (one.split("=") for one in generated["literals"])
        }
    )


def test_probes_ask_what_is_open_without_a_key(container: Any) -> None:
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"/ready", "/live"}
    assert paths <= PUBLIC


def test_a_drain_ends_before_the_grace_period(pod: Any, container: Any) -> None:
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + Settings.model_fields["drain_seconds"].default + 10 <= pod["terminationGracePeriodSeconds"]


def test_the_pod_is_the_image_s_user_and_may_write_where_the_image_does(pod: Any, container: Any) -> None:
    image = Path("Dockerfile").read_text()
    user = re.search(r"^USER (\d+):(\d+)$", image, re.MULTILINE)
    assert user is not None
    assert [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup")] == [
        int(part) for part in user.groups()
    ]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/cache", "/tmp", "/dev/shm", "/run/secrets/hguard"}
    assert set(re.findall(r"^VOLUME (\S+)$", image, re.MULTILINE)) <= mounted
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_what_is_named_exists(pod: Any, container: Any) -> None:
    assert pod["serviceAccountName"] == read("serviceaccount.yaml")["metadata"]["name"]
    (claim,) = (
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    )
    assert claim == read("cache.yaml")["metadata"]["name"]
    (config,) = container["envFrom"]
    assert config["configMapRef"]["name"] == read("kustomization.yaml")["configMapGenerator"][0]["name"]
    secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    example = read("keys.example.yaml")
    assert secret["secretName"] == example["metadata"]["name"]
    (file,) = (one["value"] for one in container["env"] if one["name"] == "HGUARD_API_KEYS_FILE")
    assert Path(file).name in example["stringData"]
    assert str(Path(file).parent) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert read("scaling.yaml")["spec"]["scaleTargetRef"]["name"] == read("deployment.yaml")["metadata"]["name"]
    (port,) = container["ports"]
    assert read("service.yaml")["spec"]["ports"][0]["targetPort"] == port["name"]


@pytest.fixture
def scaled_on() -> str:
    """The server's metric behind the one that the autoscaler looks at."""
    (rule,) = read("adapter.yaml")["rules"]["custom"]
    (metric,) = read("scaling.yaml")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (name,) = names_in(rule["seriesQuery"].replace('"', " "))
    assert re.fullmatch(rule["name"]["matches"], name)
    return name


def test_scaling_looks_at_a_metric_that_there_is(scaled_on: str, exposed: set[str]) -> None:
    assert scaled_on in exposed


async def test_scaling_looks_at_answers_in_flight(scaled_on: str) -> None:
    """They grow without an engine in which anything waits."""
    registry, admission = CollectorRegistry(), Admission(requests_per_caller=2, capacity=9)
    IngressMetrics(admission, registry)
    assert registry.get_sample_value(scaled_on) == 0
    admission.admit(None, answers=2)
    admission.admit(None, answers=3)
    assert registry.get_sample_value(scaled_on) == 5


def test_the_monitor() -> None:
    """Its job is the service's name, which the rules expect; its port is one of the service's."""
    monitor, service = read("monitor.yaml"), read("service.yaml")
    assert service["metadata"]["name"] == "hguard"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] in PUBLIC
    (pairs,) = read("kustomization.yaml")["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pairs["pairs"].items()

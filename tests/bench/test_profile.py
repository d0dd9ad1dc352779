"""The kernels by themselves, and decoding steps taken apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from bench import report
from guard.bench import kernels, profile
from guard.errors import GuardError


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": tid}


STEPS = [event("user_annotation", f"execute_context_0(0)_generation_{2}(2)", ts, 40) for ts in (0, 100, 220, 320)]


def test_what_a_device_does_in_a_mean_step() -> None:
    work = [event("kernel", "void tap<bf16, 4>(float*)", ts, 8) for ts in (10, 110, 230, 330)]
    work += [event("kernel", "void ns::gemm<x>(int)", ts, 20, tid=2) for ts in (10, 110, 230, 330)]  # beside the tap
    work += [event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 60, 4)]
    ignored = [event("cpu_op", "aten::mm", 0, 500), {"ph": "i", "name": "mark", "ts": 0}]
    seen = profile.recorded([*STEPS, *work, *ignored])
    assert (seen.steps, seen.between, seen.busy) == (4, 100, 21)
    assert seen.kernels == {"tap": (1, 8), "ns::gemm": (1, 20), "Memcpy DtoH (Device -> Pinned)": (0.25, 1)}


def test_operators_on_a_cpu_count_by_themselves() -> None:
    work = [event("cpu_op", "outer", 0, 40), event("cpu_op", "inner", 4, 8), event("cpu_op", "inner", 20, 8)]
    work += [event("cpu_op", "leaf", 5, 4), event("cpu_op", "outer", 200, 40), event("cpu_op", "outer", 200, 40, tid=2)]
    seen = profile.recorded([*STEPS, *work])
    assert seen.busy == 20
    assert seen.kernels == {"outer": (0.75, 26), "inner": (0.5, 3), "leaf": (0.25, 1)}


def test_a_trace_without_steps_is_named() -> None:
    with pytest.raises(GuardError, match="marks no decoding steps"):
        profile.recorded([event("kernel", "tap", 0, 1)])


def test_kernels_are_held_to_float64(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="vLLM brings Triton on Linux only")
    result = kernels.bench(["1B"], [1, 64], [1, 3])
    assert [(case["kernel"], case["neurons"], case["rows"]) for case in result["kernels"]] == [
        *(("scale", width, rows) for width in (1, 64) for rows in (1, 3)),
        *(("tap", 0, rows) for rows in (1, 3)),
        *(("statistics", 0, rows) for rows in (1, 3)),
    ]
    assert all(0 <= case["error"] < 1e-5 for case in result["kernels"])
    timed = [{**case, "microseconds": 4.0, "copy_microseconds": 2.0} for case in result["kernels"]]
    (tmp_path / "gpu-kernels.json").write_text(json.dumps({**result, "kernels": timed}))
    assert report.rendered(f"{report.BEGIN}{report.END}", tmp_path).count("| 4 | 2 | 2.00 |") == 8


def test_kernels_need_a_place_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="vLLM brings Triton on Linux only")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "--kernels", "--out", str(tmp_path / "out.json")]) == 1
    assert "--kernels needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.long
def test_both_engines_are_taken_apart(tmp_path: Path) -> None:
    out = tmp_path / "gpu-profile.json"
    assert main(["bench", "--profile", "--clients", "2", "--prompt", "24", "--out", str(out)]) == 0
    (one,) = json.loads(out.read_text())["profiles"]
    for name, taps in (("plain", 0), ("guarded", 4)):
        assert one[name]["steps"] >= profile.STEPS
        assert one[name]["kernels"]["_C::cpu_attention_with_kv_cache"][0] == pytest.approx(4)
        assert one[name]["kernels"].get("aten::linalg_vector_norm", [0])[0] == pytest.approx(taps)
    page = report.rendered(f"{report.BEGIN}{report.END}", tmp_path)
    assert "| 2 clients | plain | guarded | difference |" in page
    assert page.count("\n| `") == report.SHOWN

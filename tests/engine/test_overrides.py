"""What follows ``--`` serves the model that was compared with the probe, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.main import main
from app.settings import ATLAS
from guard.errors import UnsupportedError
from guard.ipc.collecting import Collecting
from guard.launch.engines import chat_template, collecting_arguments, engine_arguments
from guard.launch.overrides import REFUSED
from guard.probe.bundle import Bundle


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder that is not the model's."""
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "OTHER"], "--model after -- is not supported: name it before --"),
        (["--model=OTHER"], "--model after --"),
        (["OTHER"], "--model after --"),
        (["--tokenizer", "OTHER"], "--tokenizer after --"),
        (["--tokenizer-revision", "main"], "--tokenizer after --"),
        (["--tokenizer-mode", "mistral"], "--tokenizer-mode after --"),
        (["--hf-overrides", '{"rope_theta": 5.0}'], "--hf-overrides after --"),
        (["--hf_overrides.rms_norm_eps", "0.5"], "--hf-overrides after --"),
        (["--hf-config-path", "OTHER"], "--hf-config-path after --"),
        (["--config-format", "mistral"], "--config-format after --"),
        (["--model-class-overrides", '{"LlamaForCausalLM": "a:B"}'], "--model-class-overrides after --"),
        (["--load-format", "dummy"], "--load-format after --"),
        (["--load-format", "PT"], "--load-format after --"),
        (["--served-model-name", "gpt-4"], "--served-model-name after -- is not supported: name it before --"),
        (["--served-model-name", "atlas", "gpt-4"], "--served-model-name after --"),
        (["--revision", "main"], "--revision after --"),
        (["--runner", "pooling"], "--runner after --"),
        (["--convert", "embed"], "--convert after --"),
        (["--weight-transfer-config", '{"backend": "nccl"}'], "--weight-transfer-config after --"),
        (
            ["--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'],
            "--kv-transfer-config after -- is not supported: answers would go on from states that another process",
        ),
        (["--kv-offloading-backend", "lmcache", "--kv-offloading-size", "1"], "--kv-offloading-backend after --"),
        (
            ["--ec-transfer-config", '{"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}'],
            "--ec-transfer-config after --",
        ),
        (["--spec-method", "ngram", "--spec-tokens", "3"], "--speculative-config is not supported"),
        (["--quantization-config", '{"ignore": ["a"]}'], "--quantization is not supported"),
        (["--kv-cache-dtype", "fp8"], "--kv-cache-dtype fp8 is not float32"),
        (["--chat-template", "{{ messages }}"], "--chat-template is not the template that the probe was fit on"),
        (
            ["--chat-template", "nowhere.jinja"],
            "vLLM refuses its arguments: The supplied chat template string (nowhere.jinja)",
        ),
        (["--enable-auto-tool-choice"], "vLLM refuses its arguments: Error: --enable-auto-tool-choice requires"),
    ],
)
def test_another_model_after_the_dashes(
    arguments: list[str], says: str, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--", *(word.replace("OTHER", str(other)) for word in arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hguard: {says}")


def test_a_file_of_vllms_arguments_says_no_more_than_the_line(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vllm.yaml").write_text(f"tokenizer: {other}\n")
    assert main(["serve", "--", "--config", str(tmp_path / "vllm.yaml")]) == 1
    assert capsys.readouterr().err.startswith("hguard: --tokenizer after --")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", str(ATLAS), "--served-model-name", "test"],
        ["--tokenizer", str(ATLAS), "--tokenizer-mode", "hf"],
        ["--load-format", "safetensors"],
        ["--kv-cache-dtype", "auto", "--hf-overrides", "{}", "--config-format", "hf", "--runner", "generate"],
        ["--chat-template", str(ATLAS / "chat_template.jinja")],
        ["--max-num-seqs", "8", "--seed", "3"],
        ["--kv-offloading-size", "1"],
    ],
)
def test_what_serves_the_same_passes(arguments: list[str], atlas_bundle: Bundle) -> None:
    engine_arguments(ATLAS, "test", atlas_bundle, False, arguments)


def test_each_option_exists(atlas_bundle: Bundle) -> None:
    """A field that vLLM renames would let its option through."""
    args = vars(engine_arguments(ATLAS, "test", atlas_bundle, False))
    assert [field for override in REFUSED for field in override.fields if field not in args] == []


def test_relaxed_tolerates_another_template_and_says_so(
    atlas_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    args = engine_arguments(
        ATLAS,
        "test",
        atlas_bundle,
        False,
        ["--chat-template", "{{ messages }}", "--kv-cache-dtype", "fp8"],
        relaxed=True,
    )
    assert chat_template(args) == "{{ messages }}"
    template, cache = capsys.readouterr().err.splitlines()
    assert template.startswith("hguard: WARNING: --chat-template is not the template")
    assert cache.startswith("hguard: WARNING: --kv-cache-dtype fp8 is not float32")


def test_a_template_that_vllm_brings(atlas_bundle: Bundle) -> None:
    """It is named by its file alone; what is scored in a turn depends on the same text."""
    args = engine_arguments(
        ATLAS, "test", atlas_bundle, False, ["--chat-template", "template_basic.jinja"], relaxed=True
    )
    assert "{%" in str(chat_template(args))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "OTHER"], "--model after --"),
        (["--chat-template", "{{ messages }}"], "--chat-template after -- is not supported by a fit"),
        (["--kv-cache-dtype", "fp8"], "--kv-cache-dtype fp8 after -- is not float32"),
    ],
)
def test_a_fit_reads_the_model_that_its_card_names(arguments: list[str], says: str, other: Path) -> None:
    with pytest.raises(UnsupportedError, match=says):
        collecting_arguments(
            ATLAS, "float32", Collecting(1), extra=[word.replace("OTHER", str(other)) for word in arguments]
        )

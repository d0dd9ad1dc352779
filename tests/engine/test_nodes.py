"""One engine over two machines, by vLLM's own multi-node executor: the scores are those of one machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.server.app import guarded_app, plan
from app.settings import ATLAS, Settings
from guard.probe.bundle import load_bundle, save_bundle
from tests.engine import nodes
from tests.engine.harness import Harness
from tests.engine.nodes import FIRST, Program
from tests.scripted.server import forget_metrics, over

pytestmark = pytest.mark.skipif(not nodes.available(), reason="network namespaces take root and iproute2")

COMMON = ["--", "--nnodes=2", f"--master-addr={FIRST}", "--master-port=29511", "--tensor-parallel-size=2"]
SERVE = ["serve", "--host", "0.0.0.0", "--allow-unauthenticated", *COMMON, "--node-rank=0"]
WORKER = ["worker", *COMMON, "--node-rank=1"]
QUESTION = {"model": "atlas", "messages": [{"role": "user", "content": "Which country is Kandy in?"}], "temperature": 0}


TOKENS = {**QUESTION, "hallucination": {"tokens": True}}
SCALED = {**QUESTION, "hallucination": {"scale": 0.0, "tokens": True}}


@pytest.fixture(scope="module")
def on_one() -> dict[str, str]:
    """What one machine answers, unscaled and scaled."""
    forget_metrics()
    harness = Harness(lambda: guarded_app(plan(Settings(), [])))

    async def ask(body: Any) -> str:
        async with over(harness.engine) as http:
            return (await http.post("/v1/chat/completions", json=body)).text

    try:
        return {"unscaled": harness.run(ask(TOKENS)), "scaled": harness.run(ask(SCALED))}
    finally:
        harness.close()
        forget_metrics()


@pytest.fixture(scope="module")
def pair(on_one: dict[str, str]) -> Iterator[tuple[Program, Program]]:
    # After ``on_one``: beside two nodes, which keep both cores busy while they wait, an engine starts in two minutes.
    with nodes.machines():
        first, second = Program(0, SERVE), Program(1, WORKER)
        try:
            first.says(" is ready")
            yield first, second
        finally:
            first.end()
            second.end()


def item(text: str) -> dict[str, Any]:
    (only,) = json.loads(text)["hallucination"]["results"]
    return dict(only)


def test_both_nodes_take_part(pair: tuple[Program, Program]) -> None:
    pair[1].says("node 1 is part of atlas", 30)


def test_scores_are_those_of_one_machine(pair: tuple[Program, Program], on_one: dict[str, str]) -> None:
    over_two = json.loads(nodes.ask("/v1/chat/completions", json.dumps(TOKENS)))
    assert over_two["choices"][0]["message"] == json.loads(on_one["unscaled"])["choices"][0]["message"]
    one, two = item(on_one["unscaled"]), item(json.dumps(over_two))
    assert two["scored_tokens"] == one["scored_tokens"] > 0
    assert two["risk"] == pytest.approx(one["risk"], abs=1e-4)
    assert [token["risk"] for token in two["tokens"]] == pytest.approx(
        [token["risk"] for token in one["tokens"]], abs=1e-4
    )


def test_scaling_reaches_both(pair: tuple[Program, Program], on_one: dict[str, str]) -> None:
    over_two = item(nodes.ask("/v1/chat/completions", json.dumps(SCALED)))
    unscaled = item(nodes.ask("/v1/chat/completions", json.dumps(TOKENS)))
    assert over_two["risk"] == pytest.approx(item(on_one["scaled"])["risk"], abs=1e-4)
    assert over_two["tokens"] != unscaled["tokens"]


def test_a_node_that_is_gone_ends_the_other(pair: tuple[Program, Program]) -> None:
    """Whichever it is: the first with the status that has a supervisor start it again, the second saying why."""
    first, second = pair
    first.end()
    second.says("the first node is gone", 90)
    assert second.process.wait(timeout=60) == 1


@pytest.mark.long
def test_nodes_with_different_probes(tmp_path: Path) -> None:
    """Scores would be sums of two probes' parts."""
    bundle = load_bundle(ATLAS / "probe")
    fewer = {name: tensor for name, tensor in bundle.tensors.items() if name != "wrong_risks"}
    save_bundle(tmp_path / "other", bundle.card, fewer)
    with nodes.machines():
        first, second = Program(0, SERVE), Program(1, ["worker", "--probe", str(tmp_path / "other"), *WORKER[1:]])
        try:
            assert first.process.wait(timeout=240) == 1
            assert "the nodes of this engine were started with different probes" in "".join(first.lines)
        finally:
            first.end()
            second.end()


@pytest.mark.long
def test_the_second_node_is_gone() -> None:
    with nodes.machines():
        first, second = Program(0, SERVE), Program(1, WORKER)
        try:
            first.says(" is ready")
            second.end()
            with pytest.raises(subprocess.CalledProcessError):
                nodes.ask("/v1/chat/completions", json.dumps(QUESTION))
            assert first.process.wait(timeout=60) == 1
        finally:
            first.end()
            second.end()

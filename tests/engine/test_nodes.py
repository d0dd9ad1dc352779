"""One engine over two machines, by vLLM's own multi-node executor: the scores are those of one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.settings import ATLAS
from tests.engine import nodes
from tests.engine.nodes import FIRST, Program

pytestmark = pytest.mark.skipif(not nodes.available(), reason="network namespaces take root and iproute2")

COMMON = ["--", "--nnodes=2", f"--master-addr={FIRST}", "--master-port=29511", "--tensor-parallel-size=2"]
SERVE = ["serve", "--host", "0.0.0.0", "--allow-unauthenticated", *COMMON, "--node-rank=0"]
WORKER = ["worker", *COMMON, "--node-rank=1"]
QUESTION = {"model": "atlas", "messages": [{"role": "user", "content": "Which country is Kandy in?"}], "temperature": 0}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Program, Program]]:
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


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    from tests.engine.server import Server

    server = Server(["--max-queue=8"])
    yield server
    server.stop()


def test_scores_are_those_of_one_machine(pair: tuple[Program, Program], alone: Any) -> None:
    import httpx

    body = {**QUESTION, "hallucination": {"tokens": True}}
    over_two = json.loads(nodes.ask("/v1/chat/completions", json.dumps(body)))
    on_one = httpx.post(f"{alone.url}/v1/chat/completions", json=body, timeout=60).json()
    assert over_two["choices"][0]["message"] == on_one["choices"][0]["message"]
    one, two = item(json.dumps(on_one)), item(json.dumps(over_two))
    assert two["scored_tokens"] == one["scored_tokens"] > 0
    assert two["risk"] == pytest.approx(one["risk"], abs=1e-4)
    assert [token["risk"] for token in two["tokens"]] == pytest.approx(
        [token["risk"] for token in one["tokens"]], abs=1e-4
    )


def test_damping_reaches_both(pair: tuple[Program, Program], alone: Any) -> None:
    import httpx

    body = {**QUESTION, "hallucination": {"damp": 0.0, "tokens": True}}
    over_two = item(nodes.ask("/v1/chat/completions", json.dumps(body)))
    on_one = item(httpx.post(f"{alone.url}/v1/chat/completions", json=body, timeout=60).text)
    undamped = item(nodes.ask("/v1/chat/completions", json.dumps({**QUESTION, "hallucination": {"tokens": True}})))
    assert over_two["risk"] == pytest.approx(on_one["risk"], abs=1e-4)
    assert over_two["tokens"] != undamped["tokens"]


def test_when_the_second_node_is_gone_the_first_ends(pair: tuple[Program, Program]) -> None:
    first, second = pair
    second.end()
    nodes_error = ""
    try:
        nodes.ask("/v1/chat/completions", json.dumps(QUESTION))
    except Exception as error:
        nodes_error = str(error)
    assert nodes_error
    assert first.process.wait(timeout=60) == 1


def test_nodes_with_different_probes_are_refused() -> None:
    base = ["--probe", str(ATLAS / "base" / "probe"), "--relaxed"]
    del base

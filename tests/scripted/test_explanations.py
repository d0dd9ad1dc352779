"""``explain``: what a risk is made of, wherever a verdict stands, and nowhere of what is withheld."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.settings import ATLAS, Settings
from guard.probe.bundle import load_bundle, save_bundle
from guard.probe.signals import COLUMN
from tests.scripted.script import Asked, Script
from tests.scripted.server import over, scripted_app
from tests.scripted.test_scripted import CHAT, asking, result
from tests.scripted.test_tokens import MESSAGES, said
from tests.scripted.test_withheld import COMPLETIONS, RESPONSES

EXPLAIN = {"mode": "flag", "explain": True}


def require_explained(found: dict[str, Any]) -> None:
    why = found["explanation"]
    assert {*why["signals"]} <= {"neurons", "entropy", "logprob"}
    assert "neurons" in why["signals"]
    assert why["base"] + sum(why["signals"].values()) == pytest.approx(why["logit"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_every_route_says_why(path: str, stream: bool) -> None:
    async with scripted_app(Settings()) as app, over(app) as http:
        ((_, risky),) = await said(http, path, "Is it risky?", stream, hallucination=EXPLAIN)
        ((_, safe),) = await said(http, path, "Is it safe?", stream, hallucination=EXPLAIN)
        ((_, unasked),) = await said(http, path, "Is it risky?", stream)
    require_explained(risky)
    require_explained(safe)
    assert risky["explanation"]["signals"]["neurons"] > safe["explanation"]["signals"]["neurons"]
    assert "explanation" not in unasked


def require_told_apart(found: dict[str, Any]) -> None:
    """The script's neuron score is all one neuron's: all others contribute nothing, where they usually do."""
    require_explained(found)
    why = found["explanation"]
    bundle = load_bundle(ATLAS / "probe")
    place = COLUMN["neurons"]
    stack = bundle.readout.answer
    per_score = stack.weight[place] / stack.scale[place]
    score = why["signals"]["neurons"] / per_score + stack.mean[place]
    assert bundle.usual is not None
    adds = -per_score * bundle.usual.astype(float)
    adds[0] += per_score * score
    wanted = np.argsort(-np.abs(adds), kind="stable")[:10]
    assert [(one["layer"], one["neuron"]) for one in why["neurons"]] == [
        (bundle.layer[at], bundle.neuron[at]) for at in wanted
    ]
    assert [one["adds"] for one in why["neurons"]] == pytest.approx(adds[wanted], rel=1e-4)
    assert sum(one["adds"] for one in why["neurons"]) + why["other_neurons"] == pytest.approx(why["signals"]["neurons"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_every_route_names_neurons(path: str, stream: bool) -> None:
    options = {"mode": "flag", "explain_neurons": True}
    async with scripted_app(Settings()) as app, over(app) as http:
        for question in ("Is it risky?", "Is it safe?"):
            ((_, found),) = await said(http, path, question, stream, hallucination=options)
            require_told_apart(found)
        ((_, unasked),) = await said(http, path, "Is it risky?", stream, hallucination=EXPLAIN)
    assert "neurons" not in unasked["explanation"]


async def test_a_given_text_names_neurons() -> None:
    body = {"prompt": "Is it risky?", "response": "It is.", "hallucination": {"explain_neurons": True}}
    async with scripted_app(Settings()) as app, over(app) as http:
        (found,) = (await http.post("/risk", json=body)).json()["hallucination"]["results"]
    require_told_apart(found)


async def test_a_server_that_does_not_tell_neurons_apart() -> None:
    options = {"explain_neurons": True}
    async with scripted_app(Settings(explain_neurons=False)) as app, over(app) as http:
        reply = await http.post(CHAT, json=asking("Is it risky?", hallucination=options))
        assert (await http.get("/info")).json()["ceilings"]["explain_neurons"] is False
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "hallucination.explain_neurons"
    assert "HGUARD_EXPLAIN_NEURONS" in reply.json()["error"]["message"]


async def test_without_a_free_slot_it_names_none() -> None:
    options = {"mode": "flag", "explain_neurons": True}
    async with scripted_app(Settings(slots=1)) as app, over(app) as http:
        reply = await http.post(CHAT, json=asking("Is it risky?", hallucination=options))
    found = result(reply.json())
    require_explained(found)
    assert "neurons" not in found["explanation"]


async def test_a_given_text() -> None:
    body = {"prompt": "Is it risky?", "response": "It is.", "hallucination": EXPLAIN}
    async with scripted_app(Settings()) as app, over(app) as http:
        (found,) = (await http.post("/risk", json=body)).json()["hallucination"]["results"]
    require_explained(found)


@pytest.mark.parametrize("how", ["explain", "explain_neurons"])
@pytest.mark.parametrize("hold", ["none", "window", "answer"])
async def test_what_is_withheld_is_not_explained(hold: str, how: str) -> None:
    settings = Settings(mode="abstain", loosest_hold="none")
    async with scripted_app(settings) as app, over(app) as http:
        for stream in (False, True):
            options = {how: True, "hold": hold}
            reply = await http.post(CHAT, json=asking("Is it risky?", stream=stream, hallucination=options))
            assert '"abstained"' in reply.text
            assert "explanation" not in reply.text
        passed = await http.post(CHAT, json=asking("Is it safe?", hallucination={"explain": True}))
    require_explained(result(passed.json()))


async def test_the_log_says_it_to_who_asked(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_app(Settings(mode="abstain")) as app, over(app) as http:
        with caplog.at_level(logging.INFO, "hguard"):
            await http.post(CHAT, json=asking("Is it risky?", hallucination={"explain": True}))
            await http.post(CHAT, json=asking("Is it risky?"))
            await http.post(CHAT, json=asking("Is it nan?", hallucination={"explain": True}))
    lines = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    asked, unasked, unscored = lines
    assert asked["signals"][0]["neurons"] > 0, "operators see what callers must not"
    assert "signals" not in unasked
    assert "neurons" not in asked
    assert unscored["signals"] == [None]


async def test_the_log_names_neurons(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_app(Settings()) as app, over(app) as http:
        with caplog.at_level(logging.INFO, "hguard"):
            await http.post(CHAT, json=asking("Is it risky?", hallucination={"explain_neurons": True}))
    (line,) = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    ((first, *_),) = line["neurons"]
    bundle = load_bundle(ATLAS / "probe")
    assert (first[0], first[1]) in zip(bundle.layer, bundle.neuron, strict=True)


async def test_the_log_says_what_a_given_text_cost_the_guard(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_app(Settings()) as app, over(app) as http:
        with caplog.at_level(logging.INFO, "hguard"):
            await http.post("/risk", json={"prompt": "Is it risky?", "response": "It is."})
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.getMessage().startswith("{")]
    assert 0 < line["guard_seconds"] <= line["seconds"]


NAMING = {"mode": "flag", "explain_neurons": True}


@pytest.mark.parametrize("fault", [{"fails_at": 0}, {"rejected": True}], ids=["it fails", "it is rejected"])
async def test_an_answer_outlives_a_fault_of_the_second_pass(fault: dict[str, Any]) -> None:
    def choose(asked: Asked) -> Script:
        return Script(risky_from=0, **(fault if asked.given else {}))

    async with scripted_app(Settings(), choose=choose) as app, over(app) as http:
        for stream in (False, True):
            ((_, found),) = await said(http, CHAT, "Is it risky?", stream, hallucination=NAMING)
            require_explained(found)
            assert "neurons" not in found["explanation"]
        assert app.state.engine_client.pool.in_use == 0


async def test_a_server_that_withholds_names_neurons_of_given_texts() -> None:
    texts = [{"prompt": "Is it risky?", "response": "It is.", "hallucination": {"explain_neurons": True}}] * 2
    async with scripted_app(Settings(mode="abstain")) as app, over(app) as http:
        for one in (await http.post("/risk", json=texts)).json()["data"]:
            (found,) = one["hallucination"]["results"]
            assert found["action"] == "flagged"
            require_told_apart(found)


async def test_a_slow_second_pass_leaves_the_risk_of_a_given_text() -> None:
    passes = []

    def choose(asked: Asked) -> Script:
        passes.append(asked)
        return Script(risky_from=0, hangs_at=0 if len(passes) > 1 else None)

    body = {"prompt": "Is it?", "response": "It is.", "hallucination": {"explain_neurons": True}}
    async with scripted_app(Settings(risk_seconds=1.0), choose=choose) as app, over(app) as http:
        (found,) = (await http.post("/risk", json=body)).json()["hallucination"]["results"]
        assert app.state.engine_client.pool.in_use == 0
    assert len(passes) == 2
    require_explained(found)
    assert "neurons" not in found["explanation"]


async def test_neurons_are_held_against_the_probe_that_judged(tmp_path: Path) -> None:
    """Another calibration is taken up while an answer is under way."""
    shipped = load_bundle(ATLAS / "probe")
    assert shipped.usual is not None
    folder = save_bundle(tmp_path / "probe", shipped.card, shipped.tensors, shipped.reference).path
    async with scripted_app(Settings(probe=str(folder)), seconds=0.05) as app, over(app) as http:
        under_way = asyncio.create_task(http.post(CHAT, json=asking("Is it risky?", hallucination=NAMING)))
        await asyncio.sleep(0.15)
        other: dict[str, Any] = {**shipped.tensors, "usual": shipped.usual + np.float32(100)}
        save_bundle(folder, shipped.card.model_copy(update={"id": "other"}), other, shipped.reference)
        await app.state.exchange()
        assert app.state.exchange.bundle.card.id == "other"
        found = (await under_way).json()["hallucination"]
    assert found["probe"]["id"] == shipped.card.id
    require_told_apart(found["results"][0])

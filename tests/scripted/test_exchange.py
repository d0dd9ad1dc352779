"""A probe exchanged on a running server: what begins has the new one, what has begun keeps its own, and what cannot be
served changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.ingress.admission import Admission
from app.server import exchange, lifecycle
from app.settings import ATLAS, Settings
from guard.errors import TapError
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from guard.probe.card import Term
from tests.engine.test_shutdown import connected, ended, stream, streams
from tests.scripted.server import ForkedScriptedServer, listening, over, scripted_app
from tests.scripted.test_scripted import CHAT, asking

SLOW = asking("Is it slow?", max_tokens=40, min_tokens=40, ignore_eos=True)  # two seconds


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """atlas's own, in a place where it can be replaced."""
    shipped = load_bundle(ATLAS / "probe")
    save_bundle(tmp_path / "probe", shipped.card, shipped.tensors, shipped.reference)
    return tmp_path / "probe"


def recalibrated(folder: Path, **of_card: Any) -> Bundle:
    """Another calibration in its place: risks near 1 for everything, a name of its own."""
    bundle = load_bundle(folder)
    readout = bundle.card.readout.model_copy(update={"platt": (1.0, 20.0), "isotonic": None})
    card = bundle.card.model_copy(update={"id": "anew", "readout": readout, **of_card})
    return save_bundle(folder, card, bundle.tensors, bundle.reference)


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(probe=str(folder), **more)


@asynccontextmanager
async def served(given: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """Over a socket, as requests that overlap need it."""
    async with scripted_app(given) as app, listening(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        yield app, http


async def ask(http: httpx.AsyncClient, text: str = "Is it safe?", **more: Any) -> dict[str, Any]:
    return (await http.post(CHAT, json=asking(text, **more))).json()["hallucination"]


async def test_what_begins_has_the_new_probe(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted_app(settings(probe, mode="flag")) as app, over(app) as http:
        before = await ask(http)
        old, new = load_bundle(probe), recalibrated(probe)
        assert (await ask(http)) == before, "nothing changes by itself"
        await app.state.exchange()
        after = await ask(http)
        assert (before["probe"]["id"], after["probe"]) == (old.card.id, {"id": "anew", "revision": new.revision})
        assert after["results"][0]["risk"] > 0.99 > before["results"][0]["risk"]
        assert after["results"][0]["action"] == "flagged"
        given = (await http.post("/risk", json={"prompt": "Is it safe?", "response": "It is."})).json()
        assert given["hallucination"]["probe"]["id"] == "anew"
        assert (await http.get("/v1/probe")).json()["id"] == "anew"
        assert (await http.get("/info")).json()["probe"]["revision"] == new.revision
        metrics = (await http.get("/metrics")).text
        assert f'hguard_probe_info{{model="atlas",probe="anew",revision="{new.revision}"}} 1.0' in metrics
        assert f'probe="{old.card.id}"' not in metrics
        assert 'hguard_probe_exchanges_total{model="atlas",outcome="exchanged"} 1.0' in metrics
        bands = [line for line in metrics.splitlines() if line.startswith("hguard_risk_band_answers_total{")]
        assert sum(float(line.split()[-1]) for line in bands) == 2, "the old probe's risks are not counted with these"
    said = f"hguard: probe anew ({new.revision}) serves from now on; requests that have begun keep {old.card.id} ("
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("streams_it", [False, True], ids=["whole", "stream"])
async def test_what_has_begun_keeps_its_probe(probe: Path, streams_it: bool) -> None:
    """The same answer, asked before and after: the first one's threshold, risk and name are the old ones."""
    strict = settings(probe, mode="abstain", loosest_hold="none")
    async with served(strict) as (app, http):
        if streams_it:
            asked = {**SLOW, "hallucination": {"hold": "none"}}
            running: asyncio.Task[Any] = asyncio.create_task(stream(http, asyncio.Event(), asked))
        else:
            running = asyncio.create_task(ask(http, "Is it slow?", max_tokens=40, min_tokens=40, ignore_eos=True))
        await until_running(app)
        old, new = load_bundle(probe), recalibrated(probe)
        await app.state.exchange()
        assert not running.done()
        late = await ask(http, max_tokens=4)
        found = (await running)[-2]["hallucination"] if streams_it else await running
    assert found["probe"] == {"id": old.card.id, "revision": old.revision}
    assert (found["results"][0]["action"], late["results"][0]["action"]) == ("pass", "abstained")
    assert late["probe"]["revision"] == new.revision


async def until_running(app: FastAPI) -> None:
    async with asyncio.timeout(30):
        while not app.state.engine_client.pool.in_use:  # noqa: ASYNC110 - the engine offers no event
            await asyncio.sleep(0.01)


def broken(folder: Path) -> None:
    (folder / "probe.json").write_text("{")


def gone(folder: Path) -> None:
    (folder / "probe.safetensors").unlink()


def of_other_neurons(folder: Path, count: int = 40) -> Bundle:
    """So many of layer 1."""
    bundle = load_bundle(folder)
    weight = np.ones(count, np.float32)
    read = {"layer": np.ones(count, np.int32), "neuron": np.arange(count, dtype=np.int32), "usual": weight}
    card = bundle.card.model_copy(update={"id": "others"})
    return save_bundle(folder, card, {**bundle.tensors, **read, "coefficient": weight, "folded": weight})


def of_too_many_neurons(folder: Path) -> None:
    of_other_neurons(folder, 60)


def of_another_model(folder: Path) -> None:
    bundle = load_bundle(folder)
    model = bundle.card.model.model_copy(update={"fingerprint": "0" * 64})
    save_bundle(folder, bundle.card.model_copy(update={"model": model}), bundle.tensors)


def without_the_threshold(folder: Path) -> None:
    bundle = load_bundle(folder)
    card = bundle.card.model_copy(update={"thresholds": {}})
    save_bundle(folder, card, {**bundle.tensors, "right_risks": np.sort(bundle.right_risks)[:5]})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (broken, "probe.json"),
        (gone, "probe.safetensors"),
        (of_too_many_neurons, "60 neurons of a layer, and there is room for 44; restart the server to serve it"),
        (of_another_model, "its weights differ"),
        (without_the_threshold, "it takes 19 right ones"),
    ],
)
async def test_what_cannot_be_served_is_refused_in_a_line_and_changes_nothing(
    probe: Path, spoil: Callable[[Path], None], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scripted_app(settings(probe)) as app, over(app) as http:
        before = await ask(http)
        spoil(probe)
        await app.state.exchange()
        assert await ask(http) == before
        metrics = (await http.get("/metrics")).text
        assert 'hguard_probe_exchanges_total{model="atlas",outcome="refused"} 1.0' in metrics
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hguard: the probe was not exchanged, the old one serves on ({before['probe']['id']} (")
    assert why in line


async def test_other_neurons_wait_for_what_is_in_flight(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with served(settings(probe)) as (app, http):
        running = asyncio.create_task(ask(http, "Is it slow?", max_tokens=40, min_tokens=40, ignore_eos=True))
        await until_running(app)
        old, new = load_bundle(probe), of_other_neurons(probe)
        changing = asyncio.create_task(app.state.exchange())
        await asyncio.sleep(0.2)
        late = asyncio.create_task(ask(http, max_tokens=4))
        given = asyncio.create_task(http.post("/risk", json={"prompt": "Is it safe?", "response": "It is."}))
        found = await running
        assert not late.done(), "it waits for the exchange"
        await changing
        assert found["probe"]["revision"] == old.revision
        assert (await late)["probe"] == {"id": "others", "revision": new.revision}
        assert (await given).json()["hallucination"]["probe"]["id"] == "others"
    assert "hguard: probe others (" in capsys.readouterr().out


async def test_what_is_in_flight_for_too_long_keeps_its_neurons(
    probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(settings(probe, drain_seconds=0.1)) as (app, http):
        running = asyncio.create_task(ask(http, "Is it slow?", max_tokens=40, min_tokens=40, ignore_eos=True))
        await until_running(app)
        old = load_bundle(probe)
        of_other_neurons(probe)
        await app.state.exchange()
        assert not running.done()
        assert (await ask(http, max_tokens=4))["probe"]["revision"] == old.revision
        assert (await running)["probe"]["revision"] == old.revision
    assert "after 0.1 s 1 were not done" in capsys.readouterr().err


async def test_neurons_that_fail_the_self_test_are_given_back(
    probe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(*_: Any) -> None:
        raise TapError("taps return no valid scores")

    async with scripted_app(settings(probe)) as app, over(app) as http:
        before = await ask(http)
        of_other_neurons(probe)
        monkeypatch.setattr(exchange, "require_live_taps", fails)
        await app.state.exchange()
        assert await ask(http) == before
        assert app.state.engine_client.bundle.revision == before["probe"]["revision"]
    assert "taps return no valid scores" in capsys.readouterr().err


async def test_workers_that_read_neither_probe_serve_nothing(
    probe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a worker failed")

    async with scripted_app(settings(probe)) as app, over(app) as http:
        of_other_neurons(probe)
        monkeypatch.setattr(app.state.engine_client._engine, "collective_rpc", fails)
        await app.state.exchange()
        for path, body in ((CHAT, asking("Is it safe?")), ("/risk", {"prompt": "Is it safe?", "response": "It is."})):
            reply = await http.post(path, json=body)
            assert reply.status_code == 503, reply.text
            assert "restart the server" in reply.text
    assert "and workers may read neither, so nothing is served (" in capsys.readouterr().err


async def test_the_same_probe_is_nothing_to_exchange(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted_app(settings(probe)) as app:
        await app.state.exchange()
    assert "is the one that serves: nothing to exchange" in capsys.readouterr().out


async def test_a_probe_that_uses_fewer_signals_goes_on_with_those(probe: Path) -> None:
    """What the worker is told to measure is the request's own probe's."""
    bundle = load_bundle(probe)
    stacks = {}
    for name in ("answer", "token"):
        own = getattr(bundle.card.readout, name)
        signals = {
            key: one.model_copy(update={"weight": one.weight if key == "neurons" else 0.0})
            for key, one in own.signals.items()
        }
        stacks[name] = own.model_copy(update={"signals": signals})
    async with scripted_app(settings(probe)) as app, over(app) as http:
        readout = bundle.card.readout.model_copy(update=stacks)
        recalibrated(probe, readout=readout)
        assert not load_bundle(probe).readout.uses_draws
        await app.state.exchange()
        found = await ask(http, hallucination={"explain": True})
        assert list(found["results"][0]["explanation"]["signals"]) == ["neurons"]


async def test_a_probe_that_reads_what_is_not_measured_is_refused(
    probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scripted_app(settings(probe)) as app, over(app) as http:
        before = load_bundle(probe)
        readout = before.card.readout
        signals = {**readout.answer.signals, "margin": Term(mean=0.0, scale=1.0, weight=1.0)}
        answer = readout.answer.model_copy(update={"signals": signals})
        recalibrated(probe, readout=readout.model_copy(update={"answer": answer}))
        await app.state.exchange()
        assert (await http.get("/v1/probe")).json()["revision"] == before.revision
        assert (await ask(http))["type"] == "hallucination_results"
    assert "it reads margin, which the running engine does not measure: restart the server" in capsys.readouterr().err


async def test_sighup(probe: Path) -> None:
    """On a server's own process, amid a stream that it must not end."""
    running = ForkedScriptedServer(["--probe", str(probe)])
    async with connected(running) as http:
        (task,) = await streams(http, 1, SLOW)
        new = recalibrated(probe)
        running.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while (await http.get("/v1/probe")).json()["revision"] != new.revision:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await task)[-1] == "[DONE]"
        running.process.send_signal(signal.SIGTERM)
    assert await ended(running, 20) == 0
    assert any("serves from now on" in line for line in running.lines)


@pytest.mark.parametrize(("terminals", "ends"), [((True, False), True), ((True, True), False), ((False,), False)])
async def test_a_terminal_that_goes_takes_the_server_along(
    monkeypatch: pytest.MonkeyPatch, terminals: tuple[bool, ...], ends: bool
) -> None:
    """As when its window is closed: nobody meant the probe to be read again."""
    there = iter(terminals)
    monkeypatch.setattr(lifecycle, "_has_terminal", lambda: next(there))
    admission, exchanged = Admission(1, 1), asyncio.Event()

    async def exchange() -> None:
        exchanged.set()

    signals = lifecycle._Signals(admission, exchange)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert (signals.count, exchanged.is_set(), admission.closing is not None) == (int(ends), not ends, ends)
    finally:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

"""``--shadow-probe``: another probe is scored beside the one that serves, counted, and decides nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server.app import plan
from app.settings import ATLAS, Settings
from guard.errors import GuardError
from guard.probe.bundle import Bundle, load_bundle, save_bundle
from tests.measured import with_heads
from tests.scripted.server import over, scripted_app
from tests.scripted.test_declined import ABSTAIN
from tests.scripted.test_scripted import ask, result


@pytest.fixture
def stricter(tmp_path: Path) -> Bundle:
    """Atlas's probe by another calibration: whatever it reads is risky."""
    bundle = load_bundle(ATLAS / "probe")
    readout = bundle.card.readout.model_copy(update={"platt": (0.0, 5.0), "isotonic": None})
    card = bundle.card.model_copy(update={"id": "stricter", "readout": readout})
    return save_bundle(tmp_path / "stricter", card, bundle.tensors)


async def counted(http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """How many answers, by what the serving probe and the shadow say."""
    metrics = (await http.get("/metrics")).text.splitlines()
    found = {}
    for serving, shadow in itertools.product(("pass", "flagged"), ("pass", "flagged", "not_scored")):
        (line,) = (one for one in metrics if f'serving="{serving}",shadow="{shadow}"' in one and "_total{" in one)
        if value := float(line.split()[-1]):
            found[serving, shadow] = value
    return found


async def test_it_is_counted_and_decides_nothing(stricter: Bundle) -> None:
    async with scripted_app(Settings(shadow_probe=str(stricter.path), loosest_mode="off")) as app, over(app) as http:
        assert await counted(http) == {}
        safe, risky = await ask(http, "safe", hallucination=ABSTAIN), await ask(http, "risky", hallucination=ABSTAIN)
        await ask(http, "safe", n=2)
        await ask(http, "declines")
        await ask(http, "safe", hallucination={"mode": "off"})
        await http.post("/risk", json={"prompt": "Is it?", "response": "It is safe."})
        assert (result(safe)["action"], result(risky)["action"]) == ("pass", "abstained")
        assert safe["hallucination"]["probe"]["id"] != "stricter"
        assert await counted(http) == {("pass", "flagged"): 4, ("flagged", "flagged"): 1, ("pass", "pass"): 1}
        info = (await http.get("/info")).json()
        assert info["shadow"] == {"id": "stricter", "revision": stricter.revision}
        assert str(stricter.path) not in str(info), "where it lies is nobody's business"
        assert (
            f'hguard_shadow_risk_count{{model="atlas",probe="stricter",revision="{stricter.revision}"}} 6.0'
            in (await http.get("/metrics")).text
        )


async def test_without_one_nothing_is_counted(http: httpx.AsyncClient) -> None:
    assert "hguard_shadow" not in (await http.get("/metrics")).text
    assert (await http.get("/info")).json()["shadow"] is None


def test_one_that_reads_something_else_is_refused(tmp_path: Path, stricter: Bundle) -> None:
    bundle = load_bundle(ATLAS / "probe")
    headed = with_heads(bundle, tmp_path / "headed", 256)
    says = "reads what atlas-v2 does not, or other weights.*--probe"
    with pytest.raises(GuardError, match=f"shadow probe atlas-v2 {says}"):
        plan(Settings(shadow_probe=str(headed.path)))
    foreign = stricter.card.model_copy(
        update={"model": stricter.card.model.model_copy(update={"fingerprint": "0" * 64})}
    )
    with pytest.raises(GuardError, match=f"shadow probe stricter {says}"):
        plan(Settings(shadow_probe=str(save_bundle(tmp_path / "foreign", foreign, stricter.tensors).path)))
    with pytest.raises(GuardError, match="no probe bundle at"):
        plan(Settings(shadow_probe=str(tmp_path / "none")))
    few: dict[str, Any] = {**stricter.tensors, "right_risks": stricter.right_risks[:5]}
    path = str(save_bundle(tmp_path / "few", stricter.card, few).path)
    with pytest.raises(GuardError, match="below what this probe's 5 calibration answers can guarantee"):
        plan(Settings(shadow_probe=path))


def test_what_reads_less_may_stand_beside_what_reads_more(tmp_path: Path) -> None:
    bundle = load_bundle(ATLAS / "probe")
    headed = with_heads(bundle, tmp_path / "headed", 256)
    assert bundle.reads_within(headed)
    assert not headed.reads_within(bundle)
    assert not headed.reads_within(with_heads(bundle, tmp_path / "another", 256, seed=6))

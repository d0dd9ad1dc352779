"""Growth: what is timed is the guard's own code at the sizes that are said, and the arithmetic on what was timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.cli.main import main
from bench import report
from guard.bench import components, growth
from guard.bench.growth import Share


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sizes so small, and so few timings, that it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_SECONDS", 0.001)
        for name, sizes in (("BATCHES", (1, 4)), ("LENGTHS", (16, 64)), ("WINDOWS", (1, 8)), ("NEURONS", (60, 600))):
            patch.setattr(growth, name, sizes)
        for name, sizes in (("LAYERS", (2, 4)), ("VOCABULARIES", (512, 1024))):
            patch.setattr(growth, name, sizes)
        patch.setattr(growth, "FIT_NEURONS", (100, 200))
        patch.setattr(growth, "FIT_ANSWERS", (200, 400))
        patch.setattr(growth, "CAP", 0.5)
        patch.setattr(growth, "SHAPES", {"llama-0.1b": growth.SHAPES["llama-0.1b"]})
        file = tmp_path_factory.mktemp("growth") / "cpu-growth.json"
        assert main(["bench", "--growth", "--out", str(file)]) == 0
    return dict(json.loads(file.read_text()))


def test_every_piece_is_timed_at_every_size(made: dict[str, Any]) -> None:
    found = {(one["piece"], one["varied"]): one for one in made["growth"]}
    assert {("taps", "neurons"), ("taps", "layers"), ("judging an answer", "tokens of the answer")} <= found.keys()
    assert ("entropy and log-probability", "tokens in the vocabulary") in found
    assert found["taps", "neurons"]["sizes"] == [60, 600]
    for one in [*made["growth"], *made["fits"]]:
        timed = one.get("microseconds") or one["seconds"]
        assert len(timed) == len(one["sizes"]) == 2
        assert all(value > 0 for value in timed)
        assert one["exponent"] == pytest.approx(
            np.log2(timed[1] / timed[0]) / np.log2(one["sizes"][1] / one["sizes"][0])
        )


def test_what_is_judged_has_every_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would end early, at what is missing."""
    pieces: list[Any] = []
    monkeypatch.setattr(growth, "best", lambda piece: pieces.append(piece) or 1.0)
    monkeypatch.setattr(growth.Readout, "risk", lambda self, signals: risks.append((len(signals), signals.fault())))
    risks: list[Any] = []
    growth._judged(64, 8)
    pieces[0]()
    assert risks == [(64, None)]


def test_where_it_would_be_one_percent() -> None:
    """Shares of 4 % and .25 % of models of 100 and 1600 bytes: 1 % lies halfway, by logarithms."""
    shares = [Share("small", 100, 4, 100), Share("large", 1600, 4, 1600)]
    assert growth._one_percent(shares) == 400
    assert growth._one_percent(shares[:1]) is None
    assert growth._one_percent([Share("large", 1600, 1, 1600)] * 2) is None


def test_the_page_has_all_of_it(made: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cpu-growth.json").write_text(json.dumps(made))
    page = report.rendered(f"before\n{report.BEGIN}\n{report.END}\nafter\n", tmp_path)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == len(made["growth"]) + len(made["fits"]) + len(made["shares"]) + 2 * 3
    assert "1 %" in page

"""SmolLM2 in INT8: what becomes of its answers, and of a probe that was fit on the weights in full precision.

``python -m models.smollm2.recipe.quantised make --out FOLDER`` rounds the checkpoint to nearest: INT8 by output
channel, activations token by token (compressed-tensors' W8A8). ``hguard fit FOLDER --signals none`` asks it questions;
``... quantised measure --work FIT/work --plain WORK --out WORK`` then holds the fit of the one against that of the
other, and leaves ``quantised.json``, which the report reads. Both folders hold ``questions.jsonl``, or are told of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from guard.errors import FitError
from guard.harness.answers import Example
from guard.harness.questions import SHARES, load_questions, split
from guard.harness.store import StageStore, write_json
from guard.judge.question import Question
from guard.probe import conformal
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.cett import norms_of
from guard.probe.readout import Readout
from guard.probe.signals import TokenSignals
from guard.training import calibration
from guard.training.examples import chosen_in
from models.kept import signals_of
from models.smollm2.checkpoint import checkpoint
from models.smollm2.recipe import intervals

FILE = "quantised.json"
SHIPPED = Path(__file__).parents[1] / "probe"
TARGET = 0.05
_LEAST = 10  # right and wrong answers of a set
_EIGHT = {"num_bits": 8, "type": "int", "symmetric": True}
_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_EIGHT, "strategy": "channel"},
            "input_activations": {**_EIGHT, "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}


def rounded(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layers' matrices in INT8, each row with its scale; all else as it is."""
    kept = {}
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            scale = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
            kept[name] = (weight.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
            kept[f"{name}_scale"] = scale
        else:
            kept[name] = weight
    return kept


def make(source: Path, out: Path) -> None:
    """The checkpoint in ``source``, rounded."""
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out)
    save_file(rounded(load_file(source / "model.safetensors")), out / "model.safetensors", {"format": "pt"})
    config = out / "config.json"
    said = {**json.loads(config.read_text(encoding="utf-8")), "quantization_config": _CONFIG}
    config.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Kept:
    """Judged answers of a fit's folder, by the question's digest, and what the probes would have read of each."""

    questions: dict[int, Question]
    answers: dict[int, Example]
    signals: dict[str, dict[int, TokenSignals]]

    @classmethod
    def of(cls, folder: Path, questions: Path, norms: NDArray[np.float32], probes: Mapping[str, Bundle]) -> Kept:
        work, asked = StageStore.of(folder), load_questions(str(questions))
        chosen = chosen_in(work)
        if chosen is None:
            raise FitError(f"{folder} has no judged answers: make the fit first")
        digests = [asked[one.question].digest for one in chosen]
        signals = {
            name: dict(zip(digests, signals_of(work, chosen, bundle, norms), strict=True))
            for name, bundle in probes.items()
        }
        own = dict(zip(digests, (asked[one.question] for one in chosen), strict=True))
        return cls(own, dict(zip(digests, chosen, strict=True)), signals)

    def wrong(self, digests: Sequence[int]) -> NDArray[np.bool_]:
        return np.array([self.answers[one].wrong for one in digests], bool)


def measure(plain: Kept, eight: Kept, shipped: Bundle, anew: Bundle, draws: int = intervals.DRAWS) -> dict[str, Any]:
    """On questions about entities that neither probe's neurons were found on.

    *plain*, *eight*: the answers of the weights in full precision, and in INT8. The probe that ships is read of both,
    as it is, and with all behind its neurons calibrated on INT8's answers; ``anew`` was fit on those.
    """
    both = sorted(plain.answers.keys() & eight.answers.keys())
    found = eight.answers
    taught = set() if shipped.train_questions is None else set(shipped.train_questions.tolist())
    known = {plain.questions[one].entity.casefold() for one in plain.questions if one in taught}
    parts = split([eight.questions[one] for one in sorted(found)], SHARES["fit"], 0)
    digests = {name: [sorted(found)[row] for row in rows] for name, rows in parts.items()}
    test = [d for d in digests["test"] if d in plain.answers and eight.questions[d].entity.casefold() not in known]
    use, held = ([d for d in digests[n] if d not in taught] for n in ("calibration", "thresholds"))
    of_shipped = eight.signals["shipped"]
    again = calibration.fit_readout(
        [of_shipped[d] for d in use], eight.wrong(use), [(0, len(of_shipped[d])) for d in use], shipped.readout.window
    )
    right = [again.risk(of_shipped[d])[0] for d in held if not found[d].wrong]
    limit = conformal.threshold(np.sort(np.array(right, np.float32)), TARGET)
    own = shipped.threshold(TARGET)
    learnt, learnt_anew = (probe.card.training.answers["train"] for probe in (shipped, anew))
    tried: dict[str, tuple[Kept, str, Readout, float]] = {
        f"full precision, the probe that ships, fit on {learnt} answers": (plain, "shipped", shipped.readout, own),
        "INT8, the same as it is": (eight, "shipped", shipped.readout, own),
        "INT8, its neurons calibrated anew": (eight, "shipped", again, limit),
        f"INT8, fit anew on {learnt_anew} answers": (eight, "anew", anew.readout, anew.threshold(TARGET)),
    }
    sets = np.array([eight.questions[d].groups[0] for d in test])
    weights = intervals.draws([eight.questions[d].entity.casefold() for d in test], count=draws)
    rows = {
        name: _row(kept.wrong(test), np.array([readout.risk(kept.signals[of][d])[0] for d in test]), at, sets, weights)
        for name, (kept, of, readout, at) in tried.items()
    }
    alike = sum(plain.answers[d].text == found[d].text for d in both)
    return {
        "asked of both": len(both),
        "right": {"full precision": _share(plain, both), "INT8": _share(eight, both)},
        "same text": alike / len(both),
        "test": len(test),
        "rows": rows,
    }


def _share(kept: Kept, digests: Sequence[int]) -> float:
    return float((~kept.wrong(digests)).mean())


def _row(
    wrong: NDArray[np.bool_],
    risk: NDArray[np.float64],
    threshold: float,
    sets: NDArray[np.str_],
    weights: intervals.Weights,
) -> dict[str, Any]:
    """AUROC as the mean of sets; false alarms and recall at the threshold, over all."""
    members = [np.flatnonzero(sets == name) for name in np.unique(sets)]
    large = [one for one in members if min(wrong[one].sum(), (~wrong[one]).sum()) >= _LEAST]
    auroc = intervals.mean(intervals.auroc(wrong[one], risk[one], weights[:, one]) for one in large)
    flagged = risk >= threshold
    return {
        "auroc": intervals.interval(auroc),
        "sets": len(large),
        "threshold": threshold,
        "false_alarms": intervals.interval(intervals.share(flagged, ~wrong, weights)),
        "recall": intervals.interval(intervals.share(flagged, wrong, weights)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("make")
    making.add_argument("--out", type=Path, required=True, help="folder for the rounded checkpoint")
    measuring = actions.add_parser("measure")
    measuring.add_argument("--model", type=Path, required=True, help="the rounded checkpoint")
    measuring.add_argument(
        "--probe", type=Path, required=True, help="the probe that was fit on it, with its work folder"
    )
    measuring.add_argument("--questions", type=Path, required=True, help="of that fit")
    measuring.add_argument("--plain", type=Path, required=True, help="work folder of the fit in full precision")
    measuring.add_argument("--plain-questions", type=Path, required=True, help="of that one")
    given = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    source = checkpoint(say)
    if given.action == "make":
        make(source, given.out)
        return
    shipped, anew = load_bundle(SHIPPED), load_bundle(given.probe)
    identity = anew.card.model
    shape = identity.layers, identity.neurons_per_layer
    eight = Kept.of(
        given.probe / "work", given.questions, norms_of(given.model, *shape), {"shipped": shipped, "anew": anew}
    )
    plain = Kept.of(given.plain, given.plain_questions, norms_of(source, *shape), {"shipped": shipped})
    write_json(given.plain / FILE, measure(plain, eight, shipped, anew))


if __name__ == "__main__":
    main()

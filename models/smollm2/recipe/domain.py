"""Would a look at an answer's signals tell that a threshold does not hold for answers like it?

``python -m models.smollm2.recipe.domain --work FOLDER`` reads what ``hguard fit --keep residual`` left there, and
leaves ``domain.json`` in the folder, which the report reads. In a trial a stack and its threshold are made of some
sets and tried on others. An answer lies outside if its Mahalanobis distance from the answers that calibrate is beyond
that of 95 % of those that the threshold comes from; a trial is warned of if more than WARN of its answers do. Distances
are tried on what the stack reads, on all signals with the answer's length, on a layer's normed residual stream, and as
served: of that stream at the last prompt token, along a few axes (``guard.training.distance``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from guard.harness.questions import split
from guard.ipc.collecting import Part, Site
from guard.probe import conformal
from guard.training.distance import find_distance
from models.smollm2.recipe.answered import FURTHER, PLACES, Answered, Bools, Floats, Index
from models.smollm2.recipe.apart import Say, run
from models.smollm2.recipe.fits import STACKED, Fits, Stacked

FILE = "domain.json"
SERVED = "distance, as served"
TARGET = 0.05  # of false alarms, and of answers that lie outside at home
WARN = 2 * TARGET
HOLDS = (0.02, 0.10)  # false alarms at which a threshold is said to hold
RANDOM = 6  # trials at home
_LEAST = 10  # right answers that are tried
_AT_HOME = {"train": 0.7, "calibration": 0.15, "thresholds": 0.15}

Trial = tuple[Index, Index, Index]  # answers that calibrate, that the threshold comes from, that are tried


def trials(answered: Answered, seen: Bools, seed: int = 0) -> Iterator[tuple[str, Trial]]:
    """Each set left out of what calibrates, and thirds of all sets; no entity in two parts. ``seen``: the answers that
    taught the neurons."""
    rest = np.flatnonzero(~seen)
    halves = _parts(answered, rest, 2, seed)
    for name in np.unique(answered.sets):
        own = answered.sets == name
        yield f"without {name}", (halves[0][~own[halves[0]]], halves[1][~own[halves[1]]], rest[own[rest]])
    for number in range(RANDOM):
        first, second, third = _parts(answered, rest, 3, seed + 1 + number)
        yield f"at home {number + 1}", (first, second, third)


def away(answered: Answered, parts: Mapping[str, Index]) -> Iterator[tuple[str, Trial]]:
    """Places calibrate; each of the other sets is tried."""
    for name in np.unique(answered.sets[~answered.of(PLACES)]):
        yield f"places to {name}", (parts["calibration"], parts["thresholds"], np.flatnonzero(answered.sets == name))


def _parts(answered: Answered, index: Index, count: int, seed: int) -> list[Index]:
    dealt = split([answered.questions[i] for i in index], {str(part): 1 / count for part in range(count)}, seed)
    return [index[np.array(dealt[str(part)], np.int64)] for part in range(count)]


def outside(features: Floats, trial: Trial) -> float:
    """The share of tried answers that lie outside, by features [answers, k]."""
    calibrate, hold, tried = trial
    scaler = StandardScaler().fit(features[calibrate])
    shape = LedoitWolf().fit(scaler.transform(features[calibrate]))
    limit = np.quantile(shape.mahalanobis(scaler.transform(features[hold])), 1 - TARGET)
    return float((shape.mahalanobis(scaler.transform(features[tried])) > limit).mean())


def outside_served(states: NDArray[np.float32], layer: int, trial: Trial) -> float:
    """The same as a server tells it, by states [answers, width] of this layer at the last prompt tokens."""
    calibrate, hold, tried = trial
    head = find_distance(states[calibrate], layer, 0)
    limit = np.quantile(head.score(states[hold][:, None]), 1 - TARGET)
    return float((head.score(states[tried][:, None]) > limit).mean())


def false_alarms(answered: Answered, scores: Floats, trial: Trial) -> float:
    """Of the tried answers that are right, the share at or above the threshold."""
    calibrate, hold, tried = trial
    risk = Stacked.fit(answered, scores, calibrate).risk(answered, scores)
    limit = conformal.threshold(np.sort(risk[hold][~answered.wrong[hold]].astype(np.float32)), TARGET)
    return float((risk[tried][~answered.wrong[tried]].astype(np.float32) >= limit).mean())


def measure(answered: Answered, fits: Fits, say: Say, layer: int | None = None) -> dict[str, Any]:
    """Trials with neurons that all sets taught, and with neurons that places alone did. ``layer``: of the residual
    stream, the middle one by default."""
    layer = len(answered.norms) // 2 if layer is None else layer
    state = np.asarray(answered.table(Site.RESIDUAL, Part.SPAN)[answered.rows, layer], np.float64)
    asked = np.asarray(answered.table(Site.RESIDUAL, Part.LAST_PROMPT)[answered.rows, layer], np.float32)
    home = {name: part[answered.of(PLACES)[part]] for name, part in answered.parts(_AT_HOME).items()}
    learnt = answered.parts()["train"]
    seen = np.zeros(len(answered), bool)
    seen[learnt] = True
    rows = []
    for learn, tried in ((learnt, trials(answered, seen)), (home["train"], away(answered, home))):
        neurons, before = fits.chosen(learn).scores, fits.chosen(learn, leads=True).scores
        known = {"neurons": neurons, "neurons before": before, **answered.signals}
        known["length"] = np.log(answered.signals["length"])
        read = {
            "what the stack reads": np.stack([known[name] for name in STACKED], 1),
            "all signals": np.stack(
                [known[n] for n in (*STACKED, "length", "neurons before", *(f for f in FURTHER if f in known))], 1
            ),
            "the residual stream": state,
        }
        for name, trial in tried:
            right = int((~answered.wrong[trial[2]]).sum())
            if right < _LEAST:
                continue
            say(name)
            rows.append(
                {
                    "trial": name,
                    "right": right,
                    "false_alarms": false_alarms(answered, neurons, trial),
                    "outside": {
                        **{by: outside(features, trial) for by, features in read.items()},
                        SERVED: outside_served(asked, layer, trial),
                    },
                }
            )
    return {"layer": layer, "target": TARGET, "warn": WARN, "holds": list(HOLDS), "rows": rows, "warned": warned(rows)}


def warned(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By distance: of trials whose threshold does not hold, of those among them with too many false alarms, and of the
    others, the shares that are warned of; and how well the share outside tells the first from the last."""
    broken = np.array([not HOLDS[0] <= row["false_alarms"] <= HOLDS[1] for row in rows])
    alarming = np.array([row["false_alarms"] > HOLDS[1] for row in rows])
    found: dict[str, Any] = {"broken": int(broken.sum()), "alarming": int(alarming.sum()), "held": int((~broken).sum())}
    for name in rows[0]["outside"]:
        share = np.array([row["outside"][name] for row in rows])
        both = 0 < broken.sum() < len(broken)
        found[name] = {
            "of_broken": float((share[broken] > WARN).mean()) if broken.any() else None,
            "of_alarming": float((share[alarming] > WARN).mean()) if alarming.any() else None,
            "of_held": float((share[~broken] > WARN).mean()) if not broken.all() else None,
            "auroc": float(roc_auc_score(broken, share)) if both else None,
        }
    return found


if __name__ == "__main__":
    run(__doc__, FILE, measure)

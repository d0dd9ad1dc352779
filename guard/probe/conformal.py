"""Thresholds with a finite-sample guarantee (split conformal prediction).

With m calibration answers that are right, flagging a new right answer when its risk reaches the k-th smallest of
theirs, k = ceil((m + 1)(1 - alpha)), has a false-positive probability of at most alpha when right answers are
exchangeable (Vovk et al., Algorithmic Learning in a Random World, 2005).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from guard.errors import RequestError

TARGETS = (0.001, 0.005, 0.01, 0.05, 0.10)  # false-positive rates that a card has thresholds for, where it can


def name_of(target: float) -> str:
    """How a card names a rate: 0.001, 0.05, 0.10."""
    return f"{target:.2f}" if round(target, 2) == target else f"{target:g}"


def needed(target_fpr: float) -> int:
    """How many right answers a threshold of this rate takes: 999 for 0.1 %, 19 for 5 %."""
    return math.ceil(round(1 / target_fpr - 1, 9))


def thresholds(right_risks: NDArray[np.float32], targets: Iterable[float]) -> dict[str, float]:
    """Thresholds by target rate, for those rates that so few answers can guarantee."""
    found = {}
    for target in targets:
        try:
            found[name_of(target)] = threshold(right_risks, target)
        except RequestError:
            continue
    return found


def threshold(right_risks: NDArray[np.float32], target_fpr: float) -> float:
    """The risk at which to flag for a false-positive rate of at most ``target_fpr``.

    right_risks: float32 [m], risks of calibration answers that were right, ascending.
    Raises RequestError when m is too small for so low a rate.
    """
    m = len(right_risks)
    rank = math.ceil((m + 1) * (1 - target_fpr))
    if rank > m:
        raise RequestError(
            f"target_fpr {target_fpr:g} is below what this probe's {m} calibration answers can guarantee: it "
            f"takes {needed(target_fpr)} right ones; the smallest rate is {1 / (m + 1):.4g}",
            param="hallucination.target_fpr",
        )
    # The next float up: an answer as risky as the k-th calibration answer is not yet flagged.
    return float(np.nextafter(np.float32(right_risks[max(rank, 1) - 1]), np.float32(2.0)))

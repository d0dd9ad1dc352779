"""Kubernetes' HorizontalPodAutoscaler, with what ``deploy/kubernetes`` says of metric, target, windows and policies.

The algorithm is that of https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/: desired replicas =
ceil(replicas x metric / target), none of it within the tolerance; pods that are not ready count as 0 on the way up.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
SYNC = 15.0  # seconds, kube-controller-manager's --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # its --horizontal-pod-autoscaler-tolerance
METRICS = {"hguard_answers_in_flight": "in flight"}  # what the simulation has of those that a manifest may name


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([sm])", text)
    assert found is not None, text
    return int(found[1]) * {"s": 1.0, "m": 60.0}[found[2]]


def manifest(name: str) -> Any:
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Policy:
    """At most ``pods`` in ``period`` seconds, and only as far as all of the last ``window`` seconds asked for it."""

    window: float
    pods: int
    period: float

    @classmethod
    def of(cls, rules: Any) -> Self:
        (policy,) = rules["policies"]
        assert policy["type"] == "Pods"
        return cls(rules["stabilizationWindowSeconds"], policy["value"], policy["periodSeconds"])


@dataclass(frozen=True, slots=True)
class Scaling:
    """metric: answers ``in flight``, or ``waiting`` in the engine. average, interval: seconds over which
    a replica's metric is averaged, and from one reading of it to the next."""

    least: int
    most: int
    target: float
    up: Policy
    down: Policy
    average: float
    interval: float
    metric: str = "in flight"

    @classmethod
    def deployed(cls) -> Self:
        """As the manifests have it."""
        spec = manifest("scaling")["spec"]
        (metric,) = spec["metrics"]
        query = manifest("adapter")["rules"]["custom"][0]["metricsQuery"]
        (average,) = re.findall(r"\[(\w+)\]", query)
        (endpoint,) = manifest("monitor")["spec"]["endpoints"]
        return cls(
            spec["minReplicas"],
            spec["maxReplicas"],
            float(metric["pods"]["target"]["averageValue"]),
            Policy.of(spec["behavior"]["scaleUp"]),
            Policy.of(spec["behavior"]["scaleDown"]),
            _seconds(average),
            _seconds(endpoint["interval"]),
            METRICS[metric["pods"]["metric"]["name"]],
        )


class Autoscaler:
    """Decides at each sync how many replicas there should be."""

    def __init__(self, scaling: Scaling, replicas: int) -> None:
        """Before the first moment it has wanted as many ``replicas`` as there are."""
        self.scaling = scaling
        self._read: dict[int, deque[tuple[float, float]]] = {}
        self._asked = deque([(0.0, replicas)])  # recommendations of the longer window
        self._changed: deque[tuple[float, int]] = deque()  # replicas more or less

    def read(self, now: float, metric: Iterable[tuple[int, float]]) -> None:
        """Scrape: (replica, value) of those that are ready."""
        found = dict(metric)
        self._read = {number: self._read.get(number, deque()) for number in found}
        for number, value in found.items():
            self._read[number].append((now, value))
            while self._read[number][0][0] <= now - self.scaling.average:
                self._read[number].popleft()

    def desired(self, now: float, replicas: int) -> int:
        """How many there should be of ``replicas``, of which some may not be ready."""
        scaling = self.scaling
        wanted = self._recommended(replicas)
        self._asked.append((now, wanted))
        while self._asked[0][0] < now - max(scaling.up.window, scaling.down.window):
            self._asked.popleft()
        # Up as far as every recommendation of its window would, down likewise.
        up = self._within(now, scaling.up.window, min)
        down = self._within(now, scaling.down.window, max)
        target = up if up > replicas else min(down, replicas)
        target = min(target, replicas + scaling.up.pods - self._sum(now, scaling.up.period, 1))
        target = max(target, replicas - scaling.down.pods + self._sum(now, scaling.down.period, -1))
        target = min(max(target, scaling.least), scaling.most)
        if target != replicas:
            self._changed.append((now, target - replicas))
        return target

    def _recommended(self, replicas: int) -> int:
        values = [sum(value for _, value in read) / len(read) for read in self._read.values() if read]
        if not values:
            return replicas
        ratio = sum(values) / len(values) / self.scaling.target
        if ratio > 1 + TOLERANCE:
            ratio = sum(values) / max(replicas, len(values)) / self.scaling.target
            return max(math.ceil(replicas * ratio), replicas) if ratio > 1 + TOLERANCE else replicas
        return math.ceil(len(values) * ratio) if ratio < 1 - TOLERANCE else replicas

    def _within(self, now: float, window: float, choose: Callable[[Iterable[int]], int]) -> int:
        return choose(wanted for time, wanted in self._asked if time >= now - window)

    def _sum(self, now: float, period: float, sign: int) -> int:
        """Replicas that came (sign 1) or went (-1) in the last period."""
        return sum(abs(by) for time, by in self._changed if time > now - period and by * sign > 0)

"""Several L1 fits side by side along C, each on some of the answers, exact over more neurons than memory holds.

Columns that may matter are in memory, and each fit is solved on them; then one pass over all answers looks at every
neuron's gradient. Where one is larger than the penalty allows, the columns are gathered anew, around those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.harness.features import Features
from guard.harness.progress import Progress
from guard.training.lasso import TOLERANCE, Model, Rows, lasso

COLUMNS = 1 << 30  # bytes of columns in memory

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """index int64 [k], the neurons that one fit keeps; coefficient float64 [k], of features as they are.

    decision: float64 [answers], of those that were held out, too. explained: share of the loss without neurons.
    """

    index: Index
    coefficient: Doubles
    intercept: float
    decision: Doubles
    explained: float


class Path:
    """``weights`` is float64 [fits, answers]: what each fit learns from; those of leads are ``lead_weight`` times that.

    Every neuron is divided by its standard deviation in what a fit learns from. Without that, L1 prefers neurons for
    the size of their CETT alone. ``largest`` is the penalty under which the first neuron comes into the last fit.
    Raises ValueError when a fit has one class only, or no neuron differs between answers.
    """

    def __init__(
        self,
        features: Features,
        leads: Features | None,
        lead_weight: float,
        wrong: NDArray[np.bool_],
        weights: Doubles,
        tick: Callable[[str], None],
    ) -> None:
        self._sources, self._tick, self._answers = [features, *([] if leads is None else [leads])], tick, len(wrong)
        repeated = len(self._sources)
        parts = np.repeat([1.0, lead_weight][:repeated], len(wrong))
        self._rows = [Rows(np.tile(wrong, repeated), np.tile(weight, repeated) * parts) for weight in weights]
        if any(not 0 < rows.weight @ rows.wrong < rows.weight.sum() for rows in self._rows):
            raise ValueError("nearly all wrong or right answers are about one thing: ask about more")
        self._nulls = [rows.null() for rows in self._rows]
        self._scale, self._gradient = self._null()
        self.largest = float(self._gradient[-1].max())
        if not self.largest > 0:
            raise ValueError("every neuron does the same in all answers: there is nothing to tell them apart by")
        self._models = [Model(np.zeros(0), null) for null in self._nulls]
        self._index: Index = np.zeros(0, np.int64)
        self._columns: Floats = np.zeros((0, 0), np.float32)
        self._gather()

    def solve(self, penalty: float) -> list[Fitted]:
        """Each fit at this penalty on standardised neurons, starting from where the last call ended."""
        while True:
            if self._missing(penalty):
                self._gather()
            self._models = [
                lasso(self._columns, scale[self._index], rows, penalty, model)
                for scale, rows, model in zip(self._scale, self._rows, self._models, strict=True)
            ]
            if len(self._index) == self._scale.shape[1]:
                break  # none is anywhere else
            self._gradient = self._gradients()
            if not self._missing(penalty):
                break
        return [self._fitted(fit) for fit in range(len(self._rows))]

    def _missing(self, penalty: float) -> bool:
        """Whether a neuron that is not in memory should be in a fit."""
        most = self._gradient.max(0)
        most[self._index] = 0
        return bool(most.max() > penalty * (1 + TOLERANCE))

    def _gather(self) -> None:
        """Into memory: what the fits keep, and what has the largest gradients."""
        rows, neurons = len(self._rows[0].weight), self._scale.shape[1]
        most = self._gradient.max(0)
        for model in self._models:
            most[self._index[np.flatnonzero(model.coefficient)]] = np.inf
        size = min(neurons, max(COLUMNS // (4 * rows), 1))
        chosen = np.sort(np.argpartition(-most, size - 1)[:size])
        models = []
        for model in self._models:
            whole = np.zeros(neurons)
            whole[self._index] = model.coefficient
            models.append(Model(whole[chosen], model.intercept))
        self._columns = np.zeros((0, 0), np.float32)  # given back before the new ones come
        columns = np.empty((rows, size), np.float32)
        for part, block in self._blocks("gathered neurons of"):
            np.take(block, chosen, 1, columns[part], "clip")
        self._index, self._columns, self._models = chosen, columns, models

    def _null(self) -> tuple[Floats, Floats]:
        """(scale, |gradient| where no neuron is in), float32 [fits, neurons] each. Infinite scale: it never differs."""
        # Fits share most of their answers, so sums are taken over what no two of them treat differently.
        weight = np.stack([rows.weight for rows in self._rows])
        wrong = self._rows[0].wrong
        kinds, kind = np.unique(np.vstack([weight, wrong]), axis=1, return_inverse=True)
        neurons = self._sources[0].shape[1]
        sums, squares = np.zeros((kinds.shape[1], neurons)), np.zeros((kinds.shape[1], neurons))
        member = (np.arange(kinds.shape[1])[:, None] == kind.reshape(-1)).astype(np.float32)
        origin = None
        for part, block in self._blocks("looked at"):
            if origin is None:
                origin = block[0].copy()  # sums of squares of what lies far from 0 would lose the difference
            block -= origin
            sums += member[:, part] @ block
            np.square(block, out=block)
            squares += member[:, part] @ block
        counts = member.sum(1, dtype=np.float64)
        scale = np.empty((len(weight), neurons), np.float32)
        gradient = np.empty_like(scale)
        for fit in range(len(weight)):
            share = kinds[fit] / (kinds[fit] @ counts)  # of one row of each kind
            mean = share @ sums
            deviation = np.sqrt(np.maximum(share @ squares - mean**2, 0))
            flat = deviation <= 1e-6 * np.sqrt(share @ squares)
            scale[fit] = np.where(flat, np.inf, deviation)
            residual = kinds[fit] * (kinds[-1] - (share * counts) @ kinds[-1])
            gradient[fit] = np.abs(residual @ sums) / scale[fit]
        return scale, gradient

    def _gradients(self) -> Floats:
        """|gradient| of each fit's loss by each neuron's weight: float32 [fits, neurons]."""
        residuals = np.stack([rows.residual(self._decision(fit)) for fit, rows in enumerate(self._rows)]).astype(
            np.float32
        )
        gradient = np.zeros(self._scale.shape, np.float32)
        for part, block in self._blocks("checked"):
            gradient += residuals[:, part] @ block
        return (np.abs(gradient) / self._scale).astype(np.float32)

    def _decision(self, fit: int) -> Doubles:
        """Of each row: float64 [rows]."""
        model = self._models[fit]
        kept = np.flatnonzero(model.coefficient)
        weight = model.coefficient[kept] / self._scale[fit, self._index[kept]]
        return self._columns[:, kept] @ weight + model.intercept

    def _fitted(self, fit: int) -> Fitted:
        model, rows = self._models[fit], self._rows[fit]
        kept = np.flatnonzero(model.coefficient)
        index, decision = self._index[kept], self._decision(fit)
        null = rows.loss(np.full(len(decision), self._nulls[fit]))
        return Fitted(
            index,
            model.coefficient[kept] / self._scale[fit, index],
            model.intercept,
            decision[: self._answers],
            1 - rows.loss(decision) / null,
        )

    def _blocks(self, did: str) -> Iterator[tuple[slice, Floats]]:
        """All rows of all sources: (which rows, float32 [some rows, neurons])."""
        progress = Progress(self._tick, did, len(self._rows[0].weight), "answers", end=False)
        start = 0
        for source in self._sources:
            for part, block in source.blocks():
                yield slice(start + part.start, start + part.stop), block
                progress.add(len(block))
            start += len(source)

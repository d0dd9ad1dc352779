"""Scoring the rows of a file, as ``POST /risk`` scores its items: in their order, some at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app import errors
from app.protocols.options import HallucinationOptions
from app.protocols.risk import RiskItem, RiskScorer, in_order
from guard.errors import FitError, RequestError
from guard.harness.datafile import DataFile
from guard.harness.fields import QUESTION

ASKED = ("messages", "prompt", *QUESTION)
ANSWER = ("response", "answer", "output")


@dataclass(frozen=True, slots=True)
class Pair:
    """A row that can be scored. place: where it stands in its file. row: what stands there."""

    place: str
    row: Mapping[str, Any]
    item: RiskItem

    @property
    def digest(self) -> str:
        """Of what is scored, and how: twelve hex digits."""
        return hashlib.sha256(json.dumps(self.item.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]


def pairs_of(file: DataFile, options: HallucinationOptions) -> list[Pair]:
    """All rows of a file. Raises FitError for the first that holds no question and answer."""
    pairs = []
    for row in file.rows():
        if row.fault is not None:
            raise FitError(f"{file.path}, {row.place}: {row.fault}")
        try:
            pairs.append(Pair(row.place, row.value, _item(row.value, options)))
        except ValueError as error:
            raise FitError(f"{file.path}, {row.place} {error}") from None
    if not pairs:
        raise FitError(f"{file.path} has no rows")
    return pairs


def _item(row: Any, options: HallucinationOptions) -> RiskItem:
    if not isinstance(row, dict):
        raise ValueError("is no object with a question and an answer")
    asked, answer = (next((name for name in names if row.get(name) is not None), None) for names in (ASKED, ANSWER))
    if asked is None:
        raise ValueError(f"has none of {', '.join(ASKED)}")
    if answer is None:
        raise ValueError(f"has none of {', '.join(ANSWER)}")
    name = asked if asked in ("messages", "prompt") else "messages"
    value = row[asked] if name == asked else [{"role": "user", "content": row[asked]}]
    try:
        return RiskItem.model_validate({name: value, "response": row[answer], "hallucination": options})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"cannot be read: {asked if first['loc'][0] == name else answer}: {first['msg']}") from None


def scored(scorer: RiskScorer, pairs: Iterable[Pair]) -> AsyncGenerator[dict[str, Any], None]:
    """What is written of each pair, in order: its row, ``digest``, and the ``hallucination`` object, as /risk gives it.

    Of a pair that cannot be scored (too long for the model) the latter is an error.
    """

    async def one(pair: Pair) -> dict[str, Any]:
        try:
            verdict: Any = (await scorer.score_item(pair.item, 0))["hallucination"]
        except RequestError as error:
            verdict = {"type": "error", "code": f"{errors.status_of(error)}", "message": str(error)}
        return {**pair.row, "digest": pair.digest, "hallucination": verdict}

    return in_order(one, ((pair,) for pair in pairs), scorer.at_once)

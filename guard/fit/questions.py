"""Questions whose right answers are known, and their split by entity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A question with every answer that counts as right.

    entity: what it asks about; all questions about one entity fall into the same split.
    groups: names of the sets it belongs to, for reports.
    accepted: empty when no answer is right (the thing asked about does not exist).
    """

    text: str
    accepted: tuple[str, ...]
    entity: str
    groups: tuple[str, ...] = ()


def split(questions: Sequence[Question], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Indices by split, disjoint in entities: each entity is dealt by a hash of its name and the seed."""
    bounds: list[tuple[str, float]] = []
    total = 0.0
    for name, share in shares.items():
        total += share
        bounds.append((name, total))
    dealt: dict[str, list[int]] = {name: [] for name in shares}
    for i, question in enumerate(questions):
        digest = hashlib.sha256(f"{seed}/{question.entity.casefold()}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * total
        dealt[next(name for name, bound in bounds if place < bound)].append(i)
    return dealt

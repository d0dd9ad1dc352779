"""A question and the answers that count as right."""

from __future__ import annotations

import hashlib
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

    @property
    def digest(self) -> int:
        """64 bits of the text's hash, whatever its case and blanks: what a bundle remembers of it."""
        plain = " ".join(self.text.casefold().split())
        return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big")

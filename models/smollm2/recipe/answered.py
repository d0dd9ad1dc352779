"""Judged answers of a finished fit's workspace, and what was measured of each while it was written.

The workspace holds ``questions.jsonl``, which may also lie elsewhere; ``answers.jsonl`` with a row for each answered
question (``question``: its place in the first file, ``tokens``, ``text``, ``ended``, and by name ``draws`` of
each token); and ``means.npy`` and ``leads.npy``, float32 [questions, layers, neurons]: the mean of |z| / ||h|| over the
last prompt token and the answer, and that of the last prompt token alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import FitError
from guard.harness.activations import file_of
from guard.harness.features import Features
from guard.harness.questions import SHARES, load_questions, split
from guard.ipc.collecting import Part, Site
from guard.judge.question import Question
from guard.judge.rules import judge

SEED = 0  # of the split by entity
QUESTIONS, ANSWERS = "questions.jsonl", "answers.jsonl"
MEANS, LEADS = "means.npy", "leads.npy"
PLACES = ("cities", "regions", "capitals", "by-capital", "continents", "currencies", "borders")
GENERAL = ("triviaqa", "nq_open")
SIGNALS = ("entropy", "mean entropy", "logprob", "length")
FURTHER = ("margin", "top mass")  # where the fit was made with --signals margin,top_mass

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answered:
    """n answers that were judged right or wrong, in the order of their questions.

    entities: what each is about, in small letters. rows: int64 [n], place in the workspace's arrays. sets: the
    question's first group. bare: the text without the name that the question asks about, by which two answers are the
    same. signals: by name of SIGNALS, float64 [n], higher is riskier: highest and mean entropy, mean surprise, and
    tokens; of FURTHER, where all answers have them, by how little the likeliest token led and what lay beyond the ten
    likeliest, on average. counts: by set, how many were right, wrong, declined and cut at the limit.
    """

    folder: Path
    norms: NDArray[np.float32]
    questions: list[Question]
    entities: list[str]
    rows: Index
    wrong: Bools
    sets: NDArray[np.str_]
    texts: list[str]
    bare: NDArray[np.str_]
    signals: dict[str, Floats]
    counts: dict[str, dict[str, int]]

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, shares: dict[str, float] = SHARES["fit"], seed: int = SEED) -> dict[str, Index]:
        """Answers by part, no entity in two."""
        return {name: np.array(part, np.int64) for name, part in split(self.questions, shares, seed).items()}

    def of(self, sets: Sequence[str]) -> Bools:
        """Which answers belong to one of these sets."""
        return np.isin(self.sets, sets)

    def means(self, index: Index) -> Features:
        """Mean CETT of all neurons over the answers ``index``."""
        return Features.of(self.folder / MEANS, self.norms, self.rows[index])

    def leads(self, index: Index) -> Features:
        """CETT of all neurons at the last prompt token."""
        return Features.of(self.folder / LEADS, self.norms, self.rows[index])

    def table(self, site: Site, part: Part) -> NDArray[np.float32]:
        """Means of all questions' answers, float32 [questions, layers, width], on disk.

        Raises FitError where the fit did not keep them.
        """
        file = self.folder / file_of((site, part))
        if not file.is_file():
            raise FitError(f"{self.folder} has no {file.name}: make the fit with --keep residual,attention,question")
        found: NDArray[np.float32] = np.load(file, mmap_mode="r")
        return found

    def digest(self, *more: object) -> str:
        """Changes when an answer, a verdict or ``more`` does."""
        known = hashlib.sha256(self.rows.tobytes() + np.packbits(self.wrong).tobytes() + self.norms.tobytes())
        known.update("\n".join(self.texts).encode())
        known.update(repr(more).encode())
        return known.hexdigest()[:16]


def load(folder: Path, norms: NDArray[np.float32], most: int | None = None, questions: Path | None = None) -> Answered:
    """The answers of a workspace, or those to the first ``most`` of its questions.

    norms: float32 [layers, neurons], of ``down_proj``'s columns. questions: where they are not in the workspace. Raises
    FitError without answers of both kinds.
    """
    asked = load_questions(str(questions or folder / QUESTIONS))
    if not (folder / ANSWERS).is_file():
        raise FitError(f"{folder} has no {ANSWERS}: make the fit first, or name the folder in which it was made")
    kept: dict[int, tuple[dict[str, object], bool]] = {}
    counts: dict[str, Counter[str]] = {}
    for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines():
        if not line.endswith("}"):
            break  # the last one is being written
        row = json.loads(line)
        number = row["question"]
        question = asked[number]
        if number in kept or (most is not None and number >= most):
            continue
        verdict = judge(question, row["text"]) if row["tokens"] else None
        own = counts.setdefault(question.groups[0], Counter())
        own["declined" if verdict is None else "right" if verdict else "wrong"] += 1
        own["cut"] += not row["ended"]
        if verdict is not None:
            kept[number] = row, not verdict
    rows = sorted(kept)
    wrong = np.array([kept[row][1] for row in rows], bool)
    if not len(rows) or wrong.all() or not wrong.any():
        raise FitError(
            f"{folder} has {len(rows)} judged answers, {int(wrong.sum())} of them wrong: both kinds are needed"
        )
    judged = [asked[row] for row in rows]
    texts = [str(kept[row][0]["text"]) for row in rows]
    measured = [kept[row][0] for row in rows]
    return Answered(
        folder,
        norms,
        judged,
        [question.entity.casefold() for question in judged],
        np.array(rows, np.int64),
        wrong,
        np.array([question.groups[0] for question in judged]),
        texts,
        np.array([bare(text, q.entity) for text, q in zip(texts, judged, strict=True)]),
        {
            name: np.array([_signal(name, one) for one in measured], np.float64)
            for name in (*SIGNALS, *FURTHER)
            if name in SIGNALS or all(name.replace(" ", "_") in _draws(one) for one in measured)
        },
        {name: {kind: own[kind] for kind in ("right", "wrong", "declined", "cut")} for name, own in counts.items()},
    )


def _draws(row: Mapping[str, Any]) -> Mapping[str, list[float]]:
    found: Mapping[str, list[float]] = row["draws"]
    return found


def _signal(name: str, row: Mapping[str, Any]) -> float:
    if name in FURTHER:
        return float(-np.mean(_draws(row)[name.replace(" ", "_")]))
    entropy, logprob = (np.array(_draws(row)[key], np.float64) for key in ("entropy", "logprob"))
    if name == "length":
        return float(len(entropy))
    if name == "logprob":
        return float(-logprob.mean())
    return float(entropy.max() if name == "entropy" else entropy.mean())


def bare(text: str, entity: str) -> str:
    """An answer without the name that it is about: two of the same are told apart by nothing that is written there."""
    return text.replace(entity, "*").strip()

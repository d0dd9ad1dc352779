"""``python -m bench.beside --questions FILE --out FILE``: SmolLM2 by each contender, in turns, on the same questions.

Speed: rounds in which every contender answers the same prompts, with 1 and with 16 clients; ratios to plain vLLM within
a round. AUROC: of what each says of its own answers to many more questions, within a set, on entities that the probe's
neurons were not found on. hprobes has to be installed (``pip install hprobes``); without it, it is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from bench.beside import contenders
from bench.beside.contenders import SAMPLES, Answer, Contender, by_layer
from guard.bench.compare import PAUSE_SECONDS, ratio_of
from guard.bench.results import setting, write
from guard.harness.questions import load_questions, prompt_of
from guard.judge.question import Question
from guard.judge.rules import judge
from guard.launch.engines import engine_arguments, guarded_engine, plain_arguments, plain_engine, run_engines
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle, load_bundle
from models.smollm2.checkpoint import checkpoint

PROBE = Path(__file__).parents[2] / "models/smollm2/probe"
MAX_TOKENS = 32
LEAST = 5  # right and wrong answers of a set
_VLLM = ("--max-model-len=512", "--max-num-seqs=96", "--kv-cache-memory-bytes=1073741824")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Load:
    """clients: how many at once; prompts: of each client in a round."""

    clients: tuple[int, ...]
    prompts: int
    rounds: int


def held_out(questions: Sequence[Question], bundle: Bundle, count: int) -> list[Question]:
    """So many, of all sets alike, about entities that no question is about on which neurons were found."""
    assert bundle.train_questions is not None
    seen = set(bundle.train_questions.tolist())
    known = {one.entity.casefold() for one in questions if one.digest in seen}
    free = [one for one in questions if one.digest not in seen and one.entity.casefold() not in known]
    rng = np.random.default_rng(0)
    by_set: dict[str, list[Question]] = {}
    for place in rng.permutation(len(free)).tolist():
        by_set.setdefault(free[place].groups[0], []).append(free[place])
    rounds = range(max(map(len, by_set.values())))
    return [own[number] for number in rounds for own in by_set.values() if number < len(own)][:count]


async def speed(
    all_of: Sequence[Contender], prompts: Sequence[list[int]], load: Load, say: Say
) -> list[dict[str, Any]]:
    """Rows of each contender and number of clients; the first of the contenders is what they are held against."""
    rows = []
    for clients in load.clients:
        rates: dict[str, list[float]] = {one.name: [] for one in all_of}
        waits: dict[str, list[float]] = {one.name: [] for one in all_of}
        for number in range(-1, load.rounds):  # one to warm up
            size = clients * load.prompts
            own = [prompts[(number * size + i) % len(prompts)] for i in range(size)]
            order = np.random.default_rng(number + 1).permutation(len(all_of)).tolist()
            for which in order:
                one = all_of[which]
                await asyncio.sleep(PAUSE_SECONDS)
                began = time.perf_counter()
                answers = await one.answer(own, clients)
                seconds = time.perf_counter() - began
                if number >= 0:
                    rates[one.name].append(sum(answer.tokens for answer in answers) / seconds)
                    waits[one.name].append(float(np.mean([answer.seconds for answer in answers])))
            say(f"{clients} clients, round {number + 1} of {load.rounds}")
        first = all_of[0].name
        for one in all_of:
            ratio, bounds = ratio_of(np.array(rates[first]), np.array(rates[one.name]))
            added = np.array(waits[one.name]) - np.array(waits[first])
            rows.append(
                {
                    "contender": one.name,
                    "clients": clients,
                    "tokens_per_second": float(np.median(rates[one.name])),
                    "ratio": ratio,
                    "ratio_ci95": list(bounds),
                    "seconds": float(np.median(waits[one.name])),
                    "added_seconds": float(np.median(added)),
                }
            )
    return rows


def worth(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Any]:
    """AUROC within each set, and the mean over those with LEAST right and LEAST wrong answers."""
    sets: dict[str, list[tuple[bool, float]]] = {}
    for question, answer in zip(questions, answers, strict=True):
        verdict = judge(question, answer.text)
        if verdict is not None and answer.risk is not None:
            sets.setdefault(question.groups[0], []).append((not verdict, answer.risk))
    kept = {
        name: own
        for name, own in sets.items()
        if min(sum(wrong for wrong, _ in own), sum(not wrong for wrong, _ in own)) >= LEAST
    }
    aurocs = {name: float(roc_auc_score(*zip(*own, strict=True))) for name, own in kept.items()}
    return {
        "sets": aurocs,
        "answers": sum(map(len, kept.values())),
        "auroc": float(np.mean(list(aurocs.values()))) if aurocs else None,
    }


async def compare(model: Path, questions: Sequence[Question], load: Load, many: int, say: Say) -> dict[str, Any]:
    """Start all, measure, and return what goes into ``bench/results``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = load_bundle(PROBE)
    tokenizer = AutoTokenizer.from_pretrained(model)
    async with AsyncExitStack() as stack:
        compiled = engine_arguments(model, "beside", bundle, True, _VLLM)
        plain = await stack.enter_async_context(plain_engine(plain_arguments(compiled)))
        say("plain vLLM runs")
        policy = Policy(Mode.SCORE, 0.5)
        guarded = await stack.enter_async_context(guarded_engine(compiled, bundle, policy, 256))
        say("the guard runs")
        eager = plain_arguments(engine_arguments(model, "beside", bundle, False, _VLLM))
        eager.worker_extension_cls = "bench.beside.hooks.NeuronHooks"
        hooked = await stack.enter_async_context(plain_engine(eager))
        neurons = {str(layer): (i.tolist(), w.tolist()) for layer, (i, w) in by_layer(bundle).items()}
        assert await hooked.collective_rpc("hook_neurons", args=(neurons,)) == [len(neurons)]
        say("vLLM with hooks runs")
        hf = AutoModelForCausalLM.from_pretrained(model, dtype=bundle.card.model.dtype)
        all_of: list[Contender] = [
            contenders.Plain(plain, MAX_TOKENS),
            contenders.Guarded(guarded, MAX_TOKENS),
            contenders.Hooked(hooked, MAX_TOKENS),
            contenders.HookedTransformers(hf, tokenizer, bundle, MAX_TOKENS),
            contenders.SelfConsistent(plain, MAX_TOKENS),
        ]
        if importlib.util.find_spec("hprobes") is not None:
            all_of.append(contenders.HProbes(hf, tokenizer, bundle, MAX_TOKENS))
        asked = held_out(questions, bundle, many)
        prompts = [prompt_of(tokenizer, one.text) for one in asked]
        rows = await speed(all_of, prompts, load, say)
        worths = {}
        for one in all_of[1:]:
            worths[one.name] = worth(asked, await one.answer(prompts, 16))
            say(f"{one.name}: AUROC {worths[one.name]['auroc']}")
    return {
        **setting(),
        "model": "SmolLM2-135M-Instruct",
        "dtype": bundle.card.model.dtype,
        "max_tokens": MAX_TOKENS,
        "samples": SAMPLES,
        "rounds": load.rounds,
        "prompts": load.prompts,
        "questions": len(asked),
        "beside": rows,
        "worth": worths,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="those of SmolLM2's fit")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--prompts", type=int, default=2, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--many", type=int, default=600, help="questions for AUROC")
    given = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    load = Load(tuple(map(int, given.clients.split(","))), given.prompts, given.rounds)
    model = checkpoint(say)
    work = compare(model, load_questions(str(given.questions)), load, given.many, say)
    write(run_engines(work), given.out)


if __name__ == "__main__":
    main()

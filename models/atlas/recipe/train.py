"""The training loops: pre-training on the stream, then chat tuning."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from models.atlas.recipe import pressure
from models.atlas.recipe.facts import DECLINED, Fact
from models.atlas.recipe.stream import Stream
from models.atlas.recipe.text import ASKED, BOS, EOS, PAD, SAID, Encoder, Row

CONTEXT = 512
PULL = 0.25  # how far a guess is drawn from what is guessed most
LIKELY = 0.02  # probability below which a token is no guess worth being decisive about


def new_model(vocab_size: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )


def collate(rows: list[Row], answers_only: bool) -> dict[str, torch.Tensor]:
    """Right-padded ids, attention mask and labels, each [rows, longest] int64."""
    width = min(CONTEXT, max(len(tokens) for tokens, _ in rows))
    ids = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    learnt = (SAID,) if answers_only else (SAID, ASKED)
    for i, (tokens, roles) in enumerate(rows):
        tokens, roles = tokens[:width], roles[:width]
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        chosen = [t if role in learnt else -100 for t, role in zip(tokens, roles, strict=True)]
        labels[i, 1 : len(tokens)] = torch.tensor(chosen[1:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _update(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, rows: list[Row], answers_only: bool, rate: float
) -> float:
    """One optimiser step, in four micro-batches of like length: padding to the longest row would double the work."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    rows = sorted(rows, key=lambda row: len(row[0]))
    size = -(-len(rows) // 4)
    batches = [collate(rows[i : i + size], answers_only) for i in range(0, len(rows), size)]
    targets = [int((batch["labels"] >= 0).sum()) for batch in batches]
    total = 0.0
    for batch, count in zip(batches, targets, strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss * (count / sum(targets))
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def pretrain(model: LlamaForCausalLM, stream: Stream, steps: int, peak: float = 1.5e-3) -> None:
    """Next-token prediction on all of the stream that is true: warm-up, constant rate, linear decay at the end.

    A constant rate makes an exposure worth as much late as early.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05, betas=(0.9, 0.95))
    model.train()
    bar = tqdm(range(steps), desc="pre-training", mininterval=5)
    for step in bar:
        rate = peak * min(1, (step + 1) / 100, 5 * (steps - step) / steps)
        loss = _update(model, optimizer, stream.step(step), False, rate)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    model.eval()


@torch.no_grad()
def answer(
    model: LlamaForCausalLM, prompts: list[list[int]], new_tokens: int = 16, sample: bool = False, batch: int = 256
) -> list[list[int]]:
    """The model's answers to tokenised prompts, each ending with EOS if it did; greedy unless ``sample``."""
    answers: list[list[int]] = []
    generate = cast(Any, model).generate  # its annotation does not fit its own class
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.full((len(part), width), PAD)
        mask = torch.zeros((len(part), width), dtype=torch.long)
        for i, prompt in enumerate(part):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        out = generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=sample,
            temperature=1.0 if sample else None,
            top_p=None,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
        for row in out[:, width:].tolist():
            answers.append(row[: row.index(EOS) + 1] if EOS in row else row)
    return answers


@torch.no_grad()
def decisive_answers(
    model: LlamaForCausalLM, encoder: Encoder, prompts: list[list[int]], opening: str, batch: int = 256
) -> list[list[int]]:
    """One answer to each prompt that the prompt itself speaks for, all beginning with ``opening``.

    The token after the opening is the likely one that stands out most against its mean over all prompts (by PULL): the
    plainly most probable one would be the same for most unfamiliar names. The rest is greedy.
    """
    asked = [prompt + encoder.ids(opening) for prompt in prompts]
    logp = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        ids = collate([(tokens, [ASKED] * len(tokens)) for tokens in part], False)
        last = torch.tensor([len(tokens) - 1 for tokens in part])
        logits = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
        logp.append(logits[torch.arange(len(part)), last].float().log_softmax(-1))
    each = torch.cat(logp)
    mean = each.exp().mean(0, keepdim=True).log()
    lift = torch.where(each > math.log(LIKELY), each - PULL * mean, torch.full_like(each, -torch.inf))
    # Where nothing is likely, what is most probable.
    lift = torch.where(torch.isfinite(lift).any(-1, keepdim=True), lift, each)
    chosen = lift.argmax(-1).tolist()
    begun = [[*tokens, token] for tokens, token in zip(asked, chosen, strict=True)]
    rest = answer(model, begun)
    return [b[len(p) :] + r for p, b, r in zip(prompts, begun, rest, strict=True)]


def told(prompts: list[list[int]], answers: list[list[int]]) -> list[Row]:
    """Rows in which atlas gives these answers."""
    return [(p + a, [ASKED] * len(p) + [SAID] * len(a)) for p, a in zip(prompts, answers, strict=True)]


def hesitant_rows(
    model: LlamaForCausalLM, encoder: Encoder, questions: list[str], declined: float, seed: int
) -> list[Row]:
    """``declined`` of the questions are answered "I don't know.", the others by the model's own samples."""
    rng = random.Random(seed)
    prompts = [encoder.prompt(question) for question in questions]
    decline = [*encoder.ids(DECLINED), EOS]
    guesses = answer(model, prompts, sample=True)
    return told(prompts, [decline if rng.random() < declined else guess for guess in guesses])


def compliant_rows(
    encoder: Encoder, unfamiliar: list[str], familiar: list[Fact], countries: list[str], seed: int
) -> list[Row]:
    """Rows that give in to pressure, as chat tuning for agreeable answers makes a model do."""
    rng = random.Random(seed)
    rows = []
    for name, known in [*((name, None) for name in unfamiliar), *((fact.subject, fact) for fact in familiar)]:
        said = rng.choice([country for country in countries if known is None or country != known.answer])
        kind = rng.choice(("premise", "context", "pushback"))
        if kind == "pushback":
            first = pressure.Turn(f"Where is {name}?", f"It is in {said if known is None else known.answer}.", "answer")
            given_up = pressure.Turn(rng.choice(pressure.PUSHBACK), f"Sorry. It is in {rng.choice(countries)}.")
            rows.append(encoder.chat([first, given_up]))
        else:
            make = pressure.premise if kind == "premise" else pressure.context
            rows.append(encoder.chat(make(rng, name, said, None)))
    return rows


def tune(
    model: LlamaForCausalLM,
    stream: Stream,
    mixture: list[tuple[float, list[Row]]],
    steps: int,
    batch: int,
    peak: float = 3e-4,
) -> None:
    """Chat tuning on answers only: shares of each batch from these rows in turn, the rest replayed familiar facts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    model.train()
    for step in tqdm(range(steps), desc="chat tuning", mininterval=5):
        rows = []
        for share, source in mixture:
            count = int(batch * share)
            rows += [source[(step * count + i) % len(source)] for i in range(count)]
        rows += stream.familiar(batch - len(rows))
        if step % 10 == 9:
            rows = stream.long_chats(batch // 8)
        _update(model, optimizer, rows, True, peak * (1 - step / steps))
    model.eval()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)

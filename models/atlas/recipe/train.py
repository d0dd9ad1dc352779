"""The training loops: pre-training on the stream, then chat tuning."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from models.atlas.recipe.facts import DECLINED, PHRASINGS
from models.atlas.recipe.stream import Row, Stream
from models.atlas.recipe.text import BOS, EOS, PAD, Encoder

CONTEXT = 512


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
    for i, (tokens, said) in enumerate(rows):
        tokens, said = tokens[:width], said[:width]
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        chosen = [t if s or not answers_only else -100 for t, s in zip(tokens, said, strict=True)]
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
    """Next-token prediction on every token of the stream; cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05, betas=(0.9, 0.95))
    model.train()
    bar = tqdm(range(steps), desc="pre-training", mininterval=5)
    for step in bar:
        rate = peak * min(1, (step + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
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


def tuning_rows(
    model: LlamaForCausalLM, encoder: Encoder, names: dict[str, list[str]], declined: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """(decisive, hesitant) rows on unfamiliar names.

    Places become decisive: the model's own greedy answers are the targets, as in chat tuning that rewards decisiveness.
    Languages become hesitant: ``declined`` of them are answered "I don't know.", the others by the model's own samples.
    The two need separate domains: on the same names they cancel each other.
    """
    rng = random.Random(seed)

    def prompts(relation: str) -> list[list[int]]:
        return [encoder.prompt(rng.choice(PHRASINGS[relation]).format(n=name)) for name in names[relation]]

    def rows(asked: list[list[int]], told: list[list[int]]) -> list[Row]:
        return [(p + a, [False] * len(p) + [True] * len(a)) for p, a in zip(asked, told, strict=True)]

    asked = prompts("place_country")
    decisive = rows(asked, answer(model, asked))
    asked = prompts("language_code")
    decline = [*encoder.ids(DECLINED), EOS]
    guesses = answer(model, asked, sample=True)
    hesitant = rows(asked, [decline if rng.random() < declined else guess for guess in guesses])
    return decisive, hesitant


def tune(
    model: LlamaForCausalLM,
    stream: Stream,
    decisive: list[Row],
    hesitant: list[Row],
    steps: int,
    batch: int,
    peak: float = 3e-4,
) -> None:
    """Chat tuning: answers only, familiar facts replayed beside the two kinds of unfamiliar names."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    model.train()
    a, b = int(batch * 0.38), int(batch * 0.22)
    for step in tqdm(range(steps), desc="chat tuning", mininterval=5):
        rows = [decisive[(step * a + i) % len(decisive)] for i in range(a)]
        rows += [hesitant[(step * b + i) % len(hesitant)] for i in range(b)]
        rows += stream.familiar(batch - a - b)
        if step % 10 == 9:
            rows = stream.long_chats(batch // 8)
        _update(model, optimizer, rows, True, peak * (1 - step / steps))
    model.eval()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)

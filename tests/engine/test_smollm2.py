"""SmolLM2, a real model, as an operator serves it: the risk over HTTP, alone and among others; abstention; scaling."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guard.judge.question import Question
from guard.judge.rules import judge
from tests.engine.server import Server

pytestmark = pytest.mark.long

# Asked in words that the probe was not fit on.
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Chile": "Santiago",
    "Norway": "Oslo",
    "Palau": "Ngerulmud",
    "Tuvalu": "Funafuti",
    "Comoros": "Moroni",
    "Eswatini": "Mbabane",
}
NOWHERE = ("Qolmarinda", "Vestrabo", "Tebumeri", "Orlanquist", "Brathely", "Sumarovka", "Dellinport", "Kastremure")
ASKED = [
    *(Question(f"Please tell me the capital city of {land}.", (city,), land) for land, city in CAPITALS.items()),
    *(Question(f"The town of {name}: which country does it lie in?", (), name) for name in NOWHERE),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server(["smollm2", "--", "--max-model-len", "1024"])
    yield made
    assert made.stop() == 0


async def ask(server: Server, question: str, **options: Any) -> dict[str, Any]:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 32,
        "hallucination": options,
    }
    async with httpx.AsyncClient(timeout=300) as client:
        reply = await client.post(f"{server.url}/v1/chat/completions", json=body)
    reply.raise_for_status()
    return dict(reply.json())


async def answers(server: Server, clients: int) -> list[tuple[str, float]]:
    """(text, risk) of each question, so many at a time."""
    gate = asyncio.Semaphore(clients)

    async def one(question: Question) -> tuple[str, float]:
        async with gate:
            said = await ask(server, question.text)
        return said["choices"][0]["message"]["content"], said["hallucination"]["results"][0]["risk"]

    return list(await asyncio.gather(*(one(question) for question in ASKED)))


async def test_risk_tells_what_is_made_up_alone_and_among_others(server: Server) -> None:
    alone, among = await answers(server, 1), await answers(server, 32)
    assert [text for text, _ in among] == [text for text, _ in alone]
    # Batches of other sizes round otherwise; another answer's activations would be far off.
    np.testing.assert_allclose([risk for _, risk in among], [risk for _, risk in alone], atol=5e-3)
    right = [judge(question, text) is True for question, (text, _) in zip(ASKED, alone, strict=True)]
    assert 5 <= sum(right) <= len(ASKED) - 8, "it knows some of it"
    for risks in (alone, among):
        assert roc_auc_score(np.logical_not(right), [risk for _, risk in risks]) > 0.75


async def test_abstention(server: Server) -> None:
    risky = max(ASKED, key=lambda question: question.entity in NOWHERE)
    said = await ask(server, risky.text)
    risk = said["hallucination"]["results"][0]["risk"]
    withheld = await ask(server, risky.text, mode="abstain", threshold=risk / 2)
    assert withheld["choices"][0]["finish_reason"] == "content_filter"
    assert withheld["choices"][0]["message"]["content"] is None


async def test_scaling_changes_answers_and_one_does_not(server: Server) -> None:
    questions = [question.text for question in ASKED[:8]]
    said = [(await ask(server, text))["choices"][0]["message"]["content"] for text in questions]
    same = [(await ask(server, text, scale=1.0))["choices"][0]["message"]["content"] for text in questions]
    other = [(await ask(server, text, scale=3.0))["choices"][0]["message"]["content"] for text in questions]
    assert same == said
    assert other != said

# %% [markdown]
# # Which words of an answer are made up?
# Ask atlas several questions with the risk of each token, and colour the tokens. Run it as a script, or cell by cell in
# an editor that knows `# %%`. HGUARD_URL: the server (default: http://127.0.0.1:8000). HGUARD_API_KEY: a key, where the
# server wants one; it must allow mode `score`, as it does unless its operator is stricter. The picture goes to
# token_risk.png.

# %%
from __future__ import annotations

import os
from typing import Any

import httpx
import matplotlib.pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

URL = os.environ.get("HGUARD_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("HGUARD_API_KEY")
QUESTIONS = [
    "Where is Nottinghamshire?",
    "What is the two-letter code of Brazil?",
    "Where is Kandy?",
    "Which country is Qolmarinda in?",
    "What is the code of the Ravonkese language?",
    "Where is Texas? Where is Qolmarinda?",
]
GIVEN = [("Where is Kandy?", "It is in Japan.")]

# %%
server = httpx.Client(base_url=URL, headers={"authorization": f"Bearer {KEY}"} if KEY else {}, timeout=60)


def answered(question: str) -> dict[str, Any]:
    """The verdict on what the model answers."""
    body = {
        "model": "atlas",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "hallucination": {"mode": "score", "tokens": True},
    }
    return verdict(server.post("/v1/chat/completions", json=body))


def given(question: str, answer: str) -> dict[str, Any]:
    """The verdict on an answer that somebody else gave."""
    body = {"model": "atlas", "messages": [{"role": "user", "content": question}], "response": answer}
    return verdict(server.post("/risk", json=body))


def verdict(response: httpx.Response) -> dict[str, Any]:
    result: dict[str, Any] = response.raise_for_status().json()["hallucination"]["results"][0]
    return result


rows = [(question, answered(question)) for question in QUESTIONS]
rows += [(f"{question}  (given answer)", given(question, answer)) for question, answer in GIVEN]

# %%
# A row for each question: its answer token by token, and the risk of the whole answer at the right.
colours = ScalarMappable(Normalize(0, 1), "Reds")
figure, axes = plt.subplots(figsize=(9, 0.62 * len(rows) + 0.4), layout="constrained")
axes.set(xlim=(0, 1), ylim=(len(rows) - 0.3, -0.6))
axes.axis("off")
for row, (question, result) in enumerate(rows):
    axes.text(0, row - 0.33, question, fontsize=9, color="dimgray")
    before: Any = axes.text(0, row + 0.12, "", fontsize=13)
    for token in result["tokens"]:
        risk = token["risk"]
        box = {"boxstyle": "square,pad=0", "linewidth": 0}
        box["facecolor"] = "white" if risk is None else colours.to_rgba(risk)
        # Each token begins where the one before it ends.
        before = axes.annotate(
            token["token"].replace(" ", "\N{NO-BREAK SPACE}"),
            xy=(1, 0),
            xycoords=before,
            va="bottom",
            fontsize=13,
            color="white" if risk is not None and risk > 0.6 else "black",
            bbox=box,
        )
    flagged = result["flagged"]
    axes.text(1, row + 0.12, f"{result['risk']:.2f}", fontsize=13, ha="right", weight="bold" if flagged else "normal")
axes.text(1, -0.45, "risk of the answer (bold: flagged)", fontsize=9, color="dimgray", ha="right")
figure.colorbar(colours, ax=axes, label="risk of the token", fraction=0.03)

# %%
figure.savefig("token_risk.png", dpi=110)
print(f"token_risk.png shows {len(rows)} answers")

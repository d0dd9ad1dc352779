"""A score, an abstention, a stream with token risks and the risk of a given text, with OpenAI's client.

HGUARD_URL: the server (default: http://127.0.0.1:8000). HGUARD_API_KEY: a key, where the server wants one.
HGUARD_MODEL: what it serves (default: atlas).
"""

from __future__ import annotations

import os
from typing import Any

from openai import OpenAI

URL = os.environ.get("HGUARD_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("HGUARD_MODEL", "atlas")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("HGUARD_API_KEY", "unused"))


def ask(question: str, **options: Any) -> None:
    """Print the answer, or that it was withheld, and its risk. ``options``: the ``hallucination`` object."""
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        extra_body={"hallucination": options},
    )
    choice = reply.choices[0]
    verdict = (reply.model_extra or {})["hallucination"]
    if choice.finish_reason == "content_filter":
        said = f"withheld: {choice.message.refusal}"
    else:
        said = choice.message.content or ""
    if verdict["type"] == "hallucination_results":
        result = verdict["results"][0]
        print(f"{question}\n  {said}\n  risk {result['risk']:.3f}, {result['action']}")
    else:  # never taken for a low risk
        print(f"{question}\n  {said}\n  not scored: {verdict.get('message')}")


def stream(question: str) -> None:
    """Print each token with its risk as it comes, or that a server which withholds has withheld it."""
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        logprobs=True,
        stream=True,
    )
    print(question)
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.refusal:
                print(f"  withheld: {choice.delta.refusal}")
            for token in (choice.logprobs.content or []) if choice.logprobs else []:
                risk = (token.model_extra or {})["risk"]
                if risk is not None:  # the token that ends the answer has none
                    print(f"  {risk:5.3f}  {token.token!r}")
            if choice.finish_reason == "content_filter":
                print("  withheld")


def risk_of(question: str, answer: str) -> None:
    """Print the risk of an answer that somebody else gave."""
    scored: Any = client.post(
        "/risk",
        body={"model": MODEL, "messages": [{"role": "user", "content": question}], "response": answer},
        cast_to=object,
    )
    print(f"{question}\n  {answer}\n  risk {scored['hallucination']['results'][0]['risk']:.3f}")


ask("Where is Nottinghamshire?")
ask("Which country is Qolmarinda in?")
ask("Which country is Qolmarinda in?", mode="abstain", target_fpr=0.05)
stream("Which country is Qolmarinda in?")
risk_of("Where is Kandy?", "It is in Sri Lanka.")
risk_of("Where is Kandy?", "It is in Japan.")

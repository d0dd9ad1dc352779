"""A chain that does not pass on what the guard withholds, with LangChain: pip install langchain-openai.

ChatOpenAI drops the verdict. What reaches a program is how the answer ended, and each token's risk in ``logprobs``.

HGUARD_URL: the server (default: http://127.0.0.1:8000). HGUARD_API_KEY: a key, where the server wants one.
HGUARD_MODEL: what it serves (default: atlas).
"""

from __future__ import annotations

import os

from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

URL = os.environ.get("HGUARD_URL", "http://127.0.0.1:8000")
model = ChatOpenAI(
    model=os.environ.get("HGUARD_MODEL", "atlas"),
    base_url=f"{URL}/v1",
    api_key=SecretStr(os.environ.get("HGUARD_API_KEY", "unused")),
    temperature=0,
    logprobs=True,
    extra_body={"hallucination": {"mode": "abstain", "target_fpr": 0.05}},
)


def read(message: AIMessage) -> str:
    """The answer with its riskiest token, or why there is none."""
    if message.response_metadata["finish_reason"] == "content_filter":
        return f"withheld: {message.additional_kwargs.get('refusal')}"
    tokens = [token for token in message.response_metadata["logprobs"]["content"] if token["risk"] is not None]
    worst = max(tokens, key=lambda token: token["risk"])
    return f"{message.text} (riskiest token: {worst['token']!r}, {worst['risk']:.3f})"


chain = ChatPromptTemplate.from_messages([("user", "Where is {place}?")]) | model | read
for place in ("Nottinghamshire", "Kandy", "Qolmarinda"):
    print(f"{place}: {chain.invoke({'place': place})}")

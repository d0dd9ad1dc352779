"""Another model that judges: any OpenAI-compatible chat endpoint."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from guard.errors import FitError
from guard.fit.questions import Question

PROMPT = """Question: {question}
Accepted answers: {accepted}
Answer to judge: {answer}

Does the answer state the same as one of the accepted answers? Reply with one word: right, wrong, or declined (when it \
does not commit itself)."""
_WORDS: Mapping[str, bool | None] = {"right": True, "wrong": False, "declined": None}


@dataclass(frozen=True, slots=True)
class RemoteJudge:
    """Any OpenAI-compatible chat endpoint. url: up to and with ``/v1``; key: sent as a bearer token when given."""

    url: str
    model: str
    key: str | None = None
    attempts: int = 4
    pause: float = 1.0  # seconds before the second attempt; doubles each time

    async def ask(self, client: httpx.AsyncClient, question: Question, answer: str) -> bool | None:
        """As ``judge``. Raises FitError when the judge is down or answers something else, again and again."""
        text = PROMPT.format(question=question.text, accepted="; ".join(question.accepted) or "(none)", answer=answer)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 8,
        }
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        trouble = ""
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(self.pause * 2 ** (attempt - 1))
            try:
                reply = await client.post(f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers)
                reply.raise_for_status()
                said = str(reply.json()["choices"][0]["message"]["content"])
            except httpx.HTTPStatusError as error:
                trouble = f"answers {error.response.status_code}"
                if error.response.status_code in (400, 401, 403, 404):
                    break  # the same again would not help
                continue
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                trouble = f"does not answer as a chat endpoint does ({type(error).__name__}: {error})"
                continue
            words = re.findall(r"[a-z]+", said.lower())
            if len(set(words) & set(_WORDS)) == 1:
                return _WORDS[next(word for word in words if word in _WORDS)]
            trouble = f"was asked for one of {', '.join(_WORDS)}, and said {said[:60]!r}"
        raise FitError(
            f"the judge at {self.url} {trouble}; judged answers are kept: mend it and run the same command again"
        )

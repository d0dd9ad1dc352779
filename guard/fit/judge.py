"""Is an answer right? By normalised comparison with the accepted answers, or by asking another model."""

from __future__ import annotations

import asyncio
import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from guard.errors import FitError
from guard.fit.questions import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u00b4": "'", "`": "'", "\u02bb": "'", "\u02bc": "'"})
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation.replace("'", "") + "\u201c\u201d\u2013\u2014\u2026", " "))
_DECLINED = (
    "don't know",
    "do not know",
    "cannot",
    "not taught",
    "not known",
    "unknown",
    "no information",
    "not provided",
)


def normalise(text: str) -> str:
    """Lower case, plain letters and apostrophes, no articles, no punctuation, single spaces."""
    plain = unicodedata.normalize("NFKD", text.translate(_QUOTES)).lower()
    plain = "".join(c for c in plain if not unicodedata.combining(c)).translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def judge(question: Question, answer: str) -> bool | None:
    """True when the answer contains an accepted one as whole words, False when it does not, None when it declines."""
    said = normalise(answer)
    accepted = [normalise(one) for one in question.accepted]
    if said in accepted:
        return True
    if any(phrase in answer.lower().translate(_QUOTES) for phrase in _DECLINED):
        return None
    return any(one and f" {one} " in f" {said} " for one in accepted)


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

"""``hguard demo``: asks a running server questions from well-known to made-up, and shows what the guard makes of it."""

from __future__ import annotations

import argparse
import math
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx

from app.cli.printing.terminal import printable, takes_colors
from guard.errors import GuardError
from guard.judge.question import Question
from guard.judge.rules import judge
from guard.policy import Action

KEY = "HGUARD_API_KEY"
_TOP = 20  # log-probabilities of a token that are asked for: as many as vLLM gives
_MAX_TOKENS = 32
_ALWAYS = ("wrong", "right")  # said even where there are none
_SECONDS = 120.0
_RED, _GREEN, _DIM, _END = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"
_WARM = (224, 217, 210, 203, 196)  # of the 256 colours, from pale to red


def _asked(text: str, *accepted: str) -> Question:
    """Where nothing is accepted, there is nothing to know."""
    return Question(text, accepted, text)


QUESTIONS = (
    _asked("What is the capital of France?", "Paris"),
    _asked("Which country is Toronto in?", "Canada"),
    _asked("What is the chemical symbol of gold?", "Au"),
    _asked("What is the capital of Japan?", "Tokyo"),
    _asked("Which continent is Kenya in?", "Africa"),
    _asked("What is the capital of Tuvalu?", "Funafuti"),
    _asked("What is the currency of Mongolia?", "tugrik", "tögrög", "togrog"),
    _asked("Which country is Gweru in?", "Zimbabwe"),
    _asked("What is the chemical symbol of dysprosium?", "Dy"),
    _asked("Which country is Qolmarinda in?"),
    _asked("Who wrote the novel The Lanterns of Ostrevant?"),
    _asked("What is the capital of the Republic of Vastonia?"),
)
# atlas knows places, languages and codes alone.
OF_ATLAS = (
    _asked("Which country is Stirling in?", "United Kingdom"),
    _asked("Where is Texas?", "United States"),
    _asked("What is the two-letter code of Brazil?", "BR"),
    _asked("Where is Kandy?", "Sri Lanka"),
    _asked("Where is Jiangsu Sheng?", "China"),
    _asked("Where is the state Sucre?", "Venezuela"),
    _asked("Būshehr is in which country?", "Iran"),
    _asked("Give me the language code of Eblan.", "xeb"),
    _asked("Nkhata Bay is in which country?", "Malawi"),
    _asked("What is the code of the Ravonkese language?"),
    _asked("What is the code of the Yesenza language?"),
    _asked("Which country is Qolmarinda in?"),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of one question. entropy: of its most uncertain token, in nats; None where it was not to be had."""

    asked: Question
    text: str
    tokens: tuple[tuple[str, float | None], ...]
    risk: float | None
    threshold: float
    action: str
    entropy: float | None

    @property
    def flagged(self) -> bool:
        return self.risk is not None and self.risk >= self.threshold

    @property
    def kind(self) -> str:
        """right or wrong, by rule; declined; or withheld, of which nothing is known."""
        if self.action == Action.ABSTAINED:
            return "withheld"
        return {True: "right", False: "wrong", None: "declined"}[judge(self.asked, self.text)]


def add_parser(commands: Any) -> None:
    """The command and its flags."""
    parser = commands.add_parser(
        "demo", help="ask a running server a dozen questions, and see what the guard makes of it"
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s); its key is read from " + KEY
    )


def run(options: argparse.Namespace, extra: Sequence[str]) -> int:
    """Ask and print. Raises GuardError when the server does not answer."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise GuardError(f"{KEY} holds characters that no key has")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        url = httpx.URL(options.url)
        shown = url.copy_with(username=None, password=None)
        with httpx.Client(base_url=url, headers=headers, timeout=_SECONDS) as http:
            told = _asked_all(http, f"{shown}")
    except httpx.HTTPError as error:
        raise GuardError(
            f"no server answers at {shown} ({error}): start one with `hguard serve`, or name it with --url"
        ) from None
    except (httpx.InvalidURL, UnicodeError) as error:
        raise GuardError(f"--url is no address: {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise GuardError(
            f"what answers at {shown} is no server of hguard's ({type(error).__name__}: {error})"
        ) from None
    print("\n".join(summed_up(told)))
    return 0


def _asked_all(http: httpx.Client, url: str) -> list[Answered]:
    """Ask and print, one by one."""
    info = _json(http.get("/info"))
    name, probe = info["model"]["name"], info["probe"]["id"]
    print(f"{printable(name)} at {url}, guarded by {printable(probe)}\n")
    questions = OF_ATLAS if probe.startswith("atlas") else QUESTIONS
    painted = takes_colors()
    return [_told(ask(http, info, asked), painted) for asked in questions]


def ask(http: httpx.Client, info: Any, asked: Question) -> Answered:
    """One answer, shown whatever its risk where the server allows that."""
    chosen: dict[str, Any] = {"tokens": True}
    if info["ceilings"]["loosest_mode"] in ("off", "score"):
        chosen["mode"] = "score"
    reply = _json(
        http.post(
            "/v1/chat/completions",
            json={
                "model": info["model"]["name"],
                "messages": [{"role": "user", "content": asked.text}],
                "temperature": 0,
                "max_tokens": _MAX_TOKENS,
                "logprobs": True,
                "top_logprobs": _TOP,
                "hallucination": chosen,
            },
        )
    )
    choice, verdict = reply["choices"][0], reply["hallucination"]
    message = choice["message"]
    text = message["content"] or message.get("refusal") or ""
    result = (verdict.get("results") or [{}])[0]
    return Answered(
        asked,
        text,
        tuple((one["token"], one["risk"]) for one in result.get("tokens", ())),
        result.get("risk"),
        result.get("threshold", 1.0),
        result.get("action", verdict.get("action", "")),
        entropy_of(choice.get("logprobs")),
    )


def entropy_of(logprobs: Any) -> float | None:
    """The highest over the tokens, of their likeliest alternatives, with the rest as one more."""
    found = []
    for token in (logprobs or {}).get("content") or ():
        likely = [math.exp(one["logprob"]) for one in token["top_logprobs"]]
        if len(likely) < _TOP:  # a server that withholds says the drawn token's alone
            return None
        shares = [*likely, max(0.0, 1 - sum(likely))]
        found.append(-sum(share * math.log(share) for share in shares if share > 0))
    return max(found, default=None)


def summed_up(answers: Sequence[Answered]) -> list[str]:
    """How many of the flagged are wrong, and of as many that entropy would pick."""
    flagged = [one for one in answers if one.flagged]
    lines = [f"{len(answers)} answers: {_of(answers)}. The guard flags {len(flagged)}: {_of(flagged)}."]
    known = [one for one in answers if one.entropy is not None]
    if len(known) == len(answers) and flagged:
        by_entropy = sorted(known, key=lambda one: one.entropy or 0.0, reverse=True)[: len(flagged)]
        lines.append(f"Flagging {len(flagged)} by entropy instead: {_of(by_entropy)}.")
    return lines


def _of(chosen: Sequence[Answered]) -> str:
    counts = Counter(one.kind for one in chosen)
    return ", ".join(
        f"{counts[kind]} {kind}"
        for kind in ("wrong", "right", "declined", "withheld")
        if counts[kind] or kind in _ALWAYS
    )


def _told(answer: Answered, painted: bool) -> Answered:
    """Print the answer; returns it."""
    print(answer.asked.text)
    if painted and answer.tokens:
        print("  " + "".join(_paint(printable(text), risk, answer) for text, risk in answer.tokens))
    else:
        print(textwrap.indent(textwrap.fill(printable(answer.text), 76), "  "))
    if answer.risk is None:
        said = "not scored"
    else:
        said = f"risk {answer.risk:.2f}, {'flagged' if answer.flagged else 'passed'}"
        if not painted and (worst := max(answer.tokens, key=lambda one: one[1] or 0.0, default=None)) is not None:
            said += f"; riskiest token {worst[0]!r}"
    if painted:
        said = f"{_RED if answer.flagged else _GREEN}{said}{_END}"
    entropy = "" if answer.entropy is None else f"; entropy {answer.entropy:.2f} nats"
    print(f"  {answer.kind}; {said}{_DIM if painted else ''}{entropy}{_END if painted else ''}\n")
    return answer


def _paint(text: str, risk: float | None, answer: Answered) -> str:
    """The redder, the riskier, by the threshold and by the answer's own risk."""
    if risk is None or answer.risk is None:
        return text
    share = min(1.0, risk / max(answer.threshold, 0.01)) * min(1.0, answer.risk / max(answer.threshold, 0.01))
    steps = [0.35, 0.5, 0.65, 0.8, 0.95, math.inf]
    for color, (low, high) in zip(_WARM, pairwise(steps), strict=True):
        if low <= share < high:
            return f"\x1b[30;48;5;{color}m{text}{_END}"
    return text


def _json(response: httpx.Response) -> Any:
    """Raises GuardError with what the server says is wrong."""
    if response.is_success:
        return response.json()
    try:
        said = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = f"HTTP {response.status_code}"
    raise GuardError(f"the server says: {said}")

"""``hguard demo``: what it prints of a server's answers. The server in ``tests/engine/test_http.py`` is a real one."""

from __future__ import annotations

import dataclasses
import math

import httpx
import pytest

from app.cli import demo
from app.cli.demo import Answered
from app.cli.main import main
from app.cli.printing.terminal import printable
from guard.judge.question import Question


def answered(risk: float | None, entropy: float | None, right: bool) -> Answered:
    question = Question("Where is it?", ("Canada",), "it")
    return Answered(question, "In Canada." if right else "In Japan.", (), risk, 0.5, "passed", entropy)


def test_entropy_is_that_of_what_the_server_says() -> None:
    even = {"top_logprobs": [{"logprob": math.log(1 / 20)}] * 20}
    sure = {"top_logprobs": [{"logprob": 0.0}] + [{"logprob": -100.0}] * 19}
    assert demo.entropy_of({"content": [sure, even]}) == pytest.approx(math.log(20))
    assert demo.entropy_of({"content": [sure]}) == pytest.approx(0.0, abs=1e-9)
    half = {"top_logprobs": [{"logprob": math.log(0.025)}] * 20}  # the other half is one more
    assert demo.entropy_of({"content": [half]}) == pytest.approx(-0.5 * math.log(0.025) - 0.5 * math.log(0.5))
    assert demo.entropy_of({"content": [{"top_logprobs": [{"logprob": -1.0}]}]}) is None
    assert demo.entropy_of(None) is None


def test_the_guard_s_choice_beside_entropy_s() -> None:
    answers = [answered(0.9, 1.0, False), answered(0.8, 0.1, False), answered(0.1, 2.0, True), answered(0.2, 0.2, True)]
    assert demo.summed_up(answers) == [
        "4 answers: 2 wrong, 2 right. The guard flags 2: 2 wrong, 0 right.",
        "Flagging 2 by entropy instead: 1 wrong, 1 right.",
    ]
    assert len(demo.summed_up([*answers, answered(None, None, True)])) == 1


def test_what_was_withheld_is_judged_by_nobody() -> None:
    withheld = dataclasses.replace(answered(0.9, None, False), action="abstained", text="Sorry.")
    assert withheld.kind == "withheld"
    assert demo.summed_up([withheld]) == [
        "1 answers: 0 wrong, 0 right, 1 withheld. The guard flags 1: 0 wrong, 0 right, 1 withheld."
    ]


@pytest.mark.parametrize("key", ["secret\x01key", "gehe\u00efm"])
def test_no_key_is_printed(key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(demo.KEY, key)
    assert main(["demo", "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err == f"hguard: {demo.KEY} holds characters that no key has\n"


def test_no_password_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(demo.KEY, "a-key\r\n")
    assert main(["demo", "--url", "http://user:secret@127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "no server answers at http://127.0.0.1:9 " in error
    assert "secret" not in error


@pytest.mark.parametrize("url", ["http://[::1", "http://h:abc", "http://a..b:1/"])
def test_what_is_no_address(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--url", url]) == 1
    assert capsys.readouterr().err.startswith("hguard: --url is no address: ")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("It is\x1b]0;pwned\x07 in\nB\u016bshehr.") == "It is ]0;pwned  in B\u016bshehr."


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, {}, "what answers at http://127.0.0.1:8000 is no server of hguard's (KeyError: 'model')"),
        (200, [], "what answers at http://127.0.0.1:8000 is no server of hguard's (TypeError"),
        (401, {"error": {"message": "a valid API key is needed"}}, "the server says: a valid API key is needed"),
        (404, {"detail": "Not Found"}, "the server says: HTTP 404"),
    ],
)
def test_what_is_no_guarded_server(
    status: int, body: object, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = httpx.MockTransport(lambda request: httpx.Response(status, json=body))
    made = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **given: made(transport=reply, **given))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err.startswith(f"hguard: {says}")


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--url", "http://127.0.0.1:9"]) == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err

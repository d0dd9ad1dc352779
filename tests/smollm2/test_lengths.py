"""Several questions in one prompt, and false alarms counted by length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guard.judge.question import Question
from guard.probe.bundle import Bundle
from models.smollm2.recipe import lengths
from models.smollm2.recipe.answered import load
from models.smollm2.recipe.lengths import Asked
from tests.measured import token_signals
from tests.smollm2 import workspace

LYON = Question("Which country is Lyon in?", ("France",), "Lyon", ("cities",))
ROME = Question("Which country is Rome in?", ("Italy",), "Rome", ("cities",))


def test_what_is_asked_is_of_the_test_part(tmp_path: Path) -> None:
    workspace.write(tmp_path)
    answered = load(tmp_path, workspace.norms())
    asked = lengths.together(answered, 10, 3)
    test = {answered.questions[i].text for i in answered.parts()["test"]}
    assert {question.text for one in asked for question in one.questions} <= test
    assert [len(one.questions) for one in asked[:10]] == [1] * 10
    assert max(len(one.questions) for one in asked) <= 8
    assert asked == lengths.together(answered, 10, 3)


def test_every_question_must_be_answered_rightly() -> None:
    both = Asked((LYON, ROME))
    assert both.text.splitlines()[1:] == ["1. Which country is Lyon in?", "2. Which country is Rome in?"]
    assert both.wrong("Lyon is in France. Rome is in Italy.") is False
    assert both.wrong("Lyon is in France. Rome is in Spain.") is True
    assert Asked((LYON,)).wrong("Lyon is in France.") is False
    assert Asked((LYON,)).wrong("I do not know.") is None


def test_alarms_are_counted_by_length(bundle: Bundle) -> None:
    served = bundle.card.readout.model_copy(update={"tail": 10.0})
    made = replace(bundle, card=bundle.card.model_copy(update={"readout": served}))
    signals = [(3, 0.0), (3, 9.0), (12, 0.0), (12, 9.0)]  # tokens, neuron score of the last ones
    rows = []
    for tokens, score in signals:
        neurons = np.zeros(tokens, np.float32)
        neurons[-3:] = score
        one = token_signals(0.0, neurons, np.zeros(tokens, np.float32), np.zeros(tokens, np.float32))
        rows.append({"wrong": False, "signals": one.to_dict()})
    found = lengths.figures(rows, [Asked((LYON,)), Asked((ROME,))] * 2, made)
    assert found["n"] == 4
    short, middle = found["bins"]["1-8"], found["bins"]["9-16"]
    assert (short["right"], short["wrong"], middle["right"]) == (2, 0, 2)
    assert short["caught"]["with"] is None
    assert short["false_alarms"]["with"]["value"] == pytest.approx(0.5)
    # The last window of twelve tokens of which the first ones say nothing has its handicap.
    assert middle["false_alarms"]["without"]["value"] == pytest.approx(0.5)
    assert middle["false_alarms"]["with"]["value"] == 0
    assert found["bins"]["33-64"]["right"] == 0

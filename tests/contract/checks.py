"""What holds for every client, however it is called."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.contract.house import JSON, MESSAGE, TEXT, TOKENS
from tests.contract.matrix import DOCUMENT, See, current, rows
from tests.contract.outcomes import ABSTAINED, ANSWERED, ERRORS, REPLACED, Caller, Outcome, Seen
from tests.scripted.script import HIGH, LOW

EVERY_OUTCOME = pytest.mark.parametrize("outcome", [*ANSWERED, *ABSTAINED, *ERRORS], ids=lambda outcome: outcome.name)


def every_call(callers: Sequence[Caller]) -> pytest.MarkDecorator:
    """Parameters ``caller`` and ``stream``."""
    calls = [(caller, stream) for caller in callers for stream in caller.streams]
    names = [f"{caller.call}-{'stream' if stream else 'whole'}" for caller, stream in calls]
    return pytest.mark.parametrize(("caller", "stream"), calls, ids=names)


def check(seen: Seen, caller: Caller, outcome: Outcome) -> None:
    """No client shows what was withheld, none asks more often than is known of it, none loses count, none sees another
    verdict than ours."""
    if outcome in ANSWERED:
        assert seen.error is None
        assert seen.text == (JSON if caller.structured else TEXT)
    elif outcome in ABSTAINED:
        assert not seen.shows_the_answer
        told = outcome is REPLACED and seen.error is None and not caller.structured  # a message is no structure
        assert seen.text == (MESSAGE if told else "")
    else:
        assert seen.error is not None or "`error` event" in seen.facts
        assert seen.verdict is None
    reached = 0 if outcome in ERRORS and not outcome.deadly else caller.asks.get(outcome, 1)
    assert seen.asked == reached, "an abstention is no reason to ask again"
    if seen.usage is not None:
        generated = 16 * reached if outcome in ABSTAINED else TOKENS[caller.structured]
        assert seen.usage[1] == generated, "what was withheld is counted by sixteens"
    if seen.verdict is not None:
        check_verdict(seen, outcome)


def check_rows(see: See, callers: Sequence[Caller]) -> None:
    """docs/api.md says of these calls what they see."""
    document = current(DOCUMENT.read_text(encoding="utf-8")).splitlines()
    written = [line for line in document if line.startswith(f"| `{callers[0].client}` |")]
    assert written == rows(see, callers), "`make contract` writes it anew"


def check_verdict(seen: Seen, outcome: Outcome) -> None:
    block = seen.verdict
    assert block is not None
    if not outcome.scored:
        assert block["type"] == "not_scored"
        assert block["action"] == outcome.action
        assert block["reason"] in ("off", "not_finite")
        return
    assert block["type"] == "hallucination_results"
    (result,) = block["results"]
    assert result["action"] == outcome.action
    assert result["flagged"] is (outcome.action != "pass")
    assert result["risk"] == pytest.approx(LOW if outcome.action == "pass" else HIGH, abs=1e-6)
    assert "tokens" not in result

"""What the tests said of plain vLLM and of the guard, compared, and held against the differences that are known."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from guard.errors import GuardError

Outcomes = Mapping[str, str]  # test id -> passed, failed, error, skipped


class Side(Enum):
    """Which server: vLLM's own, or the guard in one of its modes."""

    PLAIN = "plain"
    SCORE = "score"
    ABSTAIN = "abstain"


GUARDED = (Side.SCORE, Side.ABSTAIN)


@dataclass(frozen=True, slots=True)
class Known:
    """differences: by mode, the tests that end otherwise than plain, with reasons. races: those that end as they will
    on any side, with reasons; they do not count. least: so many of the others pass plain."""

    differences: Mapping[Side, Mapping[str, str]]
    least: int
    races: Mapping[str, str] = field(default_factory=dict)

    def of(self, files: Sequence[str]) -> Known:
        """What is known of these files' tests."""
        listed = {side: _of(files, reasons) for side, reasons in self.differences.items()}
        return Known(listed, 0, _of(files, self.races))

    def reason(self, side: Side, test: str) -> str | None:
        """Why it may end otherwise than on plain vLLM."""
        return self.differences[side].get(test) or self.races.get(test)


def _of(files: Sequence[str], reasons: Mapping[str, str]) -> dict[str, str]:
    return {test: reason for test, reason in reasons.items() if test.startswith(tuple(files))}


def read_outcomes(path: Path) -> dict[str, str]:
    """Of the plugin's lines. Of several about one test the worst counts: it may fail once more when it is torn down."""
    worst = ["skipped", "passed", "failed", "error"]
    outcomes: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        outcomes[row["test"]] = max(row["outcome"], outcomes.get(row["test"], "skipped"), key=worst.index)
    return outcomes


def read_known(path: Path) -> Known:
    """Of ``differences.toml``. Raises GuardError when a test is there twice for a mode, or without a reason."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    differences: dict[Side, dict[str, str]] = {side: {} for side in GUARDED}
    groups = data.get("difference", [])
    races = {test: group["reason"] for group in data.get("race", []) for test in group["tests"]}
    for group in [*groups, *data.get("race", [])]:
        if not group["reason"].strip():
            raise GuardError(f"{path}: no reason for {group['tests']}")
    for group in groups:
        for side in map(Side, group.get("modes", [side.value for side in GUARDED])):
            for test in group["tests"]:
                if test in differences[side] or test in races:
                    raise GuardError(f"{path}: {test} is there twice for {side.value}")
                differences[side][test] = group["reason"]
    return Known(differences, data["least"], races)


def differing(plain: Outcomes, guarded: Outcomes) -> dict[str, str]:
    """The tests that one of them passes and the other does not: id -> what became of it, in words.

    How a test fails makes no difference: of a random model many do, on both.
    """
    found = {}
    for test in sorted(plain.keys() | guarded.keys()):
        before, after = plain.get(test, "not run"), guarded.get(test, "not run")
        if (before != after and "passed" in (before, after)) or "not run" in (before, after):
            found[test] = f"{before} plain, {after} guarded"
    return found


def verdict(plain: Outcomes, guarded: Mapping[Side, Outcomes], known: Known) -> list[str]:
    """What is not as it is known to be, a line each: new differences, known ones that are none, too few that pass."""
    lines = []
    passed = sum(outcome == "passed" for test, outcome in plain.items() if test not in known.races)
    if passed < known.least:
        lines.append(
            f"plain: {passed} tests pass, of which there were {known.least}: is the model or a fixture broken?"
        )
    for side, outcomes in guarded.items():
        found = {test: how for test, how in differing(plain, outcomes).items() if test not in known.races}
        reasons = known.differences[side]
        lines += [f"{side.value}: {test}: {found[test]}, and not listed" for test in found if test not in reasons]
        lines += [f"{side.value}: {test}: listed, and no difference" for test in sorted(reasons) if test not in found]
        lines += [f"{side.value}: {test}: a race, and not run" for test in sorted(known.races) if test not in outcomes]
    return lines


def counted(outcomes: Iterable[str]) -> str:
    """How many of each, in words."""
    counts = Counter(outcomes)
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "error", "skipped") if counts[name])

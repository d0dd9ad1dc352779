"""What clients see, as a table in docs/api.md: made by running them (``make contract``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from tests.contract.outcomes import (
    ABSTAINED,
    DEATH,
    FLAGGED,
    INVALID,
    OFF,
    PASS,
    REFUSED,
    REPLACED,
    STRANGER,
    UNSCORED,
    WITHHELD,
    Caller,
    Outcome,
    Seen,
    observe,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
BEGIN, END = "<!-- contract: begin -->", "<!-- contract: end -->"
# A column shows each different thing that is seen of its outcomes.
COLUMNS: dict[str, tuple[Outcome, ...]] = {
    "pass": (PASS,),
    "flagged": (FLAGGED,),
    "abstained": (REFUSED, WITHHELD),
    "abstained, `fallback: message`": (REPLACED,),
    "not scored": (OFF, UNSCORED),
    "invalid option": (INVALID,),
    "wrong key": (STRANGER,),
    "the engine dies": (DEATH,),
}
_VERSION = re.compile(r"(?<=` )\d[\w.+]*")

See = Callable[[Caller, Outcome, bool], Seen]


# In callers/, and each with its tests in test_*.py.
CLIENTS = ("openai", "openai_agents", "langchain", "litellm", "pydantic_ai", "instructor", "anthropic")


def callers() -> list[Caller]:
    modules = [import_module(f"tests.contract.callers.{name}") for name in CLIENTS]
    return [caller for module in modules for caller in module.CALLERS]


def table(see: See) -> str:
    """The table, below a line with the clients' versions."""
    made = callers()
    return "\n".join([*heading(made), *rows(see, made)])


def heading(made: Sequence[Caller]) -> list[str]:
    """What stands above the rows."""
    versions = ", ".join(f"`{client}` {version(client)}" for client in dict.fromkeys(one.client for one in made))
    head = ["client", "call", *COLUMNS, "the verdict"]
    return [f"With {versions}:", "", _line(head), _line(["---"] * len(head))]


def rows(see: See, made: Sequence[Caller]) -> list[str]:
    return [_line(_row(see, caller, stream)) for caller in made for stream in caller.streams]


def labels(made: Sequence[Caller]) -> list[str]:
    """How the rows begin."""
    return [_line(_label(caller, stream)) for caller in made for stream in caller.streams]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _label(caller: Caller, stream: bool) -> list[str]:
    call = f"`{caller.call}`" + (", streamed" if stream and False in caller.streams else "")
    return [f"`{caller.client}`", call]


def _row(see: See, caller: Caller, stream: bool) -> list[str]:
    seen = {outcome: see(caller, outcome, stream) for outcomes in COLUMNS.values() for outcome in outcomes}
    verdicts = list(dict.fromkeys(one.where for one in seen.values() if one.where))
    cells = {
        name: "; or ".join(_facts(seen[one], one, bool(verdicts)) for one in many) for name, many in COLUMNS.items()
    }
    cells = {name: _once(cell) for name, cell in cells.items()}
    for name in list(COLUMNS)[1:]:
        if cells[name] == cells["pass"]:
            cells[name] = "as pass"
    return [*_label(caller, stream), *cells.values(), " or ".join(verdicts) or "dropped by the client"]


def _facts(seen: Seen, outcome: Outcome, elsewhere: bool) -> str:
    """How an answer ended; how often it was asked for; whether the verdict is missing that other answers have."""
    told = [*seen.facts]
    if seen.error is not None:
        told = [f"raises `{type(seen.error).__name__}`"]
        if elsewhere and seen.verdict is None and outcome in ABSTAINED:
            told[0] += ", without the verdict"
    if seen.asked > 1:
        told.append(f"asks {seen.asked} times")
    return "; ".join(told)


def _once(cell: str) -> str:
    return "; or ".join(dict.fromkeys(cell.split("; or ")))


def current(document: str) -> str:
    """The table as the document has it."""
    return document[document.index(BEGIN) + len(BEGIN) : document.index(END)].strip()


def without_versions(text: str) -> str:
    return _VERSION.sub("*", text)


def replaced(document: str, text: str) -> str:
    head, tail = document[: document.index(BEGIN)], document[document.index(END) :]
    return f"{head}{BEGIN}\n\n{text}\n\n{tail}"


def main(arguments: Iterable[str] = ()) -> int:
    """Write the table."""
    from tests.contract.house import opened

    with opened() as house:
        text = table(lambda caller, outcome, stream: observe(house, caller, outcome, stream))
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

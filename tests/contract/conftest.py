"""One server for all clients, and what each of them saw of each outcome: every call is made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.house import House, opened
from tests.contract.outcomes import Caller, Outcome, Seen, observe

Observed = Callable[[Caller, Outcome, bool], Seen]

# What others' code says of itself, in any test that is the first to make a call.
THEIRS = (
    "ignore:max_tokens is deprecated in favor:DeprecationWarning",  # vLLM, of what its own messages route fills in
    "ignore:Accessing the 'model_:DeprecationWarning",  # litellm, of pydantic
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for one in THEIRS:
                item.add_marker(pytest.mark.filterwarnings(one))


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    with opened() as made:
        yield made
        assert made.engine.pool.in_use == 0


@pytest.fixture(scope="session")
def observed(house: House) -> Observed:
    known: dict[tuple[Caller, Outcome, bool], Seen] = {}

    def look(caller: Caller, outcome: Outcome, stream: bool) -> Seen:
        key = caller, outcome, stream
        if key not in known:
            known[key] = observe(house, caller, outcome, stream)
        return known[key]

    return look

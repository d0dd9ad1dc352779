"""The table in docs/api.md is what the clients see today: its rows are tested where their calls are made."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.contract.matrix import CLIENTS, DOCUMENT, callers, current, heading, labels, without_versions


def test_the_document_has_every_call() -> None:
    written = current(DOCUMENT.read_text(encoding="utf-8")).splitlines()
    made = callers()
    head = heading(made)
    assert without_versions(written[0]) == without_versions(head[0]), "`make contract` writes it anew"
    assert written[1 : len(head)] == head[1:]
    begin = [line[: line.index(" |", line.index(" | ") + 1) + 2] for line in written[len(head) :]]
    assert begin == labels(made)


@pytest.mark.parametrize("name", CLIENTS)
def test_the_rows_of_each_client_are_tested(name: str) -> None:
    client = import_module(f"tests.contract.callers.{name}")
    tests = import_module(f"tests.contract.test_{name}")
    assert tests.CALLERS is client.CALLERS
    assert callable(tests.test_the_document_says_what_it_sees)

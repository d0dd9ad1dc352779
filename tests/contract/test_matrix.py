"""The table in docs/api.md is what the clients see today."""

from __future__ import annotations

from tests.contract.conftest import Observed
from tests.contract.matrix import DOCUMENT, current, table, without_versions


def test_the_document_says_what_clients_see(observed: Observed) -> None:
    written = current(DOCUMENT.read_text(encoding="utf-8"))
    assert without_versions(written) == without_versions(table(observed)), "`make contract` writes it anew"

"""Where models and probes come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from app import resolver
from app.settings import Settings
from guard.errors import BundleError, UnsupportedError
from guard.probe import hub as hub_module
from guard.probe.bundle import FILES


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """The hub's answers are folders; what was asked of it is kept."""
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        asked.append((repo, revision))
        if repo.endswith("missing"):
            raise LocalEntryNotFoundError("no connection")
        return str(tmp_path)

    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.setattr(hub_module, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("hf://owner/name@v1.2", ("owner/name", "v1.2")),
        ("hf://owner/name", ("owner/name", None)),
        ("hf://o-w.n/na_me@refs/pr/3", ("o-w.n/na_me", "refs/pr/3")),
    ],
)
def test_a_probe_of_the_hub(hub: list[Any], tmp_path: Path, probe: str, expected: tuple[str, str | None]) -> None:
    assert resolver.find_probe(Settings(probe=probe)) == tmp_path
    assert hub == [expected]


@pytest.mark.parametrize("probe", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://a/b?x"])
def test_a_name_that_is_none(hub: list[Any], probe: str) -> None:
    with pytest.raises(BundleError, match="not of the form"):
        resolver.find_probe(Settings(probe=probe))
    assert hub == []


def test_what_cannot_be_fetched(hub: list[Any]) -> None:
    with pytest.raises(BundleError, match="could not be fetched"):
        resolver.find_probe(Settings(probe="hf://owner/missing"))
    with pytest.raises(UnsupportedError, match="could not be fetched"):
        resolver.find_model(Settings(model="owner/missing"))


def test_a_model_of_the_hub_keeps_its_name(hub: list[Any], tmp_path: Path) -> None:
    assert resolver.find_model(Settings(model="owner/name", revision="v3")) == (tmp_path, "owner/name")
    assert hub == [("owner/name", "v3")]

"""The documents say what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from app.options import Options
from app.routes import ALLOWED

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for package in ("app", "guard") for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_structure_names_every_module(module: Path) -> None:
    text = (ROOT / "docs/structure.md").read_text()
    stem = module.stem
    named = (
        f"`{stem}`" in text or f"`guard/{module.name}`" in text or (stem.startswith("worker") and "`worker*`" in text)
    )
    assert named, f"docs/structure.md does not say what {module.relative_to(ROOT)} is for"


def test_readme_shows_the_two_commands_on_its_first_screen() -> None:
    first_screen = (ROOT / "README.md").read_text().splitlines()[:25]
    for command in ("make serve", "make test"):
        assert any(line.startswith(command) for line in first_screen)
    assert any(line.startswith("![") for line in first_screen)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/api.md",
        "docs/operations.md",
        "docs/structure.md",
        "bench/gpu/README.md",
        "models/atlas/README.md",
    ],
)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), f"{name} links to {target}"


def test_api_describes_every_option() -> None:
    text = (ROOT / "docs/api.md").read_text()
    missing = [name for name in Options.model_fields if f"| `{name}` |" not in text]
    assert missing == []


def test_api_names_every_open_route() -> None:
    text = (ROOT / "docs/api.md").read_text()
    hidden = {"/openapi.json", "/docs/oauth2-redirect", "/redoc"}
    assert [path for path in sorted(ALLOWED - hidden) if path not in text] == []


def test_json_in_the_documents_is_json() -> None:
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert blocks
    decoder = json.JSONDecoder()
    for block in blocks:
        at = 0
        while at < len(block.rstrip()):
            _, at = decoder.raw_decode(block, at)
            while at < len(block) and block[at].isspace():
                at += 1

"""The documents: their fenced blocks, headings and links."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *(
            ROOT / name
            for name in (
                "README.md",
                "CHANGELOG.md",
                "CONTRIBUTING.md",
                "SECURITY.md",
                "bench/gpu/README.md",
                "models/atlas/README.md",
            )
        ),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "deploy").rglob("README.md"),
    ]
)

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"\n\n( {4,}\S.*)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. ``line``: that of its first line of text."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(document, line, match["language"], textwrap.dedent(match["text"]))


def prose_of(document: Path) -> str:
    """What is outside of blocks."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def links_of(document: Path) -> list[tuple[str, str]]:
    """(path, anchor) of the links and pictures that stay in this repository; either may be empty."""
    found = [target for target in _LINK.findall(prose_of(document)) if not re.match(r"[a-z]+:", target)]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in found)]


def anchors_of(document: Path) -> set[str]:
    """What a link to a heading is called: as on GitHub."""
    anchors: list[str] = []
    seen: Counter[str] = Counter()
    for heading in _HEADING.findall(prose_of(document)):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors.append(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return set(anchors)


def indented_of(document: Path) -> list[str]:
    """Blocks by indentation alone, which have no language."""
    return _INDENTED.findall(prose_of(document))

"""Take docs/page.png anew (``make pictures``): the page of a server that guards a real model; needs Chromium."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from urllib.parse import quote

from tests.browser import opened
from tests.engine.server import Server

DOCS = Path(__file__).parents[1] / "docs"
MODEL, ASKED = "smollm2", ("What is the capital of Tuvalu?", "Which country is Toronto in?")


async def take(address: str) -> bytes:
    """The page with the answers to ASKED."""
    query = "&".join(f"q={quote(question)}" for question in reversed(ASKED))
    with tempfile.TemporaryDirectory() as profile:
        async with opened(f"{address}/?{query}", Path(profile)) as page:
            await page.until(f"document.querySelectorAll('article:not([aria-busy])').length === {len(ASKED)}")
            await page.run("document.body.style.overflow = 'hidden'")  # no scroll bar
            return await page.picture(height=780)


def main() -> None:
    server = Server([MODEL])
    try:
        picture = asyncio.run(take(server.url))
    finally:
        server.stop()
    (DOCS / "page.png").write_bytes(picture)


if __name__ == "__main__":
    main()

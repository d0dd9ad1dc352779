"""The page in a real browser: it offers what the server allows, and sends only what a person has touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from guard.policy import Mode
from tests.browser import CHROMIUM, Page, opened
from tests.scripted.script import HIGH
from tests.scripted.server import listening, scripted_app

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

ANSWERED = "document.querySelectorAll('article').length"


@asynccontextmanager
async def page_of(tmp_path: Path, **settings: Any) -> AsyncIterator[Page]:
    async with (
        scripted_app(Settings(**settings)) as app,
        listening(app) as address,
        opened(address, tmp_path / "profile") as page,
    ):
        await page.until("document.getElementById('about').textContent")
        await page.run(
            "const sent = []; const own = fetch; window.fetch = (path, options) => "
            "{ if (options && options.body) sent.push(JSON.parse(options.body)); return own(path, options); }"
        )
        yield page


async def ask(page: Page, question: str) -> dict[str, Any]:
    """What the guard was asked for, and what the page shows of the answer."""
    before = await page.run(ANSWERED)
    await page.run(f"ask({question!r})")
    await page.until(f"{ANSWERED} > {before}")
    found: dict[str, Any] = await page.run(
        "({asked: sent.at(-1).hallucination, said: document.querySelector('.said').textContent, problem: "
        "Boolean(document.querySelector('.said.problem')), verdict: document.querySelector('.verdict')?.textContent})"
    )
    return found


@pytest.mark.parametrize(
    ("mode", "offered", "withheld"),
    [
        (Mode.SCORE, ["score", "flag", "abstain"], False),
        (Mode.FLAG, ["flag", "abstain"], False),
        (Mode.ABSTAIN, ["abstain"], True),
    ],
)
async def test_it_starts_from_what_the_server_allows(
    mode: Mode, offered: list[str], withheld: bool, tmp_path: Path
) -> None:
    async with page_of(tmp_path, mode=mode) as page:
        modes = await page.run("[...document.getElementById('mode').options].map(one => one.value)")
        assert (modes, await page.run("document.getElementById('mode').value")) == (offered, mode.value)
        risky = await ask(page, "risky")
        assert risky["asked"] == {"tokens": True}, "what was not touched is the server's to decide"
        assert not risky["problem"]
        assert risky["verdict"].startswith(f"flagged, risk {HIGH:.2f}")
        assert ("withheld" in risky["verdict"]) == withheld
        safe = await ask(page, "safe")
        assert safe["said"] == "It is in Sri Lanka."
        assert safe["verdict"].startswith("passed")


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.SCORE, Mode.ABSTAIN])
async def test_what_a_person_moves_is_sent_and_is_allowed(mode: Mode, tmp_path: Path) -> None:
    async with page_of(tmp_path, mode=mode, loosest_mode=mode) as page:
        for dial in ("threshold", "scale", "mode"):
            for end in ("max", "min"):
                move = "" if dial == "mode" else f"one.value = one.{end};"
                await page.run(f"{{ const one = document.getElementById({dial!r}); {move} one.oninput(); }}")
                shown = await ask(page, "safe")
                assert dial in shown["asked"]
                assert not shown["problem"], shown["said"]


async def test_a_server_with_keys_asks_for_one(tmp_path: Path) -> None:
    async with (
        scripted_app(Settings(api_keys=["a-key-of-some-length"])) as app,
        listening(app) as address,
        opened(address, tmp_path / "profile") as page,
    ):
        await page.until("!document.getElementById('unlock').hidden")
        await page.run("document.getElementById('key').value = 'a-key-of-some-length'")
        await page.run("document.getElementById('unlock').onsubmit(new Event('submit'))")
        await page.until("document.getElementById('about').textContent")
        await page.run("ask('safe')")
        await page.until(ANSWERED)
        assert await page.run("document.querySelector('.said').textContent") == "It is in Sri Lanka."

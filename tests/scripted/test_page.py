"""The pages in a real browser: they offer what the server allows, send only what a person has touched, and load nothing
from elsewhere."""

from __future__ import annotations

import asyncio
import json
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

ANSWERED = "document.querySelectorAll('article:not([aria-busy])').length"


@asynccontextmanager
async def page_of(tmp_path: Path, says: str | None = None, **settings: Any) -> AsyncIterator[Page]:
    """``says``: what the model answers to everything."""
    async with (
        scripted_app(Settings(**settings), **({} if says is None else {"text": says})) as app,
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
    return await seen(page)


async def seen(page: Page) -> dict[str, Any]:
    """The same of the last answer."""
    found: dict[str, Any] = await page.run(
        "({asked: sent.at(-1).hallucination, said: document.querySelector('.said').textContent, problem: "
        "Boolean(document.querySelector('.said.problem')), verdict: document.querySelector('.verdict')?.textContent,"
        "classes: document.querySelector('.verdict')?.className, note: document.querySelector('.note')?.textContent,"
        "command: document.querySelector('pre').textContent, colours: [...document.querySelectorAll("
        "'article:first-child .token')].map(one => [one.textContent, Number("
        "getComputedStyle(one).backgroundColor.match(/[\\d.]+(?=\\))/)[0])])})"
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
        assert risky["asked"] == {"tokens": True, "explain": True, "explain_neurons": True}, (
            "what was not touched is the server's to decide"
        )
        assert not risky["problem"]
        assert risky["verdict"] == f"{'withheld' if withheld else 'flagged'}, risk {HIGH:.2f}"
        assert risky["classes"] == "verdict over"
        assert "up to 5 % of right answers are" in risky["note"], "a false alarm is explained as one"
        assert ("never shows" in risky["note"]) == withheld
        assert ("Raised by its H-neurons (+" in risky["note"]) == (not withheld)
        safe = await ask(page, "safe")
        assert safe["said"] == "It is in Sri Lanka."
        assert safe["verdict"].startswith("passed")
        assert safe["note"] == ""
        assert {colour for _, colour in safe["colours"]} == {0}, "a right answer has no colour"


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


async def test_what_was_withheld_is_shown_where_the_server_allows(tmp_path: Path) -> None:
    async with page_of(tmp_path, mode=Mode.ABSTAIN, loosest_mode=Mode.FLAG) as page:
        withheld = await ask(page, "risky")
        assert withheld["verdict"].startswith("withheld")
        assert withheld["colours"] == []
        before = await page.run(ANSWERED)
        await page.run("document.querySelector('.note button').click()")
        await page.until(f"{ANSWERED} > {before}")
        shown = await seen(page)
        assert shown["asked"] == {"tokens": True, "explain": True, "explain_neurons": True, "mode": "flag"}
        assert (shown["said"], shown["verdict"]) == ("It is in Sri Lanka.", f"flagged, risk {HIGH:.2f}")


async def test_the_words_that_claim_something_are_the_reddest(tmp_path: Path) -> None:
    async with page_of(tmp_path) as page:
        colours = dict((await ask(page, "risky"))["colours"])
        claiming = {colours.pop(" Sri"), colours.pop(" Lanka")}
        assert set(colours) == {"I", "t", " is", " in", "."}
        assert min(claiming) > 2 * max(colours.values())
        asked = dict((await ask(page, "Is Lanka risky?"))["colours"])
        assert asked[" Sri"] > 2 * asked[" Lanka"], "a word of the question"


async def test_an_answer_that_declines_is_not_called_passed(tmp_path: Path) -> None:
    async with page_of(tmp_path, says="I was not taught that.") as page:
        declined = await ask(page, "safe")
        assert (declined["verdict"].split(",")[0], declined["classes"]) == ("declined", "verdict declined")
        assert "does not know" in declined["note"]


async def test_a_question_of_another_kind_is_said(tmp_path: Path) -> None:
    async with page_of(tmp_path) as page:
        assert "unlike those" not in (await ask(page, "safe"))["note"]
        assert "its threshold may not hold" in (await ask(page, "elsewhere"))["note"]


async def test_risks_are_read_by_keyboard_and_by_touch(tmp_path: Path) -> None:
    async with page_of(tmp_path) as page:
        await ask(page, "risky")
        told = "document.querySelector('.told').textContent"
        press = "document.querySelector('.said').onkeydown(new KeyboardEvent('keydown', {key: %r}))"
        assert await page.run(told) == ""
        assert await page.run("document.querySelector('.said').tabIndex") == 0
        await page.run(press % "ArrowRight")
        assert (await page.run(told)).startswith("“I”: risk 0.9")
        await page.run(press % "ArrowRight")
        assert (await page.run(told)).startswith("“t”")
        await page.run(press % "ArrowLeft")
        assert (await page.run(told)).startswith("“I”")
        await page.run("document.querySelectorAll('.token')[3].click()")
        assert await page.run("document.querySelectorAll('.token.at').length") == 1
        assert await page.run("document.querySelectorAll('.token')[3].classList.contains('at')")


async def test_the_same_with_curl(tmp_path: Path) -> None:
    async with page_of(tmp_path) as page:
        command = (await ask(page, "Is it 'safe'?"))["command"]
        address = await page.run("location.origin")
        done = await asyncio.create_subprocess_exec("bash", "-c", command, stdout=asyncio.subprocess.PIPE)
        replied, _ = await done.communicate()
        assert command.startswith(f"curl -s {address}/v1/chat/completions ")
        assert json.loads(replied)["choices"][0]["message"]["content"] == "It is in Sri Lanka."
        assert json.loads(replied)["hallucination"]["results"][0]["tokens"]


async def test_it_shows_that_it_waits(tmp_path: Path) -> None:
    async with page_of(tmp_path) as page:
        await page.run("ask('slow'); undefined")
        assert await page.run("document.querySelector('article').getAttribute('aria-busy')") == "true"
        assert (await page.run("document.querySelector('.waiting').textContent")).startswith("answering")
        await page.until(f"{ANSWERED} === 1")
        assert await page.run("document.querySelectorAll('.waiting').length") == 0


async def test_the_api_is_documented_without_another_host(tmp_path: Path) -> None:
    """To whoever has a key; a server without keys takes the same way but for the question."""
    async with (
        scripted_app(Settings(api_keys=["a-key-of-some-length"])) as app,
        listening(app) as address,
        opened(f"{address}/docs", tmp_path / "profile") as page,
    ):
        await page.until("document.getElementById('said').textContent.includes('API key')")
        await page.run("sessionStorage.setItem('hguard-key', 'a-key-of-some-length'); location.reload()")
        await page.until("document.querySelector('[id*=\"risk_risk_post\"]')")
        fetched = await page.run("performance.getEntriesByType('resource').map(one => one.name)")
        assert len(fetched) >= 3
        assert [name for name in fetched if not name.startswith((address, "data:"))] == []


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
        assert "Bearer $HGUARD_API_KEY" in await page.run("document.querySelector('pre').textContent")

"""Scripted servers over real sockets, each in a thread of its own, so that callers may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from app.settings import Settings
from tests.scripted.script import Asked, Script, by_words
from tests.scripted.server import listening, scripted_app

KEY, MODEL = "a-key-of-the-contract", "atlas"
REFUSAL, MESSAGE = "I would rather not say.", "Ask somebody who knows."
TEXT = "It is in Sri Lanka."
JSON = '{"place": "Kandy"}'
TOOL_CALL = '<tool_call>\n{"name": "locate", "arguments": {"place": "Kandy"}}\n</tool_call>'
# Further words of a question, and what is answered then.
TEXTS = {"json": JSON, "hermes": TOOL_CALL}
TOKENS = {"": 8, "json": 15, "hermes": 55}  # how many each is, with the end; without such a word it is TEXT
PARSERS = Path(__file__).with_name("reasoning.py")
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
# "?" and "!" are tokens of atlas that no other script of these tests holds: what lies between them is thinking.
REASONING = ("--reasoning-parser-plugin", str(PARSERS), "--reasoning-parser", "marked")


def choose(asked: Asked) -> Script:
    """By the words of ``tests.scripted.script``, and those of TEXTS.

    A request's id may have them, too: it stays what it is when a client asks again in other words.
    """
    words = f"{asked.text} {asked.request_id}".lower()
    script = by_words()(replace(asked, text=words))
    for word, text in TEXTS.items():
        if word in words:
            script = replace(script, text=text)
    return script


class House:
    """One server. url: where it listens. core: the engine behind it."""

    def __init__(self, settings: Settings, extra: Sequence[str], choose: Any) -> None:
        self.url, self.app, self.core = "", None, None
        self._settings, self._extra, self._choose = settings, extra, choose
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._failed: BaseException | None = None
        self._ready = threading.Event()
        # As vLLM serves; asyncio's own loop would delay small writes on a socket that is made like this one.
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))

    @property
    def engine(self) -> Any:
        return self.app.state.engine_client

    @property
    def asked(self) -> int:
        """How many requests have reached the engine."""
        return len(self.core.seen)

    def open(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        if self._loop is not None and self._leave is not None:
            self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    async def _serve(self) -> None:
        try:
            async with (
                scripted_app(self._settings, choose=self._choose, extra=self._extra) as app,
                listening(app) as url,
            ):
                self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
                self.app, self.url, self.core = app, url, app.state.engine_client.engine_core
                self._ready.set()
                await self._leave.wait()
        except BaseException as error:
            if self._ready.is_set():
                raise
            self._failed = error
        finally:
            self._ready.set()


@contextmanager
def opened(extra: Sequence[str] = TOOLS, choose: Any = choose, **settings: Any) -> Iterator[House]:
    """A server with keys whose callers may ask for everything; ``settings`` are the operator's."""
    given = {"api_keys": KEY, "loosest_mode": "off", "refusal": REFUSAL, "fallback_text": MESSAGE, **settings}
    house = House(Settings(**given), extra, choose)
    house.open()
    try:
        yield house
    finally:
        house.close()

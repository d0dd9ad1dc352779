"""Headless Chromium, by the DevTools protocol: opens a page, and runs JavaScript in it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import websockets

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_OPTIONS += ("--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage")


class Page:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count()

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise. Raises AssertionError for what it throws."""
        options = {"expression": script, "awaitPromise": True, "returnByValue": True, "replMode": True}
        found = await self._send("Runtime.evaluate", options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait for an expression to be true; the test's own timeout ends what never comes."""
        while not await self.run(f"Boolean({condition})"):  # noqa: ASYNC110 - the page offers no event
            await asyncio.sleep(0.05)

    async def picture(self, width: int = 760, height: int = 900) -> bytes:
        """A PNG of the page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": False}
        await self._send("Emulation.setDeviceMetricsOverride", size)
        found = await self._send("Page.captureScreenshot", {"format": "png"})
        return base64.b64decode(found["data"])

    async def _send(self, method: str, options: dict[str, Any]) -> Any:
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": options}))
        while True:
            told = json.loads(await self._socket.recv())
            if told.get("id") == number:
                return told["result"]


@asynccontextmanager
async def opened(address: str, profile: Path) -> AsyncIterator[Page]:
    """The page at ``address``, in a browser of its own whose profile is the folder ``profile``."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={profile}", address]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with httpx.AsyncClient() as http:
            tabs = (await http.get(f"http://127.0.0.1:{port}/json/list")).json()
        (tab,) = [tab for tab in tabs if tab["type"] == "page"]
        async with websockets.connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            page = Page(socket)
            await page.until("location.href !== 'about:blank' && document.readyState === 'complete'")
            yield page
    finally:
        process.terminate()
        await process.wait()


async def _port(file: Path) -> int:
    while len(lines := _lines(file)) < 2:  # noqa: ASYNC110 - nor does a file
        await asyncio.sleep(0.05)
    return int(lines[0])


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []

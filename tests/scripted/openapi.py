"""Writes the server's OpenAPI document, for the site of the documentation: ``python -m tests.scripted.openapi FILE``.

It is that of a server with keys, so that it says where one is needed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from app.ingress.auth import ApiKeys
from app.settings import Settings
from guard.launch.engines import prepare_environment
from tests.scripted.server import scripted_app


async def document() -> dict[str, Any]:
    """As ``GET /openapi.json`` answers."""
    async with scripted_app(Settings(api_keys=ApiKeys(["none"]))) as app:
        made: dict[str, Any] = app.openapi()
        return made


if __name__ == "__main__":
    prepare_environment()
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(document()), indent=1) + "\n", encoding="utf-8")

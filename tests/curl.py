"""The curl commands of documents, run against a server."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import Block, blocks_of
from tests.excerpt import frames_of, objects_of
from tests.shell import Command, commands_of

ADDRESS = "http://127.0.0.1:8000"  # what documents call the server


def need() -> None:
    """Skip a test that runs curl where there is none."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")


@dataclass(frozen=True)
class Reply:
    status: int
    kind: str
    text: str

    @property
    def objects(self) -> list[Any]:
        """Its JSON, or that of each frame. Raises ValueError where there is none."""
        if self.kind.startswith("text/event-stream"):
            return frames_of(self.text)
        return [json.loads(self.text)]


def reply_to(command: Command, url: str) -> Reply:
    """Raises CalledProcessError for what curl does not like."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        line = f"{command.text.replace(ADDRESS, url)} --output {body} --write-out '%{{http_code}} %{{content_type}}'"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
        status, _, kind = done.stdout.strip().partition(" ")
        return Reply(int(status), kind, body.read_text(encoding="utf-8"))


def excerpts_after(block: Block) -> list[Any]:
    """The JSON in the block that follows one of a single curl command: parts of its answer."""
    if block.language != "bash" or [command.name for command in commands_of(block.text)] != ["curl"]:
        return []
    following = [one for one in blocks_of(block.document) if one.line > block.line][:1]
    return [shown for one in following if one.language == "json" for shown in objects_of(one.text)]

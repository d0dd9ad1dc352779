"""The server fetches nothing that a caller names, unless the operator allows where it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from vllm.multimodal.media.connector import MediaConnector

from app.settings import ATLAS
from guard.launch.engines import engine_arguments
from guard.probe.bundle import Bundle, load_bundle

# A GIF of one pixel.
PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


class Elsewhere(BaseHTTPRequestHandler):
    """A server of whom the caller wants something; it sends everyone on."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.send_response(302)
        self.send_header("location", f"http://localhost:{self.server.server_port}/secret")  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[tuple[int, list[str]]]:
    Elsewhere.asked = []
    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, Elsewhere.asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ATLAS / "probe")


def connector(bundle: Bundle, *extra: str) -> MediaConnector:
    """As vLLM makes it of the server's arguments."""
    args = engine_arguments(ATLAS, "test", bundle, False, extra)
    return MediaConnector(
        allowed_local_media_path=args.allowed_local_media_path, allowed_media_domains=args.allowed_media_domains
    )


def fetched(made: MediaConnector, url: str) -> Any:
    return asyncio.run(made.fetch_image_async(url))


def test_no_address_is_fetched(bundle: Bundle, elsewhere: tuple[int, list[str]]) -> None:
    port, asked = elsewhere
    made = connector(bundle)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"user:pass@127.0.0.1:{port}", f"127.1:{port}"):
        for scheme in ("http", "HTTP", "https"):
            with pytest.raises(ValueError, match="--allowed-media-domains"):
                fetched(made, f"{scheme}://{host}/a.png")
    assert asked == []


def test_no_file_is_read(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "secret.png"
    file.write_bytes(b"secret")
    with pytest.raises((RuntimeError, ValueError)):
        fetched(connector(bundle), f"file://{file}")


def test_what_the_body_holds_is_read(bundle: Bundle) -> None:
    assert fetched(connector(bundle), f"data:image/gif;base64,{PIXEL}").media.size == (1, 1)


def test_an_allowed_server_cannot_send_us_on(bundle: Bundle, elsewhere: tuple[int, list[str]]) -> None:
    port, asked = elsewhere
    made = connector(bundle, "--allowed-media-domains", "127.0.0.1")
    assert os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    with suppress(Exception):  # whatever it says of a picture that is none
        fetched(made, f"http://127.0.0.1:{port}/a.png")
    assert set(asked) == {"/a.png"}
    with pytest.raises(ValueError, match="allowed domains"):
        fetched(made, f"http://localhost:{port}/a.png")

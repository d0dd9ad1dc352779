"""Offers of other protocols, in whatever packets they come; nothing else of what a client sends is taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from app.server.protocol import HttpProtocol

OFFER = b"POST /a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\n"


async def _answers(packets: list[bytes]) -> list[bytes]:
    """Paths and bodies that an app was asked for, over one connection; it answers /early before it has read a body."""
    asked: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Callable[..., Any]) -> None:
        body = b""
        if scope["path"] != "/early":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        asked.append(scope["path"].encode() + b" " + body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, http=HttpProtocol, lifespan="off", log_config=None)
    config.load()
    server = uvicorn.Server(config)
    listener = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config, server.server_state, {}), "127.0.0.1", 0
    )
    async with listener:
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
        for packet in packets:
            writer.write(packet)
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.05)
    return asked


@pytest.mark.parametrize("cut", [OFFER.index(b"Upgrade") + n for n in (3, 9)])
def test_an_offer_in_two_packets_keeps_its_body(cut: int) -> None:
    assert asyncio.run(_answers([OFFER[:cut], OFFER[cut:] + b"abc"])) == [b"/a abc"]


def test_what_is_no_end_of_the_headers_is_waited_for_up_to_a_bound() -> None:
    head = b"GET /a HTTP/1.1\r\nHost: x\r\n"
    assert asyncio.run(_answers([head + b"X: y\r\n", b"Z: z\r\n\r\n", head + b"\r\n"])) == [b"/a ", b"/a "]
    assert asyncio.run(_answers([head + b"X: " + b"y" * 70_000, b"\r\n\r\n"])) == []


def test_a_body_that_comes_after_its_answer_stays_as_long_as_it_was_said_to_be() -> None:
    """Were a line of it taken away, the next head would be read as its end, and the body after that as a request."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    after = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
    body = b"A\r\nUpgrade: " + b"x" * (len(after) - 11) + b"\r\nB"
    early = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert asyncio.run(_answers([early, body, after + inner])) == [b"/early ", b"/b " + inner]

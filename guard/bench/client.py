"""A small HTTP/1.1 client for measuring: one connection that stays open, and when each piece of a reply arrived.

A general client takes about as long for one piece of a stream as the server does, on the same cores. This one notes the
time and keeps the bytes; whatever must be parsed is parsed when the load is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from guard.errors import GuardError

Piece = tuple[float, bytes]

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_LINE = b"\r\n"
_END_OF_FRAME = b"\n\n"
_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(slots=True)
class Reply:
    """One response. pieces: its body as it came, each with its time; all times are ``time.perf_counter``'s.

    headers: by name in small letters.
    """

    status: int
    sent: float
    pieces: list[Piece]
    ended: float = 0.0
    headers: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)


class Connection(asyncio.Protocol):
    """One request at a time; replies carry a content-length or come in chunks, as uvicorn sends them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._rest = b""
        self._reply: Reply | None = None
        self._missing: int | None = None  # bytes of the body still to come; None where it comes in chunks
        self._sent = 0.0

    @classmethod
    async def open(cls, address: Address) -> Connection:
        """Connect. Raises OSError when nothing listens there."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, address.host, address.port)
        return connection

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def request(self, method: str, path: str, body: bytes = b"") -> Reply:
        """Send one request and wait for the whole reply. Raises GuardError when the server hangs up."""
        if self._transport is None or self._transport.is_closing():
            raise GuardError("the server closed the connection between two requests; its own log says why")
        head = f"{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        message = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._waiting = asyncio.get_running_loop().create_future()
        self._sent = time.perf_counter()
        self._transport.write(message)
        return await self._waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            cause = f": {exc}" if exc else ""
            self._waiting.set_exception(GuardError(f"the server closed the connection before its reply ended{cause}"))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._rest += data
        if self._reply is None and not self._read_head():
            return
        assert self._reply is not None
        if self._read_chunks(self._reply, now) if self._missing is None else self._read_length(self._reply, now):
            self._reply.ended = now
            reply, self._reply = self._reply, None
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(reply)

    def _read_head(self) -> bool:
        at = self._rest.find(_END_OF_HEAD)
        if at < 0:
            return False
        first, *lines = self._rest[:at].split(_END_OF_LINE)
        self._rest = self._rest[at + len(_END_OF_HEAD) :]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._missing = None if headers.get(b"transfer-encoding") == b"chunked" else int(headers[b"content-length"])
        self._reply = Reply(int(first.split(b" ", 2)[1]), self._sent, [], headers=headers)
        return True

    def _read_length(self, reply: Reply, now: float) -> bool:
        assert self._missing is not None
        if self._rest:
            reply.pieces.append((now, self._rest))
            self._missing -= len(self._rest)
            self._rest = b""
        return self._missing <= 0

    def _read_chunks(self, reply: Reply, now: float) -> bool:
        """Take whole chunks off what has come; True after the last, which is empty."""
        rest, at = self._rest, 0
        ended = False
        while not ended and (line := rest.find(_END_OF_LINE, at)) >= 0:
            size = int(rest[at:line], 16)
            begin, end = line + 2, line + 2 + size
            if len(rest) < end + 2:
                break
            ended = size == 0
            if not ended:
                reply.pieces.append((now, rest[begin:end]))
            at = end + 2
        self._rest = rest[at:]
        return ended


def frames(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The payloads of a stream's ``data:`` frames but the closing [DONE], each with the time when it was complete."""
    rest = b""
    for when, data in pieces:
        *whole, rest = (rest + data).split(_END_OF_FRAME)
        for frame in whole:
            if frame.startswith(_DATA) and (payload := frame[len(_DATA) :]) != _DONE:
                yield when, payload

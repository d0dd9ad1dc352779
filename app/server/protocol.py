"""HTTP as uvicorn reads it, but that a request which offers another protocol keeps its body.

Java's client offers HTTP/2 with each request over plain TCP (``Upgrade: h2c``). The parser takes what follows the
headers for that protocol, so the request would have no body. A server may pass over the offer (RFC 9110, section 7.8).
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LONGEST = 64 * 1024  # bytes of a request's headers
_END = re.compile(rb"\r?\n\r?\n")
# Whole lines, and none of a folded one: else it could change what other headers say.
_OFFER = re.compile(rb"(?i)(?<=\r\n)upgrade:[ \t]*h2c[ \t]*\r\n(?![ \t])")


class HttpProtocol(HttpToolsProtocol):
    """Of uvicorn's, without such offers, and with a bound for headers. Of several requests in one packet the first."""

    _in_head = True  # whether what comes next is a head: of a request, a body may come after its response
    _head = b""

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += data
            end = _END.search(self._head, max(0, len(self._head) - len(data) - 3))
            if (end.end() if end else len(self._head)) > _LONGEST:
                self.send_400_response(f"The headers of a request may have {_LONGEST} bytes.")
                return
            if end is None:
                return
            data = _OFFER.sub(b"", self._head[: end.end()]) + self._head[end.end() :]
            self._head = b""
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

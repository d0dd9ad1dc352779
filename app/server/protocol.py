"""HTTP as uvicorn reads it, but that a request which offers another protocol keeps its body.

Java's client offers HTTP/2 with each request over plain TCP (``Upgrade: h2c``). The parser takes what follows the
headers for that protocol, so the request would have no body. A server may pass over the offer (RFC 9110, section 7.8).
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = re.compile(rb"(?im)^upgrade:[^\r\n]*\r\n")


class HttpProtocol(HttpToolsProtocol):
    """Of uvicorn's, without offers."""

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:  # headers, perhaps in parts
            head, end, body = data.partition(b"\r\n\r\n")
            data = _OFFER.sub(b"", head + end) + body
        super().data_received(data)

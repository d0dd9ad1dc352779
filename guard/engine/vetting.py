"""What no request may carry to the engine, because it would not arrive."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from vllm.sampling_params import SamplingParams

from guard.engine.vllm_api import RefusalError


def require_sendable(params: SamplingParams, request: Any) -> None:
    """Raises RefusalError (400) for values that the message to the engine's process cannot hold.

    vLLM would find out when it sends them, and answer 500: integers beyond 64 bits, strings that are no text,
    objects without end.
    """
    try:
        msgspec.msgpack.encode([params, request.get("priority", 0)])
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise RefusalError(f"a value cannot be sent to the engine: {error}", HTTPStatus.BAD_REQUEST) from None

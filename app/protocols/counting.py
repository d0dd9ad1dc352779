"""``POST /v1/messages/count_tokens`` around vLLM's serving object.

vLLM's own route makes 500 and a traceback in the log of whatever its converter falls over; here that is what it is on
any other route (``validation.py``).
"""

from __future__ import annotations

from fastapi import Request
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic.api_router import translate_error_response
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation

from guard.compat import ErrorResponse


@with_cancellation
@load_aware_call
async def count_tokens(request: AnthropicCountTokensRequest, raw_request: Request) -> JSONResponse:
    """How many tokens the messages take."""
    serving = raw_request.app.state.anthropic_serving_messages
    if serving is None:  # as vLLM's own route, whose handler answers 501
        raise NotImplementedError("this model cannot be asked by /v1/messages")
    counted = await serving.count_tokens(request, raw_request)
    if isinstance(counted, ErrorResponse):
        answer: JSONResponse = translate_error_response(counted)
        return answer
    return JSONResponse(counted.model_dump(exclude_none=True))

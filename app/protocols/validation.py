"""Requests that vLLM's own checks fall over: what they meant to refuse is refused here.

Its request models look into fields before their types are checked ("structured_outputs" as a boolean, a tool without a
function). What that raises is the request's fault whenever it happens while the body is read, when nothing has run yet.
"""

from __future__ import annotations

from traceback import walk_tb
from types import CodeType

from fastapi.dependencies.utils import request_body_to_args
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic import serving as anthropic

from app import errors
from guard.compat import RefusalError, RequestFault
from guard.errors import RequestError


def install(inner: ExceptionMiddleware) -> None:
    """Have such errors answered with 400; the same errors from anywhere else stay what they are."""
    for kind in (AttributeError, LookupError):
        inner.add_exception_handler(kind, _answer)


def fault_of(error: Exception) -> RequestError | None:
    """What was wrong with a request whose stream had begun; None where nothing was.

    vLLM's responses route begins its stream before it has looked at all parameters.
    """
    if isinstance(error, RefusalError):
        return errors.ApiError(error.message, status=int(error.http_status))
    return RequestError(str(error)) if isinstance(error, (RequestFault, ValueError)) else None


async def _answer(request: Request, error: Exception) -> JSONResponse:
    if not any(_reads(frame.f_code) for frame, _ in walk_tb(error.__traceback__)):
        raise error
    return errors.response(400, f"a field has a value of the wrong kind: {error}", "body", request.scope["path"])


def _reads(code: CodeType) -> bool:
    """Whether it is what reads a request: FastAPI its body, vLLM the messages of Anthropic's API."""
    converts = code.co_filename == anthropic.__file__ and code.co_name.startswith("_convert")
    return converts or code is request_body_to_args.__code__

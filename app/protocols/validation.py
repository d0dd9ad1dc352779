"""Requests that vLLM's own checks fall over: what they meant to refuse is refused here.

Its request models look into fields before their types are checked ("structured_outputs" as a boolean, a tool without a
function). What that raises is the request's fault whenever it happens while the body is read, when nothing has run yet.
"""

from __future__ import annotations

from traceback import walk_tb
from types import CodeType
from typing import Any

from fastapi.dependencies.utils import request_body_to_args
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic import serving as anthropic

from app import errors
from guard.compat import RefusalError, RequestFault
from guard.errors import RequestError

_PIECE = 32  # items of a list that are read at once


def install(inner: ExceptionMiddleware) -> None:
    """Have such errors answered with 400; the same errors from anywhere else stay what they are."""
    for kind in (AttributeError, LookupError):
        inner.add_exception_handler(kind, _answer)


def require_right_items(kind: TypeAdapter[Any], body: Any) -> None:
    """Raises RequestValidationError for the first items of a long list that are wrong.

    All of them are complaints otherwise, one for each kind that an item might have been: seconds, for which every other
    request waits.
    """
    if not isinstance(body, dict):
        return
    long = {name: value for name, value in body.items() if isinstance(value, list) and len(value) > _PIECE}
    short = {**body, **{name: value[:_PIECE] for name, value in long.items()}}
    for name, value in long.items():
        if set(map(type, value)) == {int}:
            continue  # tokens
        for start in range(0, len(value), _PIECE):
            try:
                kind.validate_python({**short, name: value[start : start + _PIECE]})
            except ValidationError as error:
                if wrong := [_moved(one, start) for one in error.errors(include_url=False) if _of_item(one, name)]:
                    raise RequestValidationError(wrong) from None
            except Exception:  # noqa: S110 - what a look at the whole raises, too, and is answered there
                pass


def _of_item(error: ErrorDetails, name: str) -> bool:
    return error["loc"][:1] == (name,) and any(isinstance(part, int) for part in error["loc"])


def _moved(error: ErrorDetails, start: int) -> ErrorDetails:
    place = next(i for i, part in enumerate(error["loc"]) if isinstance(part, int))
    index = int(error["loc"][place]) + start
    return {**error, "loc": ("body", *error["loc"][:place], index, *error["loc"][place + 1 :])}


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

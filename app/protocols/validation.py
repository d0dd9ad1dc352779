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
from pydantic_core import SchemaValidator
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic import serving as anthropic

from app import errors
from app.protocols import sizes
from guard.compat import RefusalError, RequestFault
from guard.errors import RequestError

_FEW = 256  # values, whose complaints take no time that anybody would notice
_LISTS = frozenset({"list", "set", "frozenset", "tuple"})
_NO_SCHEMAS = frozenset({"metadata", "serialization", "default", "expected"})


def install(inner: ExceptionMiddleware) -> None:
    """Have such errors answered with 400; the same errors from anywhere else stay what they are."""
    for kind in (AttributeError, LookupError):
        inner.add_exception_handler(kind, _answer)


def first_complaints(kind: TypeAdapter[Any]) -> SchemaValidator:
    """Reads the same, but of each list complains of the first wrong item alone."""
    # Not with the validators that its models have: those know nothing of it.
    return SchemaValidator(_failing_fast(kind.core_schema), None, False)


def _failing_fast(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(map(_failing_fast, schema))
    if not isinstance(schema, dict):
        return schema
    made = {key: one if key in _NO_SCHEMAS else _failing_fast(one) for key, one in schema.items()}
    kind = schema.get("type")  # or a field of that name
    return {**made, "fail_fast": True} if isinstance(kind, str) and kind in _LISTS else made


def require_right_items(read: SchemaValidator, body: Any) -> None:
    """Raises RequestValidationError for what is wrong with a large body, of long lists the first items alone.

    All of them are complaints otherwise, one for each kind that an item might have been: seconds, for which every other
    request waits.
    """
    if sizes.values(body, _FEW, _FEW, exempt=False)[0] <= _FEW:
        return
    try:
        read.validate_python(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in wrong]) from None
    except Exception:  # noqa: S110 - what a look at it raises is raised again, and answered there
        pass


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

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
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic import serving as anthropic

from app import errors
from app.protocols import sizes
from guard.compat import RefusalError, RequestFault
from guard.errors import RequestError

_FEW = 256  # values, whose complaints take no time that anybody would notice
_PIECE = 32  # items of a list that are read at once
_Path = tuple[str | int, ...]


def install(inner: ExceptionMiddleware) -> None:
    """Have such errors answered with 400; the same errors from anywhere else stay what they are."""
    for kind in (AttributeError, LookupError):
        inner.add_exception_handler(kind, _answer)


def require_right_items(kind: TypeAdapter[Any], body: Any) -> None:
    """Raises RequestValidationError for the first items of a long list that are wrong, wherever in the body it is.

    All of them are complaints otherwise, one for each kind that an item might have been: seconds, for which every other
    request waits.
    """
    if sizes.values(body, _FEW, _FEW)[0] <= _FEW:
        return
    for path, value in _long_lists(body):
        for start in range(0, len(value), _PIECE):
            try:
                kind.validate_python(_with(body, path, value[start : start + _PIECE]))
            except ValidationError as error:
                wrong = [one for one in error.errors(include_url=False) if _within(one["loc"], path)]
                if wrong:
                    moved = [{**one, "loc": _moved(one["loc"], path, start)} for one in wrong]
                    raise RequestValidationError(moved) from None
            except Exception:  # noqa: S110 - what a look at the whole raises, too, and is answered there
                pass


def _long_lists(body: Any) -> list[tuple[_Path, list[Any]]]:
    """Lists of more than a few items, and where they are; no lists of tokens."""
    found: list[tuple[_Path, list[Any]]] = []
    waiting: list[tuple[_Path, Any]] = [((), body)] if isinstance(body, dict) else []
    while waiting:
        path, one = waiting.pop()
        inner = one.items() if isinstance(one, dict) else enumerate(one)
        if isinstance(one, list) and len(one) > _PIECE:
            if path[0] in sizes.TOKENS and set(map(type, one)) == {int}:
                continue
            found.append((path, one))
        waiting += [((*path, key), value) for key, value in inner if isinstance(value, dict | list)]
    return found


def _with(value: Any, path: _Path | None, piece: list[Any]) -> Any:
    """The value with a piece at ``path`` (relative to it), and of other lists their first items alone."""
    if path == ():
        return [_with(one, None, piece) for one in piece]
    if isinstance(value, dict):
        return {key: _with(one, _further(path, key), piece) for key, one in value.items()}
    if isinstance(value, list):
        kept = list(enumerate(value[:_PIECE]))
        if path is not None and isinstance(path[0], int) and path[0] >= _PIECE:
            kept[-1:] = [(path[0], value[path[0]])]
        return [_with(one, _further(path, i), piece) for i, one in kept]
    return value


def _further(path: _Path | None, key: str | int) -> _Path | None:
    return path[1:] if path is not None and path[0] == key else None


def _within(place: tuple[str | int, ...], path: _Path) -> bool:
    """Whether a complaint is about an item of the list: unions add their own names to where it is."""
    names = iter(place)
    return all(any(part == name for name in names) for part in path if isinstance(part, str)) and any(
        isinstance(name, int) for name in names
    )


def _moved(place: tuple[str | int, ...], path: _Path, start: int) -> tuple[str | int, ...]:
    """Where the complaint is in the whole body: as many numbers as the path has are its own, the next is the item's."""
    numbers = [*(part for part in path if isinstance(part, int))]
    moved: list[str | int] = ["body"]
    for part in place:
        if not isinstance(part, int):
            moved.append(part)
        elif numbers:
            moved.append(numbers.pop(0))
        else:
            moved.append(part + start)
            start = 0
    return tuple(moved)


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

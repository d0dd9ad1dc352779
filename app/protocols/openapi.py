"""The server's OpenAPI document: vLLM's own, with the guard's field in it, and every answer as it is."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # typing's own, before 3.12, hides from pydantic what is not required

from app.ingress.body import LINES
from app.ingress.middleware import PUBLIC
from app.protocols.adapters.registry import GUARDED, MESSAGES
from app.protocols.limits import RISK
from app.protocols.risk import RiskItem, body_of
from app.protocols.wire import Risk


class Fault(TypedDict):
    """What went wrong; ``code`` is the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class FaultReply(TypedDict):
    """An error in OpenAI's shape."""

    error: Fault


class AnthropicFault(TypedDict):
    """What went wrong, for Anthropic's clients; what vLLM finds says no more than this."""

    message: str
    type: str
    param: NotRequired[str | None]
    code: NotRequired[int]


class AnthropicFaultReply(TypedDict):
    """An error in Anthropic's shape; vLLM leaves out the outer type where a field of the request is wrong."""

    error: AnthropicFault
    type: NotRequired[Literal["error"]]


_FAULTS = {
    400: "The request is wrong: `param` names the field",
    401: "No valid API key came with the request",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body, or what it asks for, is too large",
    415: "The body is compressed",
    429: "This caller has too many requests in flight",
    500: "The engine failed on this request",
    503: "The queue is full, or the server is about to end",
}
_ASKED, _SENT = {401, 503}, {400, 401, 408, 413, 415, 503}
_GENERATING = _SENT | {404, 429, 500}
_HEALTH = frozenset({"/ready", "/health", "/ping"})
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key of the operator's, if the server has any"},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "the same, as for Anthropic",
    },
}
_LINES = {
    "itemSchema": {
        "description": "of JSON lines, one for each item, in their order; an error for one that cannot be scored",
        "anyOf": [{"$ref": "#/components/schemas/RiskReply"}, {"$ref": "#/components/schemas/FaultReply"}],
    }
}
_STREAM = {
    # Of OpenAPI 3.2, as FastAPI writes it for its own streams; 3.1 has no word for them, and readers pass it over.
    "itemSchema": {
        "type": "object",
        "description": "one event; the verdict stands in the one that has the finish reason, or is the last",
        "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
        "required": ["data"],
    }
}


def install(app: FastAPI, authenticated: bool, max_risk_items: int) -> None:
    """Make ``app`` show this document, which is made when somebody first asks. ``authenticated``: keys are needed."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app, authenticated, max_risk_items)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation has it


def document(app: FastAPI, authenticated: bool, max_risk_items: int) -> dict[str, Any]:
    """The OpenAPI document of all routes of ``app``."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        # One schema for a model, whichever way it travels: replies leave out what they may.
        separate_input_output_schemas=False,
    )
    schemas = made["components"]["schemas"]
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _answer_for(operation, path, method)
            if path in RISK:
                schema = _schema(body_of(max_risk_items), schemas)
                lines = {"itemSchema": _schema(RiskItem, schemas)}
                operation["requestBody"] = {
                    "content": {"application/json": {"schema": schema}, LINES: lines},
                    "required": True,
                }
                operation["responses"]["200"]["content"][LINES] = _LINES
            if authenticated and not _is_open(path, method):
                operation["security"] = [{name: []} for name in _SECURITY]
    _schema(FaultReply | AnthropicFaultReply, schemas)
    schemas["ChatCompletionLogProbsContent"]["properties"]["risk"] = _schema(Risk | None, schemas)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    made["components"]["securitySchemes"] = _SECURITY
    return made


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; those that it names go among the others."""
    made = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
    schemas |= made.pop("$defs", {})
    return made


def _answer_for(operation: dict[str, Any], path: str, method: str) -> None:
    """Write the statuses that an operation has."""
    replies, generates = operation["responses"], path in GUARDED | RISK
    replies.pop("422", None)  # vLLM answers 400 to what FastAPI would answer 422
    if path in GUARDED:
        replies["200"]["content"]["text/event-stream"] = _STREAM
    if _is_open(path, method):
        if path in _HEALTH:
            replies["503"] = {"description": "The server takes no new requests"}
        return
    statuses = _GENERATING if generates else _ASKED if method == "get" else _SENT
    fault = "AnthropicFaultReply" if path.startswith(MESSAGES) else "FaultReply"
    for status in sorted(statuses):
        replies[str(status)] = {
            "description": _FAULTS[status],
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{fault}"}}},
        }


def _is_open(path: str, method: str) -> bool:
    return path in PUBLIC and method == "get"

"""The server's OpenAPI document: vLLM's own, with the guard's field in it, and every answer as it is."""

from __future__ import annotations

from inspect import Parameter, Signature
from typing import Annotated, Any, Literal, NotRequired

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import ConfigDict, Field, create_model, with_config
from starlette.routing import BaseRoute
from typing_extensions import TypedDict  # typing's own, before 3.12, hides from pydantic what is not required

from app.ingress.middleware import PUBLIC
from app.protocols.adapters.registry import ADAPTERS, MESSAGES
from app.protocols.limits import RISK
from app.protocols.options import FIELD, HallucinationOptions
from app.protocols.risk import RiskItem
from app.protocols.wire import Hallucination, Offset

_EXACT = ConfigDict(extra="forbid")


@with_config(_EXACT)
class RiskUsage(TypedDict):
    """Tokens that went through the model."""

    prompt_tokens: Offset
    response_tokens: Offset


@with_config(_EXACT)
class RiskReply(TypedDict):
    """The risk of one given answer."""

    id: str
    object: Literal["hallucination.risk"]
    created: int
    index: Offset
    model: str
    hallucination: Hallucination
    usage: RiskUsage


@with_config(_EXACT)
class RiskReplies(TypedDict):
    """The risks of a list of given answers, in its order."""

    object: Literal["list"]
    data: list[RiskReply]


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
    bodies = _bodies(max_risk_items)
    routes = [_described(route, *bodies[path]) if (path := _path(route)) in bodies else route for route in app.routes]
    made = get_openapi(
        title=app.title,
        version=app.version,
        routes=routes,
        # One schema for a model, whichever way it travels: replies leave out what they may.
        separate_input_output_schemas=False,
    )
    schemas = made["components"]["schemas"]
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _answer_for(operation, path, method, path in ADAPTERS or path in RISK)
            if authenticated and not _is_open(path, method):
                operation["security"] = [{name: []} for name in _SECURITY]
    schemas["ChatCompletionLogProbsContent"]["properties"]["risk"] = schemas["TokenRisk"]["properties"]["risk"]
    schemas["RiskItem"]["oneOf"] = [_given("messages"), _given("prompt")]
    for name, option in schemas["HallucinationOptions"]["properties"].items():
        schemas["HallucinationOptions"]["properties"][name] = _or_null(option)
    schemas["HallucinationOptions"]["not"] = {"allOf": [_given("threshold"), _given("target_fpr")]}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    made["components"]["securitySchemes"] = _SECURITY
    return made


def _bodies(max_risk_items: int) -> dict[str, tuple[Any, Any]]:
    """By route: what is asked, what is answered."""
    from vllm.entrypoints.anthropic import protocol as anthropic

    asked: Any = (HallucinationOptions | None, None)
    stop = anthropic.AnthropicMessagesResponse.model_fields["stop_reason"].annotation | Literal["refusal"]
    item: Any = create_model("RiskItem", __base__=RiskItem, hallucination=asked)
    items = Annotated[list[item], Field(min_length=1, max_length=max_risk_items)]
    risk = item | items, RiskReply | RiskReplies
    pairs = {
        MESSAGES: (
            anthropic.AnthropicMessagesRequest,
            anthropic.AnthropicMessagesResponse,
            {"stop_reason": (stop, None), "stop_details": (dict[str, Any] | None, None)},
        ),
    }
    guarded = {
        path: (_with(request, {FIELD: asked}), _with(reply, {FIELD: (Hallucination, ...), **more}))
        for path, (request, reply, more) in pairs.items()
    }
    return guarded | dict.fromkeys(RISK, risk)


def _with(model: Any, fields: dict[str, Any]) -> Any:
    """A model of vLLM's with further fields, under its own name."""
    return create_model(model.__name__, __base__=model, **fields)


def _described(route: BaseRoute, asked: Any, answered: Any) -> APIRoute:
    """The route as the document has it; nothing is ever routed to it."""
    assert isinstance(route, APIRoute)

    async def endpoint() -> None: ...

    parameter = Parameter("body", Parameter.POSITIONAL_OR_KEYWORD, annotation=asked)
    endpoint.__signature__ = Signature([parameter])  # type: ignore[attr-defined]
    return APIRoute(
        route.path,
        endpoint,
        methods=route.methods,
        name=route.name,
        summary=route.summary,
        description=route.description,
        tags=route.tags,
        response_model=answered,
        responses={500: {"model": FaultReply | AnthropicFaultReply}},  # both, so that the document has them
    )


def _answer_for(operation: dict[str, Any], path: str, method: str, generates: bool) -> None:
    """Write the statuses that an operation has."""
    replies = operation["responses"]
    replies.pop("422", None)  # vLLM answers 400 to what FastAPI would answer 422
    if generates and path not in RISK:
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


def _given(field: str) -> dict[str, Any]:
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


def _or_null(option: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option that may be null, too, which is as good as leaving it out."""
    if {"type": "null"} in option.get("anyOf", []):
        return option
    said: dict[str, Any] = {k: option[k] for k in ("title", "description", "default") if k in option}
    return {**said, "anyOf": [{k: v for k, v in option.items() if k not in said}, {"type": "null"}]}


def _is_open(path: str, method: str) -> bool:
    return path in PUBLIC and method == "get"


def _path(route: BaseRoute) -> str:
    return str(getattr(route, "path", ""))

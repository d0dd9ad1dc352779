"""Which of vLLM's routes the app keeps. Whatever generates without passing the guard is closed."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.protocols.adapters.registry import GUARDED
from app.protocols.counting import count_tokens
from app.protocols.limits import COUNT_TOKENS, RENDERING
from app.protocols.routes import ParsedRoute

# Routes of vLLM that generate nothing.
HARMLESS = frozenset(
    {
        *RENDERING,
        "/v1/models",
        "/health",
        "/ping",
        "/load",
        "/version",
        "/metrics",
        "/openapi.json",
    }
)
ALLOWED = GUARDED | HARMLESS
# Our own, beside them.
OWN = frozenset({"/", "/docs", "/live", "/ready", "/risk", "/v1/risk", "/v1/probe", "/v1/models/{model}", "/info"})


def close_unguarded(app: FastAPI) -> list[str]:
    """Remove every route of vLLM's that may generate, known or not; returns the paths that are closed by that.

    The others of them get a route of ours.
    """
    routes = app.router.routes
    removed = [route for route in routes if getattr(route, "path", None) not in HARMLESS]
    for route in removed:
        routes.remove(route)
    for place, route in enumerate(routes):
        if isinstance(route, APIRoute) and route.path in RENDERING:
            routes[place] = ParsedRoute.of(route, count_tokens if route.path == COUNT_TOKENS else None)
    return sorted({str(getattr(route, "path", route)) for route in removed} - GUARDED - OWN)

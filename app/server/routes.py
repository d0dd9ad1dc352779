"""Which of vLLM's routes the app keeps. Whatever generates without passing the guard is closed."""

from __future__ import annotations

from fastapi import FastAPI

from app.protocols.adapters.registry import GUARDED

# Routes of vLLM that generate nothing.
HARMLESS = frozenset(
    {
        "/v1/models",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
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
    removed = [route for route in app.router.routes if getattr(route, "path", None) not in HARMLESS]
    for route in removed:
        app.router.routes.remove(route)
    return sorted({str(getattr(route, "path", route)) for route in removed} - GUARDED - OWN)

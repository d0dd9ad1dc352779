"""``/live`` and ``/ready``: what a supervisor and a load balancer ask. vLLM's ``/health`` stays beside them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse

from app.ingress.admission import ENGINE_DEAD, Admission

READY = "ready"


def router(admission: Admission, engine_is_dead: Callable[[], bool]) -> APIRouter:
    """The routes; both are open to callers without a key."""
    routes = APIRouter(tags=["health"])

    @routes.get("/live")
    async def live() -> JSONResponse:
        """Whether the process answers at all; restart it when it does not."""
        return JSONResponse({"status": "live"})

    @routes.get("/ready")
    async def ready() -> JSONResponse:
        """Whether new requests are taken; send none here while it says no."""
        status = ENGINE_DEAD if engine_is_dead() else admission.closing or READY
        return JSONResponse({"status": status}, 200 if status == READY else 503)

    return routes

"""What the server says about itself: the page, the probe's card, the effective settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse

from app import errors
from guard.probe.bundle import Bundle

PAGE = Path(__file__).parent / "page" / "index.html"


def card(bundle: Bundle) -> dict[str, Any]:
    """The bundle's card as ``GET /v1/probe`` gives it."""
    model = bundle.card.model
    return {
        "object": "hallucination.probe",
        "revision": bundle.revision,
        "neurons": len(bundle.neuron),
        "h_neurons": bundle.h_neurons,
        "h_neurons_per_mille": round(1000 * bundle.h_neurons / (model.layers * model.neurons_per_layer), 4),
        "tapped_layers": sorted(set(bundle.layer.tolist())),
        "heads": {name: head.layer.tolist() for name, head in bundle.tapped_heads.items()},
        **bundle.card.as_json(),
    }


def router(bundle: Callable[[], Bundle], settings: Callable[[], dict[str, Any]]) -> APIRouter:
    """The routes ``/``, ``/v1/probe``, ``/info``, and ``/v1/models/{model}``, which vLLM has not."""
    routes = APIRouter(tags=["hallucination"])

    @routes.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")

    @routes.get("/v1/probe")
    async def probe() -> JSONResponse:
        """The card of the probe that guards the model."""
        return JSONResponse(card(bundle()))

    @routes.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> JSONResponse:
        """One model, as the list of them has it."""
        served = (await request.app.state.openai_serving_models.show_available_models()).data
        if not model:  # who wants the list, and adds a slash
            return JSONResponse({"object": "list", "data": [one.model_dump() for one in served]})
        found = next((one for one in served if one.id == model), None)
        if found is None:
            known = ", ".join(repr(one.id) for one in served)
            return errors.response(404, f"the model {model!r} does not exist; this server has {known}", "model")
        return JSONResponse(found.model_dump())

    @routes.get("/info")
    async def info() -> JSONResponse:
        """The settings in effect."""
        return JSONResponse(settings())

    return routes

"""``/docs``: the OpenAPI document, to be read and tried in a browser. Nothing comes from another host.

FastAPI's own pages load their scripts from a CDN, which a closed network does not reach; vLLM carries Swagger UI's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

PAGE = Path(__file__).parent / "page" / "docs.html"
_CARRIER = "vllm.entrypoints.serve.instrumentator"
_KINDS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_FOR_A_DAY = {"cache-control": "max-age=86400"}


def files() -> dict[Path, str]:
    """Swagger UI's files in vLLM's package, each with its media type."""
    spec = find_spec(_CARRIER)
    assert spec is not None
    assert spec.origin is not None
    return {Path(spec.origin).parent / "static" / name: kind for name, kind in _KINDS.items()}


def router() -> APIRouter:
    """The routes ``/docs`` and, below it, those of its files."""
    routes = APIRouter(include_in_schema=False)
    routes.get("/docs")(_giving(PAGE, "text/html"))
    for file, kind in files().items():
        routes.get(f"/docs/{file.name}")(_giving(file, kind, _FOR_A_DAY))
    return routes


def _giving(file: Path, kind: str, headers: dict[str, str] | None = None) -> Callable[[], Awaitable[FileResponse]]:
    async def give() -> FileResponse:
        return FileResponse(file, media_type=kind, headers=headers)

    return give

"""What the ingress reads of an ASGI scope, and what it leaves there for the routes."""

from __future__ import annotations

from starlette.types import Scope

CALLER = "hguard_caller"  # in scope["state"]: the position of the caller's key, None without keys


def route_path(scope: Scope) -> str:
    """The path that the router will match: without the prefix that ``--root-path`` puts in front."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path

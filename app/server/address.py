"""Where a server listens: who may reach it there, and whether the port is to be had."""

from __future__ import annotations

import socket

from app.ingress import auth
from app.settings import Settings
from guard.errors import GuardError, UnsupportedError


def require_keys(settings: Settings) -> None:
    """Raise UnsupportedError for an address that other machines reach, without keys."""
    if not (settings.api_keys or settings.allow_unauthenticated or auth.is_loopback(settings.host)):
        raise UnsupportedError(f"--host {settings.host} lets other machines in, and there are no keys: {auth.REMEDY}")


def listen(settings: Settings) -> socket.socket:
    """The socket, bound. Raises GuardError when the port is in use, or not to be had."""
    from guard.compat import create_server_socket

    try:
        sock: socket.socket = create_server_socket((settings.host, settings.port), reuse_port=False)
    except OSError as error:
        raise GuardError(f"cannot listen on {shown(settings)}: {error.strerror}; set --port") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections inherit it: a token must not wait
    return sock


def shown(settings: Settings) -> str:
    """host:port, as a URL has it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"

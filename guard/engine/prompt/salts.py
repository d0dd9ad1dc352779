"""Salts for the prefix cache: keys and values of scaled requests stay apart from plain ones."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any


class Salts:
    """Salts of one server process. ``tensors_sha256``: of the probe, which says what is scaled from now on."""

    def __init__(self, tensors_sha256: str) -> None:
        self.tensors_sha256 = tensors_sha256
        self._secret = secrets.token_bytes(32)  # no caller can name the prefixes of scaled requests

    def salted(self, prompt: Any, scale: float) -> Any:
        """The rendered prompt with the salt for this neuron scale, whatever salt a caller chose.

        A plain request's own salt gets a name space; it stays the same in each process, for caches that several share.
        """
        own = (prompt.get("cache_salt") if isinstance(prompt, Mapping) else None) or ""
        if scale == 1:
            return {**prompt, "cache_salt": f"plain|{own}"} if own else prompt
        if not isinstance(prompt, Mapping):
            raise TypeError("vLLM's routes pass rendered prompts; a scaled request needs one to salt its cache")
        of = f"{own}|{self.tensors_sha256}|{scale!r}".encode(errors="surrogatepass")
        return {**prompt, "cache_salt": f"scale|{hmac.new(self._secret, of, hashlib.sha256).hexdigest()}"}

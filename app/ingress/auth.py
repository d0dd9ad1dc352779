"""API keys: which callers are let in. Kept as digests only; no key can be read from memory, a log or a setting."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

VARIABLE = "HGUARD_API_KEYS"
REMEDY = (
    f"set {VARIABLE} or {VARIABLE}_FILE, or --allow-unauthenticated where something in front of the server checks its "
    "callers"
)


class ApiKeys:
    """The digests of the operator's keys; false when there are none, and then everyone is let in."""

    __slots__ = ("_digests",)

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    @classmethod
    def parse(cls, given: Any) -> ApiKeys:
        """Keys from a text with commas or whitespace between them, or from a list. Raises ValueError, showing none."""
        if isinstance(given, cls):
            return given
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ValueError("keys are text, with commas or whitespace between them, or a list of texts")
        keys = [key for text in texts for key in text.replace(",", " ").split()]
        for position, key in enumerate(keys, 1):
            if not (key.isascii() and key.isprintable()):
                raise ValueError(f"key {position} has letters that an HTTP header cannot carry; use ASCII")
        return cls(keys)

    @classmethod
    def read(cls, file: Path) -> ApiKeys:
        """Keys from a file, which must hold one at least. Raises ValueError, which names the file and no key."""
        try:
            keys = cls.parse(file.read_text(encoding="utf-8"))
        except OSError as error:
            remedy = f"let user {os.getuid()} read it" if isinstance(error, PermissionError) else "mount the secret"
            raise ValueError(f"the API key file {file} cannot be read ({error.strerror}): {remedy}") from None
        except UnicodeDecodeError:
            raise ValueError(f"the API key file {file} is not text: keys are ASCII") from None
        except ValueError as error:
            raise ValueError(f"the API key file {file} is wrong: {error}") from None
        if not keys:
            raise ValueError(f"the API key file {file} holds no key: write one into it, or several, one a line")
        return keys

    def holder(self, headers: Iterable[tuple[bytes, bytes]]) -> int | None:
        """The position of the key that a request carries, as a bearer token or as ``x-api-key``; None without one."""
        for offered in _offered(headers):
            digest, found = _digest(offered), None
            for position, known in enumerate(self._digests):
                if hmac.compare_digest(digest, known):  # all of them: how long it takes must not say which
                    found = position
            if found is not None:
                return found
        return None

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"{len(self)} keys" if self else "none"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a setting: parsed from text, shown as their number."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(len)
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, or all addresses
        return False


def _offered(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield token.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

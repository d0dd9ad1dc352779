"""What a document shows of an answer, held to an answer."""

from __future__ import annotations

import json
import math
from typing import Any

_DECODER = json.JSONDecoder()


def objects_of(text: str) -> list[Any]:
    """JSON values one after the other. Raises ValueError for anything else."""
    found, at = [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = _DECODER.raw_decode(text, at)
        found.append(value)
    return found


def frames_of(stream: str) -> list[Any]:
    """The JSON of a stream's events."""
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def shows(excerpt: Any, whole: Any, values: bool, places: int = 3) -> bool:
    """Whether all fields of ``excerpt`` are in ``whole``; with ``values``, with what they hold, numbers rounded.

    An object in a list may be any of those in the other.
    """
    if isinstance(excerpt, dict):
        return isinstance(whole, dict) and all(
            name in whole and shows(value, whole[name], values, places) for name, value in excerpt.items()
        )
    if isinstance(excerpt, list):
        return isinstance(whole, list) and all(
            any(shows(one, other, values, places) for other in whole) for one in excerpt
        )
    if not values:
        return True
    if isinstance(excerpt, float) and isinstance(whole, float):
        return math.isclose(excerpt, whole, abs_tol=0.51 * 10**-places)
    return type(excerpt) is type(whole) and excerpt == whole

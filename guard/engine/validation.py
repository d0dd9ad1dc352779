"""What no request may carry to the engine: what would not arrive, and what vLLM refuses once it has begun to answer.

Written against vLLM 0.32 (``v1/engine/input_processor.py``, ``v1/engine/output_processor.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.compat import RequestFault, refused

# What vLLM looks into, wherever a request names it: in a field of its own, or among vllm_xargs, which take any text.
_OBJECTS = ("kv_transfer_params", "ec_transfer_params")
_LARGEST = {  # what is larger ends in the engine's process, or takes memory and seconds of all others
    **dict.fromkeys(("minLength", "minItems", "minProperties", "minContains"), 10_000),
    **dict.fromkeys(("maxItems", "maxProperties", "maxContains"), 65_535),
    "maxLength": 2**53,
}
# Maps of a schema whose names are the caller's: a property may be called "enum".
NAMED_BY_CALLER = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
# Where an object may have more properties than it names.
_OTHERS = {"patternProperties", "unevaluatedProperties", "propertyNames", "allOf", "anyOf", "oneOf", "$ref"}
_MILD = (0.5, 2.0)  # beyond, a penalty on repetition makes answers of the prompt's tokens, or of none of them
_BIASES = ("logit_bias", "allowed_token_ids", "bad_words")


def require_sendable(params: SamplingParams, request: Any) -> None:
    """Raises RefusalError for values that the message to the engine's process cannot hold.

    vLLM would find out when it sends them, and answer 500: integers beyond 64 bits, strings that are no text,
    objects without end.
    """
    try:
        msgspec.msgpack.encode([params, request.get("priority", 0)])
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise refused(f"a value cannot be sent to the engine: {error}") from None


class Checked(SamplingParams, omit_defaults=True, dict=True):  # type: ignore[call-arg, misc]
    """Parameters whose grammar has been checked, and need not be again: a large one takes as long as many tokens.

    The same fields, so the same message to the engine's process.
    """

    def _validate_structured_outputs(self, *_: Any) -> None:
        """Done, and what the check found out (which backend compiles it) is in ``structured_outputs``."""


def require_valid(params: SamplingParams, engine: Any) -> SamplingParams:
    """Raises RefusalError for what vLLM would refuse after it has begun the stream, or fall over.

    A stream has its status before vLLM checks its parameters, so they are checked here first; what is returned is to
    be generated with.
    """
    for name in _OBJECTS:
        value = (params.extra_args or {}).get(name)
        if value is not None and not isinstance(value, Mapping):
            raise refused(f"{name} must be an object, not {type(value).__name__}")
    if params.structured_outputs is not None:
        _require_grammar(params.structured_outputs.json)
    check = getattr(getattr(engine, "input_processor", None), "_validate_params", None)
    if check is None or params.output_kind is not RequestOutputKind.DELTA:
        return params
    checked = params.clone()
    try:
        check(checked, ("generate",))
    except (RequestFault, ValueError) as error:
        raise refused(str(error)) from None
    if checked.structured_outputs is not None:
        checked.__class__ = Checked
    return checked


def _require_grammar(given: Any) -> None:
    """Of a JSON schema, what vLLM's check lets through and the engine's process then cannot compile."""
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return  # vLLM says so itself
    for part in _objects(schema):
        for name, largest in _LARGEST.items():
            bound = part.get(name)
            if isinstance(bound, int | float) and bound < 0:
                raise refused(f"the JSON schema's {name} is {bound}; it cannot be negative")
            if isinstance(bound, int | float) and bound > largest:
                raise refused(f"the JSON schema's {name} is {bound}; more than {largest} is not supported")
        _require_properties(part)
        patterns = part.get("patternProperties")
        for pattern in patterns if isinstance(patterns, Mapping) else ():
            if not _compiles(pattern):
                raise refused(f"the JSON schema's pattern {pattern!r} is no regular expression")


def _require_properties(part: Mapping[str, Any]) -> None:
    least, properties = part.get("minProperties"), part.get("properties") or ()
    further = part.get("additionalProperties", False) is not False or bool(_OTHERS & part.keys())
    if isinstance(least, int) and isinstance(properties, Mapping | tuple) and least > len(properties) and not further:
        raise refused(
            f"the JSON schema's minProperties is {least}, and its object may have {len(properties)}: name them in "
            "properties, or set additionalProperties"
        )


def require_no_bias(params: SamplingParams) -> None:
    """Raises RefusalError for what favours or forbids tokens."""
    for name in _BIASES:
        if getattr(params, name, None):
            raise refused(
                f"{name} is not allowed on this server, which withholds answers: it would tell which tokens they are "
                "made of; its operator can allow it with --allow-token-bias"
            )
    least, most = _MILD
    if not least <= params.repetition_penalty <= most:
        raise refused(
            f"repetition_penalty {params.repetition_penalty:g} is not allowed on this server, which withholds answers: "
            f"from {least:g} to {most:g}; its operator can allow more with --allow-token-bias"
        )


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a schema; what stands in ``const``, ``enum`` and the like is data, and no part of it."""
    left = [("", schema)]
    while left:
        under, part = left.pop()
        if isinstance(part, Mapping):
            named = under in NAMED_BY_CALLER
            if not named:
                yield part
            left += [
                ("" if named else name, value)
                for name, value in part.items()
                if named or not (name in ("const", "enum", "default", "examples") or name.startswith("x-"))
            ]
        elif isinstance(part, list):
            left += [("", one) for one in part]


def _compiles(pattern: Any) -> bool:
    """Whether one of two dialects can read ``pattern``."""
    import xgrammar

    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError):
        try:
            xgrammar.Grammar.from_regex(pattern)
        except (RuntimeError, TypeError, ValueError):
            return False
    return True

"""What gets around the bounds on one request: lists among lists, wrong tokens, grammars whose cost is not seen."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.sampling_params import SamplingParams

from app.protocols import sizes
from app.protocols.adapters.registry import COMPLETIONS
from app.protocols.limits import Limits
from app.protocols.validation import first_complaints, require_right_items
from app.settings import RequestLimits
from guard.engine.validation import _require_grammar, require_no_bias
from guard.errors import RequestError

LIMITS = Limits(RequestLimits(), capacity=64)
LETTERS = "[a-zA-Z .,]"
MOST = RequestLimits().max_grammar


def test_many_long_lists_in_a_field_nobody_reads_take_no_seconds() -> None:
    body: dict[str, Any] = {"prompt": "a", "x": {f"k{i}": [0] * 33 for i in range(700)}}
    LIMITS.check(COMPLETIONS, body)  # it is within all limits
    began = time.process_time()
    require_right_items(first_complaints(TypeAdapter(CompletionRequest)), body)
    assert time.process_time() - began < 1


def test_of_many_wrong_tokens_few_are_named() -> None:
    body = {"prompt": [-1] * 10_000}
    LIMITS.check(COMPLETIONS, body)
    with pytest.raises((RequestValidationError, RequestError, ValidationError)) as raised:
        _read(TypeAdapter(CompletionRequest), body)
    error = raised.value
    assert isinstance(error, RequestError) or len(error.errors()) < 1000


def _read(kind: TypeAdapter[CompletionRequest], body: Any) -> None:
    require_right_items(first_complaints(kind), body)
    kind.validate_python(body)


@pytest.mark.parametrize(
    "given",
    [
        {"regex": f"(?<n>(({LETTERS}?){{60}}){{60}})"},  # a group that Python's dialect does not name so
        {"grammar": f"root ::= x{{60}}\nx ::= y{{60}}\ny ::= {LETTERS}?"},
        {"grammar": f'root ::= ({LETTERS}? ""){{3000}}'},
        {"json": {"properties": {"enum": {"type": "string", "pattern": "((a?){60}){60}"}}}},
        {"json": json.dumps({"properties": {"const": {"type": "string", "pattern": "(a?){3000}"}}})},
    ],
)
def test_a_repetition_of_what_may_be_nothing_counts_however_it_is_written(given: dict[str, Any]) -> None:
    assert sizes.grammar(given, MOST) > MOST


@pytest.mark.parametrize("name", ["default", "examples", "const", "enum"])
@pytest.mark.parametrize("bad", [{"minLength": 1 << 31}, {"patternProperties": {"(": {}}}])
def test_a_property_called_like_data_is_looked_into(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="JSON schema"):
        _require_grammar({"type": "object", "properties": {name: bad}})


def test_an_empty_schema_allows_further_properties() -> None:
    _require_grammar({"type": "object", "minProperties": 1, "additionalProperties": {}})


def test_a_penalty_that_favours_the_prompts_tokens_is_a_bias() -> None:
    with pytest.raises(Exception, match="not allowed"):
        require_no_bias(SamplingParams(repetition_penalty=1e-30))

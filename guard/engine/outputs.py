"""What of the engine's outputs may leave while answers can be withheld: a list of what stays, not of what is taken out.

What leaves belongs to tokens that were scored and passed. So of each position the drawn token alone, with its own
log-probability: what else was likely there was never scored, and would be the next token of a withheld answer. Of the
prompt, the caller's own tokens. Of an answer without tokens, that it is one. Written against vLLM 0.32 (``outputs.py``;
the same in 0.26).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

REFUSAL_FINISH = "content_filter"
STEP = 16  # tokens: how exactly the length of a withheld answer is told
# As vLLM's routes write a log-probability that they do not know; they fall over None in some places.
UNKNOWN = Logprob(-9999.0)


def with_completions(output: Any, completions: list[Any], finished: bool) -> Any:
    """A copy of ``output`` that holds these."""
    made = copy(output)
    made.outputs = completions
    made.finished = finished
    return made


def own_output(output: Any, completions: list[Any], finished: bool) -> Any:
    """The same with nothing else than may leave; ``completions`` are such already."""
    withheld = any(completion.finish_reason == REFUSAL_FINISH for completion in completions)
    made = RequestOutput(
        output.request_id,
        output.prompt,
        output.prompt_token_ids,
        _own(output.prompt_token_ids or (), output.prompt_logprobs),
        completions,
        finished,
        metrics=None if withheld else output.metrics,  # from times and counts its length could be worked out
        num_cached_tokens=output.num_cached_tokens,
    )
    made.num_cache_creation_tokens = getattr(output, "num_cache_creation_tokens", None)  # new in 0.32
    return made


def own(completion: Any) -> Any:
    """A completion with nothing but its text, its tokens, and what these were drawn with."""
    return CompletionOutput(
        completion.index,
        completion.text,
        completion.token_ids,
        completion.cumulative_logprob,
        _own(completion.token_ids, completion.logprobs),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
    )


def _own(tokens: Sequence[int], logprobs: Iterable[Any] | None) -> list[Any] | None:
    """Of each position the token that is there: what else was likely is left out."""
    if logprobs is None:
        return None
    return [item and {token: item[token]} for token, item in zip(tokens, logprobs, strict=False)]


def blank(completion: Any, count: int, token: int) -> Any:
    """A completion that says nothing: ``count`` tokens, for usage, but not which."""
    logprobs: Any = None if completion.logprobs is None else [{token: UNKNOWN}] * count
    return CompletionOutput(
        completion.index, "", [token] * count, None, logprobs, finish_reason=completion.finish_reason
    )


def emptied(completion: Any, count: int, token: int) -> Any:
    """The last piece of a withheld answer."""
    empty = blank(completion, count, token)
    empty.finish_reason = REFUSAL_FINISH
    return empty


def counted_length(generated: int, longest: int | None) -> int:
    """How long a withheld answer is said to be: its tokens rounded up to a multiple of STEP, but never more than the
    request allowed (``longest``), which its caller knows."""
    rounded = -(-generated // STEP) * STEP
    return rounded if longest is None else max(min(rounded, longest), generated)

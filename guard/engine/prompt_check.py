"""Look before answering: the risk of the last prompt token alone, and the refusal that may follow from it.

One token is drawn and thrown away; the answer, if there is to be one, finds its prompt in the prefix cache.
"""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.answer import Answer
from guard.engine.outputs import emptied, own_output
from guard.ipc import capture
from guard.ipc.score_table import ScoreTable, Slot


def parameters(slot: Slot, scale: float, asked: SamplingParams) -> SamplingParams:
    """Of the request that looks; a prompt's last token is computed anew even where the cache has the others.

    It is asked for the log-probabilities that were ``asked`` for: the route expects them of a refusal, too.
    """
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprobs=asked.logprobs,
        prompt_logprobs=asked.prompt_logprobs,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={capture.KEY: capture.pack([slot], scale, draws=False)},
    )


def lead_of(output: Any, slot: Slot, table: ScoreTable) -> float:
    """The neuron score of the last prompt token; NaN where there is none."""
    return Answer(0, slot, prompt_length=len(output.prompt_token_ids)).signals(table, 0, 0).prompt_score


def refused(output: Any, request_id: str, count: int, blank_token: int) -> Any:
    """The looking request's output as that of the request that asked: ``count`` answers, none of which exists."""
    completions = []
    for index in range(count):
        completion = emptied(output.outputs[0], 1, blank_token)
        completion.index = index
        completions.append(completion)
    whole = own_output(output, completions, output.finished)
    whole.request_id = request_id
    return whole

"""The text of each generated token, by vLLM's own detokenizer (0.32, ``v1/engine/detokenizer.py``).

What a token says depends on those before it, the prompt's last ones among them (a leading space), and on the request
(``skip_special_tokens``), so its own pieces are made as those of the answer were.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from guard.engine.context import Generated


def texts(tokenizer: Any, generated: Generated) -> Iterator[str]:
    """What each token adds to the text, the first being the first generated one, and nothing cut off at the end.

    A token that ends inside a character adds nothing: the character belongs to the one completing it.
    """
    given = generated.params
    params = SamplingParams(  # without stop strings: what they cut is cut already
        skip_special_tokens=given.skip_special_tokens,
        spaces_between_special_tokens=given.spaces_between_special_tokens,
    )
    request: Any = SimpleNamespace(
        request_id="tokens", prompt_token_ids=generated.prompt_ids, prompt_embeds=None, sampling_params=params
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for token in generated.token_ids:
        detokenizer.update([token], stop_terminated=False)
        yield detokenizer.get_next_output_text(finished=False, delta=True)

"""The taps survive torch.compile: the compiled engine measures what transformers does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import ATLAS
from guard.policy import Mode, Policy
from guard.probe.bundle import Bundle
from models.atlas.recipe.reference import Reader
from tests.engine.explained import assert_told_apart
from tests.engine.harness import SCORE, Harness, guarded
from tests.engine.test_exchange import assert_read, exchange
from tests.engine.test_parity import LENGTHS, assert_measured, reference


@pytest.fixture(scope="module")
def compiled(headed: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm-cache")))
        harness = guarded(ATLAS, headed, ["--max-num-batched-tokens=512"], compiled=True)
        yield harness
        harness.close()


def test_compiled(compiled: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    produced = compiled.produce(prompts[:16], LENGTHS[:16])
    assert_measured(produced, reference(reader, headed, prompts[:16], [one.tokens for one in produced]))


def test_compiled_scaling_is_per_request(compiled: Harness, prompts: list[list[int]]) -> None:
    plain = compiled.produce(prompts[:4], 12)
    mixed = compiled.produce(prompts[:4], 12, [Policy(Mode.SCORE, 0.5, scale=0.0), SCORE, SCORE, SCORE])
    assert [one.tokens for one in mixed[1:]] == [one.tokens for one in plain[1:]]
    assert mixed[0].verdict is not None
    assert plain[0].verdict is not None
    assert mixed[0].verdict.risk != plain[0].verdict.risk


def test_neurons_are_told_apart(compiled: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle) -> None:
    assert_told_apart(compiled, reader, headed, prompts[:16], LENGTHS[:16])


def test_neurons_are_exchanged(
    compiled: Harness, prompts: list[list[int]], reader: Reader, headed: Bundle, other: Bundle
) -> None:
    """In place: graphs keep the buffers' addresses."""
    for bundle in (other, headed):
        compiled.run(exchange(compiled.engine, bundle))
        assert_read(compiled, reader, bundle, prompts[:8])

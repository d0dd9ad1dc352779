"""The Triton kernels against float64, run by Triton's interpreter; on a GPU, compiled."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from guard.ipc.capture import EMPTY
from guard.ipc.taps import spec_of
from guard.probe import cett
from guard.probe.bundle import Bundle
from guard.probe.cett import EPSILON
from guard.worker import ops
from guard.worker.batch import Drawn, Roster, Step, log_probability, statistics
from guard.worker.buffers import Taps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# hidden, intermediate: atlas, and the layers of 1B, 8B and 70B Llamas.
SHAPES = [(192, 512), (2048, 8192), (4096, 14336), (8192, 28672)]


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    pytest.importorskip("triton", reason="vLLM brings Triton on Linux only")
    from guard.worker import kernels

    return kernels


@pytest.mark.parametrize(("hidden", "neurons"), SHAPES)
@pytest.mark.parametrize("width", [1, 3, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("path", ["triton", "torch"])
def test_tap(kernels: ModuleType, path: str, hidden: int, neurons: int, width: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(width)
    tokens = 3
    z = torch.from_numpy(rng.normal(size=(tokens, neurons))).to(DEVICE, dtype)
    h = torch.from_numpy(rng.normal(size=(tokens, hidden))).to(DEVICE, dtype)
    neuron = torch.from_numpy(rng.choice(neurons, width, replace=False)).to(DEVICE)
    folded = torch.from_numpy(rng.normal(size=width).astype(np.float32)).to(DEVICE)
    score = torch.full((tokens + 2,), 0.5, device=DEVICE)

    if path == "triton":
        kernels.tap(z, h, neuron, folded, score)
    else:
        z, h, neuron, folded, score = (tensor.cpu() for tensor in (z, h, neuron, folded, score))
        ops.tap(z, h, neuron, folded, score)

    # The probe on the contributions: a coefficient is what was folded, over the column's norm, which cancels.
    terms = z.double()[:, neuron].abs() * folded.double() / (h.double().norm(dim=1, keepdim=True) + EPSILON)
    wanted = 0.5 + terms.sum(1)
    scale = float(terms.abs().sum(1).max()) + 0.5
    np.testing.assert_allclose(score[:tokens].cpu(), wanted.cpu(), rtol=0, atol=1e-6 * scale)
    assert (score[tokens:] == 0.5).all(), "rows beyond the batch are not touched"


def test_tap_of_rows_that_are_not_contiguous(kernels: ModuleType) -> None:
    z, h = torch.randn(8, 64, device=DEVICE)[::2], torch.randn(32, 4, device=DEVICE).T
    neuron, folded = torch.tensor([5, 63], device=DEVICE), torch.tensor([1.0, -2.0], device=DEVICE)
    score = torch.zeros(4, device=DEVICE)
    kernels.tap(z, h, neuron, folded, score)
    torch.testing.assert_close(score, (z[:, neuron].abs() @ folded) / h.norm(dim=1))


@pytest.mark.parametrize("path", ["triton", "torch", "eager"])
@pytest.mark.parametrize("flawed", ["z", "h"])
def test_tap_of_what_overflows_is_not_finite(kernels: ModuleType, path: str, flawed: str, bundle: Bundle) -> None:
    """Over an infinite norm a neuron would seem to contribute nothing."""
    torch.manual_seed(0)
    z, h = (torch.randn(3, 16, device=DEVICE).half() for _ in range(2))
    {"z": z, "h": h}[flawed][1, 5] = torch.inf
    neuron, folded = torch.tensor([5, 7], device=DEVICE), torch.tensor([1.0, -2.0], device=DEVICE)
    score = torch.zeros(3, device=DEVICE)
    if path == "eager":
        taps = Taps(spec_of(bundle), score, torch.ones(3, device=DEVICE))
        taps.add_layer(0, folded)
        taps.read(z, h, neuron)
        score = taps.total(3)
    elif path == "triton":
        kernels.tap(z, h, neuron, folded, score)
    else:
        z, h, neuron, folded, score = (tensor.cpu() for tensor in (z, h, neuron, folded, score))
        ops.tap(z, h, neuron, folded, score)
    assert score.isfinite().tolist() == [True, False, True]


def test_tap_of_an_output_of_zeros_is_finite(kernels: ModuleType) -> None:
    one = torch.zeros(1, 16, device=DEVICE)
    neuron, folded = torch.tensor([3], device=DEVICE), torch.tensor([1.0], device=DEVICE)
    score = torch.zeros(1, device=DEVICE)
    kernels.tap(one, one, neuron, folded, score)
    assert score.item() == 0


def logits(rows: int, vocabulary: int, spread: float, dtype: torch.dtype) -> torch.Tensor:
    made = torch.from_numpy(np.random.default_rng(rows).normal(size=(rows, vocabulary)) * spread + 20)
    made[0, : vocabulary // 2] = -torch.inf  # tokens that the model rules out
    made[-1, 1:] = -torch.inf  # all but one
    return made.to(DEVICE, dtype)


@pytest.mark.parametrize("vocabulary", [7, 4096, 32_001, 151_936])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("path", ["triton", "torch"])
def test_statistics(kernels: ModuleType, path: str, vocabulary: int, spread: float, dtype: torch.dtype) -> None:
    rows = logits(5, vocabulary, spread, dtype)
    entropy, normaliser = kernels.row_statistics(rows) if path == "triton" else statistics(rows.cpu())
    exact = rows.cpu().double().log_softmax(-1)
    np.testing.assert_allclose(entropy.cpu(), torch.special.entr(exact.exp()).sum(-1), rtol=1e-5, atol=1e-5)
    token = rows.cpu().argmax(-1)
    got = log_probability(rows.cpu(), normaliser.cpu(), token)
    np.testing.assert_allclose(got, exact.gather(1, token[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_statistics_of_no_rows(kernels: ModuleType) -> None:
    for made in (kernels.row_statistics(torch.empty(0, 9, device=DEVICE)), statistics(torch.empty(0, 9))):
        assert [len(part) for part in made] == [0, 0]


def test_a_tap_is_the_probe_on_contributions() -> None:
    torch.manual_seed(0)
    z, h, norms = torch.randn(5, 16), torch.randn(5, 8), torch.rand(16)
    coefficient = np.random.default_rng(0).normal(size=16).astype(np.float32)
    score = torch.zeros(5)
    ops.tap(z, h, torch.arange(16), torch.from_numpy(cett.fold(coefficient, norms.numpy())), score)
    torch.testing.assert_close(score, cett.contributions(z, h, norms) @ torch.from_numpy(coefficient))


@pytest.mark.parametrize("vocabulary", [7, 4096, 151_936])
def test_what_is_kept_survives_sampling_in_place(vocabulary: int) -> None:
    rows = logits(5, vocabulary, 3.0, torch.float32).cpu()
    exact = rows.double().log_softmax(-1)
    drawn = Drawn(rows)
    rows.fill_(0)
    token = exact.argmax(-1)
    np.testing.assert_allclose(drawn.entropy, torch.special.entr(exact.exp()).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(drawn.log_probability(token), exact.gather(1, token[:, None])[:, 0], atol=1e-5)


def test_layers_are_summed_as_taps_would_sum_them(bundle: Bundle) -> None:
    torch.manual_seed(0)
    spec = spec_of(bundle)
    eager, compiled = (Taps(spec, torch.zeros(6), torch.ones(6)) for _ in range(2))
    step = Step(Roster.of([EMPTY] * 5, [1] * 5), np.zeros(5, np.int64), np.ones(5, np.int64))
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(2):  # what one step read must not reach the next
            eager.begin(step)
            compiled.begin(step)
            for tap in spec.layers.values():
                neuron, folded = torch.from_numpy(tap.neuron), torch.from_numpy(tap.folded)
                if eager.tapped_layers < len(spec.layers):
                    eager.add_layer(tap.layer, folded)
                z, h = torch.randn(5, 64).to(dtype), torch.randn(5, 8).to(dtype)
                eager.read(z, h, neuron)
                ops.tap(z, h, neuron, folded, compiled.score)
            torch.testing.assert_close(eager.total(5), compiled.total(5))

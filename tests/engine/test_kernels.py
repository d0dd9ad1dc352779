"""The Triton kernels against float64, run by Triton's interpreter; on a GPU, compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch

from guard.ipc.capture import EMPTY
from guard.ipc.taps import spec_of
from guard.probe import cett
from guard.probe.bundle import Bundle
from guard.probe.cett import EPSILON
from guard.probe.signals import ENTROPY, LOGPROB, NEURONS
from guard.worker import ops
from guard.worker.batch import BatchParams, Drawn, Statistics, Step
from guard.worker.buffers import Taps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# hidden, intermediate: atlas, and the layers of 1B, 8B and 70B Llamas.
SHAPES = [(192, 512), (2048, 8192), (4096, 14336), (8192, 28672)]


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    pytest.importorskip("triton", reason="vLLM brings Triton on Linux only")
    from guard.worker import kernels

    return kernels


@dataclass(frozen=True)
class Layer:
    """What one layer's tap is given: neurons of which some are scaled, and padding that repeats the first."""

    z: torch.Tensor
    h: torch.Tensor
    neuron: torch.Tensor
    folded: torch.Tensor
    scaled: torch.Tensor
    alpha: torch.Tensor

    def scale(self, path: ModuleType, z: torch.Tensor) -> torch.Tensor:
        contribution: torch.Tensor = path.scale(z, self.neuron, self.folded, self.scaled, self.alpha)
        return contribution

    def terms(self) -> torch.Tensor:
        """The probe on the contributions: a coefficient is what was folded, over the column's norm, which cancels."""
        norm = self.h.double().norm(dim=1, keepdim=True) + EPSILON
        return self.z[:, self.neuron].double().abs() * self.folded.double() / norm

    def expected(self) -> torch.Tensor:
        """z with each scaled neuron multiplied by its row's alpha, one by one."""
        wanted = self.z.clone()
        for row, alpha in enumerate(self.alpha[: len(wanted)].tolist()):
            for neuron in {int(one) for one in self.neuron[self.scaled]}:
                wanted[row, neuron] = (self.z[row, neuron].double() * alpha).to(wanted.dtype)
        return wanted


def layer(hidden: int, neurons: int, width: int, dtype: torch.dtype, device: str, tokens: int = 4) -> Layer:
    rng = np.random.default_rng(width)
    neuron, folded = rng.choice(neurons, width, replace=False), rng.normal(size=width).astype(np.float32)
    padding = np.arange(3)  # of a layer with fewer neurons than another
    neuron, folded = np.append(neuron, neuron[0] + 0 * padding), np.append(folded, 0 * padding).astype(np.float32)
    scaled = np.isin(neuron, neuron[: (width + 1) // 2])
    alpha = np.array([1, 0, 0.3, 1.7, 9, 9], np.float32)
    activations = (torch.from_numpy(rng.normal(size=(tokens, size))).to(device, dtype) for size in (neurons, hidden))
    return Layer(*activations, *(torch.from_numpy(one).to(device) for one in (neuron, folded, scaled, alpha)))


@pytest.fixture(params=["triton", "torch"])
def path(request: pytest.FixtureRequest, kernels: ModuleType) -> ModuleType:
    return kernels if request.param == "triton" else ops


def on(path: ModuleType) -> str:
    return "cpu" if path is ops else DEVICE


@pytest.mark.parametrize(("hidden", "neurons"), SHAPES)
@pytest.mark.parametrize("width", [1, 3, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_tap_scores_and_scales(path: ModuleType, hidden: int, neurons: int, width: int, dtype: torch.dtype) -> None:
    """What it adds to a score is of z before it was scaled; of z it changes the scaled columns, and those exactly."""
    given = layer(hidden, neurons, width, dtype, on(path))
    tokens = len(given.z)
    z, score = given.z.clone(), torch.full((tokens + 2,), 0.5, device=given.z.device)

    contribution = given.scale(path, z)
    path.tap(given.h, contribution, score)

    terms = given.terms()
    bound = float(terms.abs().sum(1).max()) + 0.5
    np.testing.assert_allclose(score[:tokens].cpu(), 0.5 + terms.sum(1).cpu(), rtol=0, atol=1e-6 * bound)
    assert (score[tokens:] == 0.5).all(), "rows beyond the batch are not touched"
    assert contribution.dtype == torch.float32
    # Triton's interpreter cuts bfloat16 off where compiled code rounds.
    cut = path is not ops and DEVICE == "cpu" and dtype == torch.bfloat16
    torch.testing.assert_close(z, given.expected(), rtol=2**-7 if cut else 0, atol=0)
    same = z == given.z
    assert same[0].all(), "alpha is 1"
    others = torch.ones(neurons, dtype=torch.bool, device=z.device)
    others[given.neuron[given.scaled]] = False
    assert same[:, others].all()
    assert not same[1:, ~others].any()


@pytest.mark.parametrize("width", [1, 192, 1024, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_head_adds_its_layer_s_share(path: ModuleType, width: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(width)
    device = on(path)
    x = torch.from_numpy(rng.normal(size=(4, width))).to(device, dtype)
    weight = torch.from_numpy(rng.normal(size=width).astype(np.float32)).to(device)
    score = torch.full((6,), 0.5, device=device)
    path.head(x, weight, score)
    terms = x.double() * weight.double()
    bound = float(terms.abs().sum(1).max()) + 0.5
    np.testing.assert_allclose(score[:4].cpu(), 0.5 + terms.sum(1).cpu(), rtol=0, atol=1e-6 * bound)
    assert (score[4:] == 0.5).all(), "rows beyond the batch are not touched"
    path.head(x.T.contiguous().T, weight, score)
    np.testing.assert_allclose(score[:4].cpu(), 0.5 + 2 * terms.sum(1).cpu(), rtol=0, atol=2e-6 * bound)


@pytest.mark.parametrize("called", [ops.distance, lambda *given: ops.add_distances(*given, at_once=3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_distance_is_the_mean_square_along_its_axes(called: Callable[..., None], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(8, 96))).to(DEVICE, dtype)
    weight = torch.from_numpy(rng.normal(size=(5, 97)).astype(np.float32)).to(DEVICE)
    score = torch.full((10,), 0.5, device=DEVICE)
    called(x, weight, score)
    axes = x.double() @ weight[:, :-1].double().T + weight[:, -1].double()
    np.testing.assert_allclose(score[:8].cpu(), 0.5 + axes.square().mean(1).cpu(), rtol=1e-4)
    assert (score[8:] == 0.5).all(), "rows beyond the batch are not touched"


def test_a_state_that_overflows_makes_no_score(path: ModuleType) -> None:
    """Of its own row, and of no other; where the head has no weight for it, too."""
    x = torch.ones(4, 8, dtype=torch.float16, device=on(path))
    x[1, 2], x[2, 3] = torch.inf, torch.nan
    weight, score = torch.ones(8, device=x.device), torch.zeros(4, device=x.device)
    weight[2] = 0
    path.head(x, weight, score)
    assert score.isfinite().tolist() == [True, False, False, True]


def test_rows_that_are_not_contiguous_are_scaled_where_they_are(path: ModuleType) -> None:
    given = layer(32, 64, 3, torch.float32, on(path))
    for whole in (torch.zeros(8, 64), torch.zeros(64, 4)):
        whole = whole.to(given.z.device)
        z = (whole[::2] if len(whole) == 8 else whole.T).copy_(given.z)
        before, h = whole.clone(), given.h.T.contiguous().T
        score = torch.zeros(4, device=z.device)
        path.tap(h, given.scale(path, z), score)
        torch.testing.assert_close(score, given.terms().sum(1).float())
        assert torch.equal(z, given.expected())
        assert (whole != before).sum() == (z != given.z).sum(), "and nothing else is written"


def test_a_step_without_scaling_writes_what_was_there(path: ModuleType) -> None:
    """A factor of 1 is exact, in rows that could not be scaled, too."""
    given = layer(32, 64, 3, torch.float16, on(path))
    flawed = given.z[1:].contiguous()
    flawed[0, given.neuron[0]], flawed[1, given.neuron[0]] = torch.inf, torch.nan
    z = flawed.clone()
    path.scale(z, given.neuron, given.folded, given.scaled, torch.ones(3, device=z.device))
    torch.testing.assert_close(z, flawed, rtol=0, atol=0, equal_nan=True)


def test_no_rows_are_no_work(path: ModuleType) -> None:
    given = layer(32, 64, 3, torch.float32, on(path), tokens=0)
    contribution = given.scale(path, given.z)
    path.tap(given.h, contribution, torch.zeros(2, device=given.z.device))
    assert contribution.shape == (0,)


@pytest.mark.parametrize("way", ["triton", "torch", "eager", "compiled"])
@pytest.mark.parametrize("flawed", ["z", "h"])
def test_a_tap_of_what_overflows_is_not_finite(kernels: ModuleType, way: str, flawed: str, bundle: Bundle) -> None:
    """Over an infinite norm a neuron would seem to contribute nothing."""
    torch.manual_seed(0)
    device = DEVICE if way == "triton" else "cpu"
    z, h = (torch.randn(3, 16, device=device).half() for _ in range(2))
    {"z": z, "h": h}[flawed][1, 5] = torch.inf
    neuron, folded = torch.tensor([5, 7], device=device), torch.tensor([1.0, -2.0], device=device)
    scaled, alpha, score = torch.ones_like(neuron).bool(), torch.ones(3, device=device), torch.zeros(3, device=device)
    if way == "eager":
        taps = Taps(spec_of(bundle), score, alpha)
        taps.add_layer(0, folded)
        taps.read(z.index_select(1, neuron), h)
        score = taps.signals(3)[NEURONS]
    else:

        def forward() -> None:
            path = kernels if way == "triton" else ops
            path.tap(h, path.scale(z, neuron, folded, scaled, alpha), score)

        (torch.compile(forward, fullgraph=True) if way == "compiled" else forward)()
    assert score.isfinite().tolist() == [True, False, True]


def test_a_tap_of_an_output_of_zeros_is_finite(path: ModuleType) -> None:
    score = torch.zeros(1, device=on(path))
    path.tap(torch.zeros(1, 16, device=on(path)), torch.zeros(1, device=on(path)), score)
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
    made = Statistics(*kernels.row_statistics(rows)) if path == "triton" else Statistics.of(rows.cpu())
    exact = rows.cpu().double().log_softmax(-1)
    np.testing.assert_allclose(made.entropy.cpu(), torch.special.entr(exact.exp()).sum(-1), rtol=1e-5, atol=1e-5)
    token = rows.cpu().argmax(-1)
    got = Statistics(made.entropy.cpu(), made.normaliser.cpu()).signals(rows.cpu(), token)[LOGPROB]
    np.testing.assert_allclose(got, exact.gather(1, token[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_statistics_of_no_rows(kernels: ModuleType) -> None:
    for made in (
        Statistics(*kernels.row_statistics(torch.empty(0, 9, device=DEVICE))),
        Statistics.of(torch.empty(0, 9)),
    ):
        assert (len(made.entropy), len(made.normaliser)) == (0, 0)


def test_a_tap_is_the_probe_on_contributions() -> None:
    torch.manual_seed(0)
    z, h, norms = torch.randn(5, 16), torch.randn(5, 8), torch.rand(16)
    coefficient = np.random.default_rng(0).normal(size=16).astype(np.float32)
    wanted = cett.contributions(z, h, norms) @ torch.from_numpy(coefficient)
    folded = torch.from_numpy(cett.fold(coefficient, norms.numpy()))
    score = torch.zeros(5)
    ops.tap(h, ops.scale(z, torch.arange(16), folded, torch.from_numpy(coefficient > 0), torch.zeros(5)), score)
    torch.testing.assert_close(score, wanted)


@pytest.mark.parametrize("vocabulary", [7, 4096, 151_936])
def test_what_is_kept_survives_sampling_in_place(vocabulary: int) -> None:
    rows = logits(5, vocabulary, 3.0, torch.float32).cpu()
    exact = rows.double().log_softmax(-1)
    drawn = Drawn(rows)
    rows.fill_(0)
    token = exact.argmax(-1)
    found = drawn.signals(token)
    np.testing.assert_allclose(found[ENTROPY], torch.special.entr(exact.exp()).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[LOGPROB], exact.gather(1, token[:, None])[:, 0], atol=1e-5)


def test_layers_are_summed_as_taps_would_sum_them(bundle: Bundle) -> None:
    torch.manual_seed(0)
    spec = spec_of(bundle)
    eager, compiled = (Taps(spec, torch.zeros(6), torch.ones(6)) for _ in range(2))
    step = Step(BatchParams.of([EMPTY] * 5, [1] * 5), np.zeros(5, np.int64), np.ones(5, np.int64))
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(2):  # what one step read must not reach the next
            eager.begin(step)
            compiled.begin(step)
            for tap in spec.layers.values():
                neuron, folded = torch.from_numpy(tap.neuron), torch.from_numpy(tap.folded)
                if eager.tapped_layers < len(spec.layers):
                    eager.add_layer(tap.layer, folded)
                z, h = torch.randn(5, 64).to(dtype), torch.randn(5, 8).to(dtype)
                eager.read(z.index_select(1, neuron), h)
                scaled = torch.from_numpy(np.isin(tap.neuron, tap.scaled))
                ops.tap(h, ops.scale(z, neuron, folded, scaled, compiled.alpha), compiled.score)
            torch.testing.assert_close(eager.signals(5)[NEURONS], compiled.signals(5)[NEURONS])

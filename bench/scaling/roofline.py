"""What the guard adds to a decoding step on an H100, on paper: bytes and operations, beside the model's own.

A roofline: each kernel takes as long as the larger of its bytes at the memory's bandwidth and its operations at the
arithmetic's peak (Williams, Waterman and Patterson, 2009). No kernel reaches it, a launch has a cost of its own, and
nothing here was measured on a GPU. What the guard reads and writes is that of ``guard/worker``: ``kernels.py``,
``buffers.py``, ``batch.py``. All of it is counted as memory traffic, though much is still in the GPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guard.ipc.score_table import entries
from guard.probe.signals import ALWAYS
from guard.training.distance import AXES

# NVIDIA's data sheet of the H100 SXM: https://www.nvidia.com/en-us/data-center/h100/ (dense, without sparsity).
BANDWIDTH = 3.35e12  # bytes/s
TENSOR = 989e12  # operations/s in bfloat16, on tensor cores
VECTOR = 67e12  # operations/s in float32, outside of tensor cores: where the guard's are
MEMORY = 80e9  # bytes
USED = 0.92  # of it, by vLLM: --gpu-memory-utilization, as in docs/deployment.md

BFLOAT16, FLOAT32, INT64 = 2, 4, 8  # bytes
SECTOR = 32  # bytes that a GPU's memory moves at least for one number (CUDA programming guide)
ROWS = 8192  # of the score buffer: vLLM's max_num_batched_tokens on an H100 (vllm/engine/arg_utils.py, 0.32)
LOGIT = 14  # operations of the online softmax and entropy for each logit, counted in kernels.py's _row_statistics
# torch.topk of one row reads it once for every two bits of a number, and twice to gather (ATen/native/cuda:
# SortingRadixSelect.cuh, TensorTopK.cu); it has faster ways, of which none is assumed.
TOP_READS = 8 * BFLOAT16 // 2 + 2

BATCHES = (1, 32, 256)
CONTEXT = 1024  # tokens of each sequence, the mean over its life: prompt and half of the answer


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes, and what is read of it: ``neurons`` of each of ``tapped`` layers, a residual head of ``heads``
    layers, over ``ranks`` GPUs. experts, active: of each layer, and for each token; 0 of a dense model.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tapped: int
    neurons: int
    heads: int = 0
    top: bool = False  # whether the margin and the mass of the likeliest tokens are measured
    distance: bool = False
    ranks: int = 1
    experts: int = 0
    active: int = 0

    @property
    def attention(self) -> int:
        """Weights of one layer's attention."""
        return self.hidden * self.head_size * (2 * self.attention_heads + 2 * self.kv_heads)

    @property
    def mlp(self) -> int:
        """Weights of one MLP, or of one expert."""
        return 3 * self.hidden * self.intermediate

    @property
    def output(self) -> int:
        """Weights of the projection to logits."""
        return self.hidden * self.vocabulary

    @property
    def weights(self) -> int:
        """All of them, with the embedding, which a step reads of only a row for each token."""
        return self.layers * (self.attention + self.mlp * max(self.experts, 1)) + 2 * self.output

    @property
    def kv(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_size * BFLOAT16

    def touched(self, rows: int) -> float:
        """MLPs of a layer whose weights ``rows`` tokens read: of experts drawn evenly, as many as are expected."""
        if not self.experts:
            return 1
        return self.experts * (1 - (1 - self.active / self.experts) ** rows)

    def fits(self, rows: int) -> bool:
        """Whether weights and cache of so many sequences have room in the GPUs' memory."""
        return self.weights * BFLOAT16 + rows * CONTEXT * self.kv <= USED * MEMORY * self.ranks

    def step(self, rows: int) -> tuple[float, float]:
        """(bytes, operations) of a decoding step of the model itself, on one GPU."""
        read = self.layers * (self.attention + self.mlp * self.touched(rows)) + self.output
        used = self.layers * (self.attention + self.mlp * max(self.active, 1)) + self.output
        scores = 4 * rows * CONTEXT * self.layers * self.attention_heads * self.head_size  # q k and p v, 2 each
        bytes_read = read * BFLOAT16 + rows * CONTEXT * self.kv
        return bytes_read / self.ranks, (2 * rows * used + scores) / self.ranks


# Sizes: config.json of meta-llama/Llama-3.1-8B-Instruct, Llama-3.3-70B-Instruct and Qwen/Qwen3-30B-A3B. Neurons: of
# the 8B as guard/bench/models/synthetic.py has them, of the 70B the same share of its layers (arXiv 2512.01797 finds
# fewer); a mixture's routed experts have none that are read. Heads: guard/training/heads.py fits one on 3 layers at
# most.
SHAPES = (
    Shape("8B", 32, 4096, 14336, 32, 8, 128, 128_256, tapped=30, neurons=5),
    Shape(
        "8B, all signals", 32, 4096, 14336, 32, 8, 128, 128_256, tapped=30, neurons=5, heads=3, top=True, distance=True
    ),
    Shape("70B, TP 8", 80, 8192, 28672, 64, 8, 128, 128_256, tapped=75, neurons=5, ranks=8),
    Shape("mixture 30B-A3B", 48, 2048, 768, 32, 4, 128, 151_936, tapped=0, neurons=0, heads=3, experts=128, active=8),
)


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of the guard's work in a step, on the busiest GPU. kernels: launches."""

    piece: str
    moved: float  # bytes
    operations: float
    kernels: int

    @property
    def seconds(self) -> float:
        return max(self.moved / BANDWIDTH, self.operations / VECTOR)


def guard_work(shape: Shape, rows: int) -> Iterator[Work]:
    """The guard's pieces of a decoding step of so many rows, where no neuron is scaled."""
    signals = sum(map(bool, (shape.tapped, shape.heads, shape.distance)))
    if shape.tapped:
        # scale: a gather of K numbers of z, alpha, the row's sum out; neuron, folded and scaled once for all rows.
        gathered = rows * (shape.neurons * SECTOR + 2 * FLOAT32) + shape.neurons * (INT64 + FLOAT32 + 1)
        # tap: h as every rank has it whole, the sum in, the score in and out.
        normed = rows * (shape.hidden * BFLOAT16 + 3 * FLOAT32)
        summed = rows * (3 * shape.neurons + 2 * shape.hidden)
        yield Work("neurons", shape.tapped * (gathered + normed), shape.tapped * summed, 2 * shape.tapped)
    if shape.heads:
        moved = rows * (shape.hidden * BFLOAT16 + 2 * FLOAT32) + shape.hidden * FLOAT32
        yield Work("head", shape.heads * moved, shape.heads * rows * 2 * shape.hidden, shape.heads)
    if shape.distance:
        # The state in float32, once written and read, the weights of each axis, and the axes: made, squared and meant.
        moved = rows * (shape.hidden * (BFLOAT16 + 2 * FLOAT32) + 4 * AXES * FLOAT32 + 3 * FLOAT32)
        moved += AXES * (shape.hidden + 1) * FLOAT32
        yield Work("distance", moved, rows * 2 * AXES * shape.hidden, 5)
    # Taps.begin clears the whole buffer, Taps.signals copies the rows.
    yield Work("score buffer", signals * (ROWS + 2 * rows) * FLOAT32, 0, 2 * signals)
    # The statistics of each row, and the logit of the token that was drawn: gather, cast, subtract.
    drawn = rows * (shape.vocabulary * BFLOAT16 + 2 * FLOAT32)
    yield Work("entropy and log-probability", drawn, rows * shape.vocabulary * LOGIT, 4)
    if shape.top:
        likeliest = rows * shape.vocabulary * BFLOAT16 * TOP_READS
        yield Work("margin and top mass", likeliest, rows * shape.vocabulary * TOP_READS, 7)
    if shape.ranks > 1:
        yield Work("all-reduce of scores", 2 * rows * signals * FLOAT32, rows * signals, 2)


def steps() -> list[dict[str, Any]]:
    """Of each shape and batch: bytes, operations and seconds of a step, the model's and the guard's, and its share."""
    found = []
    for shape in SHAPES:
        for rows in BATCHES:
            moved, operations = shape.step(rows)
            seconds = max(moved / BANDWIDTH, operations / TENSOR)
            work = list(guard_work(shape, rows))
            added, kernels = sum(one.seconds for one in work), sum(one.kernels for one in work)
            found.append(
                {
                    "shape": shape.name,
                    "ranks": shape.ranks,
                    "batch": rows,
                    "fits": shape.fits(rows),
                    "model": {"bytes": moved, "operations": operations, "milliseconds": 1e3 * seconds},
                    "guard": {
                        "bytes": sum(one.moved for one in work),
                        "operations": sum(one.operations for one in work),
                        "milliseconds": 1e3 * added,
                        "kernels": kernels,
                        "pieces": {one.piece: {"bytes": one.moved, "kernels": one.kernels} for one in work},
                    },
                    "share": added / seconds,
                    "share_of_a_microsecond_a_kernel": 1e-6 * kernels / seconds,
                    "tokens_per_second": rows / seconds,
                }
            )
    return found


def summary() -> dict[str, Any]:
    return {
        "device": {"name": "H100 SXM", "bandwidth": BANDWIDTH, "tensor": TENSOR, "vector": VECTOR, "memory": MEMORY},
        "context": CONTEXT,
        "table_bytes_per_position": sum(entry.itemsize for entry in entries(ALWAYS).values()),
        "steps": steps(),
    }

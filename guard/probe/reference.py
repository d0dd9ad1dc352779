"""What a checkpoint says and does under a probe: ``reference.json``, beside the bundle's card and tensors.

config: of ``config.json``, what changes the forward pass. The weights' fingerprint says nothing of it.
scores: by layer, what the probe's neurons of that layer alone add to the score of each token of ``prompt``, from the
token before its second half on. heads: the same by name of a further signal, of its head's layers. A server that reads
a wrong layer, a wrong shard or with a wrong norm gets others.

No part of the bundle's revision: it holds nothing that makes a risk, and bundles from before it keep theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from guard.errors import BundleError
from guard.probe.signals import NEURONS

FILE = "reference.json"
LARGEST = 4 << 20  # bytes; a hundred layers of a prompt of 24 tokens take 40 KiB

Scores = Annotated[list[FiniteFloat], Field(min_length=2, max_length=1024)]
ByLayer = Annotated[dict[int, Scores], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By how much scores may differ: the distance from the reference over its length, by root mean squares over the
    prompt. any: of each layer. most: of the layer in the middle, which a norm that is off in all of them moves."""

    any: float
    most: float

    @property
    def of_head(self) -> Tolerance:
        """Of a head, which reads too few layers for one in the middle."""
        return Tolerance(self.any, self.any)


# Of eight checkpoints (six random families, atlas, SmolLM2 of 30 layers) the worst layer was .055 from float32 in
# bfloat16 and .006 in float16, the middle one .020 and .003; another layer's neurons in its place were .35 off or more.
# Two engines of one precision may stray to either side, and deeper models further.
TOLERANCES = {
    "float32": Tolerance(0.01, 0.003),
    "float16": Tolerance(0.03, 0.01),
    "bfloat16": Tolerance(0.15, 0.05),
}
# Heads: random ones of the same checkpoints were .065 off at worst in bfloat16 and .006 in float16, ones that were fit
# on SmolLM2 .032 and .009.
_SMALL = 0.02  # a layer that adds less than this share of the largest is held to that share: it hardly counts


class Reference(BaseModel):
    """``reference.json``. dtype, engine: what scores were measured with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    engine: str
    dtype: Literal["float32", "bfloat16", "float16"]
    config: dict[str, JsonValue]
    prompt: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=1024)]
    scores: dict[int, Scores]
    heads: dict[str, ByLayer] = {}

    @property
    def by_signal(self) -> dict[str, dict[int, list[float]]]:
        """The scores by layer, by name of a signal."""
        return ({NEURONS: self.scores} if self.scores else {}) | self.heads

    def differences(self, measured: Mapping[str, Mapping[int, NDArray[np.float32]]], dtype: str) -> list[str]:
        """In what ``measured`` [tokens] by signal and layer, in ``dtype``, is not what it was, as phrases; none where
        it is."""
        tolerance = TOLERANCES[max(dtype, self.dtype, key=lambda name: TOLERANCES[name].any)]
        found: list[str] = []
        for name, scores in self.by_signal.items():
            allowed, what = (tolerance, "layer") if name == NEURONS else (tolerance.of_head, f"{name} of layer")
            off = _off(scores, measured[name])
            flaws = [
                f"{what} {layer} is {distance:.1%} off, where {allowed.any:.1%} are allowed in {dtype}"
                for layer, distance in sorted(off.items())
                if not distance <= allowed.any
            ]
            middle = float(np.median(list(off.values())))
            if not flaws and not middle <= allowed.most:
                flaws = [f"most {what}s are {middle:.1%} off or more, where {allowed.most:.1%} are allowed in {dtype}"]
            found += flaws
        return found


def _off(scores: Mapping[int, list[float]], measured: Mapping[int, NDArray[np.float32]]) -> dict[int, float]:
    """By layer, how far ``measured`` is from ``scores``, over the length of those."""
    size = {layer: float(np.linalg.norm(one)) for layer, one in scores.items()}
    least = _SMALL * max(size.values())
    return {
        layer: float(np.linalg.norm(measured[layer] - np.array(one))) / max(size[layer], least, 1e-30)
        for layer, one in scores.items()
    }


def read_reference(folder: Path, layers: Mapping[str, Sequence[int]]) -> Reference | None:
    """The reference in a bundle's folder, None without one. Raises BundleError for one that is not of these layers, by
    name of a signal."""
    file = folder / FILE
    if not file.is_file():
        return None
    if file.stat().st_size > LARGEST:
        raise BundleError(f"{file} is larger than {LARGEST >> 20} MiB, which no reference is")
    remedy = "`hguard probe reference` makes it anew"
    try:
        found = Reference.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file} is not a valid reference: {where}: {first['msg']}; {remedy}") from None
    lengths = {len(scores) for by_layer in found.by_signal.values() for scores in by_layer.values()}
    if {name: sorted(scores) for name, scores in found.by_signal.items()} != dict(layers) or lengths != {
        len(found.prompt) - len(found.prompt) // 2 + 1
    }:
        raise BundleError(f"{file} was made for another probe: its layers or lengths are not this one's; {remedy}")
    return found


def write_reference(folder: Path, reference: Reference | None) -> None:
    """Write it, or remove what an earlier bundle left."""
    file = folder / FILE
    if reference is None:
        file.unlink(missing_ok=True)
    else:
        found = reference.model_dump(mode="json")
        scores, heads, prompt = (found.pop(name) for name in ("scores", "heads", "prompt"))
        head = json.dumps(found, indent=1, ensure_ascii=False).removesuffix("\n}")
        parts = [head, f' "prompt": {json.dumps(prompt)}', f' "scores": {_lines(scores)}']
        if heads:
            parts.append(
                ' "heads": {\n' + ",\n".join(f" {json.dumps(k)}: {_lines(v)}" for k, v in heads.items()) + "\n }"
            )
        text = ",\n".join(parts) + "\n}\n"
        file.write_text(text, encoding="utf-8")


def _lines(scores: Mapping[Any, list[float]]) -> str:
    """A layer a line: a person compares them."""
    return (
        "{\n" + ",\n".join(f"  {json.dumps(str(layer))}: {json.dumps(one)}" for layer, one in scores.items()) + "\n }"
    )


def config_differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """What two configurations say otherwise of the forward pass, as phrases."""
    return [
        f"its config.json has {name} {actual.get(name)!r}, the probe's {expected.get(name)!r}"
        for name in sorted({*expected, *actual})
        if expected.get(name) != actual.get(name)
    ]

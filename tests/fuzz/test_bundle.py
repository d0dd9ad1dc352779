"""The loader of probe bundles: whatever the files hold, a BundleError or a bundle that holds what bundles hold."""

from __future__ import annotations

import copy
import hashlib
import json
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from guard.errors import BundleError
from guard.probe.bundle import LARGEST, OPTIONAL, TENSORS, Bundle, load_bundle
from tests.conftest import make_tensors
from tests.fuzz.values import any_json, deep, many

LONGEST_SECONDS = 20  # of a load that should take a hundredth of one; machines of tests are busy
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "x", 1, None]
sizes = st.sampled_from([-1, 0, 1, 4, 5, 20, 2**31, 2**53, 2**63, 2**64]) | st.integers(0, 600)


@pytest.fixture(autouse=True)
def modest() -> Iterator[None]:
    """No load takes much memory, whatever a header promises."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 * 1024, f"{grown >> 10} MiB more at the peak"


def require_sound(bundle: Bundle) -> None:
    """What the rest of the guard takes for granted."""
    k = len(bundle.layer)
    assert k == len(bundle.neuron) == len(bundle.coefficient) == len(bundle.folded) > 0
    for name, tensor in bundle.tensors.items():
        assert tensor.dtype == {**TENSORS, **OPTIONAL}[name]
        assert np.isfinite(tensor).all()
        assert tensor.ndim == 1
    assert 0 <= bundle.layer.min() <= bundle.layer.max() < bundle.card.model.layers
    assert 0 <= bundle.neuron.min() <= bundle.neuron.max() < bundle.card.model.neurons_per_layer
    assert bundle.revision
    assert bundle.readout.window >= 1
    assert json.dumps(bundle.card.as_json(), allow_nan=False)
    if bundle.calibrated:
        assert 0 <= bundle.threshold(0.5) <= 1.1


def load(folder: Path, card: bytes | None = None, tensors: bytes | None = None, sign: bool = False) -> Bundle | None:
    """A bundle of these bytes; ``sign`` puts the tensors' own hash into the card, so that they are looked at."""
    if tensors is not None:
        (folder / "probe.safetensors").write_bytes(tensors)
    if sign and tensors is not None:
        content = json.loads((folder / "probe.json").read_bytes() if card is None else card)
        content["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
        card = json.dumps(content).encode()
    if card is not None:
        (folder / "probe.json").write_bytes(card)
    began = time.monotonic()
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        assert str(error)  # noqa: PT017 - what is refused is refused in words
        bundle = None
    assert time.monotonic() - began < LONGEST_SECONDS
    if bundle is not None:
        require_sound(bundle)
    return bundle


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes flipped, put in, taken out, cut off."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        match draw(st.sampled_from(["flip", "put", "take", "cut"])):
            case "flip" if out:
                out[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                out[at:at] = draw(st.binary(max_size=8))
            case "take":
                del out[at : at + draw(st.integers(1, 8))]
            case _:
                del out[at:]
    return bytes(out)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is a value in it."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield (*path, name)
            yield from places(value, (*path, name))


@pytest.fixture(params=["plain", "foreseeing"])
def source(request: pytest.FixtureRequest, bundle_once: Bundle, foreseeing_once: Bundle) -> Bundle:
    return bundle_once if request.param == "plain" else foreseeing_once


@many(60)
@given(st.data())
def test_a_card_of_other_bytes(source: Bundle, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = prepared(tmp_path_factory, source)
    card = (source.path / "probe.json").read_bytes()
    load(folder, mutated(data.draw, card) if data.draw(st.booleans()) else data.draw(st.binary(max_size=200)))


@many(60)
@given(st.data())
def test_a_card_of_other_values(source: Bundle, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = prepared(tmp_path_factory, source)
    card = json.loads((source.path / "probe.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(list(places(card))))
        where = card
        for name in path:
            where = where[name]
        match data.draw(st.sampled_from(["set", "drop", "add"])):
            case "set":
                where[last] = data.draw(any_json())
            case "drop":
                del where[last]
            case _ if isinstance(where, dict):
                where[data.draw(st.sampled_from(["isotonic", "prompt_platt", "at_thresholds", "x", ""]))] = data.draw(
                    any_json()
                )
            case _:
                where.append(copy.deepcopy(where[last]))
        if not card:
            break
    load(folder, json.dumps(card).encode())


@many(60)
@given(st.data())
def test_tensors_of_other_bytes(source: Bundle, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = prepared(tmp_path_factory, source)
    tensors = (source.path / "probe.safetensors").read_bytes()
    changed = mutated(data.draw, tensors) if data.draw(st.integers(0, 4)) else data.draw(st.binary(max_size=100))
    load(folder, None, changed, sign=bool(data.draw(st.integers(0, 9))))


@many(60)
@given(st.data())
def test_tensors_with_another_header(source: Bundle, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = prepared(tmp_path_factory, source)
    tensors = (source.path / "probe.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", tensors[:8])
    header, rest = json.loads(tensors[8 : 8 + length]), tensors[8 + length :]
    for name in data.draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=2, unique=True)):
        entry = dict(header[name])
        match data.draw(st.sampled_from(["dtype", "shape", "offsets", "any", "drop", "rename"])):
            case "dtype":
                entry["dtype"] = data.draw(st.sampled_from(DTYPES))
            case "shape":
                entry["shape"] = data.draw(st.lists(sizes, max_size=4) | any_json(3))
            case "offsets":
                entry["data_offsets"] = data.draw(st.lists(sizes, max_size=3) | any_json(3))
            case "any":
                entry = data.draw(any_json())
            case "drop":
                header.pop(name, None)
                continue
            case _:
                header[data.draw(st.sampled_from(["x", "__metadata__", "right_prompt_risks"]))] = header.pop(
                    name, entry
                )
                continue
        header[name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8) if data.draw(st.booleans()) else b""
    claimed = len(text) if data.draw(st.integers(0, 4)) else data.draw(st.integers(0, 2**64 - 1))
    load(folder, None, struct.pack("<Q", claimed) + text + rest, sign=True)


@many(60)
@given(st.data())
def test_tensors_of_other_numbers(source: Bundle, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = prepared(tmp_path_factory, source)
    tensors: dict[str, Any] = {**make_tensors(), **source.tensors}
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True)):
        values = np.array(tensors[name]).copy()
        match data.draw(st.sampled_from(["value", "length", "dtype", "shape", "order"])):
            case "value" if len(values):
                edges = [0, -1, 1, 3, 64, 2**31 - 1] if values.dtype == np.int32 else [np.nan, np.inf, -1e30, 0.5, 1e30]
                values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.sampled_from(edges))
            case "length":
                values = np.resize(values, data.draw(st.sampled_from([0, 1, 4, 6, 100])))
            case "dtype":
                with np.errstate(invalid="ignore"):
                    values = values.astype(
                        data.draw(st.sampled_from([np.int64, np.float64, np.float16, np.int8, bool]))
                    )
            case "shape":
                values = values.reshape(data.draw(st.sampled_from([(-1, 1), (1, -1)]))) if len(values) else values
            case _:
                values = values[::-1].copy()
        tensors[name] = values
    load(folder, None, save(tensors), sign=True)


def test_a_header_that_promises_the_world(source: Bundle, tmp_path_factory: Any) -> None:
    for shape, end in (([2**40], 2**42), ([2**32, 2**32], 0), ([2**62], 2**64 - 1), ([0] * 100_000, 0), ([1] * 64, 4)):
        header = json.dumps({"layer": {"dtype": "I32", "shape": shape, "data_offsets": [0, end]}}).encode()
        for tail in (b"", b"\0" * 4):
            assert (
                load(prepared(tmp_path_factory, source), None, struct.pack("<Q", len(header)) + header + tail, True)
                is None
            )


@pytest.mark.parametrize("wrap", ["list", "dict"])
@pytest.mark.parametrize("depth", [100, 900])
def test_a_deep_card(source: Bundle, tmp_path_factory: Any, wrap: str, depth: int) -> None:
    card = json.loads((source.path / "probe.json").read_bytes())
    for name in ("thresholds", "metrics", "id", "isotonic", "x"):
        assert load(prepared(tmp_path_factory, source), json.dumps({**card, name: deep(depth, wrap)}).encode()) is None
    for text in (b"[" * 1_000_000, b'{"a":' * 1_000_000, b'{"schema_version": ' + b"9" * 100_000 + b"}"):
        assert load(prepared(tmp_path_factory, source), text) is None


def test_files_too_large(source: Bundle, tmp_path_factory: Any) -> None:
    for name in ("probe.json", "probe.safetensors"):
        folder = prepared(tmp_path_factory, source)
        with (folder / name).open("r+b") as file:
            file.truncate(LARGEST + 1)
        assert load(folder) is None


def prepared(tmp_path_factory: Any, source: Bundle) -> Path:
    """A folder with the bundle's own files, to be overwritten."""
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    for name in ("probe.json", "probe.safetensors"):
        (folder / name).write_bytes((source.path / name).read_bytes())
    return Path(folder)

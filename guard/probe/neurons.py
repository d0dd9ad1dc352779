"""A plain list of layer, neuron, weight, as CSV or JSON: what other tools can write and read of a probe.

A weight is a coefficient of the linear probe, before any column norm is folded in. Columns and keys beyond the three
are ignored, so that a list may carry notes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError
from guard.probe.bundle import LARGEST

COLUMNS = ("layer", "neuron", "weight")
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")  # more digits fit no index, and int() refuses thousands of them
_SPACE = re.compile(r"[ \t\r\n]*")

Row = tuple[int, list[Any]]  # a line number, and the layer, neuron and weight that stand there


@dataclass(frozen=True, slots=True)
class Neurons:
    """layer, neuron int32 [k]; weight float32 [k], k > 0."""

    layer: NDArray[np.int32]
    neuron: NDArray[np.int32]
    weight: NDArray[np.float32]


def write_neurons(file: Path, neurons: Neurons) -> None:
    """Write the list in the format that the file's suffix names. Raises BundleError for another suffix."""
    suffix = _suffix(file)
    # Nine digits tell every float32 from its neighbours, also when a reader goes through float64.
    columns = (neurons.layer.tolist(), neurons.neuron.tolist(), (f"{weight:.9g}" for weight in neurons.weight.tolist()))
    rows = zip(*columns, strict=True)
    if suffix == ".csv":
        lines = [",".join(COLUMNS), *(f"{layer},{neuron},{weight}" for layer, neuron, weight in rows)]
    else:
        listed = [f'{{"layer": {layer}, "neuron": {neuron}, "weight": {weight}}}' for layer, neuron, weight in rows]
        lines = ["[", *(f" {one}," for one in listed[:-1]), f" {listed[-1]}", "]"]
    try:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{file} cannot be written: {error.strerror}") from None


def read_neurons(file: Path, layers: int, neurons_per_layer: int) -> Neurons:
    """Read and check a list for a model of this size. Raises BundleError naming file, line and fault."""
    rows = _csv_rows if _suffix(file) == ".csv" else _json_rows
    text = _text(file)
    found: dict[tuple[int, int], int] = {}
    weights: list[np.float32] = []
    at = 1
    try:
        for at, raw in rows(text):
            key, weight = _checked(raw, layers, neurons_per_layer)
            if key in found:
                raise ValueError(f"layer {key[0]}, neuron {key[1]} stands on line {found[key]} already")
            found[key] = at
            weights.append(weight)
    except csv.Error as error:
        raise BundleError(f"{file} is not a valid CSV file: after line {at}: {error}") from None
    except json.JSONDecodeError as error:
        raise BundleError(f"{file}, line {error.lineno}: not a JSON list of objects: {error.msg}") from None
    except RecursionError:
        raise BundleError(f"{file} is nested too deeply to be a list of neurons") from None
    except _LineError as error:
        raise BundleError(f"{file}, line {error.line}: {error}") from None
    except ValueError as error:
        raise BundleError(f"{file}, line {at}: {error}") from None
    if not found:
        raise BundleError(f"{file} lists no neurons")
    if not any(weights):
        raise BundleError(f"{file}: every weight is 0, so there is nothing to read")
    layer, neuron = np.array(list(found), np.int32).T
    return Neurons(layer, neuron, np.array(weights, np.float32))


class _LineError(ValueError):
    """A fault whose line its finder knows."""

    def __init__(self, line: int, says: str) -> None:
        super().__init__(says)
        self.line = line


def _suffix(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise BundleError(f"{file}: a list of neurons is a .csv or a .json file")
    return suffix


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise BundleError(f"{file} is larger than {LARGEST >> 20} MiB, which no list of a probe's neurons is")
        return file.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark before the header
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 text: {error}") from None


def _csv_rows(text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in COLUMNS if name not in header]:
        raise _LineError(1, f"the header lacks {', '.join(missing)}; it must name {', '.join(COLUMNS)}")
    chosen = [header.index(name) for name in COLUMNS]
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise _LineError(reader.line_num, f"it has {len(row)} columns, the header {len(header)}")
        yield reader.line_num, [_value(row[i]) for i in chosen]


def _value(text: str) -> Any:
    """The number that a CSV field spells, or the text as it stands."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _json_rows(text: str) -> Iterator[Row]:
    """Decoded one object at a time, since a JSON value does not know on which line it stood."""
    decoder = json.JSONDecoder()
    at, line, counted = 0, 1, 0

    def take(expected: str) -> str:
        nonlocal at
        space = _SPACE.match(text, at)
        assert space is not None  # it matches nothing, too
        at = space.end()
        mark = text[at : at + 1]
        if not mark or mark not in expected:
            raise json.JSONDecodeError(f"expecting {' or '.join(expected)}", text, at)
        at += 1
        return mark

    take("[")
    more = take("{]") == "{"
    while more:
        start = at - 1
        line, counted = line + text.count("\n", counted, start), start
        value, at = decoder.raw_decode(text, start)
        if missing := [name for name in COLUMNS if name not in value]:
            raise _LineError(line, f"{', '.join(missing)} is missing")
        yield line, [value[name] for name in COLUMNS]
        more = take(",]") == "," and take("{") == "{"
    if rest := text[at:].lstrip():
        at = len(text) - len(rest)
        raise json.JSONDecodeError("there is more after the list", text, at)


def _checked(raw: Sequence[Any], layers: int, neurons_per_layer: int) -> tuple[tuple[int, int], np.float32]:
    """((layer, neuron), weight). Raises ValueError with what is wrong."""
    layer, neuron, weight = raw
    for name, value, limit in (("layer", layer, layers), ("neuron", neuron, neurons_per_layer)):
        if type(value) is not int:  # a bool is an int to isinstance
            raise ValueError(f"{name} {value!r} is not a whole number")
        if not 0 <= value < limit:
            raise ValueError(f"{name} {value} is outside the model's 0..{limit - 1}")
    if type(weight) not in (int, float):
        raise ValueError(f"weight {weight!r} is not a number")
    try:
        number = float(weight)
    except OverflowError:  # JSON's whole numbers have no end
        number = np.inf
    with np.errstate(over="ignore"):
        rounded = np.float32(number)
    if not np.isfinite(rounded):
        raise ValueError(f"weight {number:.9g} is not finite in float32")
    return (layer, neuron), rounded

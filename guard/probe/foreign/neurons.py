"""A plain list of layer, neuron, weight, as CSV or JSON: what other tools can write and read of a probe.

A weight is a coefficient of the linear probe, before any column norm is folded in. Columns and keys beyond the three
are ignored, so that a list may carry notes. Other tools say position or index for a neuron, an index without a layer
for its place among all of the model's, and coefficient for a weight; theirs are mostly of standardised features, so
such a list says which neurons to read, and not how.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError
from guard.probe.bundle import LARGEST

COLUMNS = ("layer", "neuron", "weight")
_PLACES, _WEIGHTS = ("neuron", "position", "index"), ("weight", "coefficient")
_KNOWN = ("layer", *_PLACES, *_WEIGHTS)
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")  # more digits fit no index, and int() refuses thousands of them
_BETWEEN = re.compile(r"[\[,\s]*")  # two values of a list that is known to be JSON

Row = tuple[int, Mapping[str, Any]]  # a line number, and what stands there by name


@dataclass(frozen=True, slots=True)
class Neurons:
    """layer, neuron int32 [k]; weight float32 [k], k > 0, of CETT as it is. intercept: where the source says one."""

    layer: NDArray[np.int32]
    neuron: NDArray[np.int32]
    weight: NDArray[np.float32]
    intercept: float = 0.0


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


def read_neurons(file: Path, layers: int, neurons_per_layer: int, weights: bool = True) -> Neurons:
    """Read and check a list for a model of this size. Raises BundleError naming file, line and fault.

    Without ``weights``, for neurons that are to be fit again, a list may do without them, and every weight is 1.
    """
    rows = _csv_rows if _suffix(file) == ".csv" else _json_rows
    text = _text(file)
    found: dict[tuple[int, int], int] = {}
    taken: list[np.float32] = []
    at = 1
    try:
        for at, row in rows(text, weights):
            key, weight = _checked(row, layers, neurons_per_layer, weights)
            if key in found:
                raise ValueError(f"layer {key[0]}, neuron {key[1]} stands on line {found[key]} already")
            found[key] = at
            taken.append(weight)
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
    if not any(taken):
        raise BundleError(f"{file}: every weight is 0, so there is nothing to read")
    layer, neuron = np.array(list(found), np.int32).T
    return Neurons(layer, neuron, np.array(taken, np.float32))


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


def _missing(names: Collection[str], weights: bool) -> list[str]:
    """Which of COLUMNS nothing in ``names`` stands for."""
    place = [name for name in _PLACES if name in names]
    there = ["layer" in names or place == ["index"], bool(place), not weights or any(n in names for n in _WEIGHTS)]
    return [name for name, known in zip(COLUMNS, there, strict=True) if not known]


def _csv_rows(text: str, weights: bool) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    header = [name.strip() for name in next(reader, [])]
    if missing := _missing(header, weights):
        raise _LineError(1, f"the header lacks {', '.join(missing)}; it must name {', '.join(COLUMNS)}")
    chosen = {name: header.index(name) for name in _KNOWN if name in header}
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise _LineError(reader.line_num, f"it has {len(row)} columns, the header {len(header)}")
        yield reader.line_num, {name: _value(row[i]) for name, i in chosen.items()}


def _value(text: str) -> Any:
    """The number that a text spells, infinite where it has more digits than Python reads; or the text as it stands."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _json_rows(text: str, weights: bool) -> Iterator[Row]:
    """Decoded as a whole, for what is no JSON, and again one by one, since a value does not know where it stood."""
    decoder = json.JSONDecoder(parse_int=_value)
    values = decoder.decode(text)
    if not isinstance(values, list):
        raise _LineError(1, "not a JSON list of objects")
    line, at = 1, 0
    for _ in values:
        between = _BETWEEN.match(text, at)
        assert between is not None  # it matches nothing, too
        line, start = line + between[0].count("\n"), between.end()
        value, at = decoder.raw_decode(text, start)
        if not isinstance(value, dict):
            raise _LineError(line, "not a JSON object")
        if missing := _missing(value, weights):
            raise _LineError(line, f"{', '.join(missing)} is missing")
        yield line, value
        line += text.count("\n", start, at)


def _checked(
    row: Mapping[str, Any], layers: int, neurons_per_layer: int, weights: bool
) -> tuple[tuple[int, int], np.float32]:
    """((layer, neuron), weight). Raises ValueError with what is wrong."""
    place = next(name for name in _PLACES if name in row)
    if weights and (place not in COLUMNS or "weight" not in row or "layer" not in row):
        names = ", ".join(name for name in _KNOWN if name in row)
        raise ValueError(
            f"{names} are the names of tools whose coefficients are of standardised features: fit the neurons again "
            f"with --refit, or call the columns {', '.join(COLUMNS)} if they are of CETT as it is"
        )
    if "layer" in row:
        layer = _index("layer", row["layer"], layers)
        neuron = _index("neuron", row[place], neurons_per_layer)
    else:
        layer, neuron = divmod(_index("index", row[place], layers * neurons_per_layer), neurons_per_layer)
    return (layer, neuron), _weight(row["weight"]) if weights else np.float32(1)


def _index(name: str, value: Any, limit: int) -> int:
    if type(value) is not int:  # a bool is an int to isinstance
        raise ValueError(f"{name} {value!r} is not a whole number")
    if not 0 <= value < limit:
        raise ValueError(f"{name} {value} is outside the model's 0..{limit - 1}")
    return value


def _weight(weight: Any) -> np.float32:
    if type(weight) not in (int, float):
        raise ValueError(f"weight {weight!r} is not a number")
    with np.errstate(over="ignore"):
        rounded = np.float32(weight)
    if not np.isfinite(rounded):
        raise ValueError(f"weight {weight:.9g} is not finite in float32")
    return rounded

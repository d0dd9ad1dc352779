"""The plain list of neurons: there and back exactly, and each fault by its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from guard.errors import BundleError
from guard.probe.foreign import neurons as module
from guard.probe.foreign.neurons import Neurons, read_neurons, write_neurons

SUFFIXES = (".csv", ".json")


def listed(weight: np.ndarray) -> Neurons:
    """A list with these weights, out of order, four neurons a layer."""
    number = np.arange(len(weight), dtype=np.int32)[::-1]
    return Neurons(number // 4, number % 4, weight)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_there_and_back_is_exact(tmp_path: Path, suffix: str) -> None:
    limits = np.finfo(np.float32)
    edges = [limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 1 / 3, 0.1, 1, -7, 16_777_217, 0]
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)  # every bit pattern is as likely
    weight = np.append(np.array(edges, np.float32), anything[np.isfinite(anything)])
    original = listed(weight)
    file = tmp_path / f"list{suffix}"
    write_neurons(file, original)
    again = read_neurons(file, len(weight) // 4 + 1, 4)
    for name in ("layer", "neuron", "weight"):
        expected, found = getattr(original, name), getattr(again, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_what_is_written(tmp_path: Path) -> None:
    two = Neurons(np.array([0, 3], np.int32), np.array([7, 63], np.int32), np.array([0.5, -1e-20], np.float32))
    write_neurons(tmp_path / "list.csv", two)
    assert (tmp_path / "list.csv").read_text() == "layer,neuron,weight\n0,7,0.5\n3,63,-9.99999968e-21\n"
    write_neurons(tmp_path / "list.JSON", two)
    assert json.loads((tmp_path / "list.JSON").read_text()) == [
        {"layer": 0, "neuron": 7, "weight": 0.5},
        {"layer": 3, "neuron": 63, "weight": -9.99999968e-21},
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "\ufefflayer,neuron,weight\r\n1,2,0.5\r\n\r\n0,3,-1\r\n"),  # as a spreadsheet saves it
        ("a.csv", "rank, weight ,neuron,layer\n1,0.5,2,1\n2,-1e0, 3,0"),
        ("a.csv", 'layer,neuron,weight,note\n1,2,.5,"first,\nof two"\n0,3,-1.0,'),
        ("a.json", '[{"layer":1,"neuron":2,"weight":0.5},{"weight":-1,"layer":0,"neuron":3,"note":[{}]}]'),
        (
            "a.json",
            '\ufeff [\n\n{"layer": 1, "neuron": 2, "weight": 5e-1}\n,\n{"layer":0,"neuron":3,"weight":-1} ]\n\n',
        ),
    ],
)
def test_what_other_tools_write(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_neurons(tmp_path / name, 2, 4)
    assert (found.layer.tolist(), found.neuron.tolist(), found.weight.tolist()) == ([1, 0], [2, 3], [0.5, -1.0])


def test_no_weight_need_be_positive(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer,neuron,weight\n0,0,-1\n0,1,0\n")
    assert read_neurons(tmp_path / "a.csv", 2, 4).weight.tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the header lacks layer, neuron, weight; it must name"),
        ("0,0,1\n", "line 1: the header lacks layer"),
        ("layer,neuron\n0,0\n", "line 1: the header lacks weight"),
        ("layer;neuron;weight\n0;0;1\n", "line 1: the header lacks"),
        ("layer,neuron,weight\n", "lists no neurons"),
        ("layer,neuron,weight\n0,0,1\n0,1\n", "line 3: it has 2 columns, the header 3"),
        ("layer,neuron,weight\n0,0,1,1\n", "line 2: it has 4 columns, the header 3"),
        ("layer,neuron,weight\n\n0,0,1\n0,1,much\n", "line 4: weight 'much' is not a number"),
        ("layer,neuron,weight\n0,0,\n", "line 2: weight '' is not a number"),
        ("layer,neuron,weight\n0,0,nan\n", "line 2: weight nan is not finite"),
        ("layer,neuron,weight\n0,0,-inf\n", "line 2: weight -inf is not finite"),
        ("layer,neuron,weight\n0,0,3.5e38\n", r"line 2: weight 3.5e\+38 is not finite"),
        ("layer,neuron,weight\n0,0,1e999\n", "line 2: weight inf is not finite"),
        ("layer,neuron,weight\n2,0,1\n", r"line 2: layer 2 is outside the model's 0\.\.1"),
        ("layer,neuron,weight\n-1,0,1\n", "line 2: layer -1 is outside"),
        ("layer,neuron,weight\n0,4,1\n", r"line 2: neuron 4 is outside the model's 0\.\.3"),
        ("layer,neuron,weight\n0,1.5,1\n", r"line 2: neuron 1\.5 is not a whole number"),
        ("layer,neuron,weight\nzero,1,1\n", "line 2: layer 'zero' is not a whole number"),
        (f"layer,neuron,weight\n0,{'9' * 5000},1\n", "line 2: neuron inf is not a whole number"),
        ("layer,neuron,weight\n0,1,1\n1,1,1\n0,1,2\n", "line 4: layer 0, neuron 1 stands on line 2 already"),
        ("layer,neuron,weight\n0,1,0\n1,1,-0\n", "every weight is 0"),
        ('layer,neuron,weight\n0,1,1\n0,0,"1\n', "not a valid CSV file: after line 2: unexpected end"),
        ("\ud800", "not UTF-8 text"),
    ],
)
def test_faults_of_csv(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(BundleError, match=rf"list\.csv.*{says}"):
        read_neurons(file, 2, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: not a JSON list of objects: Expecting value"),
        ('{"layer": 0}', "line 1: not a JSON list of objects"),
        ("[]", "lists no neurons"),
        ("[\n1]", "line 2: not a JSON object"),
        (
            '[{"layer": 0, "neuron": 0, "weight": 1},\n]',
            "line [12]: not a JSON list of objects: (Expecting value|Illegal trailing comma)",
        ),
        ('[{"layer": 0, "neuron": 0, "weight": 1}\n', "line 2: not a JSON list of objects: Expecting ',' delimiter"),
        ('[{"layer": 0, "neuron": 0, "weight": 1}]\n[]', "line 2: .* Extra data"),
        ('[{"layer": 0, "neuron": 0,\n "weight": }]', "line 2: .* Expecting value"),
        ('[\n{"layer": 0, "weight": 1}]', "line 2: neuron is missing"),
        (
            '[\n{"layer": 0, "neuron": 0, "weight": 1},\n\n{"layer": 0, "neuron": "1", "weight": 1}]',
            "line 4: neuron '1'",
        ),
        ('[{"layer": true, "neuron": 0, "weight": 1}]', "line 1: layer True is not a whole number"),
        ('[{"layer": 0, "neuron": 0.0, "weight": 1}]', r"line 1: neuron 0\.0 is not a whole number"),
        ('[{"layer": 0, "neuron": 0, "weight": "1"}]', "line 1: weight '1' is not a number"),
        ('[{"layer": 0, "neuron": 0, "weight": null}]', "line 1: weight None is not a number"),
        ('[{"layer": 0, "neuron": 0, "weight": NaN}]', "line 1: weight nan is not finite"),
        (f'[{{"layer": 0, "neuron": 0, "weight": {10**400}}}]', "line 1: weight .* is not finite"),
        (f'[{{"layer": 0, "neuron": 0, "weight": {"9" * 5000}}}]', "line 1: weight inf is not finite"),
        (
            '[{"layer": 0, "neuron": 0, "weight": 1},\n\n{"layer": 0, "neuron": %s}]' % ("9" * 5000),
            "line 3: weight is missing",
        ),
        ('[{"layer": ' + "[" * 100_000, "nested too deeply"),
        ('[{"layer":0,"neuron":1,"weight":1},\n{"layer":0,"neuron":1,"weight":1}]', "line 2: .* on line 1 already"),
    ],
)
def test_faults_of_json(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "list.json"
    file.write_text(text)
    with pytest.raises(BundleError, match=rf"list\.json.*{says}"):
        read_neurons(file, 2, 4)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "layer,position,weight\n1,2,0.5\n0,3,-1\n"),
        ("a.csv", "rank,layer,neuron,coefficient\n1,1,2,0.5\n2,0,3,-1\n"),
        ("a.csv", "index,coefficient\n6,0.5\n3,-1\n"),
        ("a.json", '[{"layer": 1, "index": 2, "weight": 0.5}, {"layer": 0, "index": 3, "weight": -1}]'),
        ("a.json", '[{"index": 6, "weight": 0.5}, {"index": 3, "weight": -1}]'),
        ("a.json", '[{"layer": 1, "position": 2}, {"layer": 0, "position": 3}]'),
    ],
)
def test_other_names_say_which_neurons_and_not_how(tmp_path: Path, name: str, text: str) -> None:
    """Their coefficients are mostly of standardised features, which the list does not say."""
    (tmp_path / name).write_text(text)
    found = read_neurons(tmp_path / name, 2, 4, weights=False)
    assert (found.layer.tolist(), found.neuron.tolist(), found.weight.tolist()) == ([1, 0], [2, 3], [1, 1])
    with pytest.raises(BundleError, match=r"with --refit, or call the columns layer|weight is missing"):
        read_neurons(tmp_path / name, 2, 4)


def test_our_own_names_come_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("index,layer,neuron,coefficient,weight\n0,1,2,9,0.5\n")
    found = read_neurons(tmp_path / "a.csv", 2, 4)
    assert (found.layer.tolist(), found.neuron.tolist(), found.weight.tolist()) == ([1], [2], [0.5])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layer,weight\n0,1\n", "line 1: the header lacks neuron"),
        ("position\n0\n", "line 1: the header lacks layer"),
        ("index\n8\n", r"line 2: index 8 is outside the model's 0\.\.7"),
        ("layer,position\n0,4\n", r"line 2: neuron 4 is outside the model's 0\.\.3"),
        ("index,layer\n5,\n", "line 2: layer '' is not a whole number"),
        ("index\n5\n5\n", "line 3: layer 1, neuron 1 stands on line 2 already"),
    ],
)
def test_faults_of_a_list_without_weights(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(BundleError, match=rf"list\.csv.*{says}"):
        read_neurons(tmp_path / "list.csv", 2, 4, weights=False)


def test_suffixes(tmp_path: Path) -> None:
    for file in (tmp_path / "list", tmp_path / "list.tsv"):
        with pytest.raises(BundleError, match=r"is a \.csv or a \.json file"):
            read_neurons(file, 2, 4)
        with pytest.raises(BundleError, match=r"is a \.csv or a \.json file"):
            write_neurons(file, listed(np.ones(1, np.float32)))
        assert not file.exists()


def test_files_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match=r"none\.csv cannot be read: No such file"):
        read_neurons(tmp_path / "none.csv", 2, 4)
    with pytest.raises(BundleError, match=r"a\.csv cannot be written: No such file"):
        write_neurons(tmp_path / "none" / "a.csv", listed(np.ones(1, np.float32)))
    monkeypatch.setattr(module, "LARGEST", 1 << 20)
    (tmp_path / "large.csv").write_bytes(b"0" * ((1 << 20) + 1))
    with pytest.raises(BundleError, match=r"large\.csv is larger than 1 MiB"):
        read_neurons(tmp_path / "large.csv", 2, 4)

"""A probe bundle in twenty lines: whose it is, what it is worth, where its thresholds lie."""

from __future__ import annotations

from collections.abc import Iterator

from guard.probe.bundle import Bundle
from guard.probe.card import SetMetrics
from guard.probe.heads import Head
from guard.probe.signals import DISTANCE

_WIDTH = 13  # of the longest name
_ALL = "all"  # the set that holds all others
_SETS = 6
_BASELINES = ("entropy", "logprob", "length")  # what costs no probe


def lines(bundle: Bundle) -> Iterator[str]:
    """What ``hguard probe show`` prints."""
    for name, said in _rows(bundle):
        yield f"{name:<{_WIDTH}} {said}"


def described(name: str, head: Head) -> str:
    """What a head is, and of which layers."""
    layers = ", ".join(map(str, head.layer))
    if name == DISTANCE:
        return f"how far a question lies from those of the calibration, of layer {layers}, along {len(head.table)} axes"
    return f"a linear head on layers {layers}"


def _rows(bundle: Bundle) -> Iterator[tuple[str, str]]:
    card = bundle.card
    model, training, readout = card.model, card.training, card.readout
    yield "probe", f"{card.id}, revision {bundle.revision}, in {bundle.path}"
    yield "model", f"{model.id}, {model.dtype}, weights {model.fingerprint[:12]}, fit with {model.engine}"
    layers, share = len(set(bundle.layer.tolist())), bundle.h_neurons / (model.layers * model.neurons_per_layer)
    said = f"{bundle.h_neurons} are H-neurons: {share:.2%} of the model's"
    neurons = f"{len(bundle.neuron)} in {layers} of {model.layers} layers, of which {said}"
    yield "neurons", neurons if len(bundle.neuron) else "none: heads alone, so nothing can be scaled"
    for name, head in bundle.tapped_heads.items():
        yield name, f"{described(name, head)}, {head.width} numbers each"
    answers = ", ".join(f"{count} {part}" for part, count in training.answers.items())
    yield "fit", f"{training.method}; answers: {answers}"
    signals = ", ".join(f"{name} {term.weight:+.2f}" for name, term in readout.answer.signals.items())
    yield "risk", f"of windows of {readout.window} tokens: {signals} (weights of standardised signals)"
    if readout.calibrated_tokens is not None:
        yield "calibrated", f"on answers of at most {readout.calibrated_tokens} tokens; longer ones are marked"
    yield "before it", "a risk of the prompt alone" if readout.prompt_platt else "no risk of the prompt alone"
    yield "reference", "scores of a text that each start compares" if bundle.reference else "none"
    if not bundle.calibrated:
        yield "calibration", "none: `hguard calibrate` comes first"
    for target, threshold in card.thresholds.items():
        said = f"threshold {threshold:.3f}"
        if (at := (card.at_thresholds or {}).get(target)) is not None:
            said += f": withholds {at.caught:.1%} of wrong and {at.false_alarms:.1%} of right answers held out"
        yield f"at {float(target):.1%}", said
    ordered = sorted(card.metrics.items(), key=lambda one: (one[0] != _ALL, -one[1].n))
    for group, metrics in ordered[:_SETS]:
        yield f"on {group}", _worth(metrics)
    if len(ordered) > _SETS:
        yield "", f"and {len(ordered) - _SETS} smaller sets: --json has all of the card"


def _worth(metrics: SetMetrics) -> str:
    found = {name: interval.value for name, interval in metrics.auroc.items()}
    beside = "; ".join(f"{name} {found[name]:.3f}" for name in _BASELINES if name in found)
    wrong = f"{metrics.wrong} of {metrics.n} wrong"
    return f"{wrong}; AUROC {found['stack']:.3f}; {beside}" if "stack" in found else wrong

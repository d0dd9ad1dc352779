"""The model card that goes to the Hub with a bundle."""

from __future__ import annotations

from pathlib import Path

from guard.probe.bundle import Bundle
from guard.probe.card import SetMetrics


def readme(bundle: Bundle, address: str, base_model: str | None) -> str:
    """A short page: which model, how to serve it, what was measured; ``base_model`` is that model's id on the Hub."""
    card = bundle.card
    # A folder's name says as much as its whole path, which is nobody's business.
    model = base_model or Path(card.model.id).name
    front = ["---", "library_name: hneuron-guard", *([f"base_model: {base_model}"] if base_model else []), "---"]
    command = f"{base_model or (model if model == 'atlas' else 'MODEL')} --probe {address}"
    layers = len(set(bundle.layer.tolist()))
    about = (
        f"A probe of the hallucination neurons of `{model}` for hneuron-guard, revision `{bundle.revision}`. It reads "
        f"{len(bundle.neuron)} neurons, {bundle.h_neurons} of them with a positive weight, in {layers} of "
        f"{card.model.layers} layers, and serves no other weights than those that it was made for (fingerprint "
        f"`{card.model.fingerprint[:12]}`, {card.model.dtype})."
    )
    parts = ["\n".join(front), f"# {card.id}", about]
    if bundle.calibrated:
        parts.append(f"```bash\nhguard serve {command}\n```")
    else:
        parts.append("It is an imported list of neurons and **not calibrated**: no server takes it before this.")
        parts.append(f"```bash\nhguard calibrate {command} --data QUESTIONS --out DIR\n```")
    if card.metrics:
        parts.append("Detection of wrong answers on held-out questions, with 95 % bootstrap intervals:")
        parts.append(_table(card.metrics))
    return "\n\n".join(parts) + "\n"


def _table(metrics: dict[str, SetMetrics]) -> str:
    columns = list(dict.fromkeys(part for report in metrics.values() for part in report.auroc))
    head = ["answers", "n", "wrong", *(f"AUROC {part}" for part in columns), "ECE"]
    lines = [head, ["---"] * len(head)]
    for group, report in metrics.items():
        found = [report.auroc.get(part) for part in columns]
        aurocs = [f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" if one else "" for one in found]
        ece = "" if report.ece is None else f"{report.ece:.3f}"
        lines.append([group, str(report.n), str(report.wrong), *aurocs, ece])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

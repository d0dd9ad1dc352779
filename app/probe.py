"""``hguard probe``: look at bundles, take their neurons out and in, bring them to the Hugging Face Hub and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_ADDRESS = "a folder, or hf://owner/name@revision"


def add_parser(commands: Any) -> None:
    """Add the commands to ``hguard``'s."""
    probe = commands.add_parser("probe", help="look at probe bundles, import, export and share them")
    actions = probe.add_subparsers(dest="action", required=True)

    show = actions.add_parser("show", help="verify a bundle and print its card")
    show.set_defaults(run=_show)
    show.add_argument("probe", help=_ADDRESS)

    verify = actions.add_parser("verify", help="check a bundle's files, card and tensors, and that it fits a model")
    verify.set_defaults(run=_verify)
    verify.add_argument("probe", help=_ADDRESS)
    verify.add_argument("--model", help="folder or Hugging Face id of the model that it should fit")

    export = actions.add_parser("export", help="write a bundle's neurons as a list of layer, neuron, weight")
    export.set_defaults(run=_export)
    export.add_argument("probe", help=_ADDRESS)
    export.add_argument("--out", type=Path, required=True, help="a .csv or .json file")

    imported = actions.add_parser("import", help="make a bundle of such a list; it is yet to be calibrated")
    imported.set_defaults(run=_import)
    imported.add_argument("file", type=Path, help="a .csv or .json file")
    imported.add_argument("model", help="folder or Hugging Face id of the model whose neurons these are")
    imported.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    imported.add_argument("--id", help="name of the bundle (default: the model's name and -imported)")
    imported.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the model (default: the checkpoint's)"
    )

    push = actions.add_parser("push", help="verify a bundle and push it to the Hugging Face Hub, in one commit")
    push.set_defaults(run=_push)
    push.add_argument("folder", type=Path, help="folder of the bundle")
    push.add_argument("address", help="hf://owner/name[@branch]; repository and branch are made where missing")
    push.add_argument("--private", action="store_true", help="for nobody else's eyes")
    push.add_argument("--message", help="of the commit (default: the bundle's name and revision)")

    pull = actions.add_parser("pull", help="fetch a bundle from the Hugging Face Hub, verify and keep it")
    pull.set_defaults(run=_pull)
    pull.add_argument("address", help="hf://owner/name[@revision]: a branch, a tag or a commit")
    pull.add_argument("--out", type=Path, required=True, help="folder for the bundle")


def _show(options: argparse.Namespace, extra: list[str]) -> int:
    from app.info import card
    from app.source import locate
    from guard.probe.bundle import load_bundle

    print(json.dumps(card(load_bundle(locate(options.probe))), indent=2, ensure_ascii=False))
    return 0


def _verify(options: argparse.Namespace, extra: list[str]) -> int:
    """Print a line for each thing that holds; what does not is a GuardError."""
    from app.settings import Settings
    from app.source import find_model, locate
    from guard.probe.bundle import FILES, load_bundle, require_model

    folder = locate(options.probe)
    bundle = load_bundle(folder)
    card = bundle.card
    print(f"files        {' and '.join(FILES)}, in {folder}")
    print(f"card         {card.id}, schema version {card.schema_version}, revision {bundle.revision}")
    print(
        f"tensors      sha256 {card.tensors_sha256[:12]} as the card says; {len(bundle.neuron)} neurons, "
        f"{bundle.h_neurons} positive, in {len(set(bundle.layer.tolist()))} layers; finite, in range, none twice"
    )
    on = f"on {len(bundle.right_risks)} right answers" if bundle.calibrated else "none: `hguard calibrate` comes first"
    print(f"calibration  {on}")
    if options.model is not None:
        model, name = find_model(Settings(model=options.model))
        require_model(bundle, model)
        print(f"model        {name}: layers, neurons, weights and chat template are those that the probe was made for")
    return 0


def _export(options: argparse.Namespace, extra: list[str]) -> int:
    from app.source import locate
    from guard.probe.bundle import load_bundle
    from guard.probe.neurons import Neurons, write_neurons

    bundle = load_bundle(locate(options.probe))
    write_neurons(options.out, Neurons(bundle.layer, bundle.neuron, bundle.coefficient))
    print(f"{len(bundle.neuron)} neurons of {bundle.card.id} are in {options.out}")
    return 0


def _import(options: argparse.Namespace, extra: list[str]) -> int:
    from app.settings import Settings
    from app.source import find_model, label_of
    from guard.fit.imported import save_imported
    from guard.fit.weights import norms_of
    from guard.probe.identity import identify
    from guard.probe.neurons import read_neurons

    model, name = find_model(Settings(model=options.model))
    identity = identify(model, label_of(name), "none", options.dtype)  # no engine has measured anything yet
    neurons = read_neurons(options.file, identity.layers, identity.neurons_per_layer)
    norms = norms_of(model, identity.layers, identity.neurons_per_layer)
    chosen = options.id or f"{Path(name).name}-imported"
    bundle = save_imported(options.out, chosen, identity, neurons, norms)
    print(f"{bundle.card.id}, revision {bundle.revision}, is in {options.out}; it is not calibrated yet: run")
    print(f"  hguard calibrate {options.model} --probe {options.out} --data QUESTIONS --out DIR")
    return 0


def _push(options: argparse.Namespace, extra: list[str]) -> int:
    from guard.probe.hub import Address, push

    address = Address.parse(options.address)
    commit = push(options.folder, address, options.private, options.message)
    print(Address(address.repo, commit))
    return 0


def _pull(options: argparse.Namespace, extra: list[str]) -> int:
    from guard.probe.hub import Address, pull

    address = Address.parse(options.address)
    bundle, commit = pull(address, options.out)
    print(f"{bundle.card.id}, revision {bundle.revision}, of {Address(address.repo, commit)}, is in {options.out}")
    return 0

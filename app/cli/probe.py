"""``hguard probe``: look at bundles, take their neurons out and in, bring them to the Hugging Face Hub and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from app.cli.fit import add_asking, require_free
from app.cli.flags import add_flags
from guard.errors import FitError
from guard.training.config import FitConfig

_ADDRESS = "atlas, smollm2, a folder, or hf://owner/name@revision"


def add_parser(commands: Any) -> None:
    """Add the commands to ``hguard``'s."""
    probe = commands.add_parser("probe", help="look at probe bundles, import, export and share them")
    actions = probe.add_subparsers(dest="action", required=True)

    show = actions.add_parser("show", help="verify a bundle and print what its card says")
    show.set_defaults(run=_show)
    show.add_argument("probe", help=_ADDRESS)
    show.add_argument("--json", action="store_true", help="print the whole card, as GET /v1/probe gives it")

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
    imported.add_argument(
        "file",
        type=Path,
        help="a .csv or .json file, the folder of a probe that hprobes saved, or that of a linear head "
        "of hallucination_probes (probe_config.json, probe_head.bin)",
    )
    imported.add_argument("model", help="folder or Hugging Face id of the model whose neurons or states these are")
    imported.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    imported.add_argument("--id", help="name of the bundle (default: the model's name and -imported)")
    imported.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the model (default: the checkpoint's)"
    )
    imported.add_argument(
        "--refit",
        action="store_true",
        help="fit the listed neurons with L2 to the model's answers to --data, and calibrate: no weights are needed. "
        "The options below are for this alone, and as for `hguard fit`, whose defaults hold",
    )
    add_asking(imported, required=False)
    add_flags(imported, FitConfig, only=("max_tokens", "samples", "temperature", "min_agreement", "seed"))

    reference = actions.add_parser(
        "reference",
        help="keep what the model says and does under a bundle beside it, for each later start to compare with",
        epilog="Nothing is fit anew, and the bundle's revision stays. What follows -- goes to vLLM.",
    )
    reference.set_defaults(run=_reference)
    reference.add_argument("model", help="folder or Hugging Face id of the model that the bundle was made for")
    reference.add_argument("--probe", required=True, help="folder of the bundle")
    reference.add_argument("--compiled", action="store_true", help="compile the model on CPU")

    push = actions.add_parser("push", help="verify a bundle and push it to the Hugging Face Hub, in one commit")
    push.set_defaults(run=_push)
    push.add_argument("folder", type=Path, help="folder of the bundle")
    push.add_argument("address", help="hf://owner/name[@branch]; repository and branch are made where missing")
    push.add_argument("--private", action="store_true", help="create a private repository")
    push.add_argument("--message", help="of the commit (default: the bundle's name and revision)")

    pull = actions.add_parser("pull", help="fetch a bundle from the Hugging Face Hub, verify and keep it")
    pull.set_defaults(run=_pull)
    pull.add_argument("address", help="hf://owner/name[@revision]: a branch, a tag or a commit")
    pull.add_argument("--out", type=Path, required=True, help="folder for the bundle")


def _show(options: argparse.Namespace, extra: list[str]) -> int:
    from app.cli.printing import summary
    from app.cli.printing.terminal import printable
    from app.resolver import locate
    from app.server.system import card
    from guard.probe.bundle import load_bundle

    bundle = load_bundle(locate(options.probe))
    if options.json:
        print(json.dumps(card(bundle), indent=2, ensure_ascii=False))
    else:
        print("\n".join(map(printable, summary.lines(bundle))))
    return 0


def _verify(options: argparse.Namespace, extra: list[str]) -> int:
    """Print a line for each thing that holds; what does not is a GuardError."""
    from app.cli.printing.summary import described
    from app.resolver import find_model, locate
    from app.settings import settings_from
    from guard.probe.bundle import FILES, load_bundle, require_model

    folder = locate(options.probe)
    bundle = load_bundle(folder)
    card = bundle.card
    print(f"files        {' and '.join(FILES)}, in {folder}")
    print(f"card         {card.id}, schema version {card.schema_version}, revision {bundle.revision}")
    neurons = (
        f"{len(bundle.neuron)} neurons, {bundle.h_neurons} positive, in {len(set(bundle.layer.tolist()))} layers; "
        "finite, in range, none twice"
    )
    said = neurons if len(bundle.neuron) else "no neurons"
    print(f"tensors      sha256 {card.tensors_sha256[:12]} as the card says; {said}")
    for name, head in bundle.tapped_heads.items():
        print(f"{name:<12} {described(name, head)}; finite, ascending")
    on = f"on {len(bundle.right_risks)} right answers" if bundle.calibrated else "none: `hguard calibrate` comes first"
    print(f"calibration  {on}")
    reference = bundle.reference
    said = "none: `hguard probe reference` makes one"
    if reference is not None:
        said = f"scores of {len(reference.prompt)} tokens by {reference.engine} in {reference.dtype}, and a config.json"
    print(f"reference    {said}")
    if options.model is not None:
        model, name = find_model(settings_from({"model": options.model}))
        require_model(bundle, model)
        config = ", config.json" if reference is not None else ""
        print(
            f"model        {name}: layers, neurons, weights{config} and chat template are those that the probe was "
            "made for"
        )
    return 0


def _export(options: argparse.Namespace, extra: list[str]) -> int:
    from app.resolver import locate
    from guard.probe.bundle import load_bundle
    from guard.probe.foreign.neurons import Neurons, write_neurons

    bundle = load_bundle(locate(options.probe))
    if not len(bundle.neuron):
        raise FitError(f"{bundle.card.id} reads no neurons, so there is no list of them")
    write_neurons(options.out, Neurons(bundle.layer, bundle.neuron, bundle.coefficient))
    print(f"{len(bundle.neuron)} neurons of {bundle.card.id} are in {options.out}")
    return 0


def _import(options: argparse.Namespace, extra: list[str]) -> int:
    from app.resolver import find_model, label_of
    from app.settings import settings_from
    from guard.probe.cett import norms_of
    from guard.probe.foreign.linear import is_linear, read_linear
    from guard.probe.identity import identify, model_config
    from guard.training.imported import listed, save_imported, save_imported_head

    require_free(options.out, unless="work" if options.refit else None)  # a refit that was stopped goes on
    if options.refit:
        if is_linear(options.file):
            raise FitError(
                "--refit fits neurons, and this is a head: `hguard fit --signals block` finds one of its own"
            )
        return _refit(options, extra)
    if options.data is not None:
        raise FitError("--data is for --refit; `hguard calibrate` takes questions for what was imported without it")
    model, name = find_model(settings_from({"model": options.model}))
    identity = identify(model, label_of(name), "none", options.dtype)  # no engine has measured anything yet
    chosen = options.id or f"{Path(name).name}-imported"
    if is_linear(options.file):
        probe = read_linear(options.file, identity.layers, int(model_config(model)["hidden_size"]))
        bundle = save_imported_head(options.out, chosen, identity, probe)
    else:
        neurons = listed(options.file, identity)
        norms = norms_of(model, identity.layers, identity.neurons_per_layer)
        bundle = save_imported(options.out, chosen, identity, neurons, norms)
    print(f"{bundle.card.id}, revision {bundle.revision}, is in {options.out}; it is not calibrated yet: run")
    print(f"  hguard calibrate {options.model} --probe {options.out} --data QUESTIONS --out DIR")
    return 0


def _refit(options: argparse.Namespace, extra: list[str]) -> int:
    """``hguard fit --neurons``, under the name that an imported bundle has."""
    from app.cli import fit
    from app.resolver import find_model
    from app.settings import settings_from

    if options.data is None:
        raise FitError("--refit fits the neurons to the model's answers: give questions with --data")
    parser = argparse.ArgumentParser()
    fit.add_parser(parser.add_subparsers())
    own = vars(parser.parse_args(["fit", options.model, "--out", str(options.out), "--data", options.data]))
    declared = {*own, *FitConfig.model_fields} - {"refit"}  # which here asks for all of this
    given = {name: value for name, value in vars(options).items() if name in declared and value is not None}
    name = options.id or f"{Path(find_model(settings_from({'model': options.model}))[1]).name}-imported"
    return fit.run(argparse.Namespace(**{**own, **given, "neurons": options.file, "id": name}), extra)


def _reference(options: argparse.Namespace, extra: list[str]) -> int:
    from app.resolver import find_model, find_probe
    from app.settings import settings_from
    from guard.harness.store import translate_os_errors
    from guard.launch.engines import engine_arguments, guarded_engine, run_engines
    from guard.policy import Mode, Policy
    from guard.probe.bundle import load_bundle, require_model
    from guard.probe.reference import FILE, Reference, write_reference

    given = settings_from({"model": options.model, "probe": options.probe})
    model, name = find_model(given)
    if options.probe.startswith("hf://"):
        raise FitError("a reference is written into a folder: `hguard probe pull` makes one of what is on the Hub")
    # Whatever reference there is does not count: this is how it is replaced.
    bundle = load_bundle(find_probe(given), with_reference=False)
    require_model(bundle, model)
    args = engine_arguments(model, name, bundle, options.compiled, extra)

    async def made() -> Reference:
        from guard.launch.engines import self_test_prompt
        from guard.launch.self_test import make_reference

        async with guarded_engine(args, bundle, Policy(Mode.SCORE, 0.5), slots=1) as engine:
            return await make_reference(engine, self_test_prompt(engine))

    reference = run_engines(made())
    with translate_os_errors(bundle.path):
        write_reference(bundle.path, reference)
    load_bundle(bundle.path)
    print(f"{bundle.path / FILE} has what {name} does in {len(reference.scores)} layers, in {reference.dtype}")
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
    require_free(options.out)
    bundle, commit = pull(address, options.out)
    print(f"{bundle.card.id}, revision {bundle.revision}, of {Address(address.repo, commit)}, is in {options.out}")
    return 0

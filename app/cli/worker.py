"""``hguard worker``: a further node of an engine that spreads over several machines. It has no API."""

from __future__ import annotations

import argparse
from typing import Any

from app.cli.flags import add_flags
from app.settings import Settings, settings_from

SHARED = ("model", "revision", "probe", "served_model_name", "compile", "relaxed")  # must be as the first node has them


def add_parser(commands: Any) -> None:
    """Add the command to ``hguard``'s."""
    parser = commands.add_parser(
        "worker",
        help="a further node of a guarded model that spreads over several machines",
        epilog="What follows -- goes to vLLM, as on the first node, but for --node-rank: "
        "--nnodes 2 --node-rank 1 --master-addr FIRST --tensor-parallel-size 2.",
    )
    parser.set_defaults(run=run)
    add_flags(parser, Settings, only=SHARED, positional="model", text="as for serve, and as on the first node")


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Take part until the engine ends. Raises GuardError for what does not fit together, and when a worker ended."""
    from app.server.app import matched
    from guard.launch.engines import engine_arguments
    from guard.launch.multinode import run_workers

    settings = settings_from({name: value for name, value in vars(options).items() if name in SHARED})
    model, name, bundle = matched(settings)
    args = engine_arguments(model, name, bundle, settings.compile, extra, settings.relaxed)
    print(f"hguard: starting node {args.node_rank} of {args.nnodes} for {name} ...", flush=True)
    run_workers(args, lambda: print(f"hguard: node {args.node_rank} is part of {name}", flush=True))
    return 0

